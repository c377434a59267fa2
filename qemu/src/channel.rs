//! The host's end of the channel to PID 1: commands by number, their output and their end.
//!
//! One thread reads; callers wait on a condition. When the stream ends, or is not the protocol,
//! the channel is closed and all who wait are told why.

use std::{
    collections::HashMap,
    io::{ErrorKind, Read, Write},
    os::unix::net::UnixStream,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use guest_init::protocol::{CommandId, Decoder, ExitStatus, Message};

/// Bytes kept of each output of a command; what follows is dropped and
/// [`Finished::truncated`] set.
pub(crate) const OUTPUT_BYTES_MAX: usize = 16 << 20;
/// PID 1 always reads, so a write that takes this long means a guest that hangs.
const WRITE_WITHIN: Duration = Duration::from_secs(10);

/// What PID 1 said when it was ready.
#[derive(Clone, Debug)]
pub(crate) struct Ready {
    pub(crate) version: u16,
    pub(crate) uptime: Duration,
    pub(crate) notes: String,
}

/// Where the output of a command goes.
pub(crate) enum Sink {
    /// Kept for whoever waits.
    Keep,
    /// Written on as it comes.
    Stream {
        stdout: Box<dyn Write + Send>,
        stderr: Box<dyn Write + Send>,
    },
}

/// A command that ended.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) truncated: bool,
}

/// Why a wait ended without what was waited for.
#[derive(Debug)]
pub(crate) enum WaitError {
    DeadlinePassed,
    Closed(String),
    NoSuchCommand,
}

struct Running {
    sink: Sink,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    truncated: bool,
    status: Option<ExitStatus>,
}

#[derive(Default)]
struct State {
    ready: Option<Ready>,
    commands: HashMap<CommandId, Running>,
    last_id: CommandId,
    closed: Option<String>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    /// A panic of another thread leaves the state whole: it is changed in single steps.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) struct Channel {
    writer: Mutex<UnixStream>,
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
}

impl Channel {
    pub(crate) fn new(stream: UnixStream) -> std::io::Result<Self> {
        stream.set_write_timeout(Some(WRITE_WITHIN))?;
        let reading = stream.try_clone()?;
        let shared = Arc::<Shared>::default();
        let reader = std::thread::Builder::new()
            .name("guest-channel".to_owned())
            .spawn({
                let shared = Arc::clone(&shared);
                move || {
                    let why = read_until_end(reading, &shared);
                    shared.lock().closed = Some(why);
                    shared.changed.notify_all();
                }
            })?;
        Ok(Self {
            writer: Mutex::new(stream),
            shared,
            reader: Some(reader),
        })
    }

    pub(crate) fn wait_ready(&self, within: Duration) -> Result<Ready, WaitError> {
        self.wait_for(within, |state| state.ready.clone())
    }

    /// Goes on where `before` was, which is this guest's channel to the QEMU that it has left: whoever
    /// waits for a command waits here from now on.
    pub(crate) fn take_over(&self, before: &Self) {
        let old = std::mem::take(&mut *before.shared.lock());
        let mut state = self.shared.lock();
        state.ready = old.ready;
        state.commands = old.commands;
        state.last_id = old.last_id;
    }

    /// A number no running command has.
    pub(crate) fn register(&self, sink: Sink) -> CommandId {
        let mut state = self.shared.lock();
        loop {
            state.last_id = state.last_id.wrapping_add(1);
            let id = state.last_id;
            if id != 0 && !state.commands.contains_key(&id) {
                break;
            }
        }
        let running = Running {
            sink,
            stdout: Vec::new(),
            stderr: Vec::new(),
            truncated: false,
            status: None,
        };
        let id = state.last_id;
        state.commands.insert(id, running);
        id
    }

    /// Forgets a command; what it still sends is ignored.
    pub(crate) fn forget(&self, id: CommandId) {
        self.shared.lock().commands.remove(&id);
    }

    /// Waits for the end of a command and hands out all it wrote. Works once for each command.
    pub(crate) fn wait(&self, id: CommandId, within: Duration) -> Result<Finished, WaitError> {
        let found = self.wait_for(within, |state| {
            let Some(command) = state.commands.get_mut(&id) else {
                return Some(None);
            };
            let status = command.status.take()?;
            let command = state.commands.remove(&id)?;
            Some(Some(Finished {
                status,
                stdout: command.stdout,
                stderr: command.stderr,
                truncated: command.truncated,
            }))
        })?;
        found.ok_or(WaitError::NoSuchCommand)
    }

    fn wait_for<T>(
        &self,
        within: Duration,
        mut check: impl FnMut(&mut State) -> Option<T>,
    ) -> Result<T, WaitError> {
        let start = std::time::Instant::now();
        let mut state = self.shared.lock();
        loop {
            if let Some(value) = check(&mut state) {
                return Ok(value);
            }
            if let Some(why) = &state.closed {
                return Err(WaitError::Closed(why.clone()));
            }
            let left = within
                .checked_sub(start.elapsed())
                .ok_or(WaitError::DeadlinePassed)?;
            let (guard, _timed_out) = self
                .shared
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner);
            state = guard;
        }
    }

    /// Sends a frame. The error is text for a person: there is nothing to decide from it.
    pub(crate) fn send(&self, message: &Message) -> Result<(), String> {
        let mut bytes = Vec::new();
        message
            .encode(&mut bytes)
            .map_err(|error| error.to_string())?;
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer.write_all(&bytes).map_err(|error| error.to_string())
    }

    /// Closes both directions and waits for the reading thread.
    pub(crate) fn close(&mut self) {
        let writer = self
            .writer
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        // Fails only when QEMU closed first, which is as good.
        drop(writer.shutdown(std::net::Shutdown::Both));
        if let Some(reader) = self.reader.take() {
            drop(reader.join());
        }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.close();
    }
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.shared.lock();
        f.debug_struct("Channel")
            .field("commands", &state.commands.len())
            .field("closed", &state.closed)
            .finish_non_exhaustive()
    }
}

