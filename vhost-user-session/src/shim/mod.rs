//! The control path between the front-end's socket and the stock daemon.
//!
//! The shim works in lock step: it reads one message, checks it against the rules, forwards it
//! with the "need reply" flag, waits for the daemon's answer, and then answers the front-end if
//! that wants one. So the rules always see the state that the daemon is in, and a message that
//! the daemon refuses is known by name.
//!
//! What it does besides checking, and why (file names are those of QEMU and of the crates):
//! * **Early SET_VRING_ENABLE.** QEMU's network devices enable rings before SET_FEATURES
//!   (`peer_attach`, net/virtio-net.c); the daemon demands PROTOCOL_FEATURES acknowledged first.
//!   The shim acknowledges that one bit for it.
//! * **NET_SET_MTU, SEND_RARP, SET_LOG_BASE, GET_QUEUE_NUM, protocol features** are answered here:
//!   the daemon does not know the first two, checks too little for the third (see `bitmap`), and wants
//!   features that the front-end need not have acknowledged for the others.
//! * **CONFIGURE_MEM_SLOTS is not offered.** QEMU 7.2 repeats ADD_MEM_REG for every queue pair,
//!   which is an overlap to the daemon. SET_MEM_TABLE with up to 32 regions works everywhere.
//! * **A repeated SET_VRING_KICK** is forwarded with the ring disabled around it: the daemon
//!   forgets to take the old eventfd out of its epoll set, where it would spin for ever.
//! * **SET_VRING_ADDR of a running ring** with the addresses it has (QEMU does so to switch the
//!   log of the used ring) stops here: the daemon would re-read the used index beside the device.

mod connection;
mod descriptors;
mod memory_table;
mod message;
mod rings;

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout};
use vhost::vhost_user::message::VhostUserProtocolFeatures;

use crate::Refusal;
use crate::backend::{
    Connection, LOG_ALL, PROTOCOL_FEATURES, daemon_protocol_features, offered_features,
};
use crate::bitmap::DirtyLog;
use crate::session::{Shared, wait_for_events};
use connection::{FrontEnd, Incoming};
use memory_table::MemoryTable;
use message::{Header, Payload, Request};
use rings::Rings;

/// How a connection ended.
#[derive(Debug)]
pub(crate) enum End {
    /// The front-end closed its socket.
    Disconnected,
    /// The session is to stop.
    Stopped,
    /// A callback of the device panicked.
    Fault,
    /// The front-end broke a rule.
    Refused(Refusal),
}

impl From<Refusal> for End {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// What the front-end gets for a message.
enum Answer {
    /// Success, to be told if it was asked for.
    Done,
    /// Failure that does not end the session, to be told if it was asked for.
    Failed,
    /// A reply that the request always has.
    Reply(Vec<u8>),
}

/// One connection's state on the control path.
pub(crate) struct Shim<'a> {
    shared: &'a Shared,
    connection: &'a Connection,
    front: FrontEnd,
    rings: Rings,
    table: MemoryTable,
    owned: bool,
    /// The front-end acknowledged REPLY_ACK.
    reply_ack: bool,
    protocol_features: u64,
    /// The front-end's choice, `None` before SET_FEATURES and after RESET_DEVICE.
    features: Option<u64>,
    /// What the daemon was told.
    daemon_features: u64,
    handshake_end: Instant,
}

impl<'a> Shim<'a> {
    pub(crate) fn new(shared: &'a Shared, connection: &'a Connection, stream: UnixStream) -> Self {
        let device = &shared.device;
        Self {
            shared,
            connection,
            front: FrontEnd::new(stream, shared.handshake_max),
            rings: Rings::new(device.queue_count(), device.queue_size_max()),
            table: MemoryTable::new(shared.allow_unsealed_memory),
            owned: false,
            reply_ack: false,
            protocol_features: 0,
            features: None,
            daemon_features: 0,
            handshake_end: Instant::now() + shared.handshake_max,
        }
    }

