//! When a host asks, and which director it takes. Pure: time and random numbers are arguments.
//!
//! ```text
//!          ┌──────────── 20 s ─────────────┐
//!          v                               │ the chosen director answered
//!   question: DISCOVER, 1 s, DISCOVER, 1 s, DISCOVER, 1 s
//!          ^                               │ it did not: whoever else did is chosen; nobody did:
//!          └── 10 s; at once while eager ──┘
//! ```
//!
//! A search is eager in its first 30 s, and in the 30 s after a link to the chosen director could
//! not be made. What is chosen stays chosen while it answers; the addresses of one that does not
//! answer are kept until another does.

use std::time::{Duration, Instant};

use super::message::{Kind, Message};
use crate::link::{LinkAddress, LinkOptions, LinkRefused};
use crate::session::PATHS_MAX;
use crate::told::Told;

/// Until the next question after an answer.
const PAUSE_FOUND: Duration = Duration::from_secs(20);
/// Until the next question after one that nobody answered.
const PAUSE_FAILED: Duration = Duration::from_secs(10);
/// Until a question is repeated, in case its datagram was lost.
const REPEAT: Duration = Duration::from_secs(1);
/// Datagrams of a question; with [`REPEAT`] it lasts 3 s.
const DATAGRAMS: u32 = 3;
/// How long questions follow each other without a pause.
const EAGER: Duration = Duration::from_secs(30);

/// A director that answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) director: String,
    instance: u64,
    /// At least one, at most as many as a session has links.
    pub(super) addresses: Vec<LinkAddress>,
}

#[derive(Debug)]
struct Question {
    nonce: u64,
    datagrams: u32,
    /// When it is repeated, or over.
    until: Instant,
    /// The first other director that answered it, should the chosen one not.
    other: Option<Found>,
}

#[derive(Debug)]
pub(super) struct Search {
    /// The only director that is wanted, if there is one.
    wanted: Option<String>,
    /// Which addresses are taken.
    links: LinkOptions,
    /// What was refused, by the director that offered it.
    refused: Told,
    chosen: Option<Found>,
    /// The chosen one answered the last question.
    answers: bool,
    question: Option<Question>,
    ask_at: Instant,
    eager_until: Instant,
    doubted_at: Option<Instant>,
}

impl Search {
    pub(super) fn new(wanted: Option<String>, links: LinkOptions, now: Instant) -> Self {
        Self {
            wanted,
            links,
            refused: Told::default(),
            chosen: None,
            answers: false,
            question: None,
            ask_at: now,
            eager_until: now + EAGER,
            doubted_at: None,
        }
    }

    pub(super) fn chosen(&self) -> Option<&Found> {
        self.chosen.as_ref()
    }

    /// When [`Self::handle_timeout`] has something to do.
    pub(super) fn poll_timeout(&self) -> Instant {
        self.question.as_ref().map_or(self.ask_at, |it| it.until)
    }

    /// Does what is due. The nonce of the DISCOVER that goes out now, if one does; a new question
    /// takes `nonce`.
    pub(super) fn handle_timeout(&mut self, now: Instant, nonce: u64) -> Option<u64> {
        if now < self.poll_timeout() {
            return None;
        }
        if let Some(question) = &mut self.question {
            if question.datagrams < DATAGRAMS {
                question.datagrams += 1;
                question.until = now + REPEAT;
                return Some(question.nonce);
            }
            match question.other.take() {
                Some(other) => self.choose(now, other),
                None => self.fail(now),
            }
        }
        if now < self.ask_at {
            return None;
        }
        self.question = Some(Question {
            nonce,
            datagrams: 1,
            until: now + REPEAT,
            other: None,
        });
        Some(nonce)
    }

