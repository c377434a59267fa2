//! The poll loop: frames in, frames out, children reaped.
//!
//! Everything is bounded: when [`OUTBOX_BYTES_HIGH`] bytes wait for the host, no output of a
//! command is read, so the commands wait; beyond [`COMMANDS_MAX`] commands none is started.
//!
//! ```text
//! Waiting --host opens its end--> Connected --host closes its end--> power off
//!    ^                                           |
//!    +------------- `orimono.stay` --------------+
//! ```

use std::{
    fs::File,
    io::{self, ErrorKind, Read, Write},
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use guest_init::{
    STAY_PARAMETER,
    protocol::{self, CommandId, Decoder, ExitStatus, Message},
};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    time::{ClockId, clock_gettime},
};

use crate::{
    command::{Command, Output, OutputRead},
    console,
};

/// Commands at the same time.
const COMMANDS_MAX: usize = 64;
/// Pipes of finished commands that something still holds open. Past it the oldest is closed.
const LEFT_OVER_MAX: usize = 128;
/// Bytes waiting for the host above which no more output is read.
const OUTBOX_BYTES_HIGH: usize = 256 << 10;
/// Between two looks whether a host is there. The port has no event for "connected" that does
/// not also fire all the time while nobody is.
const HOST_WAIT_STEP: Duration = Duration::from_millis(20);
/// Without `orimono.stay`, this long without a first host ends the guest.
const HOST_WAIT_MAX: Duration = Duration::from_secs(60);

/// What the poll loop waits for.
#[derive(Clone, Copy, Debug)]
enum Source {
    Children,
    Port,
    Stdin(usize),
    Output(usize, Output),
    LeftOver(usize),
}

pub(crate) struct Session {
    port: File,
    signals: SignalFd,
    notes: String,
    stay: bool,
    decoder: Decoder,
    outbox: Vec<u8>,
    commands: Vec<Command>,
    left_over: Vec<File>,
    power_off: bool,
}

impl Session {
    pub(crate) fn new(port: File, notes: String) -> io::Result<Self> {
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        mask.thread_block()?;
        let parameters = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
        Ok(Self {
            port,
            signals: SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?,
            notes,
            stay: parameters
                .split_whitespace()
                .any(|word| word == STAY_PARAMETER),
            decoder: Decoder::default(),
            outbox: Vec::new(),
            commands: Vec::new(),
            left_over: Vec::new(),
            power_off: false,
        })
    }

    /// Serves hosts until one asks for power off, or goes away.
    pub(crate) fn run(mut self) -> io::Result<()> {
        loop {
            if !self.wait_for_host()? {
                console::say("no host opened the channel");
                return Ok(());
            }
            self.decoder = Decoder::default();
            self.outbox.clear();
            let notes = self.notes.chars().take(8_000).collect();
            self.send(&Message::Ready {
                version: protocol::VERSION,
                uptime_ms: uptime_ms(),
                notes,
            });
            while self.turn()? {
                if self.power_off {
                    return Ok(());
                }
            }
            if !self.stay {
                console::say("host closed the channel");
                return Ok(());
            }
        }
    }

    fn wait_for_host(&mut self) -> io::Result<bool> {
        let mut waited = Duration::ZERO;
        loop {
            let mut fds = [PollFd::new(self.port.as_fd(), PollFlags::POLLOUT)];
            poll(&mut fds, PollTimeout::ZERO)?;
            let [port] = fds;
            let events = port.revents().unwrap_or(PollFlags::empty());
            if events.contains(PollFlags::POLLOUT) && !events.contains(PollFlags::POLLHUP) {
                return Ok(true);
            }
            if !self.stay && waited > HOST_WAIT_MAX {
                return Ok(false);
            }
            self.reap();
            std::thread::sleep(HOST_WAIT_STEP);
            waited += HOST_WAIT_STEP;
        }
    }

