//! Links and directors die while a guest works: no SCSI command, no verified block and no TCP
//! connection is lost.

use std::time::Duration;

use nix::sys::signal::Signal;
use orimono_tests::failover::Failover;
use orimono_tests::lab;

#[test]
fn r1_links_are_closed_and_fall_silent_under_load() {
    let failover = Failover::start("", Duration::from_secs(30), |lab| {
        lab.namespace.ip("addr add 10.1.0.1/24 dev orimono0")?;
        Ok(())
    })
    .unwrap();
    // The frames stay where they went, so each time it is the other's turn.
    for priority in [0, 1, 0, 1] {
        // Either end may be the first to notice, so the cause is not looked at.
        failover.close(priority).unwrap();
    }
    for priority in [0, 1] {
        failover.silence(priority).unwrap();
    }
    let agent = failover.lab.agents.first().unwrap().as_ref().unwrap();
    assert_eq!(agent.count_lines("session closed"), 0);
    failover.finish().unwrap();
}

#[test]
fn spread_links_are_closed_under_load() {
    let failover = Failover::start("spread = true", Duration::from_secs(20), |lab| {
        lab.namespace.ip("addr add 10.1.0.1/24 dev orimono0")?;
        Ok(())
    })
    .unwrap();
    for priority in [0, 1, 0, 1] {
        failover.close(priority).unwrap();
    }
    failover.finish().unwrap();
}

#[test]
fn r2_director_is_killed_and_its_standby_takes_over() {
    let mut other = None;
    let mut failover = Failover::start(
        r#"standby-director = ["tcp:127.0.0.1:7472"]"#,
        Duration::from_secs(25),
        |lab| {
            let words = [
                ("director1", "director2"),
                (
                    "listen = [\"tcp:127.0.0.1:7471\"]",
                    "listen = [\"tcp:127.0.0.1:7472\"]",
                ),
                ("orimono0", "orimono1"),
            ];
            other = Some(lab.start_other_director(&words)?);
            // One LAN for both. Without an address of its own the bridge has that of a TAP, and
            // another when the director dies.
            for words in [
                "link add lan address 02:15:97:00:01:00 type bridge",
                "link set orimono0 master lan",
                "link set orimono1 master lan",
                "link set orimono0 up",
                "link set orimono1 up",
                "addr add 10.1.0.1/24 dev lan",
                "link set lan up",
            ] {
                lab.namespace.ip(words)?;
            }
            let agent = lab.agents.first().unwrap().as_ref().unwrap();
            agent.wait_line("session became active", 2, lab::PATIENCE)?;
            Ok(())
        },
    )
    .unwrap();
    failover
        .lab
        .director
        .take()
        .unwrap()
        .end(Signal::SIGKILL)
        .unwrap();
    let agent = failover.lab.agents.first().unwrap().as_ref().unwrap();
    agent
        .wait_line("its devices move to the other", 1, lab::PATIENCE)
        .unwrap();
    failover.finish().unwrap();
}
