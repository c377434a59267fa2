//! What can be said is done: a controller and the language together.

mod support;

use controller_api::Kind;
use fabricctl::session::Options;
use support::{Running, done, refused, run, write};

const SITE: &str = "
add director director1 -listen=tcp:127.0.0.1:7471
add iocard 10 ethernet
add iocard 4 san
add host host1
add host host2
add server-profile web1 vm1@host1
add vnic vn01.web1 10/1
add vnic vn02.web1 10/2
";

fn site() -> (Running, fabricctl::session::Session) {
    let running = Running::start();
    let mut session = running.session();
    for line in SITE.lines() {
        done(&mut session, line);
    }
    (running, session)
}

#[test]
fn wildcards_filters_and_pipes_choose_what_is_shown_and_changed() {
    let (running, mut session) = site();
    assert_eq!(
        done(&mut session, "show -list vnics"),
        "vn01.web1\nvn02.web1\n"
    );
    let shown = done(
        &mut session,
        "show vnic * where if = 10/2 | grep -v displayed",
    );
    assert!(
        shown.contains("vn02.web1") && !shown.contains("vn01.web1"),
        "{shown}"
    );
    done(&mut session, "set vnic *.web1 -mtu=1400");
    let file = running.folder.path().join("all");
    done(
        &mut session,
        &format!("show -list vnic * where mtu < 1500 > {}", file.display()),
    );
    assert_eq!(
        std::fs::read_to_string(file).unwrap(),
        "vn01.web1\nvn02.web1\n"
    );
    done(&mut session, "var all = `show -list vnic vn01*`");
    assert!(done(&mut session, "show vnic $all -detail").contains("mtu                1400"));
    assert!(refused(&mut session, "show vnic $none").contains("there is no variable none"));
    assert!(refused(&mut session, "remove vnic *.web9").contains("no vnic is called *.web9"));
    done(&mut session, "remove vnic *.web1 -noconfirm");
    assert_eq!(done(&mut session, "show -list vnics"), "");
}

#[test]
fn a_removal_without_a_yes_removes_nothing() {
    let running = Running::start();
    let client = fabricctl::client::Client::new(&running.socket(), None);
    let mut session = fabricctl::session::Session::new(client, Options::default(), |_| false);
    run(&mut session, SITE).unwrap();
    assert!(refused(&mut session, "remove vnic vn01.web1").contains("nobody said yes"));
    done(&mut session, "remove vnic vn01.web1 -noconfirm");
}

#[test]
fn p5_a_profile_moves_in_one_command_with_its_addresses() {
    let (running, mut session) = site();
    let mac = |session: &fabricctl::session::Session| {
        session.client().list(Kind::Vnic, "vn01.web1").unwrap()[0].fields["mac"].clone()
    };
    let before = mac(&session);
    done(&mut session, "set server-profile web1 connect vm7@host2");
    assert_eq!(mac(&session), before);
    let vnics = |host: &str| {
        let desired = running.controller.desired().borrow().clone();
        let lab: fabric_config::LabConfig = desired.lab_file(host).unwrap().parse().unwrap();
        lab.host(host).unwrap().vnics().count()
    };
    assert_eq!((vnics("host1"), vnics("host2")), (0, 2));
}

#[test]
fn p7_a_template_goes_to_many_servers_in_one_command() {
    let (_running, mut session) = site();
    for number in 1..=12 {
        done(&mut session, &format!("add server-profile app{number}"));
    }
    done(&mut session, "add template web");
    done(&mut session, "set template web vnic eth0 10/1 -mtu=1400");
    let output = done(&mut session, "set server-profile app* apply-template web");
    assert_eq!(output.lines().count(), 12);
    assert_eq!(
        done(&mut session, "show -list vnic eth0.*").lines().count(),
        12
    );
    done(
        &mut session,
        "set physical-server vm1 apply-io-template web",
    );
    assert_eq!(
        done(&mut session, "show -list vnic eth0.web1"),
        "eth0.web1\n"
    );
}

#[test]
fn a_dry_run_shows_the_difference_and_undo_takes_back() {
    let (running, mut session) = site();
    let options = Options {
        dry_run: true,
        ..Options::default()
    };
    let mut dry = running.session_with(options);
    assert_eq!(
        done(&mut dry, "set vnic vn01.web1 -mtu=1400"),
        "~ vnic vn01.web1\n    mtu: default -> 1400\n"
    );
    done(&mut session, "set vnic vn01.web1 -mtu=1400");
    assert_eq!(
        done(&mut dry, "undo"),
        "~ vnic vn01.web1\n    mtu: 1400 -> default\n"
    );
    done(&mut session, "undo");
    assert!(done(&mut session, "set vnic vn01.web1 -mtu=1400").contains("changed"));
    let log = done(&mut session, "show audit");
    assert!(log.contains("set vnic vn01.web1 -mtu=1400"), "{log}");
    assert!(log.contains("undo of revision"), "{log}");
}

