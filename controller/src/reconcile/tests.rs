//! Files of nodes, and what becomes of those that are silent.

mod simulated;

use std::fs;

use super::*;

fn desired(text: &str) -> Desired {
    let rendered = Rendered {
        text: text.to_owned(),
        nodes: vec!["d1".to_owned(), "h1".to_owned()],
    };
    Desired {
        revision: 1,
        files: BTreeMap::from([("d1".to_owned(), rendered)]),
    }
}

#[test]
fn every_node_has_its_file_and_a_silent_one_keeps_it() {
    let folder = tempfile::tempdir().unwrap();
    let reports = round(&desired("a"), folder.path(), &Reports::default());
    for node in ["d1", "h1"] {
        assert_eq!(
            fs::read_to_string(folder.path().join(node).join("lab.toml")).unwrap(),
            "a"
        );
        assert!(reports.is_up(node).is_none());
    }
    assert!(reports.alarms().is_empty());
    let nothing = Desired {
        revision: 2,
        files: BTreeMap::new(),
    };
    round(&nothing, folder.path(), &reports);
    assert!(folder.path().join("h1/lab.toml").exists());
}

#[test]
fn a_socket_that_nobody_answers_at_is_an_alarm_since_it_was_found() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("h1")).unwrap();
    fs::write(folder.path().join("h1/control.sock"), "").unwrap();
    let first = round(&desired("a"), folder.path(), &Reports::default());
    let second = round(&desired("a"), folder.path(), &first);
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
    fs::write(folder.path().join("d1"), "a file where a folder should be").unwrap();
    let reports = round(&desired("a"), folder.path(), &Reports::default());
    assert!(
        reports
            .alarms()
            .iter()
            .any(|alarm| alarm.problem.contains("cannot be written"))
    );
}

/// A program that answers every request with one of these lines, in their order.
fn program(folder: &Path, answers: Vec<&'static str>) -> std::thread::JoinHandle<Vec<String>> {
    use std::io::{BufRead, BufReader, Write};
    fs::create_dir_all(folder).unwrap();
    let listener = std::os::unix::net::UnixListener::bind(folder.join("control.sock")).unwrap();
    std::thread::spawn(move || {
        let mut asked = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            asked.push(line.trim().to_owned());
            stream.write_all(answer.as_bytes()).unwrap();
        }
        asked
    })
}

#[test]
fn a_program_is_told_once_and_says_of_each_field_what_became_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let answers = vec![
        "{\"ok\":{\"objects\":[{\"object\":\"vnic a.s1\",\"change\":\"changed\",\
         \"fields\":[\"mtu\"],\"outcome\":{\"failed\":\"the guest is at it\"}},\
         {\"object\":\"vnic b.s1\",\"change\":\"added\",\"fields\":[],\"outcome\":\"done\"}]}}\n",
        "{\"ok\":[]}\n",
        "{\"ok\":[]}\n",
    ];
    let program = program(&folder.path().join("h1"), answers);
    let first = round(&desired("a"), folder.path(), &Reports::default());
    let second = round(&desired("a"), folder.path(), &first);
    let asked = program.join().unwrap();
    let (apply, state) = ("{\"command\":\"apply\"}", "{\"command\":\"state\"}");
    assert_eq!(asked, [apply, state, state]);
    for reports in [first, second] {
        let pending = reports.pending("vnic a.s1");
        assert_eq!(pending["mtu"], "h1: the guest is at it");
        assert!(reports.pending("vnic b.s1").is_empty());
        assert_eq!(reports.is_up("h1"), Some(Ok(())));
    }
}

#[test]
fn a_lab_file_that_is_refused_is_an_alarm_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let answers = vec!["{\"error\":\"tls cannot change\"}\n", "{\"ok\":[]}\n"];
    let program = program(&folder.path().join("h1"), answers);
    let reports = round(&desired("a"), folder.path(), &Reports::default());
    program.join().unwrap();
    let [alarm] = &reports.alarms()[..] else {
        panic!("{:?}", reports.alarms())
    };
    assert!(
        alarm.problem.contains("tls cannot change"),
        "{}",
        alarm.problem
    );
}
