//! One link of a session, as the session sees it: what is underway on it, and whether it lives.

use std::collections::VecDeque;
use std::time::Duration;

use qos::MonotonicTime;

use super::SessionConfig;
use crate::frame::{DeviceId, HEADER_BYTES};

/// Bytes of sequenced frames after which the peer is told what arrived even if nothing else is sent
/// to it.
const ACKNOWLEDGE_BYTES: usize = 64 * 1024;

/// A sequenced frame that the peer has not acknowledged.
#[derive(Debug)]
pub(super) struct Underway {
    frame_bytes: usize,
    pub(super) device: DeviceId,
    pub(super) attachment: u8,
}

/// The peer acknowledges frames that were not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BadAcknowledge;

/// Counts of one link. Each link counts its own frames, from 0: a link keeps its order, so one
/// number says which of them arrived.
#[derive(Debug)]
pub(super) struct Path {
    pub(super) id: u16,
    pub(super) priority: u8,
    pub(super) up_at: MonotonicTime,
    /// Sequenced frames that arrived, and what the peer was told of them last.
    received: u32,
    received_told: u32,
    received_bytes_untold: usize,
    /// Sequenced frames that were sent, and those of them that are not acknowledged.
    sent: u32,
    pub(super) underway: VecDeque<Underway>,
    pub(super) underway_bytes: usize,
    pub(super) sent_bytes: u64,
    /// Acknowledged frames that the owner has not been told of.
    pub(super) acknowledged: usize,
    /// Since when the peer could have acknowledged something and has not.
    pub(super) waits_since: MonotonicTime,
    /// Time of the first PING that is not answered, and of the last.
    asked_at: Option<MonotonicTime>,
    asked_last: MonotonicTime,
    pub(super) ping_at: MonotonicTime,
    /// A PING and a PONG that wait to be sent. The newest of each is enough.
    pub(super) ping: Option<u64>,
    pub(super) pong: Option<u64>,
    pub(super) round_trip: Option<Duration>,
    /// Smoothed as in RFC 6298: neither one quick answer nor one slow one says what is usual.
    round_trip_smoothed: Option<Duration>,
    pub(super) close_told: bool,
}

impl Path {
    pub(super) fn new(id: u16, priority: u8, now: MonotonicTime) -> Self {
        Self {
            id,
            priority,
            up_at: now,
            received: 0,
            received_told: 0,
            received_bytes_untold: 0,
            sent: 0,
            underway: VecDeque::new(),
            underway_bytes: 0,
            sent_bytes: 0,
            acknowledged: 0,
            waits_since: now,
            asked_at: None,
            asked_last: now,
            ping_at: now,
            ping: None,
            pong: None,
            round_trip: None,
            round_trip_smoothed: None,
            close_told: false,
        }
    }

    /// A sequenced frame goes out.
    pub(super) fn transmit(
        &mut self,
        now: MonotonicTime,
        payload_bytes: usize,
        device: DeviceId,
        attachment: u8,
    ) {
        let frame_bytes = HEADER_BYTES + payload_bytes;
        if self.underway.is_empty() {
            self.waits_since = now;
        }
        self.sent = self.sent.wrapping_add(1);
        self.sent_bytes += frame_bytes as u64;
        self.underway_bytes += frame_bytes;
        self.underway.push_back(Underway {
            frame_bytes,
            device,
            attachment,
        });
    }

    /// The peer has everything but the last `sent - acknowledge` frames. Returns how many are new.
    pub(super) fn acknowledge(
        &mut self,
        now: MonotonicTime,
        acknowledge: u32,
        mut done: impl FnMut(&Underway),
    ) -> Result<usize, BadAcknowledge> {
        let pending = self.sent.wrapping_sub(acknowledge);
        let pending = usize::try_from(pending).unwrap_or(usize::MAX);
        let newly = self.underway.len().checked_sub(pending);
        let newly = newly.ok_or(BadAcknowledge)?;
        for frame in self.underway.drain(..newly) {
            self.underway_bytes -= frame.frame_bytes;
            done(&frame);
        }
        if newly > 0 {
            self.acknowledged += newly;
            self.waits_since = now;
            // A peer that reads is alive, however long its answer waits behind other frames.
            self.asked_at = self.asked_at.map(|_| now);
        }
        Ok(newly)
    }

    /// A sequenced frame arrived.
    pub(super) fn receive(&mut self, payload_bytes: usize) {
        self.received = self.received.wrapping_add(1);
        self.received_bytes_untold += HEADER_BYTES + payload_bytes;
    }

