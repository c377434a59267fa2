//! An operator looks at the links of a session and has its frames go by another: `orimono-qos`
//! against the real director and host agent, which two TCP links join.
#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

use std::path::Path;
use std::process::{Command, Output};
use std::time::Instant;

use orimono_tests::lab::{Lab, PATIENCE, program};
use serde_json::Value;

const LAB: &str = r#"
[director]
name = "director1"
listen = ["tcp:127.0.0.1:7471", "tcp:127.0.0.1:7472"]
[[ethernet-port]]
port = "10/1"
tap = "orimono0"
rate = "1G"
[[host]]
name = "host1"
director = ["tcp:127.0.0.1:7471", "tcp:127.0.0.1:7472"]
run-dir = "@DIR@/host1"
rate = "1G"
[[host.vm]]
name = "vm1"
[[host.vm.vnic]]
name = "vn01"
id = 1
port = "10/1"
mac = "02:15:97:00:00:01"
"#;

fn orimono_qos(socket: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(program("orimono-qos").unwrap());
    command.arg("--socket").arg(socket).args(arguments);
    command.output().unwrap()
}

fn text(socket: &Path, arguments: &[&str]) -> String {
    let output = orimono_qos(socket, arguments);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn ask(socket: &Path, arguments: &[&str]) -> Value {
    serde_json::from_str(&text(socket, &[arguments, &["--json"]].concat())).unwrap()
}

/// Expects exit code 1 and one line with all `words`.
fn refuses(socket: &Path, arguments: &[&str], words: &[&str]) {
    let output = orimono_qos(socket, arguments);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {errors}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
    for word in words {
        assert!(errors.contains(word), "{word:?} is not in: {errors}");
    }
}

/// Asks for the links of the only session until `ready`; gives them by priority.
fn links(socket: &Path, ready: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let paths = ask(socket, &["paths"]);
        let listed = paths.pointer("/0/session/links").and_then(Value::as_array);
        let mut links = listed.cloned().unwrap_or_default();
        links.sort_by_key(|link| link["priority"].as_u64());
        if ready(&links) {
            return links;
        }
        assert!(Instant::now() < deadline, "{paths}");
    }
}

/// Waits until, of two links, the one of `priority` alone carries frames; gives its number.
fn carrier(socket: &Path, priority: usize) -> u64 {
    let carries = |link: &Value, is: bool| link["carries"] == is;
    let both = links(socket, |links| match links {
        [first, second] => carries(first, priority == 0) && carries(second, priority == 1),
        _ => false,
    });
    both.get(priority).unwrap()["link"].as_u64().unwrap()
}

/// Cause of the change at the start.
const SWITCHED_BACK: &str = "switched back to a link of higher priority";

/// The changes of path that somebody wanted, oldest first: at the start the link of lower priority may
/// have been there first, and the frames go to the other one once it is.
fn changes(socket: &Path) -> Vec<Value> {
    let changes = ask(socket, &["path-changes"]);
    let wanted = changes.as_array().unwrap().iter();
    let wanted = wanted.filter(|change| change["cause"] != SWITCHED_BACK);
    wanted.cloned().collect()
}

/// Waits until there are `count` of them, which may take a moment longer than the change; the newest.
fn newest_of(socket: &Path, count: usize) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let changes = changes(socket);
        assert!(changes.len() <= count, "{changes:?}");
        if changes.len() == count {
            return changes.last().unwrap().clone();
        }
        assert!(Instant::now() < deadline, "{changes:?}");
    }
}

