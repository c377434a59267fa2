//! Two directors that share what a device needs, and a host.

use super::*;
use crate::acceptor::{Acceptor, Admission};
use crate::endpoint::{DeviceGrant, Directory, LaneSet, SendRefused, session_config};
use crate::frame::{FrameBuffer, VirtualLane};
use crate::link::{LinkAddress, LinkOptions};
use crate::reporter::{Reporter, Seen};
use crate::uplink::connectors;
use qos::{DeviceRate, LinkBudget};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

const PATIENCE: Duration = Duration::from_secs(20);
const DEVICE: DeviceId = DeviceId(1);

/// A director whose storage is free, or held by the other one.
struct Storage {
    held: Arc<AtomicBool>,
    client: Arc<Reporter>,
}

impl Directory for Storage {
    fn attach(&self, _: &str, _: DeviceId, _: u32) -> Result<DeviceGrant, String> {
        if self.held.load(Ordering::SeqCst) {
            return Err("the other director has it".into());
        }
        Ok(grant(self.client.clone()))
    }
}

struct Anybody;

impl Admission for Anybody {
    fn admit(&self, _: &str) -> Result<LinkBudget, String> {
        Ok(budget())
    }
}

fn budget() -> LinkBudget {
    LinkBudget::new("test", "1G".parse().unwrap())
}

fn grant(client: Arc<Reporter>) -> DeviceGrant {
    DeviceGrant {
        vm: None,
        rate: DeviceRate::best_effort(),
        windows: [64; 4],
        client,
    }
}

fn director(held: &Arc<AtomicBool>) -> (Acceptor, LinkAddress, mpsc::Receiver<Seen>) {
    let (client, seen) = Reporter::new();
    let held = held.clone();
    let storage = Arc::new(Storage { held, client });
    let acceptor = Acceptor::start(session_config("director"), Arc::new(Anybody), storage).unwrap();
    let address = acceptor.listen(&"tcp:127.0.0.1:0".parse().unwrap(), &LinkOptions::default());
    (acceptor, address.unwrap(), seen)
}

fn send(lanes: &LaneSet, payload: &[u8]) {
    let mut frames = vec![(VirtualLane::Network, FrameBuffer::from_payload(payload))];
    lanes.try_send(&mut frames).unwrap();
}

fn frame(seen: &mpsc::Receiver<Seen>) -> Vec<u8> {
    loop {
        if let Seen::Frame(frame) = seen.recv_timeout(PATIENCE).unwrap() {
            return frame;
        }
    }
}

#[test]
fn devices_move_when_their_director_is_gone_and_its_storage_is_free() {
    let (first_held, second_held) = (Arc::default(), Arc::new(AtomicBool::new(true)));
    let (first, first_address, first_seen) = director(&first_held);
    let (_second, second_address, second_seen) = director(&second_held);
    let (client, seen) = Reporter::new();
    let device = UplinkDevice {
        id: DEVICE,
        generation: 0,
        grant: grant(client),
    };
    let config = UplinkConfig {
        session: session_config("host1"),
        budget: budget(),
    };
    let connectors = [first_address, second_address]
        .map(|address| connectors(&[address], &LinkOptions::default()));
    let uplink = StandbyUplink::start(&config, connectors, vec![device]).unwrap();
    let Seen::Up(lanes) = seen.recv_timeout(PATIENCE).unwrap() else {
        panic!("not up")
    };
    send(&lanes, &[1]);
    assert_eq!(frame(&first_seen), [1]);
    assert!(
        uplink.uplinks[1].wait_active(PATIENCE),
        "no standby session"
    );
    drop(first);
    assert!(matches!(seen.recv_timeout(PATIENCE), Ok(Seen::Down)));
    let mut frames = vec![(VirtualLane::Network, FrameBuffer::from_payload(&[9]))];
    assert_eq!(lanes.try_send(&mut frames), Err(SendRefused::Down));
    // The second refuses until the first has let the storage go.
    let refused = || {
        let refused = uplink.active().refused();
        refused
            .iter()
            .any(|(id, reason)| *id == DEVICE && reason.contains("other director"))
    };
    let deadline = std::time::Instant::now() + PATIENCE;
    while !refused() {
        assert!(std::time::Instant::now() < deadline);
        std::thread::yield_now();
    }
    assert_eq!(uplink.failovers(), 1);
    second_held.store(false, Ordering::SeqCst);
    let Seen::Up(lanes) = seen.recv_timeout(PATIENCE).unwrap() else {
        panic!("not up")
    };
    send(&lanes, &[2]);
    assert_eq!(frame(&second_seen), [2]);
    uplink.remove(DEVICE);
    assert!(matches!(seen.recv_timeout(PATIENCE), Ok(Seen::Down)));
}
