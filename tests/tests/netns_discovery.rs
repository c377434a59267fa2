//! Hosts find directors by multicast: the real programs, and what others send to the group.
#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

use std::net::UdpSocket;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use fabric_transport::discovery::GROUP_DEFAULT;
use fabric_transport::discovery::message::{Kind, Message};
use nix::sys::signal::Signal;
use orimono_tests::lab::{Namespace, PATIENCE, Process, program};
use serde_json::Value;

/// What a process reads; host and director need not have the same file.
struct File<'a> {
    director: &'a str,
    listen: &'a str,
    interface: &'a str,
    hosts: &'a [&'a str],
}

struct Site {
    folder: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        // A short path: a socket's name has 107 bytes.
        let prefix = tempfile::Builder::new()
            .prefix("orimono-")
            .tempdir_in("/tmp");
        Self {
            folder: prefix.unwrap(),
        }
    }

    fn control(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.control"))
    }

    fn start(&self, name: &str, namespace: &Namespace, host: Option<&str>, file: &File) -> Process {
        let File {
            director,
            listen,
            interface,
            hosts,
        } = file;
        let folder = self.folder.path().display();
        let mut text = format!(
            "insecure = true\n[director]\nname = \"{director}\"\nlisten = [{listen}]\n\
             discoverable = \"{GROUP_DEFAULT}\"\ndiscovery-interface = \"{interface}\"\n"
        );
        for host in *hosts {
            text += &format!(
                "[[host]]\nname = \"{host}\"\ndiscover = \"{GROUP_DEFAULT}\"\n\
                 discovery-interface = \"{interface}\"\nrun-dir = \"{folder}/{host}\"\n\
                 rate = \"1G\"\n"
            );
        }
        let path = self.folder.path().join(format!("{name}.toml"));
        std::fs::write(&path, text).unwrap();
        let mut command =
            Command::new(program(host.map_or("io-director", |_| "host-agent")).unwrap());
        command.arg("--config").arg(path);
        command.arg("--control").arg(self.control(name));
        command.args(host.iter().flat_map(|host| ["--host", host]));
        let process = Process::start(name, namespace, &mut command).unwrap();
        let ready = host.map_or("director can be discovered", |_| "host agent ready");
        process.wait_line(ready, 1, PATIENCE).unwrap();
        process
    }

    /// Waits until the only session of a process has so many links.
    fn wait_links(&self, name: &str, count: usize) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut command = Command::new(program("orimono-qos").unwrap());
            command.arg("--socket").arg(self.control(name));
            let output = command.args(["paths", "--json"]).output().unwrap();
            let paths: Value = serde_json::from_slice(&output.stdout).unwrap();
            let links = paths.pointer("/0/session/links").and_then(Value::as_array);
            if links.is_some_and(|links| links.len() == count) {
                return;
            }
            assert!(Instant::now() < deadline, "{paths}");
        }
    }
}

#[test]
fn host_finds_a_director_that_comes_later_and_again_on_other_ports() {
    let site = Site::new();
    let (hosts, directors) = (Namespace::new().unwrap(), Namespace::new().unwrap());
    // First the agent: no director, and not even its interface.
    let agent = File {
        director: "director1",
        listen: "\"tcp:0.0.0.0:1\"",
        interface: "10.9.0.2",
        hosts: &["host1"],
    };
    let agent = site.start("host1", &hosts, Some("host1"), &agent);
    let none = "no director has answered on 239.255.77.71:7470 on 10.9.0.2 yet";
    agent.wait_line(none, 1, PATIENCE).unwrap();
    agent
        .wait_line("directors cannot be asked", 1, PATIENCE)
        .unwrap();
    directors
        .ip("link add fabric0 type veth peer name fabric1")
        .unwrap();
    directors
        .ip(&format!("link set fabric1 netns {}", agent.pid()))
        .unwrap();
    for (namespace, words) in [
        (&directors, "addr add 10.9.0.1/24 dev fabric0"),
        (&directors, "link set fabric0 up"),
        (&hosts, "addr add 10.9.0.2/24 dev fabric1"),
        (&hosts, "link set fabric1 up"),
    ] {
        namespace.ip(words).unwrap();
    }
    let mut file = File {
        director: "director1",
        listen: "\"tcp:0.0.0.0:7471\"",
        interface: "10.9.0.1",
        hosts: &["host1"],
    };
    let director = site.start("director1", &directors, None, &file);
    let found = agent.wait_line("director found", 1, PATIENCE).unwrap();
    assert!(found.contains("10.9.0.1:7471"), "{found}");
    agent
        .wait_line("session became active", 1, PATIENCE)
        .unwrap();
    site.wait_links("host1", 1);
    // It has no other address: nothing more is tried, nor said.
    assert_eq!(agent.count_lines("director cannot be reached"), 1);

    director.end(Signal::SIGKILL).unwrap();
    file.listen = "\"tcp:10.9.0.1:7481\", \"tcp:10.9.0.1:7482\"";
    let director = site.start("director1", &directors, None, &file);
    let found = agent.wait_line("director found", 2, PATIENCE).unwrap();
    assert!(found.contains("10.9.0.1:7481"), "{found}");
    agent
        .wait_line("session became active", 2, PATIENCE)
        .unwrap();
    site.wait_links("host1", 2);
    site.wait_links("director1", 2);

    // Another takes its place when it is gone, not before.
    file.director = "director2";
    file.listen = "\"tcp:10.9.0.1:7491\"";
    let other = site.start("director2", &directors, None, &file);
    assert_eq!(agent.count_lines("director found"), 2);
    director.end(Signal::SIGKILL).unwrap();
    let found = agent.wait_line("director found", 3, PATIENCE).unwrap();
    assert!(found.contains("director2"), "{found}");
    other
        .wait_line("session became active", 1, PATIENCE)
        .unwrap();
    agent
        .wait_line("session became active", 3, PATIENCE)
        .unwrap();
}

