//! A controller with a real director and real host agents: what `fabricctl` says is what they do.
#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test")]
#![expect(
    clippy::indexing_slicing,
    reason = "a failed expectation is a failed test"
)]

use std::collections::BTreeSet;

use nix::sys::signal::Signal;
use orimono_tests::devices::net::{NetGuest, frame};
use orimono_tests::lab::{Site, until};

/// The rate that the test of changes promises, as control sockets write it: bits a second.
const CIR: &str = "100000000";

/// A director, and hosts with sockets in the site's folder.
fn site(hosts: &[&str]) -> Site {
    let mut site = Site::start().unwrap();
    site.lines(
        "add director director1 -listen=tcp:127.0.0.1:7471
         add iocard 10 ethernet
         add iocard 12 san",
    )
    .unwrap();
    site.start_director("director1").unwrap();
    for host in hosts {
        let run_dir = site.run_dir(host);
        site.ctl(&format!("add host {host} -run-dir={}", run_dir.display()))
            .unwrap();
        site.start_host(host).unwrap();
    }
    site
}

/// The device sockets of a host.
fn sockets(site: &Site, host: &str) -> BTreeSet<String> {
    let files = std::fs::read_dir(site.run_dir(host)).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    names.collect()
}

/// The devices at all hops of a process, with what is promised to each, in bits a second.
fn devices(site: &Site, node: &str) -> BTreeSet<(String, String)> {
    let hops = site.ask(node, "state").unwrap();
    let hops = hops.as_array().unwrap().iter();
    let devices = hops.filter_map(|hop| hop.pointer("/snapshot/devices")?.as_array().cloned());
    let devices = devices.flatten().map(|device| {
        let name = device["name"].as_str().unwrap().to_owned();
        (name, device["rate"]["cir"].to_string())
    });
    devices.collect()
}

fn names(site: &Site, node: &str) -> BTreeSet<String> {
    devices(site, node)
        .into_iter()
        .map(|(name, _)| name)
        .collect()
}

#[test]
fn a_vnic_comes_is_changed_and_goes_at_director_and_host() {
    let site = site(&["host1"]);
    site.lines(
        "add server-profile server1 vm1@host1
         add vnic vn01.server1 10/1",
    )
    .unwrap();
    site.wait_state("vnic vn01.server1", "up/up").unwrap();
    assert_eq!(
        sockets(&site, "host1"),
        ["vn01.server1.sock".to_owned()].into()
    );
    let one: BTreeSet<_> = ["vn01.server1".to_owned()].into();
    assert_eq!(
        (names(&site, "host1"), names(&site, "director1")),
        (one.clone(), one)
    );

    site.ctl(
        "set vnic vn01.server1 -addr-type=static -ip-addr=192.168.10.201 -netmask=255.255.255.0",
    )
    .unwrap();
    site.wait_state("vnic vn01.server1", "up/up").unwrap();
    for node in ["host1", "director1"] {
        let lab = std::fs::read_to_string(site.node(node).join("lab.toml")).unwrap();
        assert!(lab.contains("192.168.10.201"), "{lab}");
    }
    assert!(
        site.ctl("show vnic vn01.server1")
            .unwrap()
            .contains("192.168.10.201")
    );

    site.lines(
        "add qos network test/a -cir=100m -pir=1g
         set vnic vn01.server1 ingress-qos -policer=test/a",
    )
    .unwrap();
    // The director schedules nothing that its guests send, as the port has no rate.
    until("the new rate at the host", || {
        let devices = devices(&site, "host1").into_iter();
        let mut promised = devices.filter(|(name, cir)| name == "vn01.server1" && cir == CIR);
        Ok(promised.next().is_some())
    })
    .unwrap();
    site.wait_state("vnic vn01.server1", "up/up").unwrap();

    site.ctl("remove vnic vn01.server1 -noconfirm").unwrap();
    until("nothing left", || {
        let left = [names(&site, "host1"), names(&site, "director1")];
        Ok(left.iter().all(BTreeSet::is_empty) && sockets(&site, "host1").is_empty())
    })
    .unwrap();
    assert!(site.ctl("show vnic vn01.server1").is_err());
    site.ctl("remove server-profile server1 -noconfirm")
        .unwrap();
    let port = "orimono10p1";
    until("the port to be gone", || {
        Ok(!site.namespace.ip("-br link")?.contains(port))
    })
    .unwrap();
}

