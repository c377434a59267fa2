//! Any bytes and any descriptors on a vhost-user socket.

use std::io::{IoSlice, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use super::{PATIENCE, wait_readable};

/// Request numbers of the protocol.
#[expect(missing_docs, reason = "the names are those of the protocol's text")]
pub mod request {
    pub const GET_FEATURES: u32 = 1;
    pub const SET_FEATURES: u32 = 2;
    pub const SET_OWNER: u32 = 3;
    pub const RESET_OWNER: u32 = 4;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_LOG_BASE: u32 = 6;
    pub const SET_VRING_NUM: u32 = 8;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const SET_VRING_BASE: u32 = 10;
    pub const GET_VRING_BASE: u32 = 11;
    pub const SET_VRING_KICK: u32 = 12;
    pub const SET_VRING_CALL: u32 = 13;
    pub const SET_VRING_ERR: u32 = 14;
    pub const GET_PROTOCOL_FEATURES: u32 = 15;
    pub const SET_PROTOCOL_FEATURES: u32 = 16;
    pub const GET_QUEUE_NUM: u32 = 17;
    pub const SET_VRING_ENABLE: u32 = 18;
    pub const SEND_RARP: u32 = 19;
    pub const NET_SET_MTU: u32 = 20;
    pub const GET_INFLIGHT_FD: u32 = 31;
    pub const RESET_DEVICE: u32 = 34;
    pub const ADD_MEM_REG: u32 = 37;
}

/// Flags of a version 1 request.
const REQUEST: u32 = 1;
/// Flags of a version 1 request that wants a reply.
const REQUEST_WITH_REPLY: u32 = 9;

/// What the back end answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Request number.
    pub request: u32,
    /// Header flags.
    pub flags: u32,
    /// Payload.
    pub payload: Vec<u8>,
}

impl Reply {
    /// The payload as one number.
    ///
    /// # Errors
    /// If it has not 8 bytes.
    pub fn value(&self) -> Result<u64> {
        let bytes = self
            .payload
            .as_slice()
            .try_into()
            .context("reply is no u64")?;
        Ok(u64::from_le_bytes(bytes))
    }
}

/// A connection on which any message can be sent.
#[derive(Debug)]
pub struct RawFrontEnd {
    stream: UnixStream,
}

impl RawFrontEnd {
    /// Connects to a back end's socket.
    ///
    /// # Errors
    /// If nobody listens there.
    pub fn connect(path: &Path) -> Result<Self> {
        Ok(Self {
            stream: UnixStream::connect(path)?,
        })
    }

    /// Uses a connection.
    #[must_use]
    pub const fn new(stream: UnixStream) -> Self {
        Self { stream }
    }

    /// The socket.
    #[must_use]
    pub const fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Sends bytes as they are, with descriptors.
    ///
    /// # Errors
    /// If the back end has closed the connection.
    pub fn send_bytes(&self, bytes: &[u8], descriptors: &[RawFd]) -> Result<()> {
        let mut rest = bytes;
        let mut rights = descriptors;
        while !rest.is_empty() {
            let control = [ControlMessage::ScmRights(rights)];
            let control = if rights.is_empty() {
                &[][..]
            } else {
                &control[..]
            };
            let sent = sendmsg::<()>(
                self.stream.as_raw_fd(),
                &[IoSlice::new(rest)],
                control,
                MsgFlags::MSG_NOSIGNAL,
                None,
            )?;
            rest = rest.get(sent..).unwrap_or_default();
            rights = &[];
        }
        Ok(())
    }

    /// Sends a request with any header.
    ///
    /// # Errors
    /// If the back end has closed the connection.
    pub fn send_with_header(
        &self,
        header: [u32; 3],
        payload: &[u8],
        descriptors: &[RawFd],
    ) -> Result<()> {
        let mut message: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
        message.extend_from_slice(payload);
        self.send_bytes(&message, descriptors)
    }

    /// Sends a request that wants no reply.
    ///
    /// # Errors
    /// If the back end has closed the connection.
    pub fn send(&self, request: u32, payload: &[u8], descriptors: &[RawFd]) -> Result<()> {
        let bytes = u32::try_from(payload.len())?;
        self.send_with_header([request, REQUEST, bytes], payload, descriptors)
    }

