//! What was reported already: whoever tries on is not reported each time.

use std::collections::HashSet;
use std::time::{Duration, Instant};

/// Reasons that are remembered at most. Further ones are not reported.
pub const REASONS_MAX: usize = 64;
/// How long they are remembered, from the first on.
const MEMORY: Duration = Duration::from_secs(600);

/// Reasons that were reported, and about whom. A peer that makes them up costs at most
/// [`REASONS_MAX`] reports in ten minutes.
#[derive(Debug, Default)]
pub struct Told {
    /// `None` before the first.
    since: Option<Instant>,
    reasons: HashSet<(String, String)>,
}

impl Told {
    /// Whether `reason` was not reported about `whom`. It counts as reported then.
    pub fn is_news(&mut self, now: Instant, whom: &str, reason: &str) -> bool {
        let since = *self.since.get_or_insert(now);
        if now.saturating_duration_since(since) >= MEMORY {
            self.since = Some(now);
            self.reasons.clear();
        }
        self.reasons.len() < REASONS_MAX
            && self.reasons.insert((whom.to_owned(), reason.to_owned()))
    }

    /// Nothing is wrong with `whom` any more: what comes next is reported.
    pub fn forget(&mut self, whom: &str) {
        self.reasons.retain(|(about, _)| about != whom);
    }

    /// Whether anything was reported lately.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.reasons.is_empty()
    }
}

/// The place that a link comes from, without what differs from one attempt to the next: its port or
/// process. `peer` as in [`Link::peer`](crate::link::Link::peer).
#[must_use]
pub fn place(peer: &str) -> &str {
    peer.rsplit_once(':').map_or(peer, |(place, _)| place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_news_once_and_again_after_all_was_well_or_a_while() {
        let start = Instant::now();
        let mut told = Told::default();
        assert!(told.is_news(start, "host1", "late"));
        assert!(!told.is_news(start, "host1", "late"));
        assert!(told.is_news(start, "host1", "expired"));
        assert!(told.is_news(start, "host2", "late"));
        told.forget("host1");
        assert!(told.is_news(start, "host1", "late"));
        assert!(!told.is_news(start, "host2", "late"));
        assert!(told.is_news(start + MEMORY, "host2", "late"));
        assert!(!told.is_news(start + MEMORY, "host2", "late"));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let now = Instant::now();
        let mut told = Told::default();
        let news = |told: &mut Told| {
            let news = (0..1000).filter(|n| told.is_news(now, "host1", &n.to_string()));
            news.count()
        };
        assert_eq!(news(&mut told), REASONS_MAX);
        assert_eq!(news(&mut told), 0);
    }

    #[test]
    fn attempts_of_one_peer_come_from_one_place() {
        assert_eq!(place("tls:192.0.2.1:40001"), place("tls:192.0.2.1:40002"));
        assert_ne!(place("tls:192.0.2.1:40001"), place("tls:192.0.2.2:40001"));
        assert_eq!(place("in process"), "in process");
    }
}
