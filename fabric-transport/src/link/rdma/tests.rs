//! On a real device: `ORIMONO_TEST_RDMA` is the address that it has. Without it nothing is tried,
//! since few machines have one; `cargo xtask test guest --full` runs all of these in a guest that
//! has soft-RoCE.

use super::*;
use crate::link::tests::{accepted, frames_cross, outcome, sealed};
use crate::link::{Filled, LinkAddress, LinkOptions, Listener, SendQueue, Sent};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU16, Ordering};

const PATIENCE: Duration = Duration::from_secs(20);

/// An address of the device that nobody has used yet; `None` without a device.
pub(crate) fn address() -> Option<SocketAddr> {
    static PORT: AtomicU16 = AtomicU16::new(20_000);
    let address = std::env::var("ORIMONO_TEST_RDMA").ok()?;
    let address: IpAddr = address.parse().expect("ORIMONO_TEST_RDMA is an address");
    Some((address, PORT.fetch_add(1, Ordering::SeqCst)).into())
}

fn options() -> LinkOptions {
    LinkOptions {
        insecure: true,
        ..LinkOptions::default()
    }
}

/// Ends a link under both of its ends.
pub(crate) struct Cut(Arc<Identifier>);

impl Cut {
    pub(crate) fn cut(&self) {
        self.0.disconnect().unwrap();
    }
}

/// Both ends of a link, and what cuts it; `None` without a device.
pub(crate) fn pair() -> Option<(Link, Link, Cut)> {
    let address = address()?;
    let listener = Listener::bind(&LinkAddress::Rdma(address), &options()).unwrap();
    let resolved = Resolved::find(address, PATIENCE).unwrap();
    let cut = Cut(resolved.id.clone());
    let near = resolved.link().unwrap();
    Some((near, accepted(&listener), cut))
}

#[test]
fn rdma_link_keeps_frames_whole_and_in_order() {
    if let Some((near, far, _cut)) = pair() {
        frames_cross(near, far);
    }
}

/// Both ends read until the handshake is over: the near one says it at once, the far one when the
/// near end's answer is there.
fn up(near: &mut Link, far: &mut Link) {
    let mut queue = SendQueue::default();
    queue.push(sealed(&[7], 0), true);
    while !queue.is_sent() {
        near.sender.send(&mut queue).unwrap();
        near.receiver.fill().unwrap();
    }
    while far.receiver.fill().unwrap() != Filled::Some {}
    assert_eq!(far.receiver.frames().unwrap().len(), 1);
}

#[test]
fn peer_that_reads_nothing_stops_the_sender_and_loses_nothing() {
    let Some((mut near, mut far, _cut)) = pair() else {
        return;
    };
    up(&mut near, &mut far);
    let payload = vec![1; 16_000];
    let mut queue = SendQueue::default();
    let mut sent = 0;
    loop {
        queue.push(sealed(&payload, sent), false);
        if near.sender.send(&mut queue).unwrap() == Sent::Blocked {
            break;
        }
        sent += 1;
        assert!(sent < 1000, "the sender never stops");
        near.receiver.fill().unwrap();
    }
    // One message a frame. Of the receives one took the greeting, and one is for the count.
    assert_eq!(sent, RECEIVES - 2);
    let mut arrived = 0;
    while arrived <= sent {
        if far.receiver.fill().unwrap() == Filled::Some {
            arrived += u32::try_from(far.receiver.frames().unwrap().len()).unwrap();
        }
        near.receiver.fill().unwrap();
        near.sender.send(&mut queue).unwrap();
    }
}

#[test]
fn end_of_either_side_wakes_the_other() {
    for far_goes in [false, true] {
        let Some((mut near, mut far, _cut)) = pair() else {
            return;
        };
        up(&mut near, &mut far);
        let (gone, mut left) = if far_goes { (far, near) } else { (near, far) };
        drop(gone);
        assert_eq!(outcome(&mut left).unwrap(), Filled::End);
        let mut queue = SendQueue::default();
        queue.push(sealed(&[7], 0), true);
        assert!(left.sender.send(&mut queue).is_err());
    }
}

/// What was sent before the end still counts.
#[test]
fn last_words_arrive_before_the_end() {
    let Some((mut near, mut far, _cut)) = pair() else {
        return;
    };
    up(&mut near, &mut far);
    let mut queue = SendQueue::default();
    queue.push(sealed(&[9; 40_000], 0), false);
    assert_eq!(near.sender.send(&mut queue).unwrap(), Sent::All);
    drop(near);
    let mut frames = 0;
    while outcome(&mut far).unwrap() == Filled::Some {
        frames += far.receiver.frames().unwrap().len();
    }
    assert_eq!(frames, 1);
}

#[test]
fn nobody_there_is_said() {
    let Some(address) = address() else {
        return;
    };
    let mut link = connect(address, PATIENCE).unwrap();
    let error = outcome(&mut link).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{error}");
    let elsewhere = (IpAddr::from([198, 51, 100, 1]), 1).into();
    let error = connect(elsewhere, Duration::from_secs(1)).unwrap_err();
    assert!(error.to_string().contains("RDMA device"), "{error}");
}

#[test]
fn address_is_one_of_a_device_with_a_port() {
    let Some(address) = address() else {
        return;
    };
    let _first = RdmaListener::bind(address).unwrap();
    assert!(RdmaListener::bind(address).is_err());
    let error = RdmaListener::bind((address.ip(), 0).into()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
}