/// Two vNICs of a profile on `host1`, up.
fn two_vnics(hosts: &[&str]) -> Site {
    let site = site(hosts);
    site.lines(
        "add server-profile server1 vm1@host1
         add vnic vn01.server1 10/1
         add vnic vn02.server1 10/1",
    )
    .unwrap();
    for vnic in ["vn01.server1", "vn02.server1"] {
        site.wait_state(&format!("vnic {vnic}"), "up/up").unwrap();
    }
    site
}

#[test]
fn a_word_that_is_refused_shows_at_its_device_with_the_reason() {
    let site = two_vnics(&["host1"]);
    let mac = |text: &str| {
        site.ctl(&format!("set vnic vn01.server1 -mac={text}"))
            .unwrap()
    };
    let shown = site.show("vnic vn01.server1").unwrap();
    let old = shown[0]
        .pointer("/fields/mac")
        .unwrap()
        .as_str()
        .unwrap()
        .to_owned();
    mac("02:00:00:00:00:99");
    let reason = site.wait_state("vnic vn01.server1", "up/refused").unwrap();
    assert!(
        reason.contains("mac cannot change while it runs"),
        "{reason}"
    );
    let shown = site.show("vnic vn01.server1").unwrap();
    let pending = shown[0].pointer("/status/pending/mac").unwrap().to_string();
    assert!(pending.contains("raise its generation"), "{pending}");
    let detail = site.ctl("show vnic vn01.server1 -detail").unwrap();
    assert!(
        detail.contains("pending mac") && detail.contains("raise its generation"),
        "{detail}"
    );
    // Who is not concerned is up, and the profile says what is wrong in it.
    site.wait_state("vnic vn02.server1", "up/up").unwrap();
    site.wait_state("server-profile server1", "up/refused")
        .unwrap();
    assert!(
        site.ctl("show alarms")
            .unwrap()
            .contains("mac cannot change")
    );
    // What comes in the same file is not in force either.
    site.ctl("add vnic vn03.server1 10/1").unwrap();
    let reason = site.wait_state("vnic vn03.server1", "up/refused").unwrap();
    assert!(
        reason.contains("vnic vn01.server1: mac cannot change"),
        "{reason}"
    );
    mac(&old);
    for vnic in ["vn01.server1", "vn02.server1", "vn03.server1"] {
        site.wait_state(&format!("vnic {vnic}"), "up/up").unwrap();
    }
    assert!(!site.ctl("show alarms").unwrap().contains("mac"));
}

#[test]
fn a_director_that_cannot_open_a_lun_is_seen_at_the_vhba() {
    let site = site(&["host1"]);
    let medium = site.folder().join("medium");
    site.lines(&format!(
        "add lun data 12/1 -file={}
         add server-profile server1 vm1@host1
         add vhba vh01.server1 12/1 -luns=0:data",
        medium.display()
    ))
    .unwrap();
    let reason = site.wait_state("vhba vh01.server1", "up/refused").unwrap();
    assert!(
        reason.contains("director1") && reason.contains("lun data"),
        "{reason}"
    );
    std::fs::File::create(&medium)
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    // Something else is changed, so the director is told again.
    site.ctl("set vhba vh01.server1 -descr=again").unwrap();
    site.ctl("add vnic vn01.server1 10/1").unwrap();
    site.wait_state("vhba vh01.server1", "up/up").unwrap();
    site.wait_state("vnic vn01.server1", "up/up").unwrap();
}

