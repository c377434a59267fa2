//! Events to the guest (virtio 1.2 section 5.6.6.3).
//!
//! | bytes | field |
//! | --- | --- |
//! | u32 | event: 0 none, 1 transport reset, 3 parameter change; bit 31 events were missed |
//! | 8 | lun |
//! | u32 | reason: of a transport reset 1 rescan, 2 removed; of a change ASC \| ASCQ << 8 |

use fabric_payload::scsi::Event;
use vhost_user_session::Queue;

use crate::lun;
use crate::statistics::{Counters, count};

/// Bytes of an event.
const EVENT_BYTES: usize = 16;
/// Buffers of the guest that are tried for one event.
const BUFFERS_TRIED_MAX: usize = 64;
const EVENTS_MISSED: u32 = 1 << 31;
const NO_EVENT: u32 = 0;
const TRANSPORT_RESET: u32 = 1;
const PARAMETER_CHANGE: u32 = 3;
const RESET_RESCAN: u32 = 1;
const RESET_REMOVED: u32 = 2;

/// `VIRTIO_SCSI_F_HOTPLUG`: the driver wants transport reset events.
pub(crate) const FEATURE_HOTPLUG: u64 = 1 << 1;
/// `VIRTIO_SCSI_F_CHANGE`: the driver wants parameter change events.
pub(crate) const FEATURE_CHANGE: u64 = 1 << 2;

fn encode(event: u32, lun: [u8; 8], reason: u32) -> [u8; EVENT_BYTES] {
    let [a, b, c, d] = event.to_le_bytes();
    let [e, f, g, h, i, j, k, l] = lun;
    let [m, n, o, p] = reason.to_le_bytes();
    [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
}

/// The feature that a driver must have chosen, and event, LUN and reason.
fn translate(event: Event) -> Option<(u64, u32, [u8; 8], u32)> {
    Some(match event {
        Event::LunAdded(lun) => (
            FEATURE_HOTPLUG,
            TRANSPORT_RESET,
            lun::to_event(lun)?,
            RESET_RESCAN,
        ),
        Event::LunRemoved(lun) => (
            FEATURE_HOTPLUG,
            TRANSPORT_RESET,
            lun::to_event(lun)?,
            RESET_REMOVED,
        ),
        Event::ParameterChanged { lun, asc, ascq } => {
            let reason = u32::from(asc) | u32::from(ascq) << 8;
            (
                FEATURE_CHANGE,
                PARAMETER_CHANGE,
                lun::to_event(lun)?,
                reason,
            )
        }
    })
}

/// The event ring, and whether the guest has missed anything.
#[derive(Debug, Default)]
pub(crate) struct EventQueue {
    queue: Option<Queue>,
    missed: bool,
}

impl EventQueue {
    pub(crate) fn start(&mut self, queue: Queue) {
        self.queue = Some(queue);
    }

    pub(crate) fn stop(&mut self) {
        self.queue = None;
        // Whoever starts the ring next looks at everything anyway.
        self.missed = false;
    }

    /// Tells the guest about `event`, now or as missed later.
    pub(crate) fn report(&mut self, event: Event, features: u64, counters: &Counters) {
        let Some((feature, event, lun, reason)) = translate(event) else {
            count(&counters.bad_replies);
            return;
        };
        if features & feature == 0 {
            count(&counters.missed_events);
        } else if !self.write(event, lun, reason, counters) {
            self.missed = true;
            count(&counters.missed_events);
        }
    }

    /// Anything may have changed unseen.
    pub(crate) fn miss(&mut self, features: u64, counters: &Counters) {
        self.missed = features & FEATURE_HOTPLUG != 0;
        self.catch_up(counters);
    }

    /// The guest may have made buffers available: tells it that it missed events.
    pub(crate) fn catch_up(&mut self, counters: &Counters) {
        if self.missed {
            self.write(NO_EVENT, [0; 8], 0, counters);
        }
    }

    fn write(&mut self, event: u32, lun: [u8; 8], reason: u32, counters: &Counters) -> bool {
        let Some(mut ring) = self.queue.as_ref().and_then(Queue::lock) else {
            return false;
        };
        let event = if self.missed {
            event | EVENTS_MISSED
        } else {
            event
        };
        let bytes = encode(event, lun, reason);
        // Bounded, for a guest that keeps adding buffers that are too small.
        for _buffer in 0..BUFFERS_TRIED_MAX {
            let Some(chain) = ring.pop() else {
                // The next buffers announce themselves, if there is something to catch up with.
                if ring.can_pop() && ring.enable_notification() {
                    continue;
                }
                return false;
            };
            if chain.write_at(0, &bytes).is_ok() {
                self.missed = false;
                count(&counters.events);
                ring.add_used(chain, u32::try_from(EVENT_BYTES).unwrap_or(0));
                return true;
            }
            count(&counters.bad_event_buffers);
            ring.add_used(chain, 0);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_stands_as_the_table_says() {
        let bytes = encode(EVENTS_MISSED | TRANSPORT_RESET, [1, 0, 0, 5, 0, 0, 0, 0], 2);
        assert_eq!(bytes, [1, 0, 0, 0x80, 1, 0, 0, 5, 0, 0, 0, 0, 2, 0, 0, 0]);
    }

    #[test]
    fn fabric_events_become_what_the_driver_expects() {
        let lun = [0x40, 5, 0, 0, 0, 0, 0, 0];
        let guest = [1, 0, 0, 5, 0, 0, 0, 0];
        assert_eq!(translate(Event::LunAdded(lun)), Some((2, 1, guest, 1)));
        assert_eq!(translate(Event::LunRemoved(lun)), Some((2, 1, guest, 2)));
        // CAPACITY DATA HAS CHANGED is 2A/09 (SPC-4 annex D).
        let changed = Event::ParameterChanged {
            lun,
            asc: 0x2a,
            ascq: 9,
        };
        assert_eq!(translate(changed), Some((4, 3, guest, 0x092a)));
        assert_eq!(
            translate(Event::LunAdded([0xc1, 1, 0, 0, 0, 0, 0, 0])),
            None
        );
    }

    #[test]
    fn event_without_a_driver_is_counted_as_missed() {
        let counters = Counters::default();
        let mut events = EventQueue::default();
        events.report(Event::LunAdded([0; 8]), FEATURE_HOTPLUG, &counters);
        assert!(events.missed);
        events.report(
            Event::ParameterChanged {
                lun: [0; 8],
                asc: 1,
                ascq: 1,
            },
            0,
            &counters,
        );
        let statistics = counters.snapshot();
        assert_eq!((statistics.missed_events, statistics.events), (2, 0));
    }
}