    /// Serves the connection until it ends, then closes the front-end's socket.
    pub(crate) fn run(mut self) -> End {
        match self.serve() {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    fn serve(&mut self) -> Result<std::convert::Infallible, End> {
        self.prepare_daemon()?;
        loop {
            let deadline = (!self.owned).then_some(self.handshake_end);
            let incoming = self.front.receive(self.shared, self.connection, deadline)?;
            let header = incoming.header;
            let request = incoming.request;
            match self.handle(incoming) {
                Ok(answer) => self.answer(header, request, answer)?,
                Err(end) => {
                    if matches!(end, End::Refused(_)) && self.wants_ack(header) {
                        // The session ends whether or not the front-end hears of it.
                        drop(self.front.send(self.shared, request, &1_u64.to_le_bytes()));
                    }
                    return Err(end);
                }
            }
        }
    }

    const fn wants_ack(&self, header: Header) -> bool {
        self.reply_ack && header.needs_reply()
    }

    fn answer(&mut self, header: Header, request: Request, answer: Answer) -> Result<(), End> {
        let value = match answer {
            Answer::Reply(payload) => {
                return self.front.send(self.shared, request, &payload);
            }
            Answer::Done => 0_u64,
            Answer::Failed => 1,
        };
        if self.wants_ack(header) {
            self.front
                .send(self.shared, request, &value.to_le_bytes())?;
        }
        Ok(())
    }

    /// Negotiates acknowledgements with the daemon, so that every message has an answer.
    fn prepare_daemon(&mut self) -> Result<(), End> {
        self.ask(Request::GetFeatures, &[], &[])?;
        let features = daemon_protocol_features().bits();
        self.tell(Request::SetProtocolFeatures, &features.to_le_bytes(), &[])
    }

    fn handle(&mut self, incoming: Incoming) -> Result<Answer, End> {
        let Incoming {
            request,
            payload,
            descriptors,
            ..
        } = incoming;
        let body = Payload::new(request, &payload);
        match request {
            Request::GetFeatures => Ok(reply(offered_features(&*self.shared.device))),
            Request::SetFeatures => self.set_features(body.u64_at(0)?),
            Request::GetProtocolFeatures => Ok(reply(self.offered_protocol_features())),
            Request::SetProtocolFeatures => self.set_protocol_features(body.u64_at(0)?),
            Request::GetQueueNum => {
                self.need(VhostUserProtocolFeatures::MQ, request)?;
                Ok(reply(self.shared.device.queue_count_reported()))
            }
            Request::SetOwner => {
                if self.owned {
                    return Err(Refusal::OwnedTwice.into());
                }
                self.tell(request, &[], &[])?;
                self.owned = true;
                Ok(Answer::Done)
            }
            // "No longer used"; the protocol recommends to ignore it.
            Request::ResetOwner => Ok(Answer::Done),
            Request::SetMemTable => {
                let table = self.table.check(&body, &descriptors)?;
                self.tell(request, &payload, &descriptors)?;
                self.table.accept(table);
                Ok(Answer::Done)
            }
            Request::SetLogBase => self.set_log_base(&body, descriptors, payload.clone()),
            Request::NetSetMtu => self.set_mtu(body.u64_at(0)?),
            Request::SendRarp => {
                // It carries the guest's address, which the device knows.
                self.need(VhostUserProtocolFeatures::RARP, request)?;
                self.shared.device.announce();
                Ok(Answer::Done)
            }
            Request::ResetDevice => {
                self.need(VhostUserProtocolFeatures::RESET_DEVICE, request)?;
                self.tell(request, &[], &[])?;
                self.rings.reset();
                self.features = None;
                self.daemon_features = 0;
                Ok(Answer::Done)
            }
            Request::SetVringNum
            | Request::SetVringAddr
            | Request::SetVringBase
            | Request::GetVringBase
            | Request::SetVringKick
            | Request::SetVringCall
            | Request::SetVringErr
            | Request::SetVringEnable => self.handle_ring(request, &payload, &descriptors),
        }
    }

    fn handle_ring(
        &mut self,
        request: Request,
        payload: &[u8],
        descriptors: &[OwnedFd],
    ) -> Result<Answer, End> {
        let body = Payload::new(request, payload);
        match request {
            Request::SetVringNum => self.rings.set_size(&body)?,
            Request::SetVringBase => self.rings.check_base(&body)?,
            Request::SetVringAddr => {
                let addresses = self.rings.set_addresses(&body, &self.table)?;
                if addresses == rings::Addresses::Unchanged {
                    return Ok(Answer::Done);
                }
            }
            Request::GetVringBase => {
                let index = self.rings.index(&body)?;
                let state = self.ask(request, payload, &[])?;
                self.rings.stopped(index);
                return Ok(Answer::Reply(state));
            }
            Request::SetVringKick => return self.set_kick(&body, payload, descriptors),
            Request::SetVringCall | Request::SetVringErr => {
                let index = self.rings.descriptor_index(&body, descriptors)?;
                descriptors::check_eventfd(request, index, descriptors)?;
            }
            Request::SetVringEnable => {
                let (index, enabled) = self.rings.enable(&body)?;
                self.acknowledge_protocol_features(index)?;
                self.tell(request, payload, &[])?;
                self.rings.set_enabled(index, enabled);
                return Ok(Answer::Done);
            }
            _ => {}
        }
        self.tell(request, payload, descriptors)?;
        Ok(Answer::Done)
    }

    fn set_kick(
        &mut self,
        body: &Payload<'_>,
        payload: &[u8],
        descriptors: &[OwnedFd],
    ) -> Result<Answer, End> {
        let request = Request::SetVringKick;
        let index = self.rings.descriptor_index(body, descriptors)?;
        descriptors::check_eventfd(request, index, descriptors)?;
        self.rings.check_start(index, descriptors.is_empty())?;
        let swap = self.rings.is_kicked(index) && self.rings.is_enabled(index);
        if swap {
            self.tell(Request::SetVringEnable, &ring_state(index, 0), &[])?;
        }
        self.tell(request, payload, descriptors)?;
        if swap {
            self.tell(Request::SetVringEnable, &ring_state(index, 1), &[])?;
        }
        self.rings.started(index);
        Ok(Answer::Done)
    }

    fn set_features(&mut self, features: u64) -> Result<Answer, End> {
        let beyond = features & !offered_features(&*self.shared.device);
        if beyond != 0 {
            let request = Request::SetFeatures.name();
            return Err(Refusal::FeaturesNotOffered {
                request,
                bits: beyond,
            }
            .into());
        }
        if let (Some(before), Some(index)) = (self.features, self.rings.first_running()) {
            let bits = (before ^ features) & !(LOG_ALL | PROTOCOL_FEATURES);
            if bits != 0 {
                return Err(Refusal::FeaturesWhileRunning { bits, index }.into());
            }
        }
        self.tell(Request::SetFeatures, &features.to_le_bytes(), &[])?;
        self.features = Some(features);
        self.daemon_features = features;
        if features & PROTOCOL_FEATURES == 0 {
            // Rings are then enabled from the start (vhost-user protocol, "Ring states").
            self.rings.enable_all();
        }
        Ok(Answer::Done)
    }

    /// Makes the daemon accept SET_VRING_ENABLE before the front-end's SET_FEATURES.
    fn acknowledge_protocol_features(&mut self, index: usize) -> Result<(), End> {
        if self.daemon_features & PROTOCOL_FEATURES != 0 {
            return Ok(());
        }
        if self.features.is_some() {
            return Err(Refusal::RingState {
                request: Request::SetVringEnable.name(),
                index,
                problem: "VHOST_USER_F_PROTOCOL_FEATURES was not acknowledged",
            }
            .into());
        }
        let backend = self.connection.backend();
        backend.set_features_are_ours(true);
        let told = self.tell(Request::SetFeatures, &PROTOCOL_FEATURES.to_le_bytes(), &[]);
        backend.set_features_are_ours(false);
        told?;
        self.daemon_features = PROTOCOL_FEATURES;
        Ok(())
    }

    fn offered_protocol_features(&self) -> u64 {
        let mut features = daemon_protocol_features() | VhostUserProtocolFeatures::LOG_SHMFD;
        if self.shared.device.mtu().is_some() {
            features |= VhostUserProtocolFeatures::MTU;
        }
        if self.shared.device.can_announce() {
            features |= VhostUserProtocolFeatures::RARP;
        }
        features.bits()
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<Answer, End> {
        let bits = features & !self.offered_protocol_features();
        if bits != 0 {
            let request = Request::SetProtocolFeatures.name();
            return Err(Refusal::FeaturesNotOffered { request, bits }.into());
        }
        // The daemon keeps those it needs; see `prepare_daemon`.
        self.protocol_features = features;
        self.reply_ack = features & VhostUserProtocolFeatures::REPLY_ACK.bits() != 0;
        Ok(Answer::Done)
    }

    fn need(&self, feature: VhostUserProtocolFeatures, request: Request) -> Result<(), Refusal> {
        if self.protocol_features & feature.bits() == 0 {
            return Err(Refusal::NotNegotiated {
                request: request.name(),
            });
        }
        Ok(())
    }

    fn set_mtu(&mut self, mtu: u64) -> Result<Answer, End> {
        self.need(VhostUserProtocolFeatures::MTU, Request::NetSetMtu)?;
        let most = self.shared.device.mtu().unwrap_or(0);
        match u16::try_from(mtu) {
            Ok(mtu) if mtu <= most => {
                self.shared.device.mtu_set(mtu);
                Ok(Answer::Done)
            }
            _ => {
                tracing::warn!(
                    device = &*self.shared.name,
                    mtu,
                    most,
                    "MTU refused: lower host_mtu= of the device, or raise the vNIC's MTU"
                );
                Ok(Answer::Failed)
            }
        }
    }

    fn set_log_base(
        &mut self,
        body: &Payload<'_>,
        descriptors: Vec<OwnedFd>,
        payload: Vec<u8>,
    ) -> Result<Answer, End> {
        self.need(VhostUserProtocolFeatures::LOG_SHMFD, Request::SetLogBase)?;
        let bytes = body.u64_at(0)?;
        let offset = body.u64_at(8)?;
        let refuse = |problem| Refusal::DirtyLog {
            bytes,
            offset,
            problem,
        };
        let [file] =
            <[OwnedFd; 1]>::try_from(descriptors).map_err(|others| Refusal::DescriptorCount {
                request: Request::SetLogBase.name(),
                count: others.len(),
                expected: 1,
            })?;
        let size = usize::try_from(bytes).map_err(|_overflow| refuse("does not fit"))?;
        if bytes == 0 || bytes < DirtyLog::bytes_needed(self.table.end()) {
            return Err(refuse("smaller than guest memory needs").into());
        }
        let needed = offset
            .checked_add(bytes)
            .ok_or_else(|| refuse("wraps around"))?;
        descriptors::check_file(file.as_fd(), 0, needed, self.shared.allow_unsealed_memory)?;
        let log = DirtyLog::map(file, offset, size).map_err(Refusal::MapDirtyLog)?;
        self.connection.backend().set_log(Some(Arc::new(log)));
        Ok(Answer::Reply(payload))
    }

    /// Sends a message to the daemon that is answered with an acknowledgement.
    fn tell(
        &mut self,
        request: Request,
        payload: &[u8],
        descriptors: &[OwnedFd],
    ) -> Result<(), End> {
        let answer = self.ask(request, payload, descriptors)?;
        if answer == 0_u64.to_le_bytes() {
            return Ok(());
        }
        Err(Refusal::BackEnd {
            request: request.name(),
        }
        .into())
    }

    /// Sends a message to the daemon and waits for the answer, or for the end of the session.
    fn ask(
        &mut self,
        request: Request,
        payload: &[u8],
        descriptors: &[OwnedFd],
    ) -> Result<Vec<u8>, End> {
        let failed = |_error| {
            End::Refused(Refusal::BackEnd {
                request: request.name(),
            })
        };
        let mut stream = self.connection.stream();
        let message = Header::forwarded(request, payload.len()).message(payload);
        connection::send_all(stream, &message, descriptors).map_err(failed)?;
        self.wait_for_daemon()?;
        // The daemon writes each answer at once, and it is small: this does not wait again.
        let mut header = [0; Header::BYTES];
        stream.read_exact(&mut header).map_err(failed)?;
        let header = Header::parse(header);
        let mut answer = vec![0; header.size().min(message::PAYLOAD_BYTES_MAX)];
        stream.read_exact(&mut answer).map_err(failed)?;
        Ok(answer)
    }

    /// Waits until the daemon answers or has gone.
    fn wait_for_daemon(&self) -> Result<(), End> {
        loop {
            connection::check_interrupt(self.shared, self.connection)?;
            let mut waiting = [
                PollFd::new(self.connection.stream().as_fd(), PollFlags::POLLIN),
                PollFd::new(self.shared.event(), PollFlags::POLLIN),
                PollFd::new(self.front.as_fd(), PollFlags::empty()),
            ];
            wait_for_events(&mut waiting, PollTimeout::NONE);
            let [daemon, event, front] = waiting.map(|fd| fd.any().unwrap_or(false));
            if event {
                self.shared.take_interrupt();
            }
            if daemon {
                return Ok(());
            }
            if front {
                // Whatever the daemon waits for, nobody wants the answer.
                return Err(End::Disconnected);
            }
        }
    }
}

fn reply(value: u64) -> Answer {
    Answer::Reply(value.to_le_bytes().to_vec())
}

/// Payload of a ring state message.
fn ring_state(index: usize, value: u32) -> [u8; 8] {
    let index = u64::try_from(index).unwrap_or(u64::MAX) & 0xffff_ffff;
    (index | u64::from(value) << 32).to_le_bytes()
}