    /// Takes an answer, unless it is to another question or of no use. Gives back which of its
    /// addresses are refused for the first time.
    pub(super) fn handle_message(&mut self, now: Instant, message: &Message) -> Vec<LinkRefused> {
        let mut refusals = Vec::new();
        let Some(question) = &mut self.question else {
            return refusals;
        };
        let wanted = self.wanted.as_ref().is_none_or(|it| *it == message.name);
        if message.kind != Kind::Offer || message.nonce != question.nonce || !wanted {
            return refusals;
        }
        let mut addresses = Vec::new();
        for address in message.addresses.iter().filter_map(|text| usable(text)) {
            match self.links.check_discovered(&address) {
                Ok(()) => addresses.push(address),
                Err(refusal) => refusals.push(refusal),
            }
        }
        addresses.truncate(PATHS_MAX);
        let refused = &mut self.refused;
        refusals.retain(|it| refused.is_news(now, &message.name, &it.to_string()));
        if addresses.is_empty() {
            return refusals;
        }
        let found = Found {
            director: message.name.clone(),
            instance: message.instance,
            addresses,
        };
        let same = self.chosen.as_ref().is_some_and(|chosen| {
            (chosen.instance, &chosen.director) == (found.instance, &found.director)
        });
        if self.answers && !same {
            question.other.get_or_insert(found);
        } else {
            self.choose(now, found);
        }
        refusals
    }

    /// Whether something was offered that may not be used.
    pub(super) fn has_refused(&self) -> bool {
        !self.refused.is_empty()
    }

    /// A link to an address of the chosen director could not be made.
    pub(super) fn doubt(&mut self, now: Instant) {
        // One that answers and cannot be reached is not asked about more often than nobody is.
        let recently = |at: Instant| now.saturating_duration_since(at) < PAUSE_FAILED;
        if !self.answers || self.doubted_at.is_some_and(recently) {
            return;
        }
        self.doubted_at = Some(now);
        self.eager_until = now + EAGER;
        self.ask_at = self.ask_at.min(now);
    }

    fn choose(&mut self, now: Instant, found: Found) {
        if self.chosen.as_ref() != Some(&found) {
            self.doubted_at = None;
            self.eager_until = now;
        }
        self.chosen = Some(found);
        self.answers = true;
        self.question = None;
        self.ask_at = now + PAUSE_FOUND;
    }

    fn fail(&mut self, now: Instant) {
        self.answers = false;
        self.question = None;
        self.ask_at = if now < self.eager_until {
            now
        } else {
            now + PAUSE_FAILED
        };
    }
}