#[test]
fn a_change_is_pending_field_by_field_until_all_have_taken_it() {
    let site = two_vnics(&["host1"]);
    let host = site.process("host1").unwrap();
    host.signal(Signal::SIGSTOP).unwrap();
    site.ctl("set vnic vn01.server1 -addr-type=static -ip-addr=192.168.10.7")
        .unwrap();
    let (state, reason) = site.state("vnic vn01.server1").unwrap();
    assert_eq!(state, "up/busy", "{reason}");
    let shown = site.show("vnic vn01.server1").unwrap();
    let pending = shown[0]
        .pointer("/status/pending")
        .unwrap()
        .as_object()
        .unwrap();
    assert!(
        pending.contains_key("ip-addr") && !pending.contains_key("mac"),
        "{pending:?}"
    );
    assert_eq!(site.state("vnic vn02.server1").unwrap().0, "up/up");
    host.signal(Signal::SIGCONT).unwrap();
    site.wait_state("vnic vn01.server1", "up/up").unwrap();
}

/// Numbered frames from `vn01` to `vn02` of `server1`, all of which have to arrive in their order.
struct Traffic {
    from: NetGuest,
    to: NetGuest,
    macs: [[u8; 6]; 2],
    number: u32,
}

impl Traffic {
    fn start(site: &Site) -> Self {
        let connect = |vnic: &str| {
            let path = site.run_dir("host1").join(format!("{vnic}.server1.sock"));
            let mut guest = NetGuest::connect(&path, 1).unwrap();
            guest.post(0, 200).unwrap();
            guest
        };
        let mac = |vnic: &str| {
            let shown = site.show(&format!("vnic {vnic}.server1")).unwrap();
            let text = shown[0]
                .pointer("/fields/mac")
                .unwrap()
                .as_str()
                .unwrap()
                .to_owned();
            let mut bytes = text
                .split(':')
                .map(|byte| u8::from_str_radix(byte, 16).unwrap());
            std::array::from_fn(|_| bytes.next().unwrap())
        };
        let mut traffic = Self {
            from: connect("vn01"),
            to: connect("vn02"),
            macs: [mac("vn01"), mac("vn02")],
            number: 0,
        };
        // The lanes are there once a frame gets through.
        loop {
            traffic.send(u32::MAX);
            for _ in 0..1000 {
                if traffic.own().is_some() {
                    return traffic;
                }
                std::thread::yield_now();
            }
        }
    }

    fn frame(&self, number: u32) -> Vec<u8> {
        frame(self.macs[1], self.macs[0], number, 600)
    }

    fn send(&mut self, number: u32) {
        self.from.send(0, &self.frame(number)).unwrap();
        self.from.wait_sent(0).unwrap();
    }

    /// A frame of ours, if one is there.
    fn own(&mut self) -> Option<Vec<u8>> {
        let received = self.to.poll(0).unwrap()?;
        self.to.post(0, 1).unwrap();
        let ours = received.frame[6..12] == self.macs[0];
        ours.then_some(received.frame)
    }

    /// Sends frames one by one and expects each.
    fn run(&mut self, frames: u32) {
        for _ in 0..frames {
            let number = self.number;
            self.number += 1;
            self.send(number);
            let expected = self.frame(number);
            let beginning = self.frame(u32::MAX);
            until("the frame", || match self.own() {
                Some(frame) if frame == beginning => Ok(false),
                Some(frame) => Ok(frame == expected),
                None => Ok(false),
            })
            .unwrap();
        }
    }
}

