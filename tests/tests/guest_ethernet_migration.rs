//! A stock guest moves between two QEMUs that two host agents of one director serve. Only with
//! `ORIMONO_TEST_FULL=1`, which `cargo xtask test guest --suite ethernet` sets.
#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test")]
#![expect(clippy::panic, reason = "a failed expectation is a failed test")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use orimono_qemu::guest::Incoming;
use orimono_qemu::{Guest, GuestError};
use orimono_tests::lab::{self, Lab, PATIENCE};

/// Under TCG a move takes seconds. A guard, not a figure.
const MOVE_WITHIN: Duration = Duration::from_secs(120);

const LAB: &str = r#"
[director]
name = "director1"
listen = ["tcp:127.0.0.1:7471"]
[[ethernet-port]]
port = "10/1"
tap = "orimono0"
[[host]]
name = "host1"
director = ["tcp:127.0.0.1:7471"]
run-dir = "@DIR@/host1"
rate = "10G"
@HOST1@
[[host]]
name = "host2"
director = ["tcp:127.0.0.1:7471"]
run-dir = "@DIR@/host2"
rate = "10G"
@HOST2@
"#;

const VM: &str = r#"
[[host.vm]]
name = "vm1"
@MOVES@
[[host.vm.vnic]]
name = "vn01"
id = 1
port = "10/1"
mac = "02:15:97:00:00:01"
"#;

/// The VM on one of the hosts.
fn lab_file(hosts: [&str; 2]) -> String {
    let [host1, host2] = hosts;
    LAB.replace("@HOST1@", host1).replace("@HOST2@", host2)
}

fn staying() -> String {
    lab_file([&VM.replace("@MOVES@", ""), ""])
}

fn moving() -> String {
    lab_file([&VM.replace("@MOVES@", "moves-to = \"host2\""), ""])
}

fn moved() -> String {
    lab_file(["", &VM.replace("@MOVES@", "")])
}

fn start() -> (Lab, Guest) {
    let mut lab = Lab::start(&staying()).unwrap();
    lab.namespace
        .ip("addr add 10.1.0.1/24 dev orimono0")
        .unwrap();
    let guest = lab.machine("vm1").unwrap().migrates().boot().unwrap();
    lab::address(&guest, 0, "10.1.0.2/24").unwrap();
    apply(&mut lab, &moving(), ["director", "host1", "host2"]);
    (lab, guest)
}

fn apply(lab: &mut Lab, text: &str, whom: [&str; 3]) {
    lab.rewrite(text).unwrap();
    for name in whom {
        lab.apply(name).unwrap();
    }
}

/// One ping a second, from the namespace to the guest.
struct Ping(Child);

impl Ping {
    fn start(lab: &Lab) -> Self {
        let mut command = Command::new("busybox");
        command.args(["ping", "-W", "5", "10.1.0.2"]);
        command.stdout(Stdio::piped());
        Self(lab.namespace.run(|| Ok(command.spawn()?)).unwrap())
    }

    /// How many were sent, and answered.
    fn end(mut self) -> (u32, u32) {
        let pid = Pid::from_raw(self.0.id().try_into().unwrap());
        kill(pid, Signal::SIGINT).unwrap();
        let mut text = String::new();
        self.0
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        self.0.wait().unwrap();
        let summary = text
            .lines()
            .find(|line| line.contains("packets transmitted"));
        let summary = summary.unwrap_or_else(|| panic!("{text}"));
        let mut numbers = summary
            .split_whitespace()
            .filter_map(|word| word.parse().ok());
        (numbers.next().unwrap(), numbers.next().unwrap())
    }
}

impl Drop for Ping {
    fn drop(&mut self) {
        // Ended before, unless a test fails.
        drop(self.0.kill());
    }
}

/// Bytes that a guest sends back as they came.
#[derive(Default)]
struct Echo {
    stop: AtomicBool,
    rounds: Mutex<u64>,
    more: Condvar,
}

impl Echo {
    fn run(&self, lab: &Lab) {
        let connect = || Ok(TcpStream::connect("10.1.0.2:7")?);
        let mut stream = lab.namespace.run(connect).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut random = fastrand::Rng::with_seed(6);
        let mut sent = vec![0; 48 << 10];
        let mut back = sent.clone();
        while !self.stop.load(Ordering::SeqCst) {
            random.fill(&mut sent);
            stream.write_all(&sent).unwrap();
            stream.read_exact(&mut back).unwrap();
            assert!(sent == back, "bytes are others");
            *self.rounds.lock().unwrap() += 1;
            self.more.notify_all();
        }
    }

