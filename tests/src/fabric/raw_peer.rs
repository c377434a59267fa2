//! Any bytes on a director's socket: a host agent that was taken over.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use fabric_transport::control::{Control, Windows};
use fabric_transport::frame::{DeviceId, FrameBuffer, FrameHeader, FrameKind, VirtualLane};

use super::PATIENCE;
use crate::front_end::wait_readable;

/// A socket of either kind.
#[derive(Debug)]
pub enum RawStream {
    /// Frames carry their CRC32C.
    Tcp(TcpStream),
    /// Frames carry none.
    Unix(UnixStream),
}

impl RawStream {
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }

    pub(crate) fn set_nonblocking(&self) -> std::io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_nonblocking(true),
            Self::Unix(stream) => stream.set_nonblocking(true),
        }
    }

    pub(crate) fn write(&self, bytes: &[u8]) -> std::io::Result<usize> {
        match self {
            Self::Tcp(stream) => (&*stream).write(bytes),
            Self::Unix(stream) => (&*stream).write(bytes),
        }
    }

    /// Ends the sending direction (FIN); reading goes on.
    pub(crate) fn finish(&self) {
        // A connection that is gone already has no direction left to end.
        drop(match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Self::Unix(stream) => stream.shutdown(Shutdown::Write),
        });
    }

    /// Resets the connection: RST on TCP, a plain close elsewhere.
    pub(crate) fn reset(self) -> std::io::Result<()> {
        if let Self::Tcp(stream) = &self {
            let at_once = nix::libc::linger {
                l_onoff: 1,
                l_linger: 0,
            };
            nix::sys::socket::setsockopt(stream, nix::sys::socket::sockopt::Linger, &at_once)?;
        }
        Ok(())
    }

    pub(crate) fn read(&self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Tcp(stream) => (&*stream).read(buffer),
            Self::Unix(stream) => (&*stream).read(buffer),
        }
    }

    fn write_all(&self, bytes: &[u8]) -> std::io::Result<()> {
        match self {
            Self::Tcp(stream) => (&*stream).write_all(bytes),
            Self::Unix(stream) => (&*stream).write_all(bytes),
        }
    }
}

/// A connection that can speak the protocol, rightly or not.
#[derive(Debug)]
pub struct RawPeer {
    stream: RawStream,
    /// Epoch that outgoing frames carry; set by [`greet`](Self::greet).
    pub epoch: u16,
    /// Acknowledge field of outgoing frames: DATA frames received so far.
    pub received: u32,
    /// Next sequence number of each lane.
    sequences: HashMap<(DeviceId, u8), u32>,
    /// Credit limits that outgoing DATA frames carry, by device and lane: our windows.
    windows: HashMap<DeviceId, Windows>,
    /// The session's version; 1 before WELCOME.
    version: u8,
    controls: u32,
    attachments: HashMap<DeviceId, u8>,
    incoming: Vec<u8>,
}

impl RawPeer {
    /// Uses a connection.
    #[must_use]
    pub fn new(stream: RawStream) -> Self {
        Self {
            stream,
            epoch: 0,
            received: 0,
            sequences: HashMap::new(),
            windows: HashMap::new(),
            version: 1,
            controls: 0,
            attachments: HashMap::new(),
            incoming: Vec::new(),
        }
    }

    /// Sends bytes as they are. An end that has been closed takes them silently: what the peer
    /// does then is what the tests look at.
    pub fn send_bytes(&self, bytes: &[u8]) {
        drop(self.stream.write_all(bytes));
    }

    /// The bytes of a frame with a right length and checksum.
    #[must_use]
    pub fn frame(&self, header: &FrameHeader, payload: &[u8]) -> Vec<u8> {
        let mut frame = FrameBuffer::from_payload(payload);
        frame.seal(header, matches!(self.stream, RawStream::Tcp(_)));
        frame.frame().to_vec()
    }