#[test]
fn h6_frames_pass_while_the_controller_is_killed_and_comes_back_and_adopts() {
    let mut site = two_vnics(&["host1"]);
    let mut traffic = Traffic::start(&site);
    traffic.run(100);
    site.kill("controller").unwrap();
    traffic.run(500);
    site.start_controller().unwrap();
    traffic.run(100);
    for vnic in ["vn01.server1", "vn02.server1"] {
        site.wait_state(&format!("vnic {vnic}"), "up/up").unwrap();
    }
    // Nobody was told to do anything, and nobody lost a session.
    assert_eq!(
        site.process("director1")
            .unwrap()
            .count_lines("session closed"),
        0
    );
    assert!(site.ctl("show alarms").unwrap().lines().count() <= 3);
    site.ctl("add vnic vn03.server1 10/1").unwrap();
    site.wait_state("vnic vn03.server1", "up/up").unwrap();
    traffic.run(100);
}

/// A host agent and a director are killed right after something was added or removed: once they are
/// back, all agree.
#[test]
fn h6_model_director_and_host_agree_after_agents_were_killed_at_any_step() {
    let mut site = two_vnics(&["host1"]);
    for (round, victim) in ["host1", "director1", "host1", "director1"]
        .iter()
        .enumerate()
    {
        let vnic = format!("more{round}.server1");
        site.ctl(&format!("add vnic {vnic} 10/1")).unwrap();
        site.kill(victim).unwrap();
        let start = |site: &mut Site| match *victim {
            "host1" => site.start_host("host1"),
            name => site.start_director(name),
        };
        start(&mut site).unwrap();
        site.wait_state(&format!("vnic {vnic}"), "up/up").unwrap();
        site.ctl("remove vnic vn02.server1 -noconfirm").unwrap();
        site.kill(victim).unwrap();
        start(&mut site).unwrap();
        site.wait_state(&format!("vnic {vnic}"), "up/up").unwrap();
        site.ctl("add vnic vn02.server1 10/1").unwrap();
        site.wait_state("vnic vn02.server1", "up/up").unwrap();
        site.ctl(&format!("remove vnic {vnic} -noconfirm")).unwrap();
        let left: BTreeSet<_> = ["vn01.server1", "vn02.server1"].map(str::to_owned).into();
        let files: BTreeSet<_> = left.iter().map(|name| format!("{name}.sock")).collect();
        until("agreement", || {
            let known = [names(&site, "host1"), names(&site, "director1")];
            Ok(known.iter().all(|it| *it == left) && sockets(&site, "host1") == files)
        })
        .unwrap();
    }
}

#[test]
fn p1_p8_a_profile_of_an_unknown_server_deploys_when_its_host_appears() {
    let mut site = site(&[]);
    site.lines(
        "add server-profile server1 HP_DL360@ExtSw-b8cffff004401-Port16
         add vnic vn01.server1 10/1",
    )
    .unwrap();
    assert_eq!(site.state("vnic vn01.server1").unwrap().0, "up/unassigned");
    let run_dir = site.run_dir("host1");
    site.ctl(&format!("add host host1 -run-dir={}", run_dir.display()))
        .unwrap();
    site.start_host("host1").unwrap();
    site.ctl("set physical-server HP_DL360@ExtSw-b8cffff004401-Port16 -host=host1")
        .unwrap();
    site.wait_state("vnic vn01.server1", "up/up").unwrap();
}

#[test]
fn p5_d7_a_profile_moves_to_another_host_with_its_addresses() {
    let site = two_vnics(&["host1", "host2"]);
    let macs = || {
        let shown = site.show("vnic *.server1").unwrap();
        let macs = shown
            .iter()
            .map(|vnic| vnic.pointer("/fields/mac").unwrap().to_string());
        macs.collect::<Vec<_>>()
    };
    let before = macs();
    site.ctl("set server-profile server1 connect vm1@host2")
        .unwrap();
    for vnic in ["vn01.server1", "vn02.server1"] {
        site.wait_state(&format!("vnic {vnic}"), "up/up").unwrap();
    }
    assert_eq!(macs(), before);
    assert!(sockets(&site, "host1").is_empty());
    assert_eq!(sockets(&site, "host2").len(), 2);
    assert!(names(&site, "host1").is_empty());
}