    fn wait_for_more(&self, more: u64) {
        let rounds = self.rounds.lock().unwrap();
        let wanted = *rounds + more;
        let waited = self
            .more
            .wait_timeout_while(rounds, PATIENCE, |rounds| *rounds < wanted)
            .unwrap();
        assert!(!waited.1.timed_out(), "the stream has stopped");
    }
}

/// Ends the stream when a test fails too, so that its thread can be joined.
struct StopWhenDropped<'a>(&'a Echo);

impl Drop for StopWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::SeqCst);
    }
}

/// Has the agent of host2 start with another file than the others have.
fn restart_host2(lab: &mut Lab, file: &str) {
    lab.kill_agent(1).unwrap();
    lab.rewrite(file).unwrap();
    lab.start_agent(1).unwrap();
    lab.wait_sessions(1).unwrap();
    lab.rewrite(&moving()).unwrap();
}

fn serve_echo(guest: &Guest) {
    guest.spawn("busybox nc -l -p 7 -e cat").unwrap();
    lab::run(guest, "until ss -ltn | grep -q ':7 '; do sleep 0.1; done").unwrap();
}

fn wait_for_guest(lab: &Lab) -> Incoming {
    let machine = lab.machine_elsewhere("vm1").unwrap().migrates();
    machine.wait_for_guest().unwrap()
}

fn moves(lab: &Lab) -> usize {
    lab.director.as_ref().unwrap().count_lines("vNIC moved")
}

fn is_wanted() -> bool {
    std::env::var_os("ORIMONO_TEST_FULL").is_some()
}

#[test]
fn a_guest_moves_to_another_host_and_loses_one_ping_at_most() {
    if !is_wanted() {
        return;
    }
    let (mut lab, guest) = start();
    serve_echo(&guest);
    let echo = Echo::default();
    let guest = std::thread::scope(|scope| {
        scope.spawn(|| echo.run(&lab));
        let _stop = StopWhenDropped(&echo);
        echo.wait_for_more(20);
        let ping = Ping::start(&lab);
        assert_eq!(moves(&lab), 0);
        let incoming = wait_for_guest(&lab);
        let guest = guest.migrate(incoming, MOVE_WITHIN);
        let guest = guest.map_err(|(_, error)| error).unwrap();
        // What the device wrote while memory was copied is where the guest reads it.
        echo.wait_for_more(200);
        let (sent, answered) = ping.end();
        eprintln!("{answered} of {sent} pings were answered");
        assert!(
            answered + 1 >= sent,
            "{answered} of {sent} pings were answered"
        );
        assert_eq!(moves(&lab), 1);
        guest
    });
    apply(&mut lab, &moved(), ["host2", "director", "host1"]);
    assert!(!lab.folder().join("host1/vn01.vm1.sock").exists());
    lab::run(&guest, "ping -c 3 -i 0.2 -W 5 10.1.0.1").unwrap();
    guest.poweroff(PATIENCE).unwrap();
}

#[test]
fn a_host_that_cannot_take_the_guest_says_so_and_the_guest_stays() {
    if !is_wanted() {
        return;
    }
    let (mut lab, guest) = start();
    // Another MTU has another generation: the operator is told before anything moves, for QEMU tells
    // the back end its MTU only when the guest has arrived.
    let other = "generation = 1\nmtu = 1400\nmac = ";
    restart_host2(&mut lab, &moving().replace("mac = ", other));
    let host2 = lab.agents.get(1).and_then(Option::as_ref).unwrap();
    let line = host2.wait_line("device was refused", 1, PATIENCE).unwrap();
    assert!(line.contains("both sides need the same lab file"), "{line}");

    // Offloads are the port's, and QEMU compares what the guest uses with what there is.
    restart_host2(
        &mut lab,
        &moving().replace("tap = ", "offloads = false\ntap = "),
    );
    let incoming = wait_for_guest(&lab);
    let (guest, error) = guest.migrate(incoming, MOVE_WITHIN).unwrap_err();
    assert!(matches!(error, GuestError::NotMoved { .. }), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("Features 0x") && text.contains("unsupported"),
        "{text}"
    );
    lab::run(&guest, "ping -c 3 -i 0.2 -W 5 10.1.0.1").unwrap();
    assert_eq!(moves(&lab), 0);
}