    /// A header of `kind` for `device` with this session's epoch and counts.
    #[must_use]
    pub fn header(&self, kind: FrameKind, device: DeviceId) -> FrameHeader {
        FrameHeader {
            version: self.version,
            attachment: self.attachments.get(&device).copied().unwrap_or(0),
            kind,
            lane: None,
            more: false,
            epoch: self.epoch,
            device,
            payload_bytes: 0,
            sequence: 0,
            credit_limit: 0,
            acknowledge: self.received,
        }
    }

    /// Sends a control message.
    pub fn control(&mut self, device: DeviceId, control: &Control) {
        let mut payload = Vec::new();
        control.encode(&mut payload);
        let mut header = self.header(control.kind(), device);
        if header.kind.is_sequenced(self.version) {
            header.sequence = self.controls;
            self.controls = self.controls.wrapping_add(1);
        }
        self.send_bytes(&self.frame(&header, &payload));
    }

    /// The HELLO of `name`, for a session of its own.
    #[must_use]
    pub fn hello(name: &str) -> Control {
        static INSTANCE: AtomicU64 = AtomicU64::new(1);
        Control::Hello {
            version_min: 1,
            version_max: 2,
            session: 0,
            priority: 0,
            features: 0,
            instance: INSTANCE.fetch_add(1, Ordering::Relaxed),
            name: name.to_owned(),
        }
    }

    /// Sends HELLO and waits for WELCOME, whose epoch all later frames carry.
    ///
    /// # Errors
    /// Something else comes.
    pub fn greet(&mut self, name: &str) -> Result<()> {
        self.control(DeviceId(0), &Self::hello(name));
        self.welcomed()
    }

    /// Waits for WELCOME, whose epoch all later frames carry.
    ///
    /// # Errors
    /// Something else comes.
    pub fn welcomed(&mut self) -> Result<()> {
        let (_, control) = self.expect(FrameKind::Welcome)?;
        let Control::Welcome { version, epoch, .. } = control else {
            bail!("{control:?} is no WELCOME");
        };
        self.version = u8::try_from(version)?;
        self.epoch = epoch;
        Ok(())
    }

    /// Asks for a device; the answer is ATTACHED or REFUSED.
    ///
    /// # Errors
    /// Neither comes.
    pub fn attach(&mut self, device: u32, generation: u32, windows: Windows) -> Result<Control> {
        self.request(device, generation, windows);
        let device = DeviceId(device);
        loop {
            let (header, payload) = self.receive()?.context("director closed the session")?;
            if matches!(header.kind, FrameKind::Attached | FrameKind::Refused)
                && header.device == device
            {
                return Ok(Control::parse(header.kind, &payload)?);
            }
        }
    }

    /// Asks for a device and does not wait for the answer.
    pub fn request(&mut self, device: u32, generation: u32, windows: Windows) {
        let device = DeviceId(device);
        self.windows.insert(device, windows);
        if self.version > 1 {
            let attachment = self.attachments.entry(device).or_default();
            *attachment = attachment.wrapping_add(1);
        }
        // Each attachment has lanes of its own.
        self.sequences.retain(|(known, _), _| *known != device);
        self.control(
            device,
            &Control::Attach {
                generation,
                windows,
            },
        );
    }

    /// The header of the next DATA frame on a lane, with the right sequence number and the credit
    /// limit of the attach.
    pub fn data_header(&mut self, device: u32, lane: VirtualLane) -> FrameHeader {
        let device = DeviceId(device);
        let next = self.sequences.entry((device, lane.number())).or_default();
        let sequence = *next;
        *next = next.wrapping_add(1);
        let windows = self.windows.get(&device);
        let limit = windows.and_then(|windows| windows.get(lane.index()));
        FrameHeader {
            lane: Some(lane),
            sequence,
            credit_limit: limit.copied().unwrap_or(0),
            ..self.header(FrameKind::Data, device)
        }
    }

    /// Sends a DATA frame in order.
    pub fn data(&mut self, device: u32, lane: VirtualLane, payload: &[u8]) {
        let header = self.data_header(device, lane);
        self.send_bytes(&self.frame(&header, payload));
    }

