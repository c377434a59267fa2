//! Every parser that reads from a peer, and whole sessions behind them, fed with damaged frames.
//!
//! The corpus holds one good frame of each kind, made from the tables of docs/fabric-protocol.md by
//! another program than ours. Each is cut at every length, and then damaged and joined with others
//! at random: the same way for the same seed. `ORIMONO_TEST_FULL=1` tries ten million inputs (F9).
#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

use std::path::Path;
use std::time::Duration;

use fabric_transport::control::Control;
use fabric_transport::frame::{FrameHeader, FrameKind, HEADER_BYTES};
use fabric_transport::session::{
    Established, Role, Session, SessionConfig, SessionEvent, SessionState, greeting, welcomed,
};
use qos::MonotonicTime;

const WINDOWS: [u32; 4] = [4, 4, 64, 64];

fn corpus() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files
        .iter()
        .map(|file| std::fs::read(file).unwrap())
        .collect()
}

fn inputs() -> usize {
    if std::env::var_os("ORIMONO_TEST_FULL").is_some() {
        10_000_000
    } else {
        200_000
    }
}

/// One to three damages of a good frame.
fn damaged(random: &mut fastrand::Rng, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = random.choice(corpus).unwrap().clone();
    for _ in 0..random.usize(1..4) {
        let at = random.usize(..bytes.len().max(1));
        match random.u8(..6) {
            0 => bytes.truncate(at),
            1 => {
                let other = random.choice(corpus).unwrap();
                bytes.splice(at.., other.iter().skip(at).copied());
            }
            2 => bytes.extend(std::iter::repeat_n(random.u8(..), random.usize(..64))),
            // Integers at their limits.
            3 => {
                let value = random.choice([0, 1, 0x7fff_ffff, u32::MAX]).unwrap();
                let room = bytes.iter_mut().skip(at & !3);
                for (byte, new) in room.zip(value.to_le_bytes()) {
                    *byte = new;
                }
            }
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << random.u8(..8);
                }
            }
        }
    }
    bytes
}

/// What a link, a handshake and a control channel make of bytes.
fn parse(bytes: &[u8]) {
    let length = FrameHeader::frame_bytes(bytes);
    let Ok((header, payload)) = FrameHeader::parse(bytes, false) else {
        return;
    };
    assert_eq!(length, Ok(Some(bytes.len())));
    assert_eq!(payload.len() + HEADER_BYTES, bytes.len());
    if let Ok(control) = Control::parse(header.kind, payload) {
        let mut encoded = Vec::new();
        control.encode(&mut encoded);
        assert_eq!(Control::parse(header.kind, &encoded), Ok(control));
        assert!(encoded.len() <= bytes.len() + 64);
    }
    // Errors are answers.
    drop(greeting(&header, payload));
    drop(welcomed(&SessionConfig::new("host1", 7), &header, payload));
}

/// A session with two links and, at the director, whatever devices its peer asks for.
struct Victim {
    session: Session,
    millis: u64,
}

impl Victim {
    fn new(role: Role) -> Self {
        let established = Established::without_handshake("peer", 3);
        let mut session = Session::new(role, SessionConfig::new("us", 1), established, at(0));
        for path in [1, 2] {
            assert!(session.add_path(at(0), path, u8::try_from(path).unwrap()));
        }
        if role == Role::Host {
            session.attach(fabric_transport::DeviceId(7), 9, WINDOWS);
        }
        Self { session, millis: 0 }
    }

    fn feed(&mut self, path: u16, bytes: &[u8]) {
        self.millis += 1;
        let now = at(self.millis);
        let closed = self.session.state() == SessionState::Closed;
        match FrameHeader::parse(bytes, false) {
            Ok((header, payload)) => {
                let result = self.session.handle_frame(now, path, &header, payload);
                assert!(!closed || result == Ok(false), "closed stays closed");
                if let (Ok(true), FrameKind::Data, Some(lane)) = (result, header.kind, header.lane)
                {
                    let blocks = fabric_transport::frame::blocks(payload.len());
                    self.session.release(header.device, lane, blocks);
                }
            }
            Err(error) => self.session.handle_bad_frame(now, path, error),
        }
        self.session.handle_timeout(now);
        while let Some(event) = self.session.poll_event() {
            match event {
                SessionEvent::AttachRequested { device, .. } => {
                    self.session.accept(device, WINDOWS);
                }
                SessionEvent::PathLost { .. } => self.session.replayed(),
                _ => {}
            }
        }
        let mut sent = 0;
        for path in [1, 2] {
            while self.session.poll_transmit(now, path).is_some() {
                sent += 1;
                assert!(sent < 64, "one frame is not answered by so many");
            }
        }
    }
}

fn at(millis: u64) -> MonotonicTime {
    MonotonicTime::ZERO.saturating_add(Duration::from_millis(millis))
}

#[test]
fn every_frame_of_the_corpus_is_good_and_every_cut_is_not() {
    for frame in corpus() {
        assert!(FrameHeader::parse(&frame, false).is_ok());
        parse(&frame);
        for length in 0..frame.len() {
            let cut = frame.get(..length).unwrap();
            assert!(FrameHeader::parse(cut, false).is_err(), "{length}");
            parse(cut);
        }
    }
}

#[test]
fn p01_damaged_frames_are_answered_by_every_parser() {
    let corpus = corpus();
    let mut random = fastrand::Rng::with_seed(1);
    for _ in 0..inputs() {
        parse(&damaged(&mut random, &corpus));
    }
}

#[test]
fn p04_damaged_frames_are_answered_by_sessions_of_both_ends() {
    let corpus = corpus();
    let mut random = fastrand::Rng::with_seed(2);
    let (mut left, mut delivered) = (inputs() / 2, 0_u32);
    while left > 0 {
        let role = *random.choice(&[Role::Host, Role::Director]).unwrap();
        let mut victim = Victim::new(role);
        for _ in 0..random.usize(1..40) {
            let bytes = if random.bool() {
                random.choice(&corpus).unwrap().clone()
            } else {
                damaged(&mut random, &corpus)
            };
            victim.feed(random.u16(1..4), &bytes);
            left = left.saturating_sub(1);
        }
        delivered += u32::from(victim.session.state() != SessionState::Closed);
    }
    assert!(
        delivered > 0,
        "every session died: nothing behind the first frame was tried"
    );
}
