//! Every parser that reads from a peer, and whole sessions behind them, fed with damaged frames.
//!
//! The corpus holds one good frame of each kind, made from the tables of docs/fabric-protocol.md by
//! another program than ours. Each is cut at every length, and then damaged and joined with others
//! at random: the same way for the same seed. `ORIMONO_TEST_FULL=1` tries ten million inputs (F9).
//! What reaches further is in a folder of its own for each target, and was found by
//! `cargo xtask fuzz`.
#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

use std::time::Duration;

use fabric_transport::control::Control;
use fabric_transport::discovery::message::{DATAGRAM_BYTES_MAX, Kind, Message};
use fabric_transport::frame::{FrameHeader, FrameKind, HEADER_BYTES};
use fabric_transport::link::LinkAddress;
use fabric_transport::session::{
    Established, Role, Session, SessionConfig, SessionEvent, SessionState, greeting, welcomed,
};
use orimono_fuzz::{damaged, fuzz, inputs};
use qos::MonotonicTime;

const WINDOWS: [u32; 4] = [4, 4, 64, 64];

/// The target's folder.
macro_rules! folder {
    ($target:literal) => {
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus/", $target)
    };
}

fn good() -> Vec<Vec<u8>> {
    orimono_fuzz::corpus(folder!(""))
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
    for frame in good() {
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
    fuzz(
        folder!("frames"),
        &good(),
        inputs(200_000, 10_000_000),
        parse,
    );
}

/// A session gets frames one after the other: role, then for each frame its link and its bytes.
fn converse(script: &[u8]) {
    let Some((first, mut rest)) = script.split_first() else {
        return;
    };
    let role = if first & 1 == 0 {
        Role::Host
    } else {
        Role::Director
    };
    let mut victim = Victim::new(role);
    while let Some((path, bytes)) = rest.split_first() {
        let length = match FrameHeader::frame_bytes(bytes) {
            Ok(Some(length)) => length.min(bytes.len()),
            Ok(None) | Err(_) => bytes.len(),
        };
        let (frame, others) = bytes.split_at(length);
        victim.feed(u16::from(*path), frame);
        rest = others;
    }
}

#[test]
fn p04_damaged_conversations_are_answered_by_sessions_of_both_ends() {
    let frames = good();
    let mut scripts = Vec::new();
    for role in 0..2 {
        for first in &frames {
            let mut script = vec![role];
            for frame in std::iter::once(first).chain(&frames) {
                script.push(1);
                script.extend_from_slice(frame);
            }
            scripts.push(script);
        }
    }
    fuzz(
        folder!("conversations"),
        &scripts,
        inputs(20_000, 1_000_000),
        converse,
    );
}

#[test]
fn p01_damaged_datagrams_of_discovery_are_answered() {
    let message = |kind, addresses: &[&str]| {
        let message = Message {
            kind,
            nonce: 5,
            instance: 7,
            name: "host1".to_owned(),
            addresses: addresses.iter().map(|it| (*it).to_owned()).collect(),
        };
        message.to_bytes()
    };
    let addresses = ["tls:192.0.2.1:7471", "tcp:[2001:db8::1]:1", "shm:/run/d1"];
    let good = [
        message(Kind::Discover, &[]),
        message(Kind::Offer, &addresses),
        message(Kind::Offer, &["a".repeat(64).as_str(); 8]),
    ];
    fuzz(
        folder!("discovery"),
        &good,
        inputs(200_000, 1_000_000),
        |bytes| {
            let Ok(message) = Message::parse(bytes) else {
                return;
            };
            assert!(bytes.len() <= DATAGRAM_BYTES_MAX);
            assert_eq!(Message::parse(&message.to_bytes()).as_ref(), Ok(&message));
            for text in &message.addresses {
                if let Ok(address) = text.parse::<LinkAddress>() {
                    assert_eq!(address.to_string().parse(), Ok(address));
                }
            }
        },
    );
}

#[test]
fn p04_damaged_frames_are_answered_by_sessions_of_both_ends() {
    let corpus = good();
    let mut random = orimono_fuzz::Rng::with_seed(2);
    let (mut left, mut delivered) = (inputs(100_000, 5_000_000), 0_u32);
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
