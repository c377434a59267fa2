//! The guest itself, under TCG and without our devices: commands, output, signals, power.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test's helper fails as a test does")]

use std::time::{Duration, Instant};

use orimono_qemu::{
    Accelerator, ExitStatus, Guest, GuestError, GuestImage, Machine, Qemu, guest::TerminalSize,
    image, machine::QMP_SOCKET,
};

const SOON: Duration = Duration::from_secs(60);

fn machine() -> Machine {
    let image = GuestImage::ensure(&image::default_cache()).unwrap();
    Machine::new(Qemu::find().unwrap(), image, Accelerator::Tcg)
}

fn text(guest: &Guest, command: &str) -> String {
    let output = guest.run(command, SOON).unwrap();
    assert!(
        output.status.success(),
        "{command}: {} {}",
        output.status,
        output.stderr_text()
    );
    output.stdout_text()
}

#[test]
fn a_guest_runs_commands_and_reports_what_they_did() {
    let guest = machine().root_ports(2).boot().unwrap();
    assert_eq!(guest.boot_notes(), "");

    let output = guest.run("echo out; echo err >&2; exit 7", SOON).unwrap();
    assert_eq!(output.status, ExitStatus::Exited(7));
    assert_eq!(
        (output.stdout_text().as_str(), output.stderr_text().as_str()),
        ("out\n", "err\n")
    );
    assert_eq!(
        guest.run("kill -9 $$", SOON).unwrap().status,
        ExitStatus::Signalled(9)
    );
    assert_eq!(
        guest.run("no-such-program", SOON).unwrap().status,
        ExitStatus::Exited(127)
    );

    // Several at once, each with more output than any buffer on the way.
    let ids: Vec<_> = (1..=4)
        .map(|n| {
            let command = format!("yes {n} | head -c {n}000000; exit {n}");
            (n, guest.spawn(&command).unwrap())
        })
        .collect();
    for (n, id) in ids {
        let output = guest.wait(id, SOON).unwrap();
        assert_eq!(output.status, ExitStatus::Exited(n));
        let expected: Vec<u8> = format!("{n}\n")
            .bytes()
            .cycle()
            .take(usize::from(n) * 1_000_000)
            .collect();
        assert!(
            output.stdout == expected,
            "output of command {n} was changed on the way"
        );
    }

    let id = guest.spawn("md5sum").unwrap();
    guest.write_stdin(id, &vec![b'x'; 300_000]).unwrap();
    guest.close_stdin(id).unwrap();
    let sum = guest.wait(id, SOON).unwrap().stdout_text();
    assert_eq!(
        text(&guest, "head -c 300000 /dev/zero | tr '\\0' x | md5sum"),
        sum
    );

    // A process left behind does not hold its command up, and its end is noticed by PID 1.
    let start = Instant::now();
    text(&guest, "sleep 30 & echo started");
    assert!(start.elapsed() < Duration::from_secs(20));
    text(
        &guest,
        "killall sleep; while pidof sleep; do sleep 0.01; done",
    );
    assert_eq!(
        text(
            &guest,
            "cat /proc/[0-9]*/stat 2>/dev/null | awk '$3 == \"Z\"' | wc -l"
        ),
        "0\n"
    );

    let error = guest
        .run("sleep 60", Duration::from_millis(200))
        .unwrap_err();
    assert!(
        matches!(error, GuestError::DeadlinePassed { .. }),
        "{error}"
    );
    text(&guest, "while pidof sleep; do sleep 0.01; done");

    for program in [
        "fio --version",
        "iperf3 --version",
        "sg_inq --version",
        "ethtool --version",
        "ip -V",
    ] {
        let output = guest.run(program, SOON).unwrap();
        assert!(
            output.status.success(),
            "{program}: {}",
            output.stderr_text()
        );
    }
    assert_eq!(
        text(
            &guest,
            "cat /sys/class/net/lo/operstate /sys/class/net/lo/flags"
        ),
        "unknown\n0x9\n"
    );

    let status = guest
        .qmp(&serde_json::json!({"execute": "query-status"}))
        .unwrap();
    assert_eq!(
        status.get("status").and_then(|status| status.as_str()),
        Some("running")
    );
    let others = std::os::unix::net::UnixStream::connect(guest.folder().join(QMP_SOCKET));
    assert!(others.is_ok(), "a second monitor for a host agent");

    guest.poweroff(SOON).unwrap();
}

#[test]
fn a_terminal_is_a_terminal() {
    let guest = machine().boot().unwrap();
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let size = TerminalSize {
        rows: 33,
        columns: 99,
    };
    let id = guest
        .spawn_on_terminal("tty && stty size && read a", size, Box::new(theirs))
        .unwrap();
    guest.write_stdin(id, b"x\n").unwrap();
    assert_eq!(guest.wait(id, SOON).unwrap().status, ExitStatus::Exited(0));
    let mut printed = String::new();
    std::io::Read::read_to_string(&mut &ours, &mut printed).unwrap();
    assert!(
        printed.contains("/dev/pts/0") && printed.contains("33 99"),
        "{printed}"
    );
}

#[test]
fn a_guest_that_dies_is_reported_and_leaves_nothing() {
    let guest = machine().boot().unwrap();
    let (pid, folder) = (guest.qemu_pid(), guest.folder().to_owned());
    let id = guest.spawn("echo c > /proc/sysrq-trigger").unwrap();
    let error = guest.wait(id, SOON).unwrap_err();
    assert!(matches!(error, GuestError::Gone { .. }), "{error}");
    assert!(error.to_string().contains("Kernel panic"), "{error}");
    drop(guest);
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    assert!(!folder.exists());
}

#[test]
fn a_machine_qemu_refuses_says_why() {
    let error = machine()
        .arg("-device")
        .arg("no-such-device")
        .boot()
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("QEMU ended") && error.contains("no-such-device"),
        "{error}"
    );

    let start = Instant::now();
    let error = machine()
        .kernel_parameter("rdinit=/nonexistent")
        .boot_within(Duration::from_secs(30))
        .boot()
        .unwrap_err()
        .to_string();
    assert!(error.contains("Kernel panic"), "{error}");
    assert!(
        start.elapsed() < Duration::from_secs(30),
        "a panic ends the wait at once"
    );
}
