//! Files of nodes, and what becomes of those that are silent.

use std::fs;
use std::path::Path;

use super::*;

fn file(text: &str) -> Arc<NodeFile> {
    Arc::new(NodeFile {
        text: text.to_owned(),
        director: "d1".to_owned(),
        ..NodeFile::default()
    })
}

/// What is known of `h1` after it was visited with `text`.
fn visited(before: &Node, folder: &Path, text: &str) -> Node {
    before
        .clone()
        .visited("h1", &folder.join("h1"), &file(text))
}

fn reports(node: &Node) -> Reports {
    let mut reports = Reports::default();
    reports.set("h1", node.clone());
    reports
}

#[test]
fn a_node_has_its_file_and_a_silent_one_keeps_it() {
    let folder = tempfile::tempdir().unwrap();
    let node = visited(&Node::default(), folder.path(), "a");
    let kept = || fs::read_to_string(folder.path().join("h1/lab.toml")).unwrap();
    assert_eq!(kept(), "a");
    let reports = reports(&node);
    assert!(reports.is_up("h1").is_none());
    assert!(reports.alarms().is_empty());
    visited(&node, folder.path(), "b");
    assert_eq!(kept(), "b");
}

#[test]
fn a_socket_that_nobody_answers_at_is_an_alarm_since_it_was_found() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("h1")).unwrap();
    fs::write(folder.path().join("h1/control.sock"), "").unwrap();
    let first = visited(&Node::default(), folder.path(), "a");
    let second = visited(&first, folder.path(), "a");
    let (first, second) = (reports(&first), reports(&second));
    assert_eq!(first.alarms(), second.alarms());
    let [alarm] = &second.alarms()[..] else {
        panic!("{:?}", second.alarms())
    };
    assert_eq!(alarm.object, "node h1");
    assert!(matches!(second.is_up("h1"), Some(Err(_))));
}

#[test]
fn a_folder_that_cannot_be_made_is_an_alarm() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("h1"), "a file where a folder should be").unwrap();
    let reports = reports(&visited(&Node::default(), folder.path(), "a"));
    let alarms = reports.alarms();
    assert!(
        alarms
            .iter()
            .any(|alarm| alarm.problem.contains("cannot be written")),
        "{alarms:?}"
    );
}

/// A program that answers to connections, each request with one of these lines, in their order.
fn program(folder: &Path, answers: Vec<Vec<&'static str>>) -> std::thread::JoinHandle<Vec<String>> {
    use std::io::{BufRead, BufReader, Write};
    fs::create_dir_all(folder).unwrap();
    let listener = std::os::unix::net::UnixListener::bind(folder.join("control.sock")).unwrap();
    std::thread::spawn(move || {
        let mut asked = Vec::new();
        for answers in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            for answer in answers {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                asked.push(line.trim().to_owned());
                stream.write_all(answer.as_bytes()).unwrap();
            }
        }
        asked
    })
}

const APPLY: &str = "{\"command\":\"apply\"}";
const DEVICES: &str = "{\"command\":\"devices\"}";
const NONE: &str = "{\"ok\":[]}\n";
const DONE: &str = "{\"ok\":{\"objects\":[]}}\n";

#[test]
fn a_program_is_told_once_and_says_of_each_field_what_became_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let failed = "{\"ok\":{\"objects\":[{\"object\":\"vnic a.s1\",\"change\":\"changed\",\
         \"fields\":[\"mtu\"],\"outcome\":{\"failed\":\"the guest is at it\"}},\
         {\"object\":\"vnic b.s1\",\"change\":\"added\",\"fields\":[],\"outcome\":\"done\"}]}}\n";
    let answers = vec![vec![failed, NONE], vec![NONE], vec![DONE, NONE]];
    let program = program(&folder.path().join("h1"), answers);
    let first = visited(&Node::default(), folder.path(), "a");
    let second = visited(&first, folder.path(), "a");
    // What another file does not speak of is as it was.
    let third = visited(&second, folder.path(), "b");
    assert_eq!(
        program.join().unwrap(),
        [APPLY, DEVICES, DEVICES, APPLY, DEVICES]
    );
    for node in [first, second, third] {
        let reports = reports(&node);
        let pending = reports.pending("vnic a.s1");
        assert_eq!(pending["mtu"], "h1: the guest is at it");
        assert!(reports.pending("vnic b.s1").is_empty());
        assert_eq!(reports.is_up("h1"), Some(Ok(())));
        let [alarm] = &reports.alarms()[..] else {
            panic!("{:?}", reports.alarms())
        };
        assert_eq!(alarm.object, "vnic a.s1 at h1");
    }
}

#[test]
fn a_lab_file_that_is_refused_is_an_alarm_and_holds_until_another_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let refused = "{\"ok\":{\"objects\":[{\"object\":\"vnic a.s1\",\"change\":\"changed\",\
         \"fields\":[\"mac\"],\"outcome\":{\"failed\":\"raise its generation\"}}],\
         \"refused\":\"vnic a.s1: mac cannot change\"}}\n";
    let answers = vec![vec![refused, NONE], vec![NONE], vec![DONE, NONE]];
    let program = program(&folder.path().join("h1"), answers);
    let first = visited(&Node::default(), folder.path(), "a");
    let second = visited(&first, folder.path(), "a");
    for node in [&first, &second] {
        let reports = reports(node);
        let [alarm] = &reports.alarms()[..] else {
            panic!("{:?}", reports.alarms())
        };
        assert!(alarm.problem.contains("mac cannot change"), "{alarm:?}");
        let pending = reports.pending("vnic a.s1");
        assert_eq!(pending["mac"], "h1: raise its generation");
    }
    let third = visited(&second, folder.path(), "b");
    program.join().unwrap();
    assert!(reports(&third).alarms().is_empty());
    assert!(reports(&third).pending("vnic a.s1").is_empty());
}

mod simulated;
