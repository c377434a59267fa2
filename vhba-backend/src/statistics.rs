//! What became of requests.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// A snapshot of a vHBA's counters, which start at 0 with the device and never go back.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct VhbaStatistics { $($(#[$doc])* pub $name: u64,)* }

        /// The live counters.
        #[derive(Debug, Default)]
        pub(crate) struct Counters { $(pub(crate) $name: AtomicU64,)* }

        impl Counters {
            pub(crate) fn snapshot(&self) -> VhbaStatistics {
                VhbaStatistics { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Commands sent to the director.
    commands,
    /// Commands that a director in this process executed on the ring's thread.
    direct_commands,
    /// Commands that the director answered.
    completions,
    /// Bytes sent for commands.
    data_out_bytes,
    /// Bytes received for commands and written to the guest.
    data_in_bytes,
    /// Commands answered here, without the fabric: no such target, too long, malformed.
    refused_requests,
    /// Chains without room for a response: returned empty.
    unanswerable_chains,
    /// Times a request ring was stopped because the lanes were blocked.
    stalls,
    /// Commands in flight that a lost session took along.
    lost_commands,
    /// Commands in flight when the guest stopped the ring without waiting.
    abandoned_commands,
    /// Commands that a task management function ended.
    aborted_commands,
    /// Task management functions sent to the director.
    task_functions,
    /// Task management functions answered without the director.
    task_functions_answered_here,
    /// Events written to the guest.
    events,
    /// Events that found no buffer or no driver that wants them.
    missed_events,
    /// Event buffers that are too small: returned empty.
    bad_event_buffers,
    /// Replies whose tag names nothing in flight: late, repeated or invented.
    unknown_replies,
    /// Replies that break the protocol: malformed, out of place, more data than asked for.
    bad_replies,
    /// Commands whose data did not arrive as announced: answered as failed.
    incomplete_data,
}

pub(crate) fn count(counter: &AtomicU64) {
    add(counter, 1);
}

pub(crate) fn add(counter: &AtomicU64, number: usize) {
    counter.fetch_add(u64::try_from(number).unwrap_or(u64::MAX), Ordering::Relaxed);
}