#[test]
fn operator_sees_both_links_and_switches_over_and_back() {
    let lab = Lab::start(LAB).unwrap();
    let (agent, director) = (lab.control("host1"), lab.control("director"));
    let first = carrier(&agent, 0);
    assert_eq!(carrier(&director, 0), first);
    let both = links(&agent, |links| links.len() == 2);
    let second = both[1]["link"].as_u64().unwrap();
    let (here, there) = (ask(&agent, &["paths"]), ask(&director, &["paths"]));
    for (paths, hop, peer) in [
        (&here, "host1 uplink", "director1"),
        (&there, "host1 downlink", "host1"),
    ] {
        assert_eq!(paths.as_array().unwrap().len(), 1, "{paths}");
        let session = &paths[0]["session"];
        assert_eq!(
            (&paths[0]["hop"], &session["peer"]),
            (&hop.into(), &peer.into())
        );
        assert_eq!(session["version"], 2, "{paths}");
    }
    let epoch = &here[0]["session"]["epoch"];
    assert_eq!(epoch, &there[0]["session"]["epoch"]);
    // An answered PING shows in a round trip.
    links(&agent, |links| {
        links
            .iter()
            .all(|link| link["round_trip_nanos"].as_u64() > Some(0))
    });

    // What is wrong is said, and nothing changes by it.
    let (low, high) = (first.min(second), first.max(second));
    let lists = format!("host1 uplink has no link 99: there are {low}, {high}");
    refuses(&agent, &["switchover", "uplink", "99"], &[&lists]);
    refuses(
        &agent,
        &["switchover", "lan", "1"],
        &["\"lan\"", "there are \"host1 uplink\""],
    );
    refuses(
        &director,
        &["switchover", "ethernet-port 10/1 ingress", "1"],
        &["there are \"host1 downlink\""],
    );
    for wrong in [
        &["switchover", "uplink"][..],
        &["switchover", "uplink", "two"],
        &["switchover", "uplink", "65536"],
    ] {
        assert_eq!(orimono_qos(&agent, wrong).status.code(), Some(2));
    }
    assert_eq!(changes(&agent), Vec::<Value>::new());
    assert_eq!(carrier(&agent, 0), first);

    // From the host's side, and back from the director's.
    let said = text(&agent, &["switchover", "host1 uplink", &second.to_string()]);
    assert_eq!(said, format!("host1 uplink: frames go by link {second}\n"));
    let ends = [(&agent, "host1 uplink"), (&director, "host1 downlink")];
    for (socket, hop) in ends {
        assert_eq!(carrier(socket, 1), second);
        let change = newest_of(socket, 1);
        assert_eq!(
            (&change["from"], &change["to"]),
            (&first.into(), &second.into())
        );
        assert_eq!(change["hop"], hop);
        assert_eq!(change["cause"], "switched over by the operator");
        assert!(change["age_nanos"].as_u64() > Some(0), "{change}");
        assert!(change["gap_nanos"].is_u64(), "{change}");
    }
    let back = ["switchover", "downlink", &first.to_string()];
    assert_eq!(ask(&director, &back), Value::Null);
    for socket in [&agent, &director] {
        assert_eq!(carrier(socket, 0), first);
        let change = newest_of(socket, 2);
        assert_eq!(
            (&change["from"], &change["to"]),
            (&second.into(), &first.into())
        );
    }

    // The session went on all the time.
    assert_eq!(&ask(&agent, &["paths"])[0]["session"]["epoch"], epoch);
    let log = lab.agents.first().unwrap().as_ref().unwrap();
    assert_eq!(log.count_lines("session became active"), 1);
    assert_eq!(log.count_lines("operator has frames go by this link"), 1);

    let paths = text(&agent, &["paths"]);
    for word in [
        "host1 uplink",
        "director1",
        "carries",
        "standby",
        "ROUND TRIP",
    ] {
        assert!(paths.contains(word), "{word} is not in\n{paths}");
    }
    let changes = text(&agent, &["path-changes"]);
    let lines = changes.lines().filter(|line| !line.contains(SWITCHED_BACK));
    assert_eq!(lines.count(), 1 + 2, "{changes}");
    for word in [
        "host1 uplink",
        " us ",
        "ago",
        "switched over by the operator",
    ] {
        assert!(changes.contains(word), "{word} is not in\n{changes}");
    }
}

#[test]
fn session_that_is_not_there_is_said_to_be_so() {
    let mut lab = Lab::start(LAB).unwrap();
    lab.kill_agent(0).unwrap();
    let director = lab.control("director");
    let deadline = Instant::now() + PATIENCE;
    // It waits for the host first.
    while !ask(&director, &["paths"])[0]["session"].is_null() {
        assert!(Instant::now() < deadline, "the session does not end");
    }
    assert!(text(&director, &["paths"]).contains("no session"));
    assert_eq!(changes(&director), Vec::<Value>::new());
    refuses(
        &director,
        &["switchover", "downlink", "1"],
        &["host1 downlink has no session now"],
    );
}
