//! A client that loses, repeats and invents.

use super::super::tests::{from_guest, open, vnic};
use super::*;

const START: MonotonicTime = MonotonicTime::from_nanos(1_000_000_000);

/// Files in memory: `name` has `bytes` bytes, each of which tells its place.
#[derive(Debug)]
pub(in super::super) struct Memory;

#[derive(Debug)]
pub(in super::super) struct Bytes(u64);

fn content(offset: u64) -> u8 {
    (offset % 251).to_le_bytes()[0]
}

impl BootFolder for Memory {
    type File = Bytes;
    fn open(&self, name: &str) -> Result<Bytes, NoFile> {
        match name {
            "bios" => Ok(Bytes(5000)),
            "whole" => Ok(Bytes(1024)),
            "empty" => Ok(Bytes(0)),
            "huge" => Ok(Bytes(70_000 * 8 + 3)),
            "secret" => Err(NoFile::Refused),
            _ => Err(NoFile::Missing),
        }
    }
}

impl BootFile for Bytes {
    fn bytes(&self) -> u64 {
        self.0
    }
    fn read(&self, offset: u64, bytes: usize) -> Option<Vec<u8>> {
        let end = self.0.min(offset + u64::try_from(bytes).unwrap());
        Some((offset..end).map(content).collect())
    }
}

pub(in super::super) fn server(words: &str) -> Tftp<Memory> {
    Tftp::new(&vnic(words), Memory).unwrap()
}

struct Client {
    server: Tftp<Memory>,
    now: MonotonicTime,
    port: u16,
}

impl Client {
    fn new() -> Self {
        let server = server(super::super::tests::ALL);
        let (now, port) = (START, 1000);
        Self { server, now, port }
    }

    fn send(&mut self, payload: &[u8]) -> (Event, Vec<Vec<u8>>) {
        self.now = self.now.saturating_add(Duration::from_micros(100));
        let from = format!("192.168.10.201:{}", self.port);
        let frame = from_guest(&from, "192.168.10.1:69", payload);
        let (event, frames) = self.server.receive(self.now, &frame);
        let opened = frames.iter().map(|frame| {
            let (from, to, payload) = open(frame);
            assert_eq!(from.to_string(), "192.168.10.1:69");
            assert_eq!(to.port(), self.port);
            payload
        });
        (event, opened.collect())
    }

    fn wait(&mut self, time: Duration) {
        self.now = self.now.saturating_add(time);
    }

    fn acknowledge(&mut self, block: u16) -> (Event, Vec<Vec<u8>>) {
        let [high, low] = block.to_be_bytes();
        self.send(&[0, 4, high, low])
    }

    /// Loads the rest of a file, from the answer to the last message on.
    fn load(&mut self, mut frames: Vec<Vec<u8>>, block_bytes: usize) -> (Vec<u8>, Event) {
        let (mut data, mut block) = (Vec::new(), 0_u16);
        loop {
            let mut last = false;
            for frame in &frames {
                block = block.wrapping_add(1);
                assert_eq!(frame[..4], [&[0, 3], &block.to_be_bytes()[..]].concat());
                data.extend(&frame[4..]);
                last = frame.len() < 4 + block_bytes;
            }
            let (event, next) = self.acknowledge(block);
            if last {
                assert!(next.is_empty());
                return (data, event);
            }
            frames = next;
        }
    }
}

fn expected(bytes: u64) -> Vec<u8> {
    (0..bytes).map(content).collect()
}

#[test]
fn files_of_any_length_are_loaded_whole() {
    for (name, bytes) in [("bios", 5000), ("whole", 1024), ("empty", 0)] {
        let mut client = Client::new();
        let request = format!("\0\x01{name}\0OCTET\0");
        let (event, frames) = client.send(request.as_bytes());
        assert_eq!(event, Event::BootFile);
        let (data, event) = client.load(frames, 512);
        assert_eq!((data, event), (expected(bytes), Event::BootDone), "{name}");
        assert!(client.server.transfers.is_empty());
    }
}

