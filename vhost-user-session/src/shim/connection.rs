//! The front-end's socket: whole messages in, whole replies out, never waiting without an end.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::End;
use super::message::{Header, Request};
use crate::Refusal;
use crate::backend::Connection;
use crate::session::{Shared, wait_for_events};

/// Most descriptors the kernel passes with one message (SCM_MAX_FD).
const DESCRIPTORS_MAX: usize = 253;

/// A message that passed the header's check.
pub(super) struct Incoming {
    pub(super) header: Header,
    pub(super) request: Request,
    pub(super) payload: Vec<u8>,
    pub(super) descriptors: Vec<OwnedFd>,
}

/// The non-blocking socket to the front-end.
pub(super) struct FrontEnd {
    stream: UnixStream,
    message_max: Duration,
}

impl AsFd for FrontEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl FrontEnd {
    pub(super) const fn new(stream: UnixStream, message_max: Duration) -> Self {
        Self {
            stream,
            message_max,
        }
    }

    /// Receives the next message; waits for its first byte until `deadline`.
    pub(super) fn receive(
        &self,
        shared: &Shared,
        connection: &Connection,
        deadline: Option<Instant>,
    ) -> Result<Incoming, End> {
        let mut limit = Limit {
            end: deadline,
            what: "the handshake (up to SET_OWNER)",
            longest: self.message_max,
        };
        let mut descriptors = Vec::new();
        let mut raw = [0; Header::BYTES];
        self.fill(shared, connection, &mut raw, &mut descriptors, &mut limit)?;
        let header = Header::parse(raw);
        let request = header.check()?;
        let mut payload = vec![0; header.size()];
        self.fill(
            shared,
            connection,
            &mut payload,
            &mut descriptors,
            &mut limit,
        )?;
        if descriptors.len() > request.descriptors_max() {
            return Err(Refusal::DescriptorCount {
                request: request.name(),
                count: descriptors.len(),
                expected: request.descriptors_max(),
            }
            .into());
        }
        Ok(Incoming {
            header,
            request,
            payload,
            descriptors,
        })
    }

    fn fill(
        &self,
        shared: &Shared,
        connection: &Connection,
        buffer: &mut [u8],
        descriptors: &mut Vec<OwnedFd>,
        limit: &mut Limit,
    ) -> Result<(), End> {
        let mut rest = buffer;
        while !rest.is_empty() {
            check_interrupt(shared, connection)?;
            match self.receive_some(rest, descriptors) {
                Ok(0) => return Err(End::Disconnected),
                Ok(count) => {
                    rest = rest
                        .split_at_mut_checked(count)
                        .map_or(&mut [], |(_, later)| later);
                    limit.message_began(self.message_max);
                    // A hostile peer could send descriptors with every byte.
                    if descriptors.len() > DESCRIPTORS_MAX {
                        return Err(Refusal::DescriptorsLost.into());
                    }
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => self.wait_readable(shared, connection, limit)?,
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::ConnectionReset => return Err(End::Disconnected),
                    _ if error.raw_os_error() == Some(libc::ENOBUFS) => {
                        return Err(Refusal::DescriptorsLost.into());
                    }
                    _ => {
                        return Err(Refusal::Io {
                            what: "receive",
                            source: error,
                        }
                        .into());
                    }
                },
            }
        }
        Ok(())
    }

    fn receive_some(&self, buffer: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> io::Result<usize> {
        let mut raw: [RawFd; DESCRIPTORS_MAX] = [-1; DESCRIPTORS_MAX];
        let mut io_vector = [libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        }];
        // SAFETY: `recv_with_fds` wants vectors that may be overwritten with any bytes. There is
        // one, it covers exactly `buffer`, which is borrowed mutably for the whole call and is
        // plain bytes.
        let (count, received) = unsafe { self.stream.recv_with_fds(&mut io_vector, &mut raw) }
            .map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
        for fd in raw.into_iter().take(received) {
            // SAFETY: `from_raw_fd` wants an open descriptor that nobody else owns. The kernel
            // has just installed this one in our table for this message, `recv_with_fds` does
            // not keep it, and each entry of the array is taken once.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
            descriptors.push(fd);
        }
        Ok(count)
    }

