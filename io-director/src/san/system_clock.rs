//! The time of day of the director's host, for REPORT TIMESTAMP.

use std::time::{SystemTime, UNIX_EPOCH};

use scsi_target::Clock;

/// `CLOCK_REALTIME`.
#[derive(Debug)]
pub(super) struct SystemClock;

impl Clock for SystemClock {
    fn unix_milliseconds(&self) -> u64 {
        // A clock before 1970 was never set.
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}
