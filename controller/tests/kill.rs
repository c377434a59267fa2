//! A controller that is killed at any moment has what it answered, and nothing by half.

#![expect(
    clippy::unwrap_used,
    reason = "a helper that cannot go on fails the test"
)]

mod support;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use support::{answer, send};

/// A controller that is ready.
fn start(folder: &Path) -> Child {
    let mut child = Command::new(env!("CARGO_BIN_EXE_controller"))
        .args(["--store".as_ref(), folder.join("store").as_os_str()])
        .args(["--socket".as_ref(), folder.join("socket").as_os_str()])
        .args(["--nodes".as_ref(), folder.join("nodes").as_os_str()])
        .env("RUST_LOG", "info")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let log = BufReader::new(child.stderr.take().unwrap());
    let ready = log
        .lines()
        .any(|line| line.unwrap().contains("controller ready"));
    assert!(ready, "it ended before it was ready");
    child
}

fn end(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

fn objects(socket: &Path) -> Value {
    let text = answer(socket, "GET /v1/export", "");
    let (_, body) = text.split_once("\r\n\r\n").unwrap();
    let document: Value = serde_json::from_str(body).unwrap();
    document.get("objects").cloned().unwrap()
}

fn profile(number: usize) -> String {
    format!(
        "{{\"commands\":[\
         {{\"do\":\"add\",\"kind\":\"server-profile\",\"name\":\"s{number}\"}},\
         {{\"do\":\"add\",\"kind\":\"vnic\",\"name\":\"a.s{number}\",\"fields\":{{\"if\":\"10/1\"}}}}]}}"
    )
}

#[test]
fn what_was_answered_is_there_after_a_kill_and_transactions_are_whole() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let mut answered = Vec::new();
    for round in 0..6 {
        let child = start(folder.path());
        let (sure, unsure) = (2 * round, 2 * round + 1);
        let made = answer(&socket, "POST /v1/transactions", &profile(sure));
        assert!(made.starts_with("HTTP/1.1 200"), "{made}");
        answered.push(sure);
        // Killed while it is at this one, or before, or after.
        let asked = send(&socket, "POST /v1/transactions", &profile(unsure));
        end(child);
        drop(asked);
    }
    let child = start(folder.path());
    let objects = objects(&socket);
    let names = |kind: &str| -> BTreeSet<String> {
        objects[kind].as_object().unwrap().keys().cloned().collect()
    };
    let (profiles, vnics) = (names("server-profile"), names("vnic"));
    for number in answered {
        assert!(
            profiles.contains(&format!("s{number}")),
            "s{number} is lost"
        );
    }
    let of_profiles: BTreeSet<_> = profiles.iter().map(|name| format!("a.{name}")).collect();
    assert_eq!(of_profiles, vnics);
    let all = objects["vnic"].as_object().unwrap().values();
    let macs: BTreeSet<_> = all.map(|vnic| vnic["mac"].as_str().unwrap()).collect();
    assert_eq!(macs.len(), vnics.len());
    end(child);
}