    /// Sends a request with "need reply" and reads the reply.
    ///
    /// # Errors
    /// If there is none.
    pub fn ask(&self, request: u32, payload: &[u8], descriptors: &[RawFd]) -> Result<Reply> {
        let bytes = u32::try_from(payload.len())?;
        self.send_with_header([request, REQUEST_WITH_REPLY, bytes], payload, descriptors)?;
        self.receive()
    }

    /// Sends a ring state message (index, number).
    ///
    /// # Errors
    /// If the back end has closed the connection.
    pub fn send_state(&self, request: u32, index: u32, number: u32) -> Result<()> {
        self.send(request, &state(index, number), &[])
    }

    /// Sends SET_VRING_ADDR with guest physical addresses of descriptors, available, used.
    ///
    /// # Errors
    /// If the back end has closed the connection.
    pub fn send_addresses(&self, index: u32, guest: [u64; 3]) -> Result<()> {
        let [descriptors, available, used] = guest.map(super::GuestRam::front_end_address);
        let mut payload = Vec::new();
        payload.extend_from_slice(&state(index, 0));
        for address in [descriptors, used, available, 0] {
            payload.extend_from_slice(&address.to_le_bytes());
        }
        self.send(request::SET_VRING_ADDR, &payload, &[])
    }

    /// Sends SET_MEM_TABLE with any regions: guest address, size, front-end address, offset.
    ///
    /// # Errors
    /// If the back end has closed the connection.
    pub fn send_table(&self, regions: &[[u64; 4]], descriptors: &[RawFd]) -> Result<()> {
        let mut payload = state(u32::try_from(regions.len())?, 0).to_vec();
        payload.extend(regions.iter().flatten().flat_map(|word| word.to_le_bytes()));
        self.send(request::SET_MEM_TABLE, &payload, descriptors)
    }

    /// Reads one reply.
    ///
    /// # Errors
    /// If none comes within [`PATIENCE`], or the connection is closed.
    pub fn receive(&self) -> Result<Reply> {
        let end = Instant::now() + PATIENCE;
        let mut header = [0; 12];
        self.read(&mut header, end)?;
        let word = |at: usize| -> Result<u32> {
            Ok(u32::from_le_bytes(
                *header
                    .get(at..)
                    .and_then(|b| b.first_chunk())
                    .context("word")?,
            ))
        };
        let bytes = usize::try_from(word(8)?)?;
        ensure!(bytes <= 4096, "reply of {bytes} bytes");
        let mut payload = vec![0; bytes];
        self.read(&mut payload, end)?;
        Ok(Reply {
            request: word(0)?,
            flags: word(4)?,
            payload,
        })
    }

    /// Waits until the back end closes the connection, passing over replies.
    ///
    /// # Errors
    /// If it does not within [`PATIENCE`].
    pub fn wait_closed(&self) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        let mut byte = [0; 64];
        loop {
            wait_readable(self.stream.as_fd(), end).context("connection was not closed")?;
            match (&self.stream).read(&mut byte) {
                // A reset means that it was closed with our bytes unread.
                Ok(0) | Err(_) => return Ok(()),
                Ok(_) => {}
            }
        }
    }

    fn read(&self, buffer: &mut [u8], end: Instant) -> Result<()> {
        let mut rest = buffer;
        while !rest.is_empty() {
            wait_readable(self.stream.as_fd(), end).context("no reply")?;
            let count = (&self.stream).read(rest)?;
            ensure!(count > 0, "connection was closed");
            rest = rest.get_mut(count..).unwrap_or_default();
        }
        Ok(())
    }
}

fn state(index: u32, number: u32) -> [u8; 8] {
    (u64::from(index) | u64::from(number) << 32).to_le_bytes()
}

/// Lends the descriptor of a type that only knows raw ones.
pub(super) fn borrow_raw<T>(_owner: &T, fd: RawFd) -> BorrowedFd<'_> {
    // SAFETY: `borrow_raw` wants a descriptor that stays open for the lifetime of the result.
    // That lifetime is the one of the borrow of `_owner`, which every caller passes together
    // with the descriptor it owns.
    unsafe { BorrowedFd::borrow_raw(fd) }
}
