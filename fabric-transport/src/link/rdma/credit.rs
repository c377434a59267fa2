//! How many messages may be underway: never more than the peer has posted receives for, because
//! one without a receive makes the adapter of the peer answer "receiver not ready" and stop all.
//!
//! Both sides begin with [`RECEIVES`] posted receives. Every message carries the number of
//! receives that its sender has posted so far, modulo 2^32. The last one is not for bytes: two sides
//! that have each filled the other's receives could not say any more that they have emptied them.
//!
//! ```text
//! bytes may be sent:   limit - sent >= 2
//! an empty message is: limit - sent >= 1, and the peer has not been told of half of RECEIVES
//! ```

/// Receives that each side keeps posted.
pub(super) const RECEIVES: u32 = 32;
/// Receives at which a peer that gets no bytes is told of them.
const TELL_AT: u32 = RECEIVES / 2;

/// The counts of one side, all modulo 2^32.
#[derive(Debug)]
pub(super) struct Credit {
    /// Messages sent.
    sent: u32,
    /// Receives that the peer has posted, as far as is known.
    limit: u32,
    /// Receives that this side has posted.
    posted: u32,
    /// What the peer was told of them.
    told: u32,
}

/// A peer said that it has posted more receives than there are, or fewer than before.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("peer says that it posted {said} receives, after {before} and {sent} messages")]
pub(super) struct CreditError {
    said: u32,
    before: u32,
    sent: u32,
}

impl Credit {
    /// The counts at the start.
    pub(super) fn new() -> Self {
        Self {
            sent: 0,
            limit: RECEIVES,
            posted: RECEIVES,
            told: RECEIVES,
        }
    }

    fn left(&self) -> u32 {
        self.limit.wrapping_sub(self.sent)
    }

    /// Whether a message with bytes may be sent.
    pub(super) fn may_send(&self) -> bool {
        self.left() >= 2
    }

    /// Whether an empty message must be sent, and may be.
    pub(super) fn must_tell(&self) -> bool {
        self.posted.wrapping_sub(self.told) >= TELL_AT && self.left() >= 1
    }

    /// What the next message says. [`Self::sent`] follows if it is sent.
    pub(super) fn posted_receives(&self) -> u32 {
        self.posted
    }

    /// A message was sent.
    pub(super) fn sent(&mut self) {
        self.sent = self.sent.wrapping_add(1);
        self.told = self.posted;
    }

    /// A receive was posted again.
    pub(super) fn posted(&mut self) {
        self.posted = self.posted.wrapping_add(1);
    }

    /// A message said how many receives the peer has posted.
    ///
    /// # Errors
    /// [`CreditError`].
    pub(super) fn heard(&mut self, said: u32) -> Result<(), CreditError> {
        let more = said.wrapping_sub(self.limit);
        if more > RECEIVES || said.wrapping_sub(self.sent) > RECEIVES {
            return Err(CreditError {
                said,
                before: self.limit,
                sent: self.sent,
            });
        }
        self.limit = said;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    /// One side with the queue towards it: a message is what it says and whether it has bytes.
    struct Side {
        credit: Credit,
        arriving: VecDeque<(u32, bool)>,
        /// Messages with bytes that nobody has read: their receives are not posted.
        unread: u32,
    }

    impl Side {
        fn new() -> Self {
            let credit = Credit {
                // Near the end of the counts: they go around in every run.
                sent: u32::MAX - 40,
                limit: u32::MAX - 40 + RECEIVES,
                posted: u32::MAX - 40 + RECEIVES,
                told: u32::MAX - 40 + RECEIVES,
            };
            Self {
                credit,
                arriving: VecDeque::new(),
                unread: 0,
            }
        }

        fn send(&mut self, peer: &mut Self, bytes: bool) {
            peer.arriving
                .push_back((self.credit.posted_receives(), bytes));
            self.credit.sent();
            let held = u32::try_from(peer.arriving.len()).unwrap() + peer.unread;
            assert!(held <= RECEIVES, "receiver not ready");
        }

        fn look(&mut self, peer: &mut Self) {
            if let Some((said, bytes)) = self.arriving.pop_front() {
                self.credit.heard(said).unwrap();
                if bytes {
                    self.unread += 1;
                } else {
                    self.credit.posted();
                }
            }
            self.tell(peer);
        }

        fn read(&mut self, peer: &mut Self) {
            if self.unread > 0 {
                self.unread -= 1;
                self.credit.posted();
            }
            self.tell(peer);
        }

        fn tell(&mut self, peer: &mut Self) {
            if self.credit.must_tell() {
                self.send(peer, false);
            }
        }
    }

    proptest! {
        /// Whatever the order: no message without a receive, and never do both sides stop.
        #[test]
        fn receiver_is_always_ready_and_bytes_go_on(steps in prop::collection::vec(0_u8..6, 2000)) {
            let (mut near, mut far) = (Side::new(), Side::new());
            for step in steps {
                let (one, other) = if step % 2 == 0 {
                    (&mut near, &mut far)
                } else {
                    (&mut far, &mut near)
                };
                match step / 2 {
                    0 if one.credit.may_send() => one.send(other, true),
                    0 => {}
                    1 => one.look(other),
                    _ => one.read(other),
                }
            }
            // Once everything is read, both may send again.
            for _ in 0..4 * RECEIVES {
                near.look(&mut far);
                far.look(&mut near);
                near.read(&mut far);
                far.read(&mut near);
            }
            prop_assert!(near.credit.may_send() && far.credit.may_send());
            prop_assert!(near.arriving.is_empty() && far.arriving.is_empty());
        }
    }

    #[test]
    fn last_receive_is_kept_for_the_count() {
        let mut credit = Credit::new();
        for _ in 0..RECEIVES - 1 {
            assert!(credit.may_send());
            credit.sent();
        }
        assert!(!credit.may_send() && !credit.must_tell());
        for _ in 0..RECEIVES / 2 {
            credit.posted();
        }
        assert!(credit.must_tell());
        credit.sent();
        for _ in 0..RECEIVES / 2 {
            credit.posted();
        }
        assert!(!credit.must_tell(), "there is no receive left for it");
    }

    #[test]
    fn peer_cannot_grant_what_it_does_not_have() {
        for said in [RECEIVES + 1, RECEIVES - 1, 0, u32::MAX] {
            assert!(Credit::new().heard(said).is_err(), "{said}");
        }
        let mut credit = Credit::new();
        credit.sent();
        assert_eq!(credit.heard(RECEIVES + 1), Ok(()));
        assert!(credit.heard(RECEIVES + 2).is_err());
    }
}