    /// The acknowledge field of a frame that goes out now.
    pub(super) fn tell_received(&mut self) -> u32 {
        self.received_told = self.received;
        self.received_bytes_untold = 0;
        self.received
    }

    /// Whether the peer should be told what arrived, though nothing else goes to it.
    pub(super) fn acknowledge_is_due(&self) -> bool {
        self.received_bytes_untold >= ACKNOWLEDGE_BYTES
    }

    pub(super) fn handle_pong(&mut self, now: MonotonicTime, nonce: u64) {
        let asked = MonotonicTime::from_nanos(nonce);
        // An answer to a question that was not asked says nothing.
        if asked > self.asked_last || asked < self.up_at {
            return;
        }
        let round_trip = now.saturating_duration_since(asked);
        self.round_trip = Some(round_trip);
        self.round_trip_smoothed = Some(match self.round_trip_smoothed {
            None => round_trip,
            Some(smoothed) => smoothed.saturating_mul(7).saturating_add(round_trip) / 8,
        });
        self.asked_at = self
            .asked_at
            .and_then(|_| (self.asked_last > asked).then_some(self.asked_last));
    }

    /// Asks the peer whether it is there, if it is time to.
    pub(super) fn handle_timeout(&mut self, now: MonotonicTime, config: &SessionConfig) {
        if now < self.ping_at {
            return;
        }
        self.ping = Some(now.as_nanos());
        self.asked_at.get_or_insert(now);
        self.asked_last = now;
        self.ping_at = now.saturating_add(config.heartbeat);
    }

    /// Asks soon when something is underway: only then does a dead link hold anything up.
    pub(super) fn ask_soon(&mut self, now: MonotonicTime, config: &SessionConfig) {
        if self.asked_at.is_none() {
            let soon = now.saturating_add(config.path_silence_min / 4);
            self.ping_at = self.ping_at.min(soon);
        }
    }

    /// When the link is dead unless the peer answers, and after how long a silence that is:
    /// `patience` beside other links, or more.
    pub(super) fn dead_at(
        &self,
        patience: Option<Duration>,
        config: &SessionConfig,
    ) -> Option<(MonotonicTime, Duration)> {
        let patience = patience.map_or(config.silence_max, |patience| {
            let round_trip = self.round_trip_smoothed.unwrap_or_default();
            let round_trips = round_trip.saturating_mul(8);
            // Not longer than a link that is the only one.
            round_trips.max(patience).min(config.silence_max)
        });
        Some((self.asked_at?.saturating_add(patience), patience))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> MonotonicTime {
        MonotonicTime::from_nanos(millis * 1_000_000)
    }

    #[test]
    fn acknowledgement_counts_what_was_sent_here() {
        let mut path = Path::new(1, 0, at(0));
        for _ in 0..3 {
            path.transmit(at(1), 100, DeviceId(1), 0);
        }
        let mut done = 0;
        assert_eq!(path.acknowledge(at(2), 2, |_| done += 1), Ok(2));
        assert_eq!((done, path.acknowledged, path.underway_bytes), (2, 2, 132));
        assert_eq!(path.acknowledge(at(2), 2, |_| {}), Ok(0));
        assert_eq!(path.acknowledge(at(2), 4, |_| {}), Err(BadAcknowledge));
        assert_eq!(path.acknowledge(at(2), 1, |_| {}), Err(BadAcknowledge));
    }

    #[test]
    fn an_answer_to_an_older_question_leaves_the_newer_one_open() {
        let config = SessionConfig::new("h1", 1);
        let mut path = Path::new(1, 0, at(1));
        path.handle_timeout(at(1), &config);
        path.handle_timeout(at(251), &config);
        let patience = config.path_silence_min;
        assert_eq!(
            path.dead_at(Some(patience), &config),
            Some((at(101), patience))
        );
        path.handle_pong(at(260), at(1).as_nanos());
        // The answer took 259 ms: eight of these are longer than the shortest silence.
        let longer = config.silence_max.min(Duration::from_millis(8 * 259));
        assert_eq!(
            path.dead_at(Some(patience), &config),
            Some((at(2251), longer))
        );
        path.handle_pong(at(261), at(251).as_nanos());
        assert_eq!(path.dead_at(Some(patience), &config), None);
        path.handle_pong(at(262), at(300).as_nanos());
        assert_eq!(path.round_trip, Some(Duration::from_millis(10)));
    }
}
