//! One end of a session in one thread: what `fabric_transport::endpoint` does with its session,
//! scheduler, links and clients, in the same order, on simulated connections.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::time::Duration;

use fabric_transport::control::Control;
use fabric_transport::frame::{self, FrameBuffer, FrameError, FrameHeader, FrameKind};
use fabric_transport::link::{BATCH_BYTES_MAX, BATCH_FRAMES_MAX, SendQueue};
use fabric_transport::session::{
    CloseReason, Established, PATHS_MAX, Role, Session, SessionConfig, SessionEvent, SessionState,
};
use fabric_transport::{DeviceId, VirtualLane};
use qos::{BitRate, DeviceHandle, LinkBudget, MonotonicTime, Scheduler};

use super::bug::Bug;
use super::device::{Attachment, Payload, Plan, STAMP_BYTES};
use super::record::{Checker, Record};
use super::wire::{NEVER, Read, Wires};

/// As the endpoint bounds what waits in one device's queue.
const QUEUE_BYTES_MAX: u64 = 256 * 1024;
/// As the endpoint bounds what is underway on a link of up to 400 Mb/s.
const UNACKNOWLEDGED_BYTES_MAX: usize = 256 * 1024;
/// A link is run so much later than the scheduler asks.
const WAKE_SLACK: Duration = Duration::from_micros(50);
/// Batches of one run.
const DRAIN_BATCHES_MAX: usize = 8;

#[derive(Debug)]
struct Queued {
    device: DeviceId,
    lane: VirtualLane,
    sequence: u32,
    buffer: FrameBuffer,
}

/// One link of the session: both of its halves.
#[derive(Debug)]
struct EndPath {
    id: u16,
    wire: (usize, usize),
    queue: SendQueue,
    input: Vec<u8>,
}

/// One end of a session.
#[derive(Debug)]
pub(super) struct End {
    pub(super) name: String,
    role: Role,
    pub(super) session: Session,
    scheduler: Scheduler<Queued>,
    pub(super) devices: BTreeMap<DeviceId, Attachment>,
    paths: Vec<EndPath>,
    orphans: Vec<FrameBuffer>,
    /// How many lost links that is.
    orphaned: usize,
    wake_at: MonotonicTime,
    bug: Option<Bug>,
    /// The attachment that this end named last.
    attachments: BTreeMap<DeviceId, u8>,
    /// Frames that a bug kept.
    hoard: Vec<FrameBuffer>,
    /// Numbers of links that the session gave up; the owner of the links takes them.
    pub(super) lost: Vec<u16>,
    /// Devices that the director refused.
    pub(super) refused: Vec<DeviceId>,
}

enum Action {
    Event(SessionEvent),
    Deliver(DeviceId, DeviceHandle, VirtualLane, Vec<u8>),
}

