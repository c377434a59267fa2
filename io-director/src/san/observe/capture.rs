//! A capture of one vHBA's commands, and where it is plugged in.
//!
//! Bounded ([`crate::capture_queue`]). An exchange whose command had no room is left out as a whole.

use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fabric_config::{PortName, Wwpn};
use fabric_payload::scsi::{Command, LunBytes, Status, TaskFunction, TaskResponse};
use fabric_transport::DeviceId;
use qos_monitor::frames::{Capture, CaptureInterface, Captured, FrameKind};
use qos_monitor::storage::CaptureWanted;
use scsi_target::LunAddress;

use super::fibre_channel::{Address, Between, HEADER_BYTES, comment};
use crate::capture_queue::{CaptureQueue, Frame, Limits};

const LIMITS: Limits = Limits {
    window: Duration::from_millis(100),
    frames: 4096,
    bytes: 1 << 20,
};

/// Where the commands of a vHBA can be captured.
#[derive(Debug)]
pub(in crate::san) struct Tap {
    vhba: String,
    wwpn: Wwpn,
    port: PortName,
    initiator: Address,
    target: Address,
    /// Whether somebody captures: all that a command costs if nobody does.
    active: AtomicBool,
    capture: Mutex<Option<Arc<CaptureBuffer>>>,
}

/// What was captured and not fetched.
#[derive(Debug)]
pub(super) struct CaptureBuffer {
    lun: Option<u16>,
    initiator: Address,
    target: Address,
    next_exchange: AtomicU16,
    queue: CaptureQueue,
}

/// A command in a capture.
#[derive(Debug)]
pub(super) struct Exchange {
    buffer: Arc<CaptureBuffer>,
    between: Between,
    data_in_bytes: u32,
    /// Its FCP_CMND had room.
    admitted: bool,
}

/// The end of a capture when it is dropped.
struct RunningCapture {
    tap: Arc<Tap>,
    buffer: Arc<CaptureBuffer>,
}

impl Tap {
    /// Addresses that stay the same: of the vHBA its id in domain 1, of the SAN port its slot and
    /// number in domain 2.
    pub(in crate::san) fn new(vhba: &str, id: DeviceId, wwpn: Wwpn, port: PortName) -> Arc<Self> {
        let [_, _, area, last] = id.0.to_be_bytes();
        Arc::new(Self {
            vhba: vhba.to_owned(),
            wwpn,
            port,
            initiator: Address([1, area, last]),
            target: Address([2, port.slot(), port.port()]),
            active: AtomicBool::new(false),
            capture: Mutex::default(),
        })
    }

    /// Whether somebody captures.
    pub(in crate::san) fn is_active(&self) -> bool {
        self.active.load(Ordering::Relaxed)
    }

    pub(super) fn vhba(&self) -> &str {
        &self.vhba
    }