#[test]
fn director_is_silent_to_strangers_and_garbage() {
    let site = Site::new();
    let namespace = Namespace::new().unwrap();
    let here = |hosts| File {
        director: "director1",
        listen: "\"tcp:127.0.0.1:7471\"",
        interface: "127.0.0.1",
        hosts,
    };
    let director = site.start("director1", &namespace, None, &here(&["host1"]));
    let stranger = here(&["host1", "host2"]);
    let stranger = site.start("host2", &namespace, Some("host2"), &stranger);
    stranger
        .wait_line("no director has answered", 1, PATIENCE)
        .unwrap();
    let question = |host: &str, nonce| {
        Message {
            kind: Kind::Discover,
            nonce,
            instance: 1,
            name: host.to_owned(),
            addresses: Vec::new(),
        }
        .to_bytes()
    };
    let known = question("host1", 2);
    let answer = namespace.run(|| {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let mut garbage = vec![question("host2", 1), Vec::new(), vec![0xff; 60_000]];
        garbage.extend((0..known.len()).filter_map(|end| known.get(..end).map(<[u8]>::to_vec)));
        for datagram in garbage {
            socket.send_to(&datagram, GROUP_DEFAULT)?;
        }
        socket.send_to(&known, GROUP_DEFAULT)?;
        let mut bytes = [0; 2048];
        let count = socket.recv(&mut bytes)?;
        Ok(Message::parse(bytes.get(..count).unwrap_or_default())?)
    });
    // Loopback keeps the order: what is answered first is the last question.
    let answer = answer.unwrap();
    assert_eq!((answer.nonce, answer.name.as_str()), (2, "director1"));
    assert_eq!(answer.addresses, ["tcp:127.0.0.1:7471"]);
    // It serves on, and only whom it knows.
    let agent = site.start("host1", &namespace, Some("host1"), &here(&["host1"]));
    agent
        .wait_line("session became active", 1, PATIENCE)
        .unwrap();
    assert_eq!(stranger.count_lines("director found"), 0);
    director.end(Signal::SIGTERM).unwrap();
}

#[test]
fn director_that_cannot_be_discovered_says_so() {
    let site = Site::new();
    let namespace = Namespace::new().unwrap();
    let path = site.folder.path().join("lab.toml");
    let text = "[director]\nname = \"d1\"\nlisten = [\"tcp:127.0.0.1:0\"]\n\
        discoverable = \"239.255.77.71:7470\"\ndiscovery-interface = \"192.0.2.1\"\n";
    std::fs::write(&path, text).unwrap();
    let mut command = Command::new(program("io-director").unwrap());
    command.arg("--config").arg(path);
    let output = namespace.run(|| Ok(command.output()?)).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    let last = errors.lines().last().unwrap();
    for word in ["239.255.77.71:7470 on 192.0.2.1", "discovery-interface"] {
        assert!(last.contains(word), "{word:?} is not in: {last}");
    }
}