    /// Waits for one event and handles all that are there. `false`: the host is gone.
    fn turn(&mut self) -> io::Result<bool> {
        let mut connected = true;
        for (source, events) in self.select()? {
            match source {
                Source::Children => self.reap(),
                Source::Port => {
                    // Bytes the host sent before it left are still worth reading.
                    if events.contains(PollFlags::POLLIN) {
                        connected &= self.receive()?;
                    }
                    if events.intersects(PollFlags::POLLHUP | PollFlags::POLLERR) {
                        connected = false;
                    }
                }
                Source::Stdin(index) => {
                    if let Some(command) = self.commands.get_mut(index) {
                        command.write_stdin();
                    }
                }
                Source::Output(index, output) => {
                    if let Some(OutputRead::Bytes(message)) = self
                        .commands
                        .get_mut(index)
                        .map(|command| command.read_output(output))
                    {
                        self.send(&message);
                    }
                }
                Source::LeftOver(index) => self.drain_left_over(index),
            }
            // `receive` and `reap` change the list, and with it what the indices mean.
            if matches!(source, Source::Children | Source::Port) && !self.commands.is_empty() {
                break;
            }
        }
        self.finish_commands();
        connected &= self.flush()?;
        Ok(connected)
    }

    fn select(&self) -> io::Result<Vec<(Source, PollFlags)>> {
        let room = self.outbox.len() < OUTBOX_BYTES_HIGH;
        let mut port = PollFlags::POLLIN;
        if !self.outbox.is_empty() {
            port |= PollFlags::POLLOUT;
        }
        let mut wanted: Vec<(Source, BorrowedFd<'_>, PollFlags)> = vec![
            (Source::Children, self.signals.as_fd(), PollFlags::POLLIN),
            (Source::Port, self.port.as_fd(), port),
        ];
        for (index, command) in self.commands.iter().enumerate() {
            if let Some(fd) = command.stdin_waiting() {
                wanted.push((Source::Stdin(index), fd, PollFlags::POLLOUT));
            }
            for output in [Output::Stdout, Output::Stderr] {
                if let Some(fd) = command.output(output).filter(|_fd| room) {
                    wanted.push((Source::Output(index, output), fd, PollFlags::POLLIN));
                }
            }
        }
        // From the back, so that removing one leaves the others' indices alone.
        for (index, file) in self.left_over.iter().enumerate().rev() {
            wanted.push((Source::LeftOver(index), file.as_fd(), PollFlags::POLLIN));
        }
        let mut fds: Vec<PollFd<'_>> = wanted
            .iter()
            .map(|(_source, fd, flags)| PollFd::new(*fd, *flags))
            .collect();
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_count) => {}
            Err(nix::errno::Errno::EINTR) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        }
        Ok(wanted
            .iter()
            .zip(&fds)
            .filter_map(|((source, ..), fd)| {
                let events = fd.revents().unwrap_or(PollFlags::POLLERR);
                (!events.is_empty()).then_some((*source, events))
            })
            .collect())
    }

    /// Reads what the host sent. `false`: end of stream.
    fn receive(&mut self) -> io::Result<bool> {
        let mut bytes = [0; 32_768];
        let count = match self.port.read(&mut bytes) {
            Ok(0) => return Ok(false),
            Ok(count) => count,
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                return Ok(true);
            }
            Err(error) => return Err(error),
        };
        self.decoder.push(bytes.get(..count).unwrap_or_default());
        loop {
            match self.decoder.next_message() {
                Ok(Some(message)) => self.apply(message),
                Ok(None) => return Ok(true),
                Err(error) => return Err(io::Error::new(ErrorKind::InvalidData, error)),
            }
        }
    }

    fn apply(&mut self, message: Message) {
        match message {
            Message::Run {
                id,
                terminal,
                command,
            } => {
                let started = if self.command(id).is_some() {
                    Err(format!("command {id} still runs"))
                } else if self.commands.len() >= COMMANDS_MAX {
                    Err(format!("{COMMANDS_MAX} commands run already"))
                } else {
                    Command::start(id, terminal, &command).map_err(|error| error.to_string())
                };
                match started {
                    Ok(command) => self.commands.push(command),
                    Err(why) => {
                        self.send(&Message::Exit {
                            id,
                            status: ExitStatus::NotStarted(why),
                        });
                    }
                }
            }
            Message::Stdin { id, bytes } => {
                if self
                    .command(id)
                    .is_some_and(|command| !command.feed(&bytes))
                {
                    let bytes = b"guest-init: standard input closed, too much was unread\n";
                    self.send(&Message::Stderr {
                        id,
                        bytes: bytes.to_vec(),
                    });
                }
            }
            Message::Kill { id, signal } => {
                if let Some(Err(error)) = self.command(id).map(|command| command.kill(signal)) {
                    console::say(&format!(
                        "cannot send signal {signal} to command {id}: {error}"
                    ));
                }
            }
            Message::PowerOff => self.power_off = true,
            // The host does not send these; ignoring them is as good as any answer.
            Message::Ready { .. }
            | Message::Stdout { .. }
            | Message::Stderr { .. }
            | Message::Exit { .. } => console::say("host sent a frame that only guests send"),
        }
    }

    fn command(&mut self, id: CommandId) -> Option<&mut Command> {
        self.commands.iter_mut().find(|command| command.id() == id)
    }

    /// Takes every ended child: ours, and the orphans the kernel gave to PID 1.
    fn reap(&mut self) {
        // Signals of one kind merge, so the count says nothing: empty the descriptor.
        while let Ok(Some(_child)) = self.signals.read_signal() {}
        loop {
            let (pid, status) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (
                    pid,
                    ExitStatus::Exited(u8::try_from(code).unwrap_or(u8::MAX)),
                ),
                Ok(WaitStatus::Signaled(pid, signal, _core)) => (
                    pid,
                    ExitStatus::Signalled(u8::try_from(signal as i32).unwrap_or(u8::MAX)),
                ),
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(_stopped_or_continued) => continue,
            };
            if let Some(command) = self
                .commands
                .iter_mut()
                .find(|command| command.pid() == pid)
            {
                command.status = Some(status);
            }
        }
    }

    /// Ends the commands whose shell has ended and whose pipes are empty.
    fn finish_commands(&mut self) {
        let mut index = 0;
        while let Some(command) = self.commands.get_mut(index) {
            let mut empty = true;
            if command.status.is_some() {
                for output in [Output::Stdout, Output::Stderr] {
                    while self.outbox.len() < OUTBOX_BYTES_HIGH {
                        let OutputRead::Bytes(message) = command.read_output(output) else {
                            break;
                        };
                        append(&mut self.outbox, &message);
                    }
                    // With a full outbox we do not know; look again when there is room.
                    empty &= self.outbox.len() < OUTBOX_BYTES_HIGH;
                }
            }
            if !empty || command.status.is_none() {
                index += 1;
                continue;
            }
            let mut command = self.commands.remove(index);
            if let Some(status) = command.status.take() {
                append(
                    &mut self.outbox,
                    &Message::Exit {
                        id: command.id(),
                        status,
                    },
                );
            }
            self.left_over.extend(command.into_outputs());
            let excess = self.left_over.len().saturating_sub(LEFT_OVER_MAX);
            self.left_over.drain(..excess);
        }
    }

    fn drain_left_over(&mut self, index: usize) {
        let mut bytes = [0; 4_096];
        let Some(file) = self.left_over.get_mut(index) else {
            return;
        };
        match file.read(&mut bytes) {
            Ok(count) if count > 0 => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Ok(_) | Err(_) => drop(self.left_over.remove(index)),
        }
    }

    fn send(&mut self, message: &Message) {
        append(&mut self.outbox, message);
    }

    /// Writes what the port takes now. `false`: the host is gone.
    fn flush(&mut self) -> io::Result<bool> {
        let mut done = 0;
        let mut connected = true;
        while let Some(rest) = self.outbox.get(done..).filter(|rest| !rest.is_empty()) {
            match self.port.write(rest) {
                Ok(count) => done += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                    connected = false;
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        self.outbox.drain(..done);
        Ok(connected)
    }
}

fn append(outbox: &mut Vec<u8>, message: &Message) {
    if let Err(error) = message.encode(outbox) {
        console::say(&format!("frame not sent: {error}"));
    }
}

fn uptime_ms() -> u64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME)
        .map(Duration::from)
        .map_or(0, |uptime| {
            u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX)
        })
}