fn read_until_end(mut stream: UnixStream, shared: &Shared) -> String {
    let mut decoder = Decoder::default();
    let mut bytes = vec![0; 65_536];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return "QEMU closed the channel".to_owned(),
            Ok(count) => decoder.push(bytes.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return format!("channel failed: {error}"),
        }
        let mut state = shared.lock();
        loop {
            match decoder.next_message() {
                Ok(Some(message)) => apply(&mut state, message),
                Ok(None) => break,
                Err(error) => return format!("guest does not speak the protocol: {error}"),
            }
        }
        drop(state);
        shared.changed.notify_all();
    }
}

fn apply(state: &mut State, message: Message) {
    let is_stderr = matches!(message, Message::Stderr { .. });
    match message {
        Message::Ready {
            version,
            uptime_ms,
            notes,
        } => {
            state.ready = Some(Ready {
                version,
                uptime: Duration::from_millis(uptime_ms),
                notes,
            });
        }
        Message::Stdout { id, bytes } | Message::Stderr { id, bytes } => {
            let Some(command) = state.commands.get_mut(&id) else {
                return;
            };
            if let Sink::Stream { stdout, stderr } = &mut command.sink {
                let stream = if is_stderr { stderr } else { stdout };
                // Whoever listens went away: the command's end is still worth waiting for.
                drop(stream.write_all(&bytes).and_then(|()| stream.flush()));
                return;
            }
            let kept = if is_stderr {
                &mut command.stderr
            } else {
                &mut command.stdout
            };
            let room = OUTPUT_BYTES_MAX.saturating_sub(kept.len());
            command.truncated |= bytes.len() > room;
            kept.extend(bytes.into_iter().take(room));
        }
        Message::Exit { id, status } => {
            if let Some(command) = state.commands.get_mut(&id) {
                command.status = Some(status);
            }
        }
        // Only hosts send these; a guest that does harms nobody.
        Message::Run { .. } | Message::Stdin { .. } | Message::Kill { .. } | Message::PowerOff => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    fn send(stream: &mut UnixStream, messages: &[Message]) {
        let mut bytes = Vec::new();
        for message in messages {
            message.encode(&mut bytes).unwrap();
        }
        stream.write_all(&bytes).unwrap();
    }

    #[test]
    fn interleaved_commands_get_their_own_output() {
        let (ours, mut guest) = UnixStream::pair().unwrap();
        let channel = Channel::new(ours).unwrap();
        let (first, second) = (channel.register(Sink::Keep), channel.register(Sink::Keep));
        assert_ne!(first, second);
        send(
            &mut guest,
            &[
                Message::Stdout {
                    id: first,
                    bytes: b"a".to_vec(),
                },
                Message::Stdout {
                    id: second,
                    bytes: b"x".to_vec(),
                },
                Message::Stderr {
                    id: first,
                    bytes: b"b".to_vec(),
                },
                Message::Exit {
                    id: second,
                    status: ExitStatus::Exited(3),
                },
                Message::Stdout {
                    id: first,
                    bytes: b"c".to_vec(),
                },
                Message::Exit {
                    id: first,
                    status: ExitStatus::Signalled(9),
                },
            ],
        );
        let finished = channel.wait(first, SOON).unwrap();
        assert_eq!(
            (
                finished.status,
                finished.stdout.as_slice(),
                finished.stderr.as_slice()
            ),
            (ExitStatus::Signalled(9), b"ac".as_slice(), b"b".as_slice())
        );
        assert_eq!(channel.wait(second, SOON).unwrap().stdout, b"x");
        assert!(matches!(
            channel.wait(second, SOON),
            Err(WaitError::NoSuchCommand)
        ));
    }

    #[test]
    fn output_beyond_the_limit_is_dropped_and_said_so() {
        let (ours, mut guest) = UnixStream::pair().unwrap();
        let channel = Channel::new(ours).unwrap();
        let id = channel.register(Sink::Keep);
        let piece = Message::Stdout {
            id,
            bytes: vec![7; 65_536],
        };
        for _ in 0..=OUTPUT_BYTES_MAX / 65_536 {
            send(&mut guest, std::slice::from_ref(&piece));
        }
        send(
            &mut guest,
            &[Message::Exit {
                id,
                status: ExitStatus::Exited(0),
            }],
        );
        let finished = channel.wait(id, SOON).unwrap();
        assert_eq!(finished.stdout.len(), OUTPUT_BYTES_MAX);
        assert!(finished.truncated);
    }

    #[test]
    fn a_guest_that_goes_away_or_talks_nonsense_ends_every_wait() {
        for nonsense in [b"".as_slice(), b"Kernel panic - not syncing"] {
            let (ours, mut guest) = UnixStream::pair().unwrap();
            let channel = Channel::new(ours).unwrap();
            let id = channel.register(Sink::Keep);
            guest.write_all(nonsense).unwrap();
            if nonsense.is_empty() {
                drop(guest);
            }
            assert!(matches!(channel.wait(id, SOON), Err(WaitError::Closed(_))));
        }
    }

    #[test]
    fn a_command_that_still_runs_passes_the_deadline() {
        let (ours, _guest) = UnixStream::pair().unwrap();
        let channel = Channel::new(ours).unwrap();
        let id = channel.register(Sink::Keep);
        let result = channel.wait(id, Duration::from_millis(10));
        assert!(matches!(result, Err(WaitError::DeadlinePassed)));
    }
}
