//! A trace as bytes: what `orimono-qos record` writes and `replay` reads.
//!
//! | bytes | what |
//! | --- | --- |
//! | 8 | [`MAGIC`] |
//! | 4 | CRC32C of all that follows, little endian |
//! | rest | [`Recording`], in postcard's encoding |
//!
//! The image of a scheduler in it changes with the scheduler: a recording is replayed by the
//! version that made it.

use fabric_transport::frame::crc32c;
use qos::{HopSnapshot, Trace};
use serde::{Deserialize, Serialize};

/// The first bytes of a recording.
pub const MAGIC: [u8; 8] = *b"ORIQOST1";

const CHECKSUM_BYTES: usize = 4;

/// A trace, with the names of the hop's devices.
#[derive(Debug, Serialize, Deserialize)]
pub struct Recording {
    /// The hop when the trace ended.
    pub hop: HopSnapshot,
    /// What happened.
    pub trace: Trace,
}

/// Why bytes are no recording.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DamagedRecording {
    /// The file is something else.
    #[error("is no recording: it does not begin with {:?}", MAGIC.escape_ascii().to_string())]
    OtherFile,
    /// Bytes were changed or are missing.
    #[error("is damaged: its checksum differs; record it again")]
    Checksum,
    /// Whole, but not what this program writes.
    #[error("cannot be understood; replay it with the version that recorded it")]
    Content(#[source] postcard::Error),
}

impl Recording {
    /// The bytes of the file.
    ///
    /// # Errors
    /// No memory is left for them.
    pub fn to_bytes(&self) -> Result<Vec<u8>, postcard::Error> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend([0; CHECKSUM_BYTES]);
        let mut bytes = postcard::to_extend(self, bytes)?;
        if let Some((head, content)) = bytes.split_at_mut_checked(MAGIC.len() + CHECKSUM_BYTES)
            && let Some(checksum) = head.last_chunk_mut()
        {
            *checksum = crc32c(&[content]).to_le_bytes();
        }
        Ok(bytes)
    }

    /// Reads them back.
    ///
    /// # Errors
    /// [`DamagedRecording`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DamagedRecording> {
        let rest = bytes.strip_prefix(&MAGIC);
        let rest = rest.ok_or(DamagedRecording::OtherFile)?;
        let (checksum, content) = rest
            .split_first_chunk::<CHECKSUM_BYTES>()
            .ok_or(DamagedRecording::Checksum)?;
        if u32::from_le_bytes(*checksum) != crc32c(&[content]) {
            return Err(DamagedRecording::Checksum);
        }
        postcard::from_bytes(content).map_err(DamagedRecording::Content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::tests::Port;
    use qos::TRACE_EVENTS_MAX;

    fn bytes() -> Vec<u8> {
        let port = Port::new("port");
        port.begin_trace();
        port.work(100);
        port.recording().to_bytes().unwrap()
    }

    #[test]
    fn recording_that_was_read_back_replays() {
        let recording = Recording::from_bytes(&bytes()).unwrap();
        assert_eq!(recording.hop.hop, "port");
        let summary = recording.trace.replay().unwrap();
        assert_eq!((summary.departures, summary.missed), (100, 0));
    }

    #[test]
    fn every_changed_byte_and_every_missing_one_is_found() {
        let whole = bytes();
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 0x20;
            assert!(Recording::from_bytes(&changed).is_err(), "byte {at}");
            assert!(Recording::from_bytes(&whole[..at]).is_err(), "{at} bytes");
        }
    }

    #[test]
    fn full_trace_says_what_it_missed() {
        let port = Port::new("port");
        port.begin_trace();
        // An enqueue, a dequeue and one in vain make three calls of each frame.
        let frames = TRACE_EVENTS_MAX / 3;
        for _ in 0..frames / 10_000 + 1 {
            port.work(10_000);
        }
        let bytes = port.recording().to_bytes().unwrap();
        let recording = Recording::from_bytes(&bytes).unwrap();
        assert_eq!(recording.trace.len(), TRACE_EVENTS_MAX);
        let summary = recording.trace.replay().unwrap();
        assert!(summary.missed > 0);
    }

    /// What a file claims whose checksum somebody made fit.
    fn sealed(content: &[u8]) -> Vec<u8> {
        let checksum = crc32c(&[content]).to_le_bytes();
        [MAGIC.as_slice(), &checksum, content].concat()
    }

    /// Whatever it says: refused, or replayed with another outcome, but no panic.
    #[test]
    fn forged_recording_is_refused_or_diverges() {
        let whole = bytes();
        let content = &whole[MAGIC.len() + CHECKSUM_BYTES..];
        let mut diverged = 0;
        for at in 0..content.len() {
            for bit in [0x01, 0x10, 0x80] {
                let mut forged = content.to_vec();
                forged[at] ^= bit;
                if let Ok(recording) = Recording::from_bytes(&sealed(&forged)) {
                    diverged += usize::from(recording.trace.replay().is_err());
                }
            }
        }
        assert!(diverged > 0);
    }

    #[test]
    fn divergence_names_the_call() {
        let port = Port::new("port");
        port.begin_trace();
        port.work(100);
        let recording = port.recording();
        let mut forged = serde_json::to_value(&recording.trace).unwrap();
        let events = forged["events"].as_array_mut().unwrap();
        let mut departures = events.iter_mut().enumerate();
        let departed = |event: &serde_json::Value| event["Dequeue"][1]["bytes"] == 1500;
        let (call, event) = departures.find(|(_, event)| departed(event)).unwrap();
        event["Dequeue"][1]["bytes"] = 1499.into();
        let trace: Trace = serde_json::from_value(forged).unwrap();
        let divergence = trace.replay().unwrap_err();
        assert_eq!(divergence.call, u64::try_from(call).unwrap());
        assert!(
            divergence.to_string().contains("bytes: 1499"),
            "{divergence}"
        );
    }

    #[test]
    fn whole_nonsense_is_refused() {
        let error = Recording::from_bytes(&sealed(&[0xff; 64])).unwrap_err();
        assert!(matches!(error, DamagedRecording::Content(_)), "{error}");
    }

    /// The same for any damage: what can be read is replayed and written again.
    #[test]
    fn p01_any_content_of_a_recording_is_answered() {
        let port = Port::new("port");
        port.begin_trace();
        port.work(5);
        let good = port.recording().to_bytes().unwrap();
        let good = good[MAGIC.len() + CHECKSUM_BYTES..].to_vec();
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus/recording");
        orimono_fuzz::fuzz(
            folder,
            &[good],
            orimono_fuzz::inputs(20_000, 1_000_000),
            |content| {
                if let Ok(recording) = Recording::from_bytes(&sealed(content)) {
                    drop(recording.trace.replay());
                    assert!(recording.to_bytes().is_ok());
                }
            },
        );
    }
}
