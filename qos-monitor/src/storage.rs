//! What a process with logical units tells of them: the second thing beside hops that the control
//! socket is asked about.
//!
//! The control socket of a process is here, so the questions are; who serves logical units answers
//! them as a [`Storage`]. Nothing here knows a CDB or a medium.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::frames::Capture;

/// A process's logical units and vHBAs. Called on the monitor's thread, which it may not hold up.
pub trait Storage: Send + Sync {
    /// All logical units, by name.
    fn luns(&self) -> Vec<LunState>;

    /// All vHBAs, by name.
    fn vhbas(&self) -> Vec<VhbaState>;

    /// Begins to capture the commands of a vHBA; it ends when the capture is dropped.
    ///
    /// # Errors
    /// In one line: there is no such vHBA or LUN, or it is captured already.
    fn start_capture(&self, wanted: &CaptureWanted) -> Result<Box<dyn Capture>, String>;
}

/// What may be done with a logical unit now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StorageState {
    /// Reading and writing.
    Ready,
    /// Reading: the configuration says so.
    ReadOnly,
    /// Nothing: it stands by for another director, or no host has the vHBA.
    Standby,
    /// Reading: a flush failed, so that what was written before may be lost.
    Failed,
    /// Nothing: its medium does not answer.
    Unreachable,
}

impl StorageState {
    /// As the operator reads it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::ReadOnly => "read-only",
            Self::Standby => "standby",
            Self::Failed => "failed",
            Self::Unreachable => "unreachable",
        }
    }
}

/// A logical unit now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LunState {
    /// Its name in the lab file.
    pub name: String,
    /// What may be done with it.
    pub state: StorageState,
    /// Its bytes.
    pub bytes: u64,
    /// The vHBAs that see it, and under which number.
    pub seen_by: BTreeMap<String, u16>,
    /// What all of them did with it.
    pub commands: CommandCounts,
}

/// A vHBA now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VhbaState {
    /// Its name: `vh01.vm1`.
    pub name: String,
    /// Its world wide port name.
    pub wwpn: String,
    /// Standby without a session; else the worst of its logical units, and ready if one may be
    /// written.
    pub state: StorageState,
    /// Its LUN map.
    pub luns: BTreeMap<u16, String>,
    /// What it did, also with LUNs that are not there.
    pub commands: CommandCounts,
}

/// Commands since the process began.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandCounts {
    /// From the arrival of a READ to its status, whatever that was.
    pub reads: Latency,
    /// The same of those that write blocks, WRITE SAME and COMPARE AND WRITE among them.
    pub writes: Latency,
    /// The same of all others.
    pub others: Latency,
    /// Data sent.
    pub data_in_bytes: u64,
    /// Data received, of commands that were executed.
    pub data_out_bytes: u64,
    /// CHECK CONDITION by name of its sense key.
    pub errors: BTreeMap<String, u64>,
    /// BUSY, TASK SET FULL, RESERVATION CONFLICT and TASK ABORTED.
    pub refused: u64,
    /// Ended without status by task management.
    pub aborted: u64,
    /// Ended by the end of the session.
    pub lost: u64,
    /// Task management functions by name.
    pub task_management: BTreeMap<String, u64>,
    /// Commands that have no status yet.
    pub in_flight: u64,
    /// The most there ever were.
    pub in_flight_max: u64,
}

impl CommandCounts {
    /// All CHECK CONDITIONs but UNIT ATTENTION, which is news and no failure.
    #[must_use]
    pub fn failed(&self) -> u64 {
        let failures = self.errors.iter();
        let failures = failures.filter(|(key, _)| *key != "unit-attention");
        failures.map(|(_, count)| count).sum()
    }
}

/// Times of commands, each in a bucket at most 1/16 wider than its lower bound.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// Commands.
    pub count: u64,
    /// Half of them took no longer; 0 of none.
    pub p50_nanos: u64,
    /// 99 of 100 took no longer.
    pub p99_nanos: u64,
    /// None took longer.
    pub max_nanos: u64,
    /// The buckets that are not empty, by time.
    pub buckets: Vec<LatencyBucket>,
}

/// A bucket of a histogram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LatencyBucket {
    /// The longest time in it.
    pub up_to_nanos: u64,
    /// Commands in it.
    pub count: u64,
}

/// What to capture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptureWanted {
    /// The name of the vHBA.
    pub vhba: String,
    /// One of its LUNs; all without.
    pub lun: Option<u16>,
    /// Bytes of each frame to keep.
    pub snap_bytes: u32,
}