#[test]
fn a_file_is_applied_as_a_whole_and_again_without_an_effect() {
    let (running, mut session) = site();
    let text = "[server-profile.db1]\n[vnic.\"vn01.db1\"]\nif = \"10/3\"\nmtu = 1400\n";
    let file = write(running.folder.path(), "site.toml", text);
    assert!(
        session
            .apply(&file)
            .unwrap()
            .contains("vnic vn01.db1 created")
    );
    let again = session.apply(&file).unwrap();
    assert!(
        again.lines().all(|line| line.ends_with("unchanged")),
        "{again}"
    );
    let lines = "add vnic a.db1 10/4\n\nadd vnic b.db1 10/999\n";
    let file = write(running.folder.path(), "lines", lines);
    let error = session.apply(&file).unwrap_err().to_string();
    assert!(error.starts_with("line 3: vnic b.db1: "), "{error}");
    assert_eq!(done(&mut session, "show -list vnic a.db1*"), "");
}

#[test]
fn an_export_imported_elsewhere_is_the_same() {
    let (running, mut session) = site();
    let file = running.folder.path().join("backup.json");
    done(&mut session, &format!("system export {}", file.display()));
    let other = Running::start();
    let mut elsewhere = other.session();
    done(
        &mut elsewhere,
        &format!("system import {} -noconfirm", file.display()),
    );
    assert_eq!(
        done(&mut elsewhere, "show config"),
        done(&mut session, "show config")
    );
    assert_eq!(
        done(&mut elsewhere, &format!("system import {}", file.display())),
        ""
    );
}

#[test]
fn a_recorded_session_is_a_script() {
    let running = Running::start();
    let mut session = running.session();
    let file = running.folder.path().join("script");
    done(
        &mut session,
        &format!("cli record-script {}", file.display()),
    );
    done(&mut session, "add server-profile web1");
    refused(&mut session, "add vnic vn01.nobody 10/1");
    done(&mut session, "add vnic vn01.web1 10/1");
    done(&mut session, "cli stop-recording");
    done(&mut session, "show vnic");
    let text = std::fs::read_to_string(file).unwrap();
    assert_eq!(text, "add server-profile web1\nadd vnic vn01.web1 10/1\n");
    run(&mut Running::start().session(), &text).unwrap();
}

#[test]
fn roles_are_enforced_for_every_request() {
    let (running, mut session) = site();
    for role in ["network", "storage", "server", "operators"] {
        done(&mut session, &format!("add user {role} -role={role}"));
    }
    for (user, line, may) in [
        ("network", "set vnic vn01.web1 -mtu=1400", true),
        ("network", "add lun data 4/1 -ram=64M", false),
        ("storage", "add lun data 4/1 -ram=64M", true),
        ("storage", "set vnic vn01.web1 -mtu=1300", false),
        ("server", "add server-profile web2", true),
        ("server", "add iocard 11 ethernet", false),
        ("operators", "show vnic", true),
        ("operators", "show audit", true),
        ("operators", "show config", true),
        ("operators", "show alarms", true),
        ("operators", "set vnic vn01.web1 -mtu=1300", false),
        ("operators", "undo", false),
        ("operators", "system import /dev/null", false),
        ("stranger", "show vnic", false),
        ("stranger", "show audit", false),
        ("stranger", "show config", false),
        ("stranger", "show alarms", false),
    ] {
        let result = running.session_as(user).line(line);
        assert_eq!(result.is_ok(), may, "{user}: {line}: {result:?}");
    }
}

#[test]
fn the_language_has_help_completions_and_a_man_page() {
    for noun in fabricctl::nouns::ALL {
        let help = fabricctl::help::text(&[noun.title()]);
        assert!(help.starts_with(&format!("{}: ", noun.title())), "{help}");
        assert!(!noun.columns.is_empty());
    }
    let mut page = Vec::new();
    fabricctl::manual::man(clap::Command::new("fabricctl"), &mut page).unwrap();
    let page = String::from_utf8(page).unwrap();
    assert!(page.contains("add vnic vn01.server1 10/1"), "{page}");
    let mut script = Vec::new();
    let shell = clap_complete::Shell::Bash;
    fabricctl::manual::completions(clap::Command::new("fabricctl"), shell, &mut script);
    assert!(String::from_utf8(script).unwrap().contains("--ip-addr"));
}
