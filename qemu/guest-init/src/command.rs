//! One command of the host: its processes' pipes, and what is known about its end.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, ErrorKind, Read, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    os::unix::process::CommandExt,
    process::{Command as Process, Stdio},
};

use guest_init::protocol::{CommandId, ExitStatus, Message, TerminalSize};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    pty::{Winsize, openpty},
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

/// Standard input of one command that it has not read yet. A command that lets more pile up
/// loses its standard input: it must not stop the channel for the others.
const STDIN_BYTES_MAX: usize = 1 << 20;
/// Read at once from one pipe; also the payload of one frame, so less than its limit.
const READ_BYTES: usize = 32_768;

/// Which of a command's outputs a pipe is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Output {
    Stdout,
    Stderr,
}

/// What one read of an output gave.
#[derive(Debug)]
pub(crate) enum OutputRead {
    Bytes(Message),
    Nothing,
    End,
}

#[derive(Debug)]
pub(crate) struct Command {
    id: CommandId,
    pid: Pid,
    stdin: Option<File>,
    stdin_pending: VecDeque<u8>,
    stdin_ends: bool,
    stdout: Option<File>,
    stderr: Option<File>,
    /// Set by the reaper. The exit frame waits until the pipes are empty.
    pub(crate) status: Option<ExitStatus>,
}

impl Command {
    /// Starts `sh -c text` in a process group of its own.
    pub(crate) fn start(
        id: CommandId,
        terminal: Option<TerminalSize>,
        text: &str,
    ) -> io::Result<Self> {
        match terminal {
            None => Self::start_with_pipes(id, text),
            Some(size) => Self::start_with_terminal(id, size, text),
        }
    }

    fn start_with_pipes(id: CommandId, text: &str) -> io::Result<Self> {
        let mut child = Process::new("/bin/sh")
            .args(["-c", text])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()?;
        Ok(Self {
            id,
            pid: pid_of(&child),
            stdin: child
                .stdin
                .take()
                .map(OwnedFd::from)
                .map(non_blocking)
                .transpose()?,
            stdin_pending: VecDeque::new(),
            stdin_ends: false,
            stdout: child
                .stdout
                .take()
                .map(OwnedFd::from)
                .map(non_blocking)
                .transpose()?,
            stderr: child
                .stderr
                .take()
                .map(OwnedFd::from)
                .map(non_blocking)
                .transpose()?,
            status: None,
        })
    }

    /// `setsid -c` makes the terminal the controlling one, so that job control and ^C work; the
    /// session leader also leads a process group, as with pipes.
    fn start_with_terminal(id: CommandId, size: TerminalSize, text: &str) -> io::Result<Self> {
        let window = Winsize {
            ws_row: size.rows,
            ws_col: size.columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pair = openpty(&window, None)?;
        let child = Process::new("/bin/busybox")
            .args(["setsid", "-c", "/bin/sh", "-c", text])
            .stdin(Stdio::from(pair.slave.try_clone()?))
            .stdout(Stdio::from(pair.slave.try_clone()?))
            .stderr(Stdio::from(pair.slave))
            .spawn()?;
        let master = non_blocking(pair.master)?;
        Ok(Self {
            id,
            pid: pid_of(&child),
            stdin: Some(master.try_clone()?),
            stdin_pending: VecDeque::new(),
            stdin_ends: false,
            stdout: Some(master),
            stderr: None,
            status: None,
        })
    }

    pub(crate) const fn id(&self) -> CommandId {
        self.id
    }

    pub(crate) const fn pid(&self) -> Pid {
        self.pid
    }

    /// Signals the process group, unless the shell has ended: its number may be another's then.
    pub(crate) fn kill(&self, signal: u8) -> nix::Result<()> {
        if self.status.is_some() {
            return Ok(());
        }
        killpg(self.pid, Signal::try_from(i32::from(signal))?)
    }

    /// Takes bytes for the standard input; none means its end. Past the limit the input is
    /// closed and `false` returned.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> bool {
        if self.stdin.is_none() {
            return true;
        }
        if bytes.is_empty() {
            self.stdin_ends = true;
        } else if self.stdin_pending.len().saturating_add(bytes.len()) > STDIN_BYTES_MAX {
            self.close_stdin();
            return false;
        } else {
            self.stdin_pending.extend(bytes);
        }
        self.write_stdin();
        true
    }

    /// Writes what the command's standard input takes now.
    pub(crate) fn write_stdin(&mut self) {
        while let Some(stdin) = &mut self.stdin {
            let (head, _tail) = self.stdin_pending.as_slices();
            if head.is_empty() {
                if self.stdin_ends {
                    self.close_stdin();
                }
                return;
            }
            match stdin.write(head) {
                Ok(written) => drop(self.stdin_pending.drain(..written)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // The reader went away, as in `head -1`: not an error of the command.
                Err(_gone) => self.close_stdin(),
            }
        }
    }

    fn close_stdin(&mut self) {
        self.stdin = None;
        self.stdin_pending = VecDeque::new();
    }

    /// The standard input, when bytes wait for room in it.
    pub(crate) fn stdin_waiting(&self) -> Option<BorrowedFd<'_>> {
        self.stdin
            .as_ref()
            .filter(|_stdin| !self.stdin_pending.is_empty())
            .map(AsFd::as_fd)
    }

    pub(crate) fn output(&self, output: Output) -> Option<BorrowedFd<'_>> {
        match output {
            Output::Stdout => self.stdout.as_ref().map(AsFd::as_fd),
            Output::Stderr => self.stderr.as_ref().map(AsFd::as_fd),
        }
    }

    /// Reads what is there, at most one frame of it.
    pub(crate) fn read_output(&mut self, output: Output) -> OutputRead {
        let slot = match output {
            Output::Stdout => &mut self.stdout,
            Output::Stderr => &mut self.stderr,
        };
        let Some(file) = slot else {
            return OutputRead::End;
        };
        let mut bytes = vec![0; READ_BYTES];
        loop {
            match file.read(&mut bytes) {
                Ok(count) if count > 0 => {
                    bytes.truncate(count);
                    let id = self.id;
                    return OutputRead::Bytes(match output {
                        Output::Stdout => Message::Stdout { id, bytes },
                        Output::Stderr => Message::Stderr { id, bytes },
                    });
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return OutputRead::Nothing,
                // End of file; a terminal's master answers EIO when its last slave is closed.
                Ok(_) | Err(_) => {
                    *slot = None;
                    return OutputRead::End;
                }
            }
        }
    }

    /// The pipes that processes left behind may still write to.
    pub(crate) fn into_outputs(self) -> impl Iterator<Item = File> {
        self.stdout.into_iter().chain(self.stderr)
    }
}

fn pid_of(child: &std::process::Child) -> Pid {
    // The kernel's limit is 2^22, so this does not wrap; 0 would name our own group.
    Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX))
}

fn non_blocking(fd: OwnedFd) -> io::Result<File> {
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(File::from(fd))
}