    /// The next frame; `None` once the peer has closed the link.
    ///
    /// # Errors
    /// Nothing comes in time, or what comes is no frame.
    pub fn receive(&mut self) -> Result<Option<(FrameHeader, Vec<u8>)>> {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(bytes) = FrameHeader::frame_bytes(&self.incoming)?
                && bytes <= self.incoming.len()
            {
                let frame: Vec<u8> = self.incoming.drain(..bytes).collect();
                let tcp = matches!(self.stream, RawStream::Tcp(_));
                let (header, payload) = FrameHeader::parse(&frame, tcp)?;
                if header.kind.is_sequenced(self.version) {
                    self.received = self.received.wrapping_add(1);
                }
                return Ok(Some((header, payload.to_vec())));
            }
            wait_readable(self.stream.fd(), end).context("director says nothing")?;
            let mut buffer = [0; 64 * 1024];
            match self.stream.read(&mut buffer) {
                // A reset means that it was closed with our bytes unread.
                Ok(0) => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_reset) => return Ok(None),
                Ok(bytes) => self
                    .incoming
                    .extend_from_slice(buffer.get(..bytes).unwrap_or_default()),
            }
        }
    }

    /// Waits for a control frame of `kind`, answering PING and passing over what else comes.
    ///
    /// # Errors
    /// The session is closed before, or nothing comes in time.
    pub fn expect(&mut self, kind: FrameKind) -> Result<(FrameHeader, Control)> {
        loop {
            let (header, payload) = self.receive()?.context("director closed the session")?;
            if header.kind == FrameKind::Data {
                continue;
            }
            let control = Control::parse(header.kind, &payload)?;
            if header.kind == kind {
                return Ok((header, control));
            }
            if let Control::Ping(nonce) = control {
                self.control(DeviceId(0), &Control::Pong(nonce));
            }
            ensure!(
                !matches!(control, Control::Close(_)),
                "director closed the session: {control:?}"
            );
        }
    }

    /// Waits for the next DATA frame, answering PING: device, lane and payload.
    ///
    /// # Errors
    /// The session is closed before, or nothing comes in time.
    pub fn next_data(&mut self) -> Result<(FrameHeader, Vec<u8>)> {
        loop {
            let (header, payload) = self.receive()?.context("director closed the session")?;
            match header.kind {
                FrameKind::Data => return Ok((header, payload)),
                FrameKind::Ping => {
                    if let Control::Ping(nonce) = Control::parse(header.kind, &payload)? {
                        self.control(DeviceId(0), &Control::Pong(nonce));
                    }
                }
                FrameKind::Close => bail!("director closed the session"),
                _ => {}
            }
        }
    }

    /// Sends PING and waits for its PONG: everything sent before has been dealt with.
    ///
    /// # Errors
    /// The session is closed before.
    pub fn ping(&mut self) -> Result<()> {
        self.control(DeviceId(0), &Control::Ping(42));
        self.expect(FrameKind::Pong)?;
        Ok(())
    }

    /// Waits until the director closes the link; its reason, if it said one.
    ///
    /// # Errors
    /// It does not in time, or sends what is no frame.
    pub fn wait_closed(&mut self) -> Result<Option<String>> {
        let mut reason = None;
        while let Some((header, payload)) = self.receive()? {
            if let FrameKind::Close = header.kind
                && let Control::Close(text) = Control::parse(header.kind, &payload)?
            {
                reason = Some(text);
            }
        }
        Ok(reason)
    }

    /// Ends our sending direction (FIN); reading goes on.
    pub fn finish(&self) {
        self.stream.finish();
    }

    /// Resets the connection: RST on TCP, an end with unread bytes elsewhere.
    ///
    /// # Errors
    /// The kernel does not know the option.
    pub fn reset(self) -> Result<()> {
        Ok(self.stream.reset()?)
    }
}