    pub(super) fn wwpn(&self) -> Wwpn {
        self.wwpn
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<CaptureBuffer>>> {
        self.capture.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn capture(&self, lun: LunBytes) -> Option<Arc<CaptureBuffer>> {
        // Whoever began a capture a moment ago does not miss this command.
        if !self.active.load(Ordering::Relaxed) {
            return None;
        }
        let capture = self.lock().clone();
        capture.filter(|capture| capture.wants(lun))
    }

    /// A command arrived.
    pub(super) fn begin(&self, command: &Command<'_>) -> Option<Exchange> {
        let buffer = self.capture(command.lun)?;
        let between = buffer.between(None);
        let admitted = buffer.add(None, || between.command(command));
        Some(Exchange {
            buffer,
            between,
            data_in_bytes: command.data_in_bytes,
            admitted,
        })
    }

    /// A task management function arrived, for the task of the exchange `managed`, if it is one and
    /// that was captured.
    pub(super) fn manage(
        &self,
        function: TaskFunction,
        lun: LunBytes,
        managed: Option<u16>,
    ) -> Option<(Arc<CaptureBuffer>, u16)> {
        let buffer = self.capture(lun)?;
        // ABTS has the name of the exchange that it ends; any other begins one.
        let managed = managed.filter(|_| function == TaskFunction::AbortTask);
        let between = buffer.between(managed);
        buffer.add(comment(function), || between.manage(function, lun));
        Some((buffer, between.exchange))
    }

    /// Begins a capture.
    ///
    /// # Errors
    /// There is one.
    pub(super) fn start(
        self: &Arc<Self>,
        wanted: &CaptureWanted,
    ) -> Result<Box<dyn Capture>, String> {
        let snap_bytes = usize::try_from(wanted.snap_bytes).unwrap_or(usize::MAX);
        let buffer = Arc::new(CaptureBuffer {
            lun: wanted.lun,
            initiator: self.initiator,
            target: self.target,
            next_exchange: AtomicU16::new(0),
            queue: CaptureQueue::new(LIMITS, snap_bytes.max(HEADER_BYTES)),
        });
        let mut capture = self.lock();
        if capture.is_some() {
            return Err(format!(
                "{} is being captured by another client; try again later",
                self.vhba
            ));
        }
        *capture = Some(buffer.clone());
        drop(capture);
        self.active.store(true, Ordering::Relaxed);
        let tap = self.clone();
        Ok(Box::new(RunningCapture { tap, buffer }))
    }
}

impl Capture for RunningCapture {
    fn interface(&self) -> CaptureInterface {
        let Tap {
            vhba,
            wwpn,
            port,
            initiator,
            target,
            ..
        } = &*self.tap;
        CaptureInterface {
            name: vhba.clone(),
            kind: FrameKind::FibreChannel,
            description: format!(
                "{initiator} is vhba {vhba}, WWPN {wwpn}; {target} is san-port {port}"
            ),
            snap_bytes: u32::try_from(self.buffer.queue.snap_bytes()).unwrap_or(u32::MAX),
        }
    }

    fn take(&self) -> Captured {
        self.buffer.queue.take()
    }
}

impl Drop for RunningCapture {
    fn drop(&mut self) {
        self.tap.active.store(false, Ordering::Relaxed);
        self.tap.lock().take();
        // Commands that are underway hold the buffer on.
        self.buffer.queue.end();
    }
}

impl CaptureBuffer {
    fn wants(&self, lun: LunBytes) -> bool {
        self.lun.is_none_or(|wanted| match LunAddress::parse(lun) {
            LunAddress::Unit(lun) => lun.number() == wanted,
            LunAddress::ReportLunsWellKnown | LunAddress::Absent => false,
        })
    }

    /// An exchange of this number, or else of the next one.
    fn between(&self, exchange: Option<u16>) -> Between {
        let next = || self.next_exchange.fetch_add(1, Ordering::Relaxed);
        Between {
            initiator: self.initiator,
            target: self.target,
            exchange: exchange.unwrap_or_else(next),
        }
    }

    /// The answer to a task management function.
    pub(super) fn managed(&self, function: TaskFunction, exchange: u16, response: TaskResponse) {
        let between = self.between(Some(exchange));
        self.add(comment(function), || between.managed(function, response));
    }

    /// Adds a frame if there is room; whether there was. A frame that is counted only is not made.
    fn add(&self, comment: Option<&str>, frame: impl FnOnce() -> Vec<u8>) -> bool {
        self.add_cut(comment, 0, frame)
    }

    /// As [`Self::add`], of a frame that has `missing_bytes` more than it was made with.
    fn add_cut(
        &self,
        comment: Option<&str>,
        missing_bytes: usize,
        frame: impl FnOnce() -> Vec<u8>,
    ) -> bool {
        self.queue.add(|| Frame {
            bytes: frame(),
            missing_bytes,
            comment: comment.map(str::to_owned),
            direction: None,
        })
    }
}

impl Exchange {
    pub(super) fn number(&self) -> u16 {
        self.between.exchange
    }

    pub(super) fn data(&self, from_target: bool, offset: u32, data: &[u8]) {
        // What nobody keeps is not copied.
        let kept = self.buffer.queue.snap_bytes().saturating_sub(HEADER_BYTES);
        let kept = data.get(..kept).unwrap_or(data);
        self.add(data.len() - kept.len(), || {
            self.between.data(from_target, offset, kept)
        });
    }

    pub(super) fn status(&self, status: &Status<'_>) {
        let missing_bytes = self.data_in_bytes.saturating_sub(status.data_in_bytes);
        self.add(0, || self.between.status(status, missing_bytes));
    }

    fn add(&self, missing_bytes: usize, frame: impl FnOnce() -> Vec<u8>) {
        if self.admitted {
            self.buffer.add_cut(None, missing_bytes, frame);
        } else {
            self.buffer.queue.count_dropped();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture_queue::WAITING_FRAMES;
    use fabric_payload::scsi::Tag;

    fn tap() -> Arc<Tap> {
        let port = "12/1".parse().unwrap();
        Tap::new("vh01.vm1", DeviceId(11), Wwpn::of_device(11), port)
    }

    fn command(tag: u64, lun: u8) -> Command<'static> {
        Command {
            tag: Tag(tag),
            lun: [0x40, lun, 0, 0, 0, 0, 0, 0],
            attribute: 0,
            cdb: &[0x28, 0, 0, 0, 0, 7, 0, 0, 1, 0],
            data_out_bytes: 0,
            data_in_bytes: 512,
        }
    }

    fn wanted(lun: Option<u16>) -> CaptureWanted {
        CaptureWanted {
            vhba: "vh01.vm1".to_owned(),
            lun,
            snap_bytes: 128,
        }
    }

    #[test]
    fn only_what_was_asked_for_is_captured_and_only_while_it_is() {
        let tap = tap();
        assert!(tap.begin(&command(1, 0)).is_none());
        let capture = tap.start(&wanted(Some(1))).unwrap();
        let refused = tap.start(&wanted(None)).map(drop).unwrap_err();
        assert!(refused.contains("another client"), "{refused}");
        assert!(tap.begin(&command(2, 0)).is_none());
        let exchange = tap.begin(&command(3, 1)).unwrap();
        exchange.data(true, 0, &[7; 512]);
        let captured = capture.take();
        assert_eq!((captured.seen, captured.dropped), (2, 0));
        let [fcp_cmnd, fcp_data] = captured.frames.as_slice() else {
            panic!("{captured:?}");
        };
        assert_eq!((fcp_cmnd.original_bytes, fcp_cmnd.bytes.len()), (56, 56));
        assert_eq!((fcp_data.original_bytes, fcp_data.bytes.len()), (536, 128));
        assert!(capture.take().frames.is_empty());
        drop(capture);
        exchange.data(true, 0, &[7; 512]);
        assert!(exchange.buffer.queue.take().frames.is_empty());
        assert!(tap.begin(&command(4, 1)).is_none());
        assert!(tap.start(&wanted(None)).is_ok());
    }

    #[test]
    fn what_has_no_room_is_counted_and_its_exchange_left_out() {
        const COMMANDS: usize = WAITING_FRAMES + 1000;
        let tap = tap();
        let capture = tap.start(&wanted(None)).unwrap();
        let exchanges = (0..COMMANDS).map(|tag| tap.begin(&command(tag as u64, 0)).unwrap());
        let exchanges: Vec<_> = exchanges.collect();
        let left_out = exchanges.iter().filter(|exchange| !exchange.admitted);
        let left_out = left_out.count() as u64;
        let captured = capture.take();
        let frames = captured.frames.len() as u64;
        assert_eq!(captured.seen, COMMANDS as u64);
        assert_eq!(frames + captured.dropped, captured.seen);
        assert_eq!(captured.dropped, left_out);
        assert!(frames <= WAITING_FRAMES as u64);
        let noted = captured.frames.iter().map(|frame| frame.dropped_before);
        let noted: u64 = noted.sum();
        // There is room again, but not for the rest of what was left out.
        let without = exchanges.iter().find(|exchange| !exchange.admitted);
        without.unwrap().data(true, 0, &[7; 512]);
        let captured = capture.take();
        assert_eq!(captured.frames.len(), 0);
        assert_eq!(captured.dropped, left_out + 1);
        // The next window comes, whatever the clock does.
        let next = loop {
            drop(tap.begin(&command(1, 0)));
            let mut next = capture.take();
            if let Some(frame) = next.frames.pop() {
                break (next.dropped, frame.dropped_before);
            }
        };
        assert_eq!(
            noted + next.1,
            next.0,
            "each is noted at the frame behind it"
        );
    }
}
