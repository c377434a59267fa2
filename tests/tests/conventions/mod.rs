//! QEMU's conventions for back-end programs, as checks that each program is put through.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const PATIENCE: Duration = Duration::from_secs(20);

/// A program and the options of its own that it cannot do without.
pub(crate) struct Program {
    pub(crate) path: PathBuf,
    pub(crate) options: &'static [&'static str],
}

impl Program {
    fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        // A director that does not exist: the guest's side must work without.
        command.args([
            "--director",
            "unix:/nonexistent/director",
            "--host",
            "host1",
        ]);
        command.args(["--device", "7"]).args(self.options);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn output(&self, arguments: &[&str]) -> Output {
        self.command().args(arguments).output().unwrap()
    }

    /// `--print-capabilities` wins over everything else.
    pub(crate) fn prints_capabilities(&self, expected: &str) {
        let mut command = Command::new(&self.path);
        let output = command
            .args(["--nonsense", "--fd=x", "--print-capabilities"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
    }

    /// Wrong usage is told with exit code 2, a missing resource in one line with exit code 1.
    pub(crate) fn refuses_what_it_cannot_do(&self) {
        for wrong in [
            &[][..],
            &["--socket-path", "/tmp/x", "--fd", "3"],
            &["--fd", "2"],
        ] {
            let output = self.output(wrong);
            assert_eq!(output.status.code(), Some(2), "{wrong:?}: {output:?}");
        }
        for missing in [["--fd", "99"], ["--socket-path", "/nonexistent/socket"]] {
            let output = self.output(&missing);
            assert_eq!(output.status.code(), Some(1), "{missing:?}: {output:?}");
            assert_eq!(String::from_utf8(output.stderr).unwrap().lines().count(), 1);
        }
    }

    /// SIGTERM ends the program with exit code 0 and without its socket file, guest or no guest.
    pub(crate) fn ends_cleanly(&self) {
        for guest in [false, true] {
            let directory = tempfile::tempdir().unwrap();
            let socket = directory.path().join("socket");
            let child = self
                .command()
                .arg("--socket-path")
                .arg(&socket)
                .spawn()
                .unwrap();
            let guest = connect(&socket, &child).filter(|_| guest);
            let asked = Instant::now();
            kill(
                Pid::from_raw(child.id().try_into().unwrap()),
                Signal::SIGTERM,
            )
            .unwrap();
            let output = child.wait_with_output().unwrap();
            // Told to be 200 ms; a busy machine is given more, a hang is not.
            assert!(
                asked.elapsed() < Duration::from_secs(2),
                "{:?}",
                asked.elapsed()
            );
            assert!(output.status.success(), "{output:?}");
            assert!(!socket.exists());
            drop(guest);
        }
    }

    /// The program that was given its only connection ends with it.
    pub(crate) fn ends_with_its_only_connection(&self) {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("socket");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let mut ours = UnixStream::connect(&socket).unwrap();
        let (theirs, _) = listener.accept().unwrap();
        // The program finds the connection as its descriptor 3: the shell puts it there.
        let script = r#"exec 3<&0 </dev/null; exec "$0" "$@" --fd 3"#;
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", script])
            .arg(&self.path)
            .args(self.command().get_args());
        command.stdin(std::os::fd::OwnedFd::from(theirs));
        let mut child = command.spawn().unwrap();
        // It keeps a copy of the connection.
        drop(command);
        ours.set_read_timeout(Some(PATIENCE)).unwrap();
        ours.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(ours.read(&mut [0; 8]).unwrap(), 0);
        assert!(child.wait().unwrap().success());
    }
}

fn connect(socket: &Path, child: &Child) -> Option<UnixStream> {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Ok(stream) = UnixStream::connect(socket) {
            return Some(stream);
        }
        assert!(
            Instant::now() < end,
            "process {} does not listen",
            child.id()
        );
        std::thread::yield_now();
    }
}
