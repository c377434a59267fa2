//! The script of the original's slides, word for word. Tests are called as the acceptance tests are.

mod support;

use controller_api::Kind;
use fabricctl::session::Options;
use support::{Running, done, refused, run};

const DECK: &str = include_str!("deck-script.txt");

fn lenient() -> Options {
    Options {
        lenient: true,
        ..Options::default()
    }
}

#[test]
fn p4_the_42_lines_run_verbatim_and_the_second_half_changes_nothing() {
    let running = Running::start();
    let mut session = running.session_with(lenient());
    let lines: Vec<_> = DECK.lines().collect();
    assert_eq!(lines.len(), 42);
    let (first, second) = lines.split_at(21);
    let output = run(&mut session, &first.join("\n")).unwrap();
    assert_eq!(
        output
            .lines()
            .filter(|line| line.ends_with(" created"))
            .count(),
        11
    );
    assert_eq!(
        output
            .lines()
            .filter(|line| line.ends_with(" changed"))
            .count(),
        10
    );
    let revision = session.client().system().unwrap().revision;
    let output = run(&mut session, &second.join("\n")).unwrap();
    assert!(
        output.lines().all(|line| line.ends_with(" unchanged")),
        "{output}"
    );
    assert_eq!(session.client().system().unwrap().revision, revision);
}

#[test]
fn p4_without_lenient_the_stray_quotation_mark_is_named_with_its_line() {
    let running = Running::start();
    let error = run(&mut running.session(), DECK).unwrap_err().to_string();
    assert!(error.starts_with("line 1: \" has no second one"), "{error}");
    assert!(error.contains("--lenient"), "{error}");
}

#[test]
fn p1_p8_a_profile_is_there_before_its_server() {
    let running = Running::start();
    let mut session = running.session_with(lenient());
    run(&mut session, DECK).unwrap();
    let shown = done(&mut session, "show server-profile");
    assert!(
        shown.contains("HP_DL360@ExtSw-b8cffff004401-Port16"),
        "{shown}"
    );
    assert!(shown.contains("up/unassigned"), "{shown}");
    for line in [
        "add director director1 -listen=tcp:127.0.0.1:7471",
        "add iocard 10 10x1ge",
        "add host host1",
        "set physical-server HP_DL360@ExtSw-b8cffff004401-Port16 -host=host1",
    ] {
        done(&mut session, line);
    }
    // It deploys with no other input: the lab file has all its devices.
    let desired = running.controller.desired();
    let text = desired.borrow().lab_file("host1").unwrap().to_owned();
    let lab: fabric_config::LabConfig = text.parse().unwrap();
    let host = lab.host("host1").unwrap();
    let names: Vec<_> = host.vnics().map(|vnic| vnic.name.clone()).collect();
    assert_eq!(names.len(), 10);
    assert_eq!(names[0], "vn01.server1");
    let shown = done(&mut session, "show vnic vn01.server1");
    assert!(shown.contains("up/indeterminate"), "{shown}");
}

#[test]
fn p2_duplicates_are_refused_and_all_end_at_one_port() {
    let running = Running::start();
    let mut session = running.session_with(lenient());
    run(&mut session, DECK).unwrap();
    let views = session.client().list(Kind::Vnic, "*.server1").unwrap();
    assert_eq!(views.len(), 10);
    assert!(views.iter().all(|view| view.fields["if"] == "10/1"));
    let error = refused(&mut session, "add vnic vn01.server1 11/1");
    assert_eq!(
        error,
        "vnic vn01.server1: it exists with another if; use set to change it, or another name"
    );
}

#[test]
fn p3_addresses_are_kept_and_shown() {
    let running = Running::start();
    let mut session = running.session_with(lenient());
    run(&mut session, DECK).unwrap();
    let shown = done(&mut session, "show vnic *.server1 where type = static");
    for number in 201..=210 {
        assert!(shown.contains(&format!("192.168.10.{number}")), "{shown}");
    }
    assert!(shown.ends_with("10 records displayed\n"), "{shown}");
    let one = done(&mut session, "show vnic vn03.server1 -detail");
    assert!(one.contains("netmask            255.255.255.0"), "{one}");
}
