//! What is wrong with one direction of the link.

use std::time::{Duration, Instant};

/// Whether bytes disappear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Hole {
    /// They pass.
    #[default]
    Off,
    /// They are neither read nor written: what is underway waits, and passes once the hole is
    /// off. A path that is broken somewhere in the middle, with TCP sending again behind it.
    Silent,
    /// They are read and thrown away, with those that are underway. The sender sees its bytes
    /// taken; after the hole the stream goes on with a gap.
    Discard,
}

/// Idle time that a rate makes up for: a late wake-up costs no throughput.
const ARREARS_MAX: Duration = Duration::from_millis(10);
/// The most that passes in one piece.
pub(super) const PIECE_BYTES_MAX: usize = 64 * 1024;

/// Bytes per second, in pieces of about 5 ms.
#[derive(Debug)]
pub(super) struct Pace {
    bytes_per_second: u64,
    paid_until: Instant,
}

impl Pace {
    pub(super) fn new(bytes_per_second: u64, now: Instant) -> Self {
        Self {
            bytes_per_second: bytes_per_second.max(1),
            paid_until: now,
        }
    }

    /// When the next piece may pass.
    pub(super) fn next(&self) -> Instant {
        self.paid_until
    }

    fn piece(&self) -> usize {
        let bytes = usize::try_from(self.bytes_per_second / 200).unwrap_or(PIECE_BYTES_MAX);
        bytes.clamp(1, PIECE_BYTES_MAX)
    }

    fn spend(&mut self, bytes: usize, now: Instant) {
        let start = now.checked_sub(ARREARS_MAX).unwrap_or(now);
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        // A piece is a few milliseconds long, or one byte.
        let time =
            Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / self.bytes_per_second);
        self.paid_until = self.paid_until.max(start) + time;
    }
}

/// Bytes that may pass now; with no pace, one piece.
pub(super) fn allowed(pace: Option<&Pace>, now: Instant) -> usize {
    match pace {
        Some(pace) if pace.next() > now => 0,
        Some(pace) => pace.piece(),
        None => PIECE_BYTES_MAX,
    }
}

/// Accounts for bytes that passed.
pub(super) fn spend(pace: Option<&mut Pace>, bytes: usize, now: Instant) {
    if let Some(pace) = pace {
        pace.spend(bytes, now);
    }
}

/// Turns over one bit in so many, on average; the same ones for the same seed.
#[derive(Debug)]
pub(super) struct Flips {
    one_in: u64,
    /// Bits that pass before the next one that is turned over.
    left: u64,
    random: fastrand::Rng,
}

impl Flips {
    pub(super) fn new(one_in: u64, seed: u64) -> Self {
        let mut flips = Self {
            one_in: one_in.max(1),
            left: 0,
            random: fastrand::Rng::with_seed(seed),
        };
        flips.left = flips.gap() - 1;
        flips
    }

    /// Distance from one such bit to the next: 1 to `2 * one_in - 1`.
    fn gap(&mut self) -> u64 {
        self.random.u64(1..self.one_in.saturating_mul(2))
    }

    /// How many bits of `bytes` were turned over.
    pub(super) fn apply(&mut self, bytes: &mut [u8]) -> u64 {
        let mut flipped = 0;
        for byte in bytes {
            while self.left < 8 {
                *byte ^= 1 << self.left;
                flipped += 1;
                self.left += self.gap();
            }
            self.left -= 8;
        }
        flipped
    }
}

/// All of it, for all connections together.
#[derive(Debug, Default)]
pub(super) struct Way {
    pub(super) delay: Duration,
    pub(super) jitter: Duration,
    /// Of what is passed on.
    pub(super) rate: Option<Pace>,
    /// Of what is read.
    pub(super) reader: Option<Pace>,
    pub(super) hole: Hole,
    pub(super) flips: Option<Flips>,
}

impl Way {
    /// How long bytes stay that drew `share` of the jitter.
    pub(super) fn stay(&self, share: u16) -> Duration {
        self.delay
            .saturating_add(self.jitter.mul_f64(f64::from(share) / f64::from(u16::MAX)))
    }
}