    fn wait_readable(
        &self,
        shared: &Shared,
        connection: &Connection,
        limit: &Limit,
    ) -> Result<(), End> {
        let timeout = limit.timeout()?;
        let mut waiting = [
            PollFd::new(self.stream.as_fd(), PollFlags::POLLIN),
            PollFd::new(shared.event(), PollFlags::POLLIN),
            PollFd::new(connection.stream().as_fd(), PollFlags::POLLIN),
        ];
        wait_for_events(&mut waiting, timeout);
        let [front, event, daemon] = waiting.map(|fd| fd.any().unwrap_or(false));
        if event {
            shared.take_interrupt();
        }
        if daemon && !front {
            // Nothing was asked, so this is its end.
            return Err(Refusal::BackEnd {
                request: "the daemon",
            }
            .into());
        }
        Ok(())
    }

    /// Sends a reply.
    pub(super) fn send(
        &self,
        shared: &Shared,
        request: Request,
        payload: &[u8],
    ) -> Result<(), End> {
        let message = Header::reply(request, payload.len()).message(payload);
        let end = Instant::now() + self.message_max;
        let mut rest = message.as_slice();
        while !rest.is_empty() {
            match send_some(&self.stream, rest, &[]) {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => {
                        let left = end.saturating_duration_since(Instant::now());
                        if left.is_zero() {
                            return Err(Refusal::RepliesNotRead.into());
                        }
                        if shared.is_stopping() {
                            return Err(End::Stopped);
                        }
                        let mut waiting = [
                            PollFd::new(self.stream.as_fd(), PollFlags::POLLOUT),
                            PollFd::new(shared.event(), PollFlags::POLLIN),
                        ];
                        wait_for_events(&mut waiting, poll_timeout(left));
                    }
                    io::ErrorKind::Interrupted => {}
                    _ => return Err(End::Disconnected),
                },
            }
        }
        Ok(())
    }
}

/// How long a message may take.
struct Limit {
    end: Option<Instant>,
    what: &'static str,
    longest: Duration,
}

impl Limit {
    /// From the first byte on, the message must be complete in time.
    fn message_began(&mut self, longest: Duration) {
        if self.what != "a message" {
            let end = Instant::now() + longest;
            self.end = Some(self.end.map_or(end, |before| before.min(end)));
            self.what = "a message";
        }
    }

    fn timeout(&self) -> Result<PollTimeout, Refusal> {
        let Some(end) = self.end else {
            return Ok(PollTimeout::NONE);
        };
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Refusal::TooSlow {
                what: self.what,
                millis: self.longest.as_millis(),
            });
        }
        Ok(poll_timeout(left))
    }
}

/// `left`, rounded up to what poll takes.
fn poll_timeout(left: Duration) -> PollTimeout {
    PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
}

/// Whether something else than the front-end ends the session.
pub(super) fn check_interrupt(shared: &Shared, connection: &Connection) -> Result<(), End> {
    if connection.backend().has_fault() {
        return Err(End::Fault);
    }
    if shared.is_stopping() {
        return Err(End::Stopped);
    }
    Ok(())
}

/// Sends `message` with `descriptors` on a blocking socket.
pub(super) fn send_all(
    stream: &UnixStream,
    message: &[u8],
    descriptors: &[OwnedFd],
) -> io::Result<()> {
    let mut rest = message;
    let mut descriptors = descriptors;
    while !rest.is_empty() {
        let count = match send_some(stream, rest, descriptors) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        rest = rest.get(count..).unwrap_or_default();
        descriptors = &[];
    }
    Ok(())
}

fn send_some(stream: &UnixStream, data: &[u8], descriptors: &[OwnedFd]) -> io::Result<usize> {
    let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &rights[..] };
    let sent = sendmsg::<()>(
        stream.as_raw_fd(),
        &[IoSlice::new(data)],
        control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    Ok(sent)
}