#[test]
fn options_are_taken_as_far_as_they_go() {
    let mut client = Client::new();
    let (_, frames) = client.send(
        b"\0\x01/bios\0octet\0tsize\x000\0blksize\x0065464\0windowsize\x003\0timeout\x001\0x\x001\0",
    );
    // As the guest's MTU has room; without a timer, and what nobody knows.
    assert_eq!(
        frames,
        [b"\0\x06tsize\x005000\0blksize\x001368\0windowsize\x003\0".to_vec()]
    );
    let (_, frames) = client.acknowledge(0);
    assert_eq!(frames.len(), 3);
    assert_eq!(client.load(frames, 1368), (expected(5000), Event::BootDone));
    let (_, frames) = client.send(b"\0\x01bios\0octet\0blksize\x007\0windowsize\x000\0tsize\0");
    // Nothing usable: as without.
    assert_eq!(frames[0][..4], [0, 3, 0, 1]);
}

#[test]
fn block_numbers_begin_again_after_65535() {
    let mut client = Client::new();
    let (_, _) = client.send(b"\0\x01huge\0octet\0blksize\x008\0windowsize\x0016\0");
    let (_, frames) = client.acknowledge(0);
    let (data, event) = client.load(frames, 8);
    assert_eq!(
        (data == expected(70_000 * 8 + 3), event),
        (true, Event::BootDone)
    );
}

#[test]
fn what_is_lost_comes_again_when_the_client_asks() {
    let mut client = Client::new();
    let request = b"\0\x01bios\0octet\0windowsize\x004\0";
    let (_, first) = client.send(request);
    assert_eq!(
        client.send(request).1,
        first,
        "the answer to the request was lost"
    );
    let (_, window) = client.acknowledge(0);
    // Two of four arrived.
    let (_, rest) = client.acknowledge(2);
    assert_eq!(rest[..2], window[2..]);
    // All are lost.
    client.wait(Duration::from_secs(1));
    assert_eq!(client.acknowledge(2).1, rest);
    // The network had it twice.
    assert_eq!(client.acknowledge(2), (Event::Foreign, vec![]));
    // What comes late or was never sent.
    for block in [0, 1, 7, 0x8000, 0xffff] {
        assert_eq!(
            client.acknowledge(block),
            (Event::Foreign, vec![]),
            "{block}"
        );
    }
    assert_eq!(client.acknowledge(6).0, Event::BootBlocks);
}

#[test]
fn what_is_not_served_is_refused_with_a_reason() {
    let mut client = Client::new();
    for (request, code) in [
        (&b"\0\x01none\0octet\0"[..], 1),
        (b"\0\x01../bios\0octet\0", 1),
        (b"\0\x01secret\0octet\0", 2),
        (b"\0\x02bios\0octet\0", 2),
        (b"\0\x01bios\0netascii\0", 4),
        (b"\0\x01\0octet\0", 4),
        (b"\0\x01bios", 4),
        (b"\0\x01\xff\0octet\0", 4),
        (b"\0\x04\0\x01", 5),
    ] {
        let (event, frames) = client.send(request);
        assert_eq!(event, Event::BootRefused, "{request:?}");
        assert_eq!(frames[0][..4], [0, 5, 0, code], "{request:?}");
    }
    for junk in [&b""[..], b"\0", b"\0\x03\0\x01x", b"\0\x06", b"\0\x04\0"] {
        assert_eq!(client.send(junk), (Event::Malformed, vec![]), "{junk:?}");
    }
}

#[test]
fn n_transfers_and_requests_are_bounded() {
    let mut client = Client::new();
    for port in 1..100 {
        client.port = port;
        client.send(b"\0\x01bios\0octet\0");
        assert!(client.server.transfers.len() <= TRANSFERS_MAX);
    }
    // The newest are there, the others have to begin again.
    assert_eq!(client.acknowledge(1).0, Event::BootBlocks);
    client.port = 1;
    assert_eq!(client.acknowledge(1).0, Event::BootRefused);
    client.wait(IDLE);
    client.server.expire(client.now);
    assert!(client.server.transfers.is_empty());
    let frame = from_guest(
        "192.168.10.201:1",
        "192.168.10.1:69",
        b"\0\x01none\0octet\0",
    );
    let answers = (0..5000).filter(|_| !client.server.receive(client.now, &frame).1.is_empty());
    assert_eq!(answers.count(), 1000);
}
