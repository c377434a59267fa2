//! What the operator sees of commands: counters, times, and captures.
//!
//! ```text
//! COMMAND arrives ──Observed::begin──> in flight ──answered, ended, dropped──> counters of its nexus
//!                                        └── if somebody captures: frames in a CaptureBuffer
//! ```
//!
//! Each (vHBA, LUN) has counters of its own, which only its commands touch; what a logical unit or
//! a vHBA did is added up when somebody asks. No thread waits here for another: counters are
//! atomic, and a capture, which has a lock, is looked for only while there is one.

mod capture;
mod fibre_channel;
mod statistics;
mod view;

pub(super) use capture::Tap;
pub(super) use statistics::{Highest, InFlight, NexusStatistics};
pub(crate) use view::{SanObjects, SanView};

use std::sync::Arc;
use std::time::Instant;

use fabric_payload::scsi::{
    Command, DATA_BYTES_MAX, Data, LunBytes, ServiceResponse, Status, TaskFunction, TaskResponse,
};

use capture::{CaptureBuffer, Exchange};
use statistics::{GOOD, Kind};

/// A command from its arrival to its end. Dropped without either it counts as lost.
#[derive(Debug)]
pub(super) struct Observed {
    statistics: Arc<NexusStatistics>,
    kind: Kind,
    since: Instant,
    exchange: Option<Exchange>,
    ended: bool,
}

impl Observed {
    pub(super) fn begin(
        statistics: &Arc<NexusStatistics>,
        tap: &Tap,
        command: &Command<'_>,
    ) -> Self {
        statistics.begin();
        Self {
            statistics: statistics.clone(),
            kind: Kind::of(command.cdb),
            since: Instant::now(),
            exchange: tap.begin(command),
            ended: false,
        }
    }

    /// A command that ran to GOOD without frames since `since`; nobody captures it.
    pub(super) fn moved(
        statistics: &NexusStatistics,
        (since, cdb): (Instant, &[u8]),
        (data_in, data_out): (usize, usize),
    ) {
        statistics.begin();
        statistics.answered(Kind::of(cdb), since.elapsed(), GOOD, None);
        statistics.moved(data_in, data_out);
        statistics.end(true);
    }

    /// A part of its write data arrived.
    pub(super) fn data_out(&self, data: &Data<'_>) {
        if let Some(exchange) = &self.exchange {
            exchange.data(false, data.offset, data.data);
        }
    }

    /// What it answers, just before that is sent.
    pub(super) fn answering(&self, status: &Status<'_>, data_in: &[u8]) {
        let Some(exchange) = &self.exchange else {
            return;
        };
        let mut offset = 0;
        for data in data_in.chunks(DATA_BYTES_MAX) {
            exchange.data(true, offset, data);
            offset = offset.saturating_add(u32::try_from(data.len()).unwrap_or(u32::MAX));
        }
        exchange.status(status);
    }

    /// It was executed and its status is sent, after this many bytes of data-in and data-out.
    pub(super) fn answered(
        mut self,
        status: u8,
        sense: &[u8],
        (data_in, data_out): (usize, usize),
    ) {
        self.ended = true;
        let took = self.since.elapsed();
        self.statistics
            .answered(self.kind, took, status, sense_key(sense));
        self.statistics.moved(data_in, data_out);
    }

    /// It was not executed.
    pub(super) fn ended(mut self, response: ServiceResponse, status: scsi_target::Status) {
        self.ended = true;
        if response == ServiceResponse::TaskComplete {
            let took = self.since.elapsed();
            let status = status.code();
            self.statistics.answered(self.kind, took, status, None);
        } else {
            self.statistics.aborted();
        }
    }

    /// The name of its exchange in a capture.
    fn exchange(&self) -> Option<u16> {
        self.exchange.as_ref().map(Exchange::number)
    }
}

impl Drop for Observed {
    fn drop(&mut self) {
        self.statistics.end(self.ended);
    }
}

/// The sense key of sense data in either format (SPC-4 sections 4.5.2 and 4.5.3), if it is there.
fn sense_key(sense: &[u8]) -> Option<u8> {
    let key = match sense.first()? & 0x7f {
        0x70 | 0x71 => sense.get(2)?,
        0x72 | 0x73 => sense.get(1)?,
        _ => return None,
    };
    Some(key & 0xf)
}

/// A task management function from its arrival to its response.
#[derive(Debug, Clone)]
pub(super) struct ObservedManagement {
    function: TaskFunction,
    captured: Option<(Arc<CaptureBuffer>, u16)>,
}

impl ObservedManagement {
    /// `managed` is the task it names, if that is there.
    pub(super) fn begin(
        statistics: &NexusStatistics,
        tap: &Tap,
        function: TaskFunction,
        lun: LunBytes,
        managed: Option<&Observed>,
    ) -> Self {
        statistics.manage(function);
        let managed = managed.and_then(Observed::exchange);
        Self {
            function,
            captured: tap.manage(function, lun, managed),
        }
    }

    /// What it answers, just before that is sent.
    pub(super) fn answering(&self, response: TaskResponse) {
        if let Some((buffer, exchange)) = &self.captured {
            buffer.managed(self.function, *exchange, response);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use scsi_target::{AdditionalSense, Sense, SenseFormat, SenseKey};

    #[test]
    fn sense_key_is_found_in_both_formats_and_in_no_others() {
        let sense = Sense::new(SenseKey::IllegalRequest, AdditionalSense::WRITE_PROTECTED);
        for format in [SenseFormat::Fixed, SenseFormat::Descriptor] {
            assert_eq!(sense_key(&sense.encode(format)), Some(5));
        }
        // VALID, deferred, and FILEMARK to ILI beside the key.
        assert_eq!(sense_key(&[0xf1, 0, 0xe3]), Some(3));
        for none in [&[][..], &[0x70, 0], &[0x72], &[0x7f, 5, 5], &[0, 5, 5]] {
            assert_eq!(sense_key(none), None, "{none:?}");
        }
    }
}