impl End {
    pub(super) fn new(
        name: String,
        role: Role,
        config: SessionConfig,
        established: Established,
        rate: BitRate,
        bug: Option<Bug>,
        now: MonotonicTime,
    ) -> Self {
        let mut scheduler = Scheduler::new(LinkBudget::new("simulated link", rate));
        scheduler.set_catch_up(Duration::from_millis(10));
        scheduler.set_recording(false);
        Self {
            name,
            role,
            session: Session::new(role, config, established, now),
            scheduler,
            devices: BTreeMap::new(),
            paths: Vec::new(),
            orphans: Vec::new(),
            orphaned: 0,
            wake_at: NEVER,
            bug,
            attachments: BTreeMap::new(),
            hoard: Vec::new(),
            lost: Vec::new(),
            refused: Vec::new(),
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.session.state() == SessionState::Closed
    }

    fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    /// Adds a link, with what the handshake has read behind the greeting and has to send first.
    pub(super) fn add_path(
        &mut self,
        (id, priority): (u16, u8),
        wire: (usize, usize),
        input: Vec<u8>,
        first: Option<FrameBuffer>,
        (wires, record): (&mut Wires, &mut Record),
        plans: &BTreeMap<DeviceId, Plan>,
    ) {
        let mut queue = SendQueue::default();
        if let Some(first) = first {
            queue.push(first, false);
        }
        if !self.session.add_path(record.now, id, priority) {
            record.say(|| format!("{}: session does not take link {id}", self.name));
            wires.close(record.now, wire, 100);
            self.lost.push(id);
            return;
        }
        record.say(|| format!("{}: link {id} joins, priority {priority}", self.name));
        self.paths.push(EndPath {
            id,
            wire,
            queue,
            input,
        });
        self.events((wires, record), plans);
        self.replay(record);
        if let Some(index) = self.paths.iter().position(|path| path.id == id) {
            self.deliver(index, (wires, record), plans);
        }
    }

    /// One round of the session's thread.
    pub(super) fn run(
        &mut self,
        (wires, record): (&mut Wires, &mut Record),
        plans: &BTreeMap<DeviceId, Plan>,
    ) {
        self.read((wires, record), plans);
        self.session.handle_timeout(record.now);
        self.events((wires, record), plans);
        self.application(record);
        self.drain(wires, record);
        self.check_memory(record);
    }

    fn read(
        &mut self,
        (wires, record): (&mut Wires, &mut Record),
        plans: &BTreeMap<DeviceId, Plan>,
    ) {
        let ids: Vec<_> = self.paths.iter().map(|path| path.id).collect();
        for id in ids.into_iter().rev() {
            while let Some(index) = self.paths.iter().position(|path| path.id == id)
                && let Some(path) = self.paths.get_mut(index)
            {
                match wires.read(record.now, path.wire) {
                    Read::Blocked => break,
                    Read::Some(bytes) => {
                        path.input.extend_from_slice(&bytes);
                        self.deliver(index, (wires, record), plans);
                    }
                    Read::End => {
                        let reason = "peer closed it".to_owned();
                        self.session.handle_path_end(record.now, id, reason);
                        self.events((wires, record), plans);
                        break;
                    }
                }
            }
        }
    }

    /// Passes what a link has brought through the session, and acts on it.
    fn deliver(
        &mut self,
        index: usize,
        (wires, record): (&mut Wires, &mut Record),
        plans: &BTreeMap<DeviceId, Plan>,
    ) {
        let Some(path) = self.paths.get_mut(index) else {
            return;
        };
        let id = path.id;
        let (frames, error) = take_frames(&mut path.input);
        let mut actions = Vec::new();
        for (mut header, payload) in frames {
            self.receive_wrongly(&mut header);
            let lanes_open = self.session.may_send(header.device, [0; _]).is_ok();
            let delivered = self.session.handle_frame(record.now, id, &header, &payload);
            while let Some(event) = self.session.poll_event() {
                actions.push(Action::Event(event));
            }
            let deliver = match delivered {
                Ok(deliver) => deliver,
                Err(error) => {
                    record.say(|| format!("{}: {error} (link {id})", self.name));
                    break;
                }
            };
            let again =
                self.has(Bug::DuplicatesDelivered) && header.kind == FrameKind::Data && lanes_open;
            if (deliver || again)
                && let (Some(device), Some(lane)) = (self.devices.get(&header.device), header.lane)
            {
                actions.push(Action::Deliver(header.device, device.handle, lane, payload));
            }
        }
        for action in actions {
            match action {
                Action::Event(event) => self.apply(event, (wires, record), plans),
                Action::Deliver(device, handle, lane, payload) => {
                    let epoch = self.session.epoch();
                    if let Some(device) = self.devices.get_mut(&device)
                        && device.handle == handle
                    {
                        device.receive(epoch, lane, &payload, record);
                        if self.bug == Some(Bug::ReleasedEarly) {
                            let (id, blocks) = (device.plan.id, frame::blocks(payload.len()));
                            self.session.release(id, lane, blocks);
                        }
                    }
                }
            }
        }
        if let Some(error) = error {
            record.say(|| format!("{}: link {id}: {error}", self.name));
            self.session.handle_bad_frame(record.now, id, error);
            self.events((wires, record), plans);
        }
    }

    fn events(
        &mut self,
        (wires, record): (&mut Wires, &mut Record),
        plans: &BTreeMap<DeviceId, Plan>,
    ) {
        while let Some(event) = self.session.poll_event() {
            self.apply(event, (wires, record), plans);
        }
    }

    fn apply(
        &mut self,
        event: SessionEvent,
        (wires, record): (&mut Wires, &mut Record),
        plans: &BTreeMap<DeviceId, Plan>,
    ) {
        if !matches!(event, SessionEvent::Credited { .. }) {
            record.say(|| format!("{}: {event:?}", self.name));
        }
        match event {
            SessionEvent::AttachRequested { device, generation } => {
                let plan = plans.get(&device).filter(|plan| !plan.foreign);
                let added = plan.is_some_and(|plan| self.add_device(plan, generation, record));
                if added && let Some(plan) = plan {
                    self.session.accept(device, plan.director.windows);
                    self.attached(device, record);
                } else {
                    self.session.refuse(device, "not yours".to_owned());
                }
            }
            SessionEvent::Attached { device } => self.attached(device, record),
            SessionEvent::Refused { device, .. } => {
                self.remove_device(device, record);
                self.refused.push(device);
            }
            SessionEvent::Detached { device } => self.remove_device(device, record),
            SessionEvent::Credited { device } => self.take_waiting(device),
            SessionEvent::PathLost {
                path, acknowledged, ..
            } => {
                record.counters.paths_lost += 1;
                self.lose_path(path, acknowledged, (wires, record));
            }
            SessionEvent::PathChanged(_) => record.counters.path_changes += 1,
        }
    }

    /// Host: asks for a device. False if it does not fit.
    pub(super) fn attach(&mut self, plan: &Plan, generation: u32, record: &mut Record) -> bool {
        if self.devices.contains_key(&plan.id) || self.is_over() {
            return true;
        }
        let added = self.add_device(plan, generation, record);
        if added {
            self.session.attach(plan.id, generation, plan.host.windows);
        }
        added
    }

    /// Lets a device go.
    pub(super) fn detach(&mut self, device: DeviceId, record: &mut Record) {
        self.session.detach(device);
        self.remove_device(device, record);
    }

    fn add_device(&mut self, plan: &Plan, generation: u32, record: &Record) -> bool {
        let rate = plan.side(self.role).rate;
        let handle = self.scheduler.add_device(record.now, rate);
        let Ok(handle) = handle else {
            return false;
        };
        let attachment = Attachment::new(plan.clone(), self.role, handle, generation, record.now);
        self.devices.insert(plan.id, attachment);
        true
    }

    fn attached(&mut self, device: DeviceId, record: &mut Record) {
        if let Some(attachment) = self.devices.get_mut(&device) {
            attachment.attached = true;
            record.counters.attached += 1;
        }
        if self.has(Bug::OldSessionCarriedOver) && self.role == Role::Host {
            self.carry_over(device, record);
        }
    }

    fn remove_device(&mut self, device: DeviceId, record: &mut Record) {
        if let Some(removed) = self.devices.remove(&device) {
            record.counters.aborted += removed.requests.len() as u64;
            drop(self.scheduler.remove_device(removed.handle));
        }
    }

    fn lose_path(
        &mut self,
        id: u16,
        acknowledged: usize,
        (wires, record): (&mut Wires, &mut Record),
    ) {
        self.lost.push(id);
        self.orphaned += 1;
        if let Some(at) = self.paths.iter().position(|path| path.id == id) {
            let mut lost = self.paths.remove(at);
            let keep_percent = record.random.usize(0..=100);
            wires.close(record.now, lost.wire, keep_percent);
            lost.queue.acknowledge(acknowledged);
            self.orphans.extend(lost.queue.into_unacknowledged());
        }
        if self.has(Bug::QueueDropped)
            && let Some(device) = self.devices.values_mut().next()
            && let Ok(handle) = self
                .scheduler
                .add_device(record.now, device.plan.side(self.role).rate)
        {
            let old = std::mem::replace(&mut device.handle, handle);
            drop(self.scheduler.remove_device(old));
        }
        self.replay(record);
    }

    /// Sends what lost links have not brought by those that are there.
    fn replay(&mut self, record: &mut Record) {
        if !self.session.replay_is_pending() || self.session.paths().next().is_none() {
            return;
        }
        if self.has(Bug::NewBeforeReplay) {
            self.session.replayed();
            self.pick_and_push(record);
        }
        let mut orphans = std::mem::take(&mut self.orphans);
        self.replay_wrongly(&mut orphans);
        for frame in orphans {
            let Ok((header, payload)) = FrameHeader::parse(frame.frame(), false) else {
                continue;
            };
            let replayed = self.session.replay(record.now, &header, payload.len());
            if let Some((path, header)) = replayed {
                record.counters.replayed += 1;
                self.push(path, &header, frame, record);
            }
        }
        for _ in 0..std::mem::take(&mut self.orphaned) {
            self.session.replayed();
        }
    }

    /// The devices' turn: they free buffers and send.
    fn application(&mut self, record: &mut Record) {
        if self.has(Bug::OneStallsAll) && record.draining {
            for device in self.devices.values_mut() {
                device.waits = false;
            }
        }
        let ids: Vec<_> = self.devices.keys().copied().collect();
        for id in ids {
            let Some(device) = self.devices.get_mut(&id) else {
                continue;
            };
            for (lane, blocks) in device.release(record) {
                let blocks = match self.bug {
                    Some(Bug::CreditNeverReturned | Bug::ReleasedEarly) => continue,
                    Some(Bug::CreditLeaks) if record.now.as_nanos().is_multiple_of(64) => {
                        blocks - u32::from(blocks > 1)
                    }
                    _ => blocks,
                };
                self.session.release(id, lane, blocks);
                if self.bug == Some(Bug::ReleasedTwice) && device.holds(lane, blocks) {
                    self.session.release(id, lane, blocks);
                }
            }
            for _ in 0..64 {
                let Some(device) = self.devices.get_mut(&id) else {
                    break;
                };
                let Some(payloads) = device.next(record) else {
                    break;
                };
                if !self.try_send(id, &payloads, record)
                    && let Some(device) = self.devices.get_mut(&id)
                {
                    device.put_back(payloads);
                }
            }
        }
    }

    /// All of the payloads or none.
    fn try_send(&mut self, id: DeviceId, payloads: &[Payload], record: &mut Record) -> bool {
        let others_wait = self.devices.values().any(|device| device.waits);
        let Some(device) = self.devices.get_mut(&id) else {
            return false;
        };
        let mut blocks = [0_u32; VirtualLane::COUNT];
        for payload in payloads {
            if let Some(sum) = blocks.get_mut(payload.lane.index()) {
                *sum += frame::blocks(payload.bytes.max(STAMP_BYTES));
            }
        }
        let queued = self.scheduler.queued_bytes(device.handle);
        let room = queued.is_ok_and(|bytes| bytes < QUEUE_BYTES_MAX);
        if self.bug == Some(Bug::OneStallsAll) && !record.draining && others_wait {
            return false;
        }
        if !room || self.session.may_send(id, blocks).is_err() {
            return false;
        }
        for payload in payloads {
            let lane = payload.lane;
            let buffer = device.stamped(self.session.epoch(), payload);
            let sequence = self.session.take_credit(id, lane, buffer.payload_bytes());
            let bytes = u32::try_from(buffer.frame_bytes()).unwrap_or(u32::MAX);
            let class = u8::try_from(lane.index()).unwrap_or(u8::MAX);
            let frame = Queued {
                device: id,
                lane,
                sequence,
                buffer,
            };
            let queued = self
                .scheduler
                .enqueue(record.now, device.handle, class, bytes, frame);
            record.counters.sent += 1;
            if queued.is_err() {
                let name = &self.name;
                record.accuse(Checker::Memory, || {
                    format!("{name}: the scheduler has no room")
                });
            }
        }
        true
    }

    /// Sends whatever may be sent now.
    pub(super) fn drain(&mut self, wires: &mut Wires, record: &mut Record) {
        self.wake_at = NEVER;
        for _ in 0..DRAIN_BATCHES_MAX {
            self.write(wires, record);
            if self.pick_and_push(record) == 0 {
                return;
            }
        }
        self.wake_at = record.now.saturating_add(WAKE_SLACK);
    }

    fn write(&mut self, wires: &mut Wires, record: &mut Record) {
        for path in &mut self.paths {
            while !path.queue.is_sent() {
                let mut slices = [IoSlice::new(&[]); BATCH_FRAMES_MAX];
                let count = path.queue.gather(&mut slices);
                let slices = slices.get(..count).unwrap_or_default();
                let bytes: Vec<u8> = slices
                    .iter()
                    .flat_map(|slice| slice.iter().copied())
                    .collect();
                let sent = wires.send(record.now, path.wire, &bytes, &mut record.random);
                if sent == 0 {
                    break;
                }
                path.queue.advance(sent);
            }
        }
    }

    fn pick_and_push(&mut self, record: &mut Record) -> usize {
        let picked = self.pick(record);
        let count = picked.len();
        for (path, header, frame) in picked {
            self.push(path, &header, frame, record);
        }
        count
    }

    /// The next batch in the order of the scheduler, control frames first.
    fn pick(&mut self, record: &mut Record) -> Vec<(u16, FrameHeader, FrameBuffer)> {
        let now = record.now;
        let mut picked = Vec::new();
        let mut bytes = 0;
        for path in &mut self.paths {
            let acknowledged = self.session.poll_acknowledged(path.id);
            if self.bug == Some(Bug::ReplayRenumbered) && acknowledged > 0 {
                let mut kept = std::mem::take(&mut path.queue).into_unacknowledged();
                if let Some(last) = kept.get(acknowledged - 1) {
                    self.hoard = vec![last.clone()];
                }
                let mut waiting = kept.split_off(acknowledged.min(kept.len()));
                // Put back as sent: only a queue that is sent gets here.
                for frame in waiting.drain(..) {
                    let bytes = frame.frame_bytes();
                    path.queue.push(frame, true);
                    path.queue.advance(bytes);
                }
            } else {
                path.queue.acknowledge(acknowledged);
            }
            while path.queue.is_sent()
                && let Some((header, control)) = self.session.poll_transmit(now, path.id)
            {
                let mut control = control;
                if self.bug == Some(Bug::CreditTooHigh)
                    && let Control::Credit(credits) = &mut control
                {
                    for credit in credits {
                        let device = self.devices.get(&credit.device);
                        let windows = device.map(|device| device.plan.side(self.role).windows);
                        let window = windows.and_then(|all| all.get(credit.lane.index()).copied());
                        credit.limit = credit.limit.wrapping_add(window.unwrap_or(0));
                    }
                }
                let mut frame = FrameBuffer::with_capacity(64);
                frame.append_with(|bytes| control.encode(bytes));
                picked.push((path.id, header, frame));
            }
        }
        let paths = &self.paths;
        let has_room = |id: u16, underway_bytes: usize| {
            let path = paths.iter().find(|path| path.id == id);
            underway_bytes < UNACKNOWLEDGED_BYTES_MAX
                && path.is_some_and(|path| path.queue.is_sent())
        };
        let mut served: Vec<DeviceId> = Vec::new();
        while picked.len() < BATCH_FRAMES_MAX
            && bytes < BATCH_BYTES_MAX
            && (self.session.may_transmit(has_room)
                || self.bug == Some(Bug::SwitchoverAtOnce) && !self.session.replay_is_pending())
        {
            let Some(grant) = self.scheduler.dequeue(now) else {
                if let Some(wake_at) = self.scheduler.next_wake(now) {
                    self.wake_at = wake_at.max(now.saturating_add(WAKE_SLACK));
                }
                break;
            };
            let Queued {
                device,
                lane,
                sequence,
                buffer,
            } = grant.item;
            bytes += buffer.frame_bytes();
            let payload_bytes = buffer.payload_bytes();
            let sent = self
                .session
                .transmit_data(now, device, lane, sequence, payload_bytes);
            let Some((path, header)) = sent else {
                continue;
            };
            picked.push((path, header, buffer));
            if served.last() != Some(&device) {
                served.push(device);
            }
        }
        for device in served {
            self.take_waiting(device);
        }
        picked
    }

    /// Lets a device that waits go on, if it may.
    fn take_waiting(&mut self, device: DeviceId) {
        if let Some(device) = self.devices.get_mut(&device) {
            let queued = self.scheduler.queued_bytes(device.handle);
            if queued.is_ok_and(|bytes| bytes <= QUEUE_BYTES_MAX / 2) {
                device.waits = false;
            }
        }
    }

    fn push(&mut self, id: u16, header: &FrameHeader, mut frame: FrameBuffer, record: &Record) {
        let (id, header) = self.send_wrongly(id, *header, record);
        self.attachments.insert(header.device, header.attachment);
        if let Some(path) = self.paths.iter_mut().find(|path| path.id == id) {
            frame.seal(&header, true);
            path.queue
                .push(frame, header.kind.is_sequenced(header.version));
        }
    }

    /// The session is over: a last try to tell the peer why, and everything is closed.
    pub(super) fn finish(&mut self, wires: &mut Wires, record: &mut Record) -> CloseReason {
        self.drain(wires, record);
        let ids: Vec<_> = self.devices.keys().copied().collect();
        for id in ids {
            self.remove_device(id, record);
        }
        record.counters.ignored += self.session.ignored_frames();
        for path in std::mem::take(&mut self.paths) {
            wires.close(record.now, path.wire, 100);
            self.hoard.extend(path.queue.into_unacknowledged());
        }
        self.hoard.append(&mut self.orphans);
        let reason = self.session.close_reason().cloned();
        reason.unwrap_or_else(|| CloseReason::Local("closed".to_owned()))
    }

    /// The process is gone, and its connections with it.
    pub(super) fn vanish(&mut self, wires: &mut Wires, record: &mut Record) {
        for path in std::mem::take(&mut self.paths) {
            let keep_percent = record.random.usize(0..=100);
            wires.close(record.now, path.wire, keep_percent);
        }
        record.counters.ignored += self.session.ignored_frames();
        let requests = self
            .devices
            .values()
            .map(|device| device.requests.len() as u64);
        record.counters.aborted += requests.sum::<u64>();
    }

    /// When it wants to be run.
    pub(super) fn due(&self, wires: &Wires, record: &Record) -> MonotonicTime {
        let mut due = self
            .session
            .poll_timeout()
            .unwrap_or(NEVER)
            .min(self.wake_at);
        for path in &self.paths {
            due = due.min(wires.readable_at(path.wire));
            if !path.queue.is_sent() && wires.has_room(path.wire) {
                due = record.now;
            }
        }
        for device in self.devices.values() {
            due = due.min(device.due(record));
        }
        due
    }

    fn check_memory(&self, record: &mut Record) {
        let kept: usize = self.session.paths().map(|path| path.underway_bytes).sum();
        let orphans: usize = self.orphans.iter().map(FrameBuffer::frame_bytes).sum();
        let waiting: usize = self.paths.iter().map(|path| path.queue.waiting()).sum();
        // A link that is lost hands its share on to the next.
        let bytes_max = PATHS_MAX * (UNACKNOWLEDGED_BYTES_MAX + 2 * BATCH_BYTES_MAX);
        if kept + orphans > bytes_max || waiting > 64 * BATCH_FRAMES_MAX {
            let name = &self.name;
            record.accuse(Checker::Memory, || {
                format!(
                    "{name}: {kept} bytes kept, {orphans} without a link, {waiting} frames wait"
                )
            });
        }
    }

    /// Credit that is not back although everything was released.
    pub(super) fn credit_missing(&self, peer: &Self) -> Option<String> {
        for (id, device) in self.devices.iter().filter(|(_, device)| device.attached) {
            let windows = peer.devices.get(id)?.plan.side(peer.role).windows;
            for (at, window) in windows.into_iter().enumerate() {
                let mut blocks = [0; VirtualLane::COUNT];
                let mut allows = |count| {
                    if let Some(lane) = blocks.get_mut(at) {
                        *lane = count;
                    }
                    self.session.may_send(*id, blocks).is_ok()
                };
                if !allows(window) || allows(window + 1) {
                    return Some(format!(
                        "{}: {id} has not exactly its {window} blocks on lane {at}, generation {}",
                        self.name, device.generation
                    ));
                }
            }
        }
        None
    }

    // What the planted bugs do.

    fn replay_wrongly(&mut self, orphans: &mut Vec<FrameBuffer>) {
        let is_data = |frame: &FrameBuffer| {
            FrameHeader::parse(frame.frame(), false)
                .is_ok_and(|(header, _)| header.kind == FrameKind::Data)
        };
        match self.bug {
            Some(Bug::ReplayOutOfOrder) => orphans.reverse(),
            Some(Bug::ReplaySkipped) => orphans.clear(),
            Some(Bug::ControlAfterData) => orphans.sort_by_key(|frame| !is_data(frame)),
            Some(Bug::ReplayRenumbered) => {
                for mut frame in std::mem::take(&mut self.hoard) {
                    let header = FrameHeader::parse(frame.frame(), false);
                    if let Ok((mut header, payload)) = header
                        && let Some(lane) = header.lane
                        && let mut blocks = [0; VirtualLane::COUNT]
                        && let Some(own) = blocks.get_mut(lane.index())
                    {
                        *own = frame::blocks(payload.len());
                        if self.session.may_send(header.device, blocks).is_ok() {
                            let bytes = payload.len();
                            header.sequence = self.session.take_credit(header.device, lane, bytes);
                            frame.seal(&header, true);
                            orphans.push(frame);
                        }
                    }
                }
            }
            _ => {}
        }
    }

    fn carry_over(&mut self, device: DeviceId, record: &Record) {
        let Some(attachment) = self.devices.get(&device) else {
            return;
        };
        let lane = if attachment.plan.storage {
            VirtualLane::StorageData
        } else {
            VirtualLane::Network
        };
        let bytes = STAMP_BYTES;
        let mut blocks = [0; VirtualLane::COUNT];
        if let Some(own) = blocks.get_mut(lane.index()) {
            *own = frame::blocks(bytes);
        }
        let hoard = std::mem::take(&mut self.hoard);
        let (own, others): (Vec<_>, Vec<_>) = hoard.into_iter().partition(|frame| {
            FrameHeader::parse(frame.frame(), false)
                .is_ok_and(|(header, _)| header.device == device && header.lane == Some(lane))
        });
        self.hoard = others;
        for frame in own {
            let payload_bytes = frame.payload_bytes();
            if let Some(own) = blocks.get_mut(lane.index()) {
                *own = frame::blocks(payload_bytes);
            }
            if self.session.may_send(device, blocks).is_err() {
                return;
            }
            let sequence = self.session.take_credit(device, lane, payload_bytes);
            let sent =
                self.session
                    .transmit_data(record.now, device, lane, sequence, payload_bytes);
            if let Some((path, header)) = sent {
                self.push(path, &header, frame, record);
            }
        }
    }

    pub(super) fn hoard(&mut self, frames: Vec<FrameBuffer>) {
        self.hoard = frames;
    }

    pub(super) fn take_hoard(&mut self) -> Vec<FrameBuffer> {
        std::mem::take(&mut self.hoard)
    }

    fn receive_wrongly(&self, header: &mut FrameHeader) {
        if self.has(Bug::AttachmentNotChecked)
            && header.kind == FrameKind::Data
            && let Some(known) = self.attachments.get(&header.device)
        {
            header.attachment = *known;
        }
    }

    fn send_wrongly(
        &self,
        id: u16,
        mut header: FrameHeader,
        record: &Record,
    ) -> (u16, FrameHeader) {
        let data = header.kind == FrameKind::Data;
        if self.has(Bug::CreditTooHigh)
            && let (Some(lane), Some(device)) = (header.lane, self.devices.get(&header.device))
        {
            let windows = device.plan.side(self.role).windows;
            let window = windows.get(lane.index()).copied().unwrap_or(0);
            header.credit_limit = header.credit_limit.wrapping_add(window);
        }
        if self.has(Bug::AcknowledgesTooMuch) && data {
            header.acknowledge = header.acknowledge.wrapping_add(1);
        }
        let moves =
            self.has(Bug::MovedWhileUnderway) && data && record.now.as_nanos().is_multiple_of(8);
        let switches = self.has(Bug::SwitchoverAtOnce) && data && !self.may_use_carrier();
        if moves || switches {
            let other = self.paths.iter().find(|path| path.id != id);
            return (other.map_or(id, |path| path.id), header);
        }
        (id, header)
    }

    /// Whether no change of the carrier is waited for.
    fn may_use_carrier(&self) -> bool {
        self.session.replay_is_pending() || self.session.may_transmit(|_, _| true)
    }
}

/// Takes the whole frames out of what a link brought, up to the first that is none.
fn take_frames(input: &mut Vec<u8>) -> (Vec<(FrameHeader, Vec<u8>)>, Option<FrameError>) {
    let mut frames = Vec::new();
    let mut taken = 0;
    let error = loop {
        let rest = input.get(taken..).unwrap_or_default();
        let frame = match FrameHeader::frame_bytes(rest) {
            Ok(Some(bytes)) => rest.get(..bytes),
            Ok(None) => None,
            Err(error) => break Some(error),
        };
        let Some(frame) = frame else {
            break None;
        };
        match FrameHeader::parse(frame, true) {
            Ok((header, payload)) => frames.push((header, payload.to_vec())),
            Err(error) => break Some(error),
        }
        taken += frame.len();
    };
    input.drain(..taken);
    (frames, error)
}