/// An address that there can be, and for which no host lacks the device.
fn usable(text: &str) -> Option<LinkAddress> {
    let address: LinkAddress = text.parse().ok()?;
    let usable = match &address {
        LinkAddress::Tcp(socket) | LinkAddress::Tls(socket) => {
            let ip = socket.ip();
            !ip.is_unspecified() && !ip.is_multicast() && socket.port() != 0
        }
        LinkAddress::Unix(_) | LinkAddress::SharedMemory(_) => true,
        LinkAddress::Rdma(_) => false,
    };
    usable.then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::TlsLab;

    struct Host {
        search: Search,
        start: Instant,
        nonce: u64,
    }

    impl Host {
        /// One on a network where plain TCP is wanted.
        fn new(wanted: Option<&str>) -> Self {
            let insecure = LinkOptions {
                insecure: true,
                ..LinkOptions::default()
            };
            Self::with(wanted, insecure)
        }

        fn with(wanted: Option<&str>, links: LinkOptions) -> Self {
            let start = Instant::now();
            let search = Search::new(wanted.map(str::to_owned), links, start);
            Self {
                search,
                start,
                nonce: 0,
            }
        }

        fn at(&self, millis: u64) -> Instant {
            self.start + Duration::from_millis(millis)
        }

        /// When the next datagram goes out, and its nonce.
        fn next(&mut self) -> (u64, u64) {
            loop {
                let now = self.search.poll_timeout();
                self.nonce += 1;
                if let Some(nonce) = self.search.handle_timeout(now, self.nonce) {
                    let millis = (now - self.start).as_millis();
                    return (millis.try_into().unwrap(), nonce);
                }
            }
        }

        fn offer(
            &mut self,
            millis: u64,
            nonce: u64,
            from: (&str, u64),
            addresses: &[&str],
        ) -> bool {
            let before = self.search.chosen().cloned();
            self.refusals(millis, nonce, from, addresses);
            self.search.chosen() != before.as_ref()
        }

        /// The same; the refusals that are new.
        fn refusals(
            &mut self,
            millis: u64,
            nonce: u64,
            from: (&str, u64),
            addresses: &[&str],
        ) -> Vec<String> {
            let message = Message {
                kind: Kind::Offer,
                nonce,
                instance: from.1,
                name: from.0.to_owned(),
                addresses: addresses.iter().map(|it| (*it).to_owned()).collect(),
            };
            let now = self.at(millis);
            let refusals = self.search.handle_message(now, &message);
            refusals.iter().map(ToString::to_string).collect()
        }

        fn chosen(&self) -> Option<(&str, u64)> {
            let chosen = self.search.chosen()?;
            Some((&chosen.director, chosen.instance))
        }
    }

    const ONE: &[&str] = &["tcp:192.0.2.1:7471"];
    const OTHER: &[&str] = &["tcp:192.0.2.2:7471"];

    #[test]
    fn asks_every_second_at_first_then_for_three_seconds_with_pauses_of_ten() {
        let mut host = Host::new(None);
        for second in 0..30 {
            assert_eq!(host.next().0, second * 1000);
        }
        let times: Vec<_> = (0..6).map(|_| host.next().0 / 1000).collect();
        assert_eq!(times, [40, 41, 42, 53, 54, 55]);
        assert_eq!(host.chosen(), None);
    }

    #[test]
    fn asks_every_twenty_seconds_while_it_is_answered() {
        let mut host = Host::new(None);
        let (_, nonce) = host.next();
        assert!(host.offer(5, nonce, ("d1", 1), ONE));
        for count in 1..4 {
            let (millis, nonce) = host.next();
            assert_eq!(millis, 20_000 * count + 5 * count);
            assert!(!host.offer(millis + 5, nonce, ("d1", 1), ONE));
        }
        // The same director from elsewhere is news.
        let (millis, nonce) = host.next();
        assert!(host.offer(millis, nonce, ("d1", 1), OTHER));
    }

    #[test]
    fn a_lost_datagram_is_repeated() {
        let mut host = Host::new(None);
        let (_, nonce) = host.next();
        host.offer(0, nonce, ("d1", 1), ONE);
        let (_, first) = host.next();
        let (millis, second) = host.next();
        assert_eq!((millis, second), (21_000, first));
        assert!(!host.offer(millis, second, ("d1", 1), ONE));
        assert_eq!(host.next().0, 41_000);
    }

    #[test]
    fn who_answered_first_is_kept_while_it_answers() {
        let mut host = Host::new(None);
        let (_, nonce) = host.next();
        assert!(host.offer(1, nonce, ("d1", 1), ONE));
        assert!(!host.offer(2, nonce, ("d2", 2), OTHER), "asked no more");
        let (millis, nonce) = host.next();
        assert!(!host.offer(millis + 1, nonce, ("d2", 2), OTHER));
        assert!(!host.offer(millis + 2, nonce, ("d1", 1), ONE));
        assert_eq!(host.chosen(), Some(("d1", 1)));
        // It answers no more: another is taken when the question is over, and then kept.
        let (millis, nonce) = host.next();
        assert!(!host.offer(millis + 1, nonce, ("d2", 2), OTHER));
        assert!(!host.offer(millis + 1, nonce, ("d3", 3), ONE));
        assert_eq!(host.chosen(), Some(("d1", 1)));
        let (later, _) = [host.next(), host.next(), host.next()][2];
        assert_eq!((later, host.chosen()), (millis + 23_000, Some(("d2", 2))));
    }

    #[test]
    fn addresses_of_a_silent_director_are_kept_until_another_answers() {
        let mut host = Host::new(None);
        let (_, nonce) = host.next();
        host.offer(0, nonce, ("d1", 1), ONE);
        let times: Vec<_> = (0..4).map(|_| host.next().0 / 1000).collect();
        assert_eq!(times, [20, 21, 22, 33]);
        assert_eq!(host.chosen(), Some(("d1", 1)));
        let (millis, nonce) = host.next();
        assert!(host.offer(millis, nonce, ("d2", 2), OTHER));
        assert_eq!(host.chosen(), Some(("d2", 2)));
    }

    #[test]
    fn a_link_that_cannot_be_made_makes_it_ask_at_once_but_not_again_and_again() {
        let mut host = Host::new(None);
        let doubted = |host: &mut Host, millis| {
            let now = host.at(millis);
            host.search.doubt(now);
        };
        doubted(&mut host, 0);
        let (_, nonce) = host.next();
        host.offer(0, nonce, ("d1", 1), ONE);
        doubted(&mut host, 5000);
        let (millis, nonce) = host.next();
        assert_eq!(millis, 5000);
        host.offer(millis, nonce, ("d1", 1), ONE);
        doubted(&mut host, 6000);
        assert_eq!(host.search.poll_timeout(), host.at(25_000));
        doubted(&mut host, 15_000);
        assert_eq!(host.search.poll_timeout(), host.at(15_000));
        // Restarted elsewhere after a while: questions follow each other until it is back.
        for second in 15..22 {
            assert_eq!(host.next().0, 1000 * second);
        }
        let nonce = host.nonce;
        assert!(host.offer(21_001, nonce, ("d1", 9), OTHER));
        doubted(&mut host, 22_000);
        assert_eq!(host.search.poll_timeout(), host.at(22_000));
    }

    #[test]
    fn what_was_not_asked_or_is_of_no_use_is_ignored() {
        let mut host = Host::new(Some("d1"));
        assert!(!host.offer(0, 1, ("d1", 1), ONE), "no question");
        let (_, nonce) = host.next();
        assert!(!host.offer(0, nonce + 1, ("d1", 1), ONE), "nonce");
        assert!(!host.offer(0, nonce, ("d2", 1), ONE), "name");
        let useless = [
            "unix:/etc/passwd",
            "tcp:0.0.0.0:7471",
            "tcp:192.0.2.1:0",
            "tcp:239.1.1.1:7471",
            "tcp:localhost:7471",
            "xyz:1",
        ];
        assert!(!host.offer(0, nonce, ("d1", 1), &useless));
        assert_eq!(host.chosen(), None);
        let mixed = [&useless[..], ONE].concat();
        assert!(host.offer(0, nonce, ("d1", 1), &mixed));
        assert_eq!(host.search.chosen().unwrap().addresses.len(), 1);
    }

    #[test]
    fn a_session_gets_no_more_addresses_than_it_has_links() {
        let mut host = Host::new(None);
        let (_, nonce) = host.next();
        let addresses: Vec<_> = (1..=8).map(|n| format!("tcp:192.0.2.{n}:7471")).collect();
        let addresses: Vec<_> = addresses.iter().map(String::as_str).collect();
        assert!(host.offer(0, nonce, ("d1", 1), &addresses));
        let chosen = host.search.chosen().unwrap();
        assert_eq!(chosen.addresses.len(), PATHS_MAX);
        assert_eq!(chosen.addresses[0].to_string(), addresses[0]);
    }

    #[test]
    fn p14_with_a_certificate_nothing_but_tls_is_taken_and_each_refusal_is_told_once() {
        let lab = TlsLab::new();
        for insecure in [false, true] {
            let links = LinkOptions {
                insecure,
                ..lab.options("host1")
            };
            let mut host = Host::with(None, links);
            let (_, nonce) = host.next();
            let plain = ["tcp:127.0.0.1:7471", "tcp:192.0.2.1:7471", "shm:/run/d1"];
            let refusals = host.refusals(0, nonce, ("d1", 1), &plain);
            assert_eq!(refusals.len(), 3, "{refusals:?}");
            for refusal in &refusals[..2] {
                assert!(refusal.contains("without encryption"), "{refusal}");
            }
            assert!(refusals[2].contains("shm:/run/d1 is a file"));
            assert_eq!((host.chosen(), host.search.has_refused()), (None, true));
            // It asks on, and whoever offers the right thing is taken, but nothing else of it.
            let (millis, nonce) = host.next();
            assert!(host.refusals(millis, nonce, ("d1", 1), &plain).is_empty());
            let mixed = [plain[0], "tls:192.0.2.1:7471"];
            assert!(host.offer(millis, nonce, ("d1", 1), &mixed));
            let addresses = &host.search.chosen().unwrap().addresses;
            assert_eq!(*addresses, [mixed[1].parse().unwrap()]);
        }
    }

    #[test]
    fn without_a_certificate_plain_tcp_stays_on_this_machine_unless_it_is_wanted() {
        let local = ["tcp:127.0.0.1:7471"];
        let others = ["tcp:192.0.2.1:7471", "tls:192.0.2.1:7471", "unix:/run/d1"];
        let mut host = Host::with(None, LinkOptions::default());
        let (_, nonce) = host.next();
        let refusals = host.refusals(0, nonce, ("d1", 1), &others);
        for (refusal, reason) in refusals.iter().zip(["insecure", "certificate", "file"]) {
            assert!(refusal.contains(reason), "{refusal}");
        }
        assert_eq!((refusals.len(), host.chosen()), (3, None));
        assert!(host.offer(0, nonce, ("d1", 1), &local));
    }
}
