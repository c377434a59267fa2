//! A running guest.
//!
//! ```text
//! boot --ready frame--> running --poweroff, kill, drop, QEMU's end--> gone
//!   `--deadline, QEMU's end--> error with the last lines of the console
//! ```
//!
//! A guest is the property of its [`Guest`]: dropping it kills that QEMU, by its process handle
//! and nothing else. If our process is killed, the channel closes and PID 1 powers off.

use std::{
    fs::{self, File},
    io::{self, PipeReader, Read, Write},
    os::{
        fd::AsFd,
        unix::{
            net::{UnixListener, UnixStream},
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use guest_init::protocol::{self, Message};
pub use guest_init::protocol::{CommandId, ExitStatus, TerminalSize};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};
use tempfile::TempDir;
use thiserror::Error;

use crate::{
    channel::{Channel, Finished, Ready, Sink, WaitError},
    machine::{CHANNEL_SOCKET, MONITOR_SOCKET, Machine, SERIAL_LOG},
    qmp::{Qmp, QmpError},
};

/// QEMU's own messages, in the guest's folder.
const QEMU_LOG: &str = "qemu.log";
/// Lines of a log that an error shows, and the bytes read for them.
const TAIL_LINES: usize = 20;
const TAIL_BYTES: usize = 16 << 10;
/// Time for an answer of QEMU's monitor.
const QMP_WITHIN: Duration = Duration::from_secs(10);
/// Time for QEMU to end after it closed its monitor.
const CLOSED_WITHIN: Duration = Duration::from_secs(5);
/// Where a QEMU waits for a guest of another, in its folder.
const MIGRATION_SOCKET: &str = "migration.sock";
const MIGRATION_BYTES_PER_SECOND_MAX: u64 = 1 << 30;
/// Largest piece of standard input in one frame.
const STDIN_PIECE_BYTES: usize = 32_768;

/// Why a guest did not do what was asked.
#[derive(Debug, Error)]
pub enum GuestError {
    /// A file, socket or process of the guest could not be made.
    #[error("cannot {what}")]
    Setup {
        /// What was tried.
        what: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The guest was not ready in time, or QEMU ended before.
    #[error("guest did not boot: {why}{}", shown(log))]
    NotReady {
        /// What was missing.
        why: String,
        /// Last lines of QEMU and of the serial console.
        log: String,
    },
    /// A command still ran at its deadline.
    #[error("`{command}` did not end within {} ms", within.as_millis())]
    DeadlinePassed {
        /// The command, or its number.
        command: String,
        /// The time it had.
        within: Duration,
    },
    /// The guest went away while something was asked of it.
    #[error("guest is gone: {why}{}", shown(log))]
    Gone {
        /// How that showed.
        why: String,
        /// Last lines of QEMU and of the serial console.
        log: String,
    },
    /// The guest did not move to another QEMU, and goes on where it was.
    #[error("guest did not move: {why}{}", shown(log))]
    NotMoved {
        /// What QEMU said.
        why: String,
        /// Last lines of the QEMU that it was to move to.
        log: String,
    },
    /// No command has that number, or its end was handed out already.
    #[error("no command has number {id}")]
    NoSuchCommand {
        /// The number.
        id: CommandId,
    },
    /// QEMU's monitor.
    #[error("QEMU's monitor failed")]
    Monitor(#[from] QmpError),
}

fn shown(log: &str) -> String {
    if log.is_empty() {
        String::new()
    } else {
        format!("\n{log}")
    }
}

/// What a command did.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Bytes of its standard output, at most 16 MiB.
    pub stdout: Vec<u8>,
    /// Bytes of its standard error, at most 16 MiB.
    pub stderr: Vec<u8>,
    /// Whether one of them was longer and the rest dropped.
    pub truncated: bool,
}

impl Output {
    /// The standard output as text; bytes that are not UTF-8 are replaced.
    #[must_use]
    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// The standard error as text; bytes that are not UTF-8 are replaced.
    #[must_use]
    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

/// A guest whose PID 1 takes commands. All methods may be called from several threads.
#[derive(Debug)]
pub struct Guest {
    // Dropped in this order: QEMU first, so that nothing waits for it.
    process: Process,
    channel: Channel,
    monitor: Mutex<Qmp>,
    ready: Ready,
    boot_time: Duration,
    folder: Folder,
}

/// A QEMU whose sockets are there; the guest in it need not be.
#[derive(Debug)]
struct Started {
    process: Process,
    channel: Channel,
    monitor: Qmp,
    folder: Folder,
}

/// A QEMU that waits for a guest of another: see [`Guest::migrate`].
#[derive(Debug)]
pub struct Incoming {
    started: Started,
    uri: String,
}

impl Incoming {
    pub(crate) fn start(machine: &Machine) -> Result<Self, GuestError> {
        let started = Started::new(machine, Instant::now())?;
        let uri = format!(
            "unix:{}",
            started.folder.path().join(MIGRATION_SOCKET).display()
        );
        let mut incoming = Self { started, uri };
        let command = json!({"execute": "migrate-incoming", "arguments": {"uri": incoming.uri}});
        incoming.started.monitor.execute(&command, QMP_WITHIN)?;
        Ok(incoming)
    }
}

impl Started {
    fn new(machine: &Machine, start: Instant) -> Result<Self, GuestError> {
        let folder = Folder::new(machine.folder_path())?;
        let listener = UnixListener::bind(folder.path().join(MONITOR_SOCKET))
            .map_err(setup("listen for QEMU's monitor"))?;
        let mut process = Process::start(machine, folder.path())?;
        let left = || machine.boot_time_max().saturating_sub(start.elapsed());
        let not_ready = |why: String| GuestError::NotReady {
            why,
            log: folder.log_tail(),
        };

        // QEMU greets on its monitor when all its sockets exist, so the channel can be connected
        // from then on.
        let stream = process
            .accept(&listener, left())
            .map_err(setup("wait for QEMU"))?
            .ok_or_else(|| not_ready(process.why_silent()))?;
        let handshake = Qmp::handshake(stream, left().max(Duration::from_millis(1)));
        let monitor = match handshake {
            Ok(monitor) => monitor,
            Err(QmpError::Closed) => {
                // QEMU connects before it looks at devices, and ends when it refuses one.
                process
                    .wait(CLOSED_WITHIN)
                    .map_err(setup("wait for QEMU"))?;
                return Err(not_ready(process.why_silent()));
            }
            Err(error) => return Err(not_ready(format!("QEMU's monitor: {error}"))),
        };
        let channel = UnixStream::connect(folder.path().join(CHANNEL_SOCKET))
            .and_then(Channel::new)
            .map_err(setup("connect to the guest's channel"))?;
        Ok(Self {
            process,
            channel,
            monitor,
            folder,
        })
    }
}

impl Guest {
    pub(crate) fn boot(machine: &Machine) -> Result<Self, GuestError> {
        let start = Instant::now();
        let Started {
            process,
            channel,
            monitor,
            folder,
        } = Started::new(machine, start)?;
        let left = machine.boot_time_max().saturating_sub(start.elapsed());
        let not_ready = |why: String| GuestError::NotReady {
            why,
            log: folder.log_tail(),
        };
        let ready = channel.wait_ready(left).map_err(|error| {
            not_ready(match error {
                WaitError::Closed(_) => "QEMU ended".to_owned(),
                WaitError::DeadlinePassed | WaitError::NoSuchCommand => format!(
                    "PID 1 was not ready within {} ms",
                    machine.boot_time_max().as_millis()
                ),
            })
        })?;
        if ready.version != protocol::VERSION {
            return Err(not_ready(format!("PID 1 speaks version {}", ready.version)));
        }
        let boot_time = start.elapsed();
        Ok(Self {
            process,
            channel,
            monitor: Mutex::new(monitor),
            ready,
            boot_time,
            folder,
        })
    }

    /// Time from the start of QEMU to the ready frame, on the host's clock.
    #[must_use]
    pub const fn boot_time(&self) -> Duration {
        self.boot_time
    }

    /// Time from the kernel's start to the ready frame, on the guest's clock.
    #[must_use]
    pub const fn guest_uptime(&self) -> Duration {
        self.ready.uptime
    }

    /// What PID 1 had to complain about during boot, one line each; empty when all is well.
    #[must_use]
    pub fn boot_notes(&self) -> &str {
        &self.ready.notes
    }

    /// Process number of this guest's QEMU.
    #[must_use]
    pub fn qemu_pid(&self) -> u32 {
        self.process.child.id()
    }

    /// Folder with the sockets ([`crate::machine::QMP_SOCKET`]) and logs of the guest.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The last lines of QEMU and of the serial console.
    #[must_use]
    pub fn log_tail(&self) -> String {
        self.folder.log_tail()
    }

    /// Runs a command under `sh -c` and waits for its end.
    ///
    /// # Errors
    ///
    /// [`GuestError::DeadlinePassed`] after `within` (the command's process group is killed
    /// then), [`GuestError::Gone`]. A command that fails is not an error: see
    /// [`Output::status`].
    pub fn run(&self, command: &str, within: Duration) -> Result<Output, GuestError> {
        let id = self.spawn(command)?;
        self.wait(id, within).map_err(|error| match error {
            GuestError::DeadlinePassed { within, .. } => {
                // Should that fail, the guest is gone, which the caller will notice.
                drop(self.signal(id, 9));
                self.channel.forget(id);
                GuestError::DeadlinePassed {
                    command: command.to_owned(),
                    within,
                }
            }
            other => other,
        })
    }

    /// Starts a command under `sh -c`. Up to 64 run at the same time.
    ///
    /// # Errors
    ///
    /// [`GuestError::Gone`]. Whether it really started shows in the [`ExitStatus`].
    pub fn spawn(&self, command: &str) -> Result<CommandId, GuestError> {
        self.start(command, None, Sink::Keep)
    }

    /// Starts a command on a terminal of its own and writes what it prints to `output`.
    ///
    /// # Errors
    ///
    /// [`GuestError::Gone`].
    pub fn spawn_on_terminal(
        &self,
        command: &str,
        size: TerminalSize,
        output: Box<dyn Write + Send>,
    ) -> Result<CommandId, GuestError> {
        // A terminal has one stream; PID 1 sends it all as standard output.
        let sink = Sink::Stream {
            stdout: output,
            stderr: Box::new(io::sink()),
        };
        self.start(command, Some(size), sink)
    }

    /// Starts a command and writes what it prints to `stdout` and `stderr` as it comes. The
    /// writers are called on the channel's thread: one that blocks holds up all commands.
    ///
    /// # Errors
    ///
    /// [`GuestError::Gone`].
    pub fn spawn_streaming(
        &self,
        command: &str,
        stdout: Box<dyn Write + Send>,
        stderr: Box<dyn Write + Send>,
    ) -> Result<CommandId, GuestError> {
        self.start(command, None, Sink::Stream { stdout, stderr })
    }

    fn start(
        &self,
        command: &str,
        terminal: Option<TerminalSize>,
        sink: Sink,
    ) -> Result<CommandId, GuestError> {
        let id = self.channel.register(sink);
        let command = command.to_owned();
        self.send(&Message::Run {
            id,
            terminal,
            command,
        })
        .inspect_err(|_gone| self.channel.forget(id))?;
        Ok(id)
    }

    /// Gives a command bytes to read. At most 1 MiB may be unread at a time; a command that lets
    /// more pile up loses its standard input.
    ///
    /// # Errors
    ///
    /// [`GuestError::Gone`].
    pub fn write_stdin(&self, id: CommandId, bytes: &[u8]) -> Result<(), GuestError> {
        for piece in bytes.chunks(STDIN_PIECE_BYTES) {
            self.send(&Message::Stdin {
                id,
                bytes: piece.to_vec(),
            })?;
        }
        Ok(())
    }

    /// Tells a command that nothing more comes on its standard input.
    ///
    /// # Errors
    ///
    /// [`GuestError::Gone`].
    pub fn close_stdin(&self, id: CommandId) -> Result<(), GuestError> {
        self.send(&Message::Stdin {
            id,
            bytes: Vec::new(),
        })
    }

    /// Sends a signal to a command's process group.
    ///
    /// # Errors
    ///
    /// [`GuestError::Gone`].
    pub fn signal(&self, id: CommandId, signal: u8) -> Result<(), GuestError> {
        self.send(&Message::Kill { id, signal })
    }

    /// Waits for the end of a command started with [`Self::spawn`]. After a deadline the command
    /// runs on and can be waited for again.
    ///
    /// # Errors
    ///
    /// [`GuestError::DeadlinePassed`], [`GuestError::Gone`], [`GuestError::NoSuchCommand`].
    pub fn wait(&self, id: CommandId, within: Duration) -> Result<Output, GuestError> {
        match self.channel.wait(id, within) {
            Ok(Finished {
                status,
                stdout,
                stderr,
                truncated,
            }) => Ok(Output {
                status,
                stdout,
                stderr,
                truncated,
            }),
            Err(WaitError::DeadlinePassed) => Err(GuestError::DeadlinePassed {
                command: format!("command {id}"),
                within,
            }),
            Err(WaitError::NoSuchCommand) => Err(GuestError::NoSuchCommand { id }),
            Err(WaitError::Closed(why)) => Err(self.gone(why)),
        }
    }

    fn send(&self, message: &Message) -> Result<(), GuestError> {
        self.channel.send(message).map_err(|why| self.gone(why))
    }

    fn gone(&self, why: String) -> GuestError {
        GuestError::Gone {
            why,
            log: self.folder.log_tail(),
        }
    }

    /// Executes a command of QEMU's monitor, e.g. `{"execute": "device_add", "arguments": {}}`.
    ///
    /// # Errors
    ///
    /// [`GuestError::Monitor`].
    pub fn qmp(&self, command: &Value) -> Result<Value, GuestError> {
        let mut monitor = self.monitor.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(monitor.execute(command, QMP_WITHIN)?)
    }

    /// Waits for an event of QEMU's monitor, e.g. `DEVICE_DELETED`; one that came earlier and
    /// was not asked for counts.
    ///
    /// # Errors
    ///
    /// [`GuestError::Monitor`].
    pub fn qmp_event(&self, name: &str, within: Duration) -> Result<Value, GuestError> {
        let mut monitor = self.monitor.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(monitor.event(name, within)?)
    }

    /// Moves the guest to another QEMU, which ran its devices when this returns; the QEMU that it has
    /// left is over. Commands go on and may be waited for, but must not print while the guest moves.
    ///
    /// # Errors
    ///
    /// [`GuestError::NotMoved`]: the guest goes on where it was. [`GuestError::Monitor`].
    #[expect(
        clippy::result_large_err,
        reason = "a guest that stays comes back whole"
    )]
    pub fn migrate(self, incoming: Incoming, within: Duration) -> Result<Self, (Self, GuestError)> {
        let Incoming { started, uri } = incoming;
        let moved = self.send_to(&uri, within);
        let Started {
            process,
            channel,
            mut monitor,
            folder,
        } = started;
        let resumed = moved.and_then(|()| Ok(monitor.event("RESUME", within)?));
        if let Err(error) = resumed {
            let error = match error {
                GuestError::NotMoved { why, .. } => GuestError::NotMoved {
                    why,
                    log: folder.log_tail(),
                },
                other => other,
            };
            return Err((self, error));
        }
        channel.take_over(&self.channel);
        Ok(Self {
            process,
            channel,
            monitor: Mutex::new(monitor),
            ready: self.ready.clone(),
            boot_time: self.boot_time,
            folder,
        })
    }

    fn send_to(&self, uri: &str, within: Duration) -> Result<(), GuestError> {
        // With a way back, a guest whose state the other QEMU does not take goes on here.
        let capabilities =
            ["events", "return-path"].map(|name| json!({"capability": name, "state": true}));
        let set = json!({"execute": "migrate-set-capabilities",
            "arguments": {"capabilities": capabilities}});
        self.qmp(&set)?;
        // A guest that writes faster than that to its memory would never be done.
        let bandwidth = json!({"execute": "migrate-set-parameters", "arguments":
            {"max-bandwidth": MIGRATION_BYTES_PER_SECOND_MAX}});
        self.qmp(&bandwidth)?;
        self.qmp(&json!({"execute": "migrate", "arguments": {"uri": uri}}))?;
        let end = Instant::now() + within;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let event = self.qmp_event("MIGRATION", left)?;
            match event.pointer("/data/status").and_then(Value::as_str) {
                Some("completed") => return Ok(()),
                Some("failed" | "cancelled") => {
                    return Err(GuestError::NotMoved {
                        why: "QEMU says that the migration failed".to_owned(),
                        log: String::new(),
                    });
                }
                _ => {}
            }
        }
    }

    /// Powers the guest off and waits for QEMU's end.
    ///
    /// # Errors
    ///
    /// [`GuestError::DeadlinePassed`]; QEMU is killed then.
    pub fn poweroff(mut self, within: Duration) -> Result<(), GuestError> {
        self.send(&Message::PowerOff)?;
        let ended = self.process.wait(within).map_err(setup("wait for QEMU"))?;
        if ended {
            return Ok(());
        }
        Err(GuestError::DeadlinePassed {
            command: "power off".to_owned(),
            within,
        })
    }

    /// Kills QEMU with SIGKILL, as a crash would, and waits for its end.
    ///
    /// # Errors
    ///
    /// [`GuestError::Setup`] when the system refuses.
    pub fn kill(mut self) -> Result<(), GuestError> {
        self.process.kill().map_err(setup("kill QEMU"))
    }
}

/// As [`Machine::run_from_disk`].
pub(crate) fn run_to_power_off(machine: &Machine, within: Duration) -> Result<String, GuestError> {
    let folder = Folder::new(machine.folder_path())?;
    // QEMU does not start without somebody to connect to; nobody reads what it says there.
    let _monitor = UnixListener::bind(folder.path().join(MONITOR_SOCKET))
        .map_err(setup("listen for QEMU's monitor"))?;
    let mut process = Process::start(machine, folder.path())?;
    let ended = process.wait(within).map_err(setup("wait for QEMU"))?;
    let why = match process.child.try_wait().map_err(setup("wait for QEMU"))? {
        Some(status) if ended && status.success() => {
            let console = fs::read(folder.path().join(SERIAL_LOG));
            let console = console.map_err(setup("read the serial console"))?;
            return Ok(String::from_utf8_lossy(&console).into_owned());
        }
        Some(status) => format!("QEMU ended ({status})"),
        None => format!("no power off within {} ms", within.as_millis()),
    };
    let log = folder.log_tail();
    Err(GuestError::NotReady { why, log })
}

fn setup(what: &str) -> impl Fn(io::Error) -> GuestError {
    move |source| GuestError::Setup {
        what: what.to_owned(),
        source,
    }
}

/// One QEMU.
///
/// Its standard output is a pipe nobody writes to: it reads as ended when QEMU has, which makes
/// QEMU's end something to poll for.
#[derive(Debug)]
struct Process {
    child: Child,
    life: PipeReader,
}

impl Process {
    fn start(machine: &Machine, folder: &Path) -> Result<Self, GuestError> {
        let (life, end) = io::pipe().map_err(setup("make a pipe"))?;
        let log = File::create(folder.join(QEMU_LOG)).map_err(setup("create QEMU's log"))?;
        let mut command = machine.qemu().command();
        command
            .args(machine.args(folder))
            .stdin(Stdio::null())
            .stdout(end)
            .stderr(log)
            // A person's ^C is for us; we end the guest.
            .process_group(0);
        let child = command.spawn().map_err(setup("start QEMU"))?;
        // `command` holds our copy of the pipe's other end; it must go, or the pipe never ends.
        drop(command);
        Ok(Self { child, life })
    }

    /// A connection; `None` after the deadline or when QEMU ended.
    fn accept(
        &mut self,
        listener: &UnixListener,
        within: Duration,
    ) -> io::Result<Option<UnixStream>> {
        let start = Instant::now();
        loop {
            let mut fds = [
                PollFd::new(listener.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.life.as_fd(), PollFlags::POLLIN),
            ];
            poll_within(&mut fds, within.saturating_sub(start.elapsed()))?;
            let [listening, life] = fds.map(|fd| fd.any().unwrap_or(true));
            if listening {
                return listener.accept().map(|(stream, _address)| Some(stream));
            }
            if (life && self.life_ended()?) || start.elapsed() >= within {
                return Ok(None);
            }
        }
    }

    /// Throws away what was written to the pipe; whether it has ended. Only called when polled.
    fn life_ended(&mut self) -> io::Result<bool> {
        let mut bytes = [0; 4_096];
        Ok(self.life.read(&mut bytes)? == 0)
    }

    fn why_silent(&mut self) -> String {
        match self.child.try_wait() {
            Ok(Some(status)) => format!("QEMU ended ({status})"),
            _ => "QEMU did not open its monitor".to_owned(),
        }
    }

    /// Waits for QEMU's end; `false` after the deadline.
    fn wait(&mut self, within: Duration) -> io::Result<bool> {
        let start = Instant::now();
        loop {
            let mut fds = [PollFd::new(self.life.as_fd(), PollFlags::POLLIN)];
            poll_within(&mut fds, within.saturating_sub(start.elapsed()))?;
            let [life] = fds.map(|fd| fd.any().unwrap_or(true));
            if life && self.life_ended()? {
                self.child.wait()?;
                return Ok(true);
            }
            if start.elapsed() >= within {
                return Ok(false);
            }
        }
    }

    fn kill(&mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait().map(drop)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only when it has been waited for already.
        drop(self.kill());
    }
}

fn poll_within(fds: &mut [PollFd<'_>], within: Duration) -> io::Result<()> {
    // Rounded up: a wait of 0 ms for the last half millisecond would spin.
    let ms = i32::try_from(within.as_micros().div_ceil(1_000)).unwrap_or(i32::MAX);
    let timeout = PollTimeout::try_from(ms).unwrap_or(PollTimeout::MAX);
    match poll(fds, timeout) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Where a guest's sockets and logs are.
#[derive(Debug)]
enum Folder {
    Temporary(TempDir),
    Given(PathBuf),
}

impl Folder {
    fn new(given: Option<&Path>) -> Result<Self, GuestError> {
        let Some(path) = given else {
            return tempfile::Builder::new()
                .prefix("orimono-guest-")
                .tempdir()
                .map(Self::Temporary)
                .map_err(setup("create a folder for the guest"));
        };
        // Sockets of an earlier guest would be in the way.
        for socket in [
            MONITOR_SOCKET,
            CHANNEL_SOCKET,
            MIGRATION_SOCKET,
            crate::machine::QMP_SOCKET,
        ] {
            match fs::remove_file(path.join(socket)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(setup("remove an old socket")(error));
                }
                Ok(()) | Err(_) => {}
            }
        }
        Ok(Self::Given(path.to_owned()))
    }

    fn path(&self) -> &Path {
        match self {
            Self::Temporary(folder) => folder.path(),
            Self::Given(path) => path,
        }
    }

    fn log_tail(&self) -> String {
        let mut text = String::new();
        for name in [QEMU_LOG, SERIAL_LOG] {
            let tail = tail_of(&self.path().join(name)).unwrap_or_default();
            if !tail.is_empty() {
                text.push_str(&format!("-- {name}\n{tail}"));
            }
        }
        text
    }
}

/// The last lines of a log, without terminal control sequences.
fn tail_of(path: &Path) -> io::Result<String> {
    let bytes = fs::read(path)?;
    let start = bytes.len().saturating_sub(TAIL_BYTES);
    let text = String::from_utf8_lossy(bytes.get(start..).unwrap_or_default()).into_owned();
    let lines: Vec<String> = text
        .lines()
        .map(|line| line.chars().filter(|c| !c.is_control()).collect::<String>())
        .filter(|line| !line.trim().is_empty())
        .collect();
    let first = lines.len().saturating_sub(TAIL_LINES);
    // A panic's trace may be longer than the tail, but its first line says what happened.
    let panic = lines
        .iter()
        .take(first)
        .filter(|line| line.contains("Kernel panic"));
    let shown = panic.chain(lines.iter().skip(first));
    Ok(shown.map(|line| format!("{line}\n")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_is_the_last_lines_without_control_characters() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut text: String = (0..40).map(|line| format!("line {line}\r\n")).collect();
        text.insert_str(0, "Kernel panic - not syncing\n");
        text.push_str("\u{1b}c\nlast\n");
        fs::write(&path, text).unwrap();
        let tail = tail_of(&path).unwrap();
        assert_eq!(tail.lines().count(), TAIL_LINES + 1);
        assert!(
            tail.starts_with("Kernel panic - not syncing\nline 22\n"),
            "{tail}"
        );
        assert!(tail.ends_with("line 39\nc\nlast\n"), "{tail}");
        assert!(tail_of(&folder.path().join("none")).is_err());
    }
}
