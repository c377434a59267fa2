//! Frames of a host in this process, past its lanes.

use super::*;
use fabric_bypass::DirectPort;
use std::sync::atomic::AtomicU64;

/// A guest that says how many frames have come by its lanes.
#[derive(Debug, Default)]
struct Beside {
    epoch: u16,
    lane_frames: AtomicU64,
    taken: Mutex<Vec<Vec<u8>>>,
    batches: AtomicU64,
}

impl DirectReceiver for Beside {
    fn lane_frames(&self, epoch: u16) -> Option<u64> {
        (epoch == self.epoch).then(|| self.lane_frames.load(Ordering::Acquire))
    }
    fn take(&self, payloads: &mut dyn Iterator<Item = &[u8]>) {
        let mut taken = self.taken.lock().unwrap();
        taken.extend(payloads.map(<[u8]>::to_vec));
        self.batches.fetch_add(1, Ordering::Relaxed);
    }
}

/// Vnic B's guest beside the director of `host`.
fn beside(host: &Host, epoch: u16) -> (Arc<dyn DirectPort>, Arc<Beside>) {
    let beside = Arc::new(Beside {
        epoch,
        ..Beside::default()
    });
    let weak: Weak<Beside> = Arc::downgrade(&beside);
    host.director.direct_port(B, "host1").attach(weak);
    (host.director.direct_port(A, "host1"), beside)
}

fn transmit(port: &dyn DirectPort, epoch: u16, payloads: &[Vec<u8>]) {
    let session = port.session(epoch).unwrap();
    session.transmit(&mut payloads.iter().map(Vec::as_slice));
}

#[test]
fn a_frame_goes_past_the_lanes_only_behind_those_that_are_on_them() {
    in_namespace(|| {
        let host = Host::new(true);
        let epoch = host.lanes[&A].epoch();
        let (port, guest) = beside(&host, epoch);
        let [first, second, third] = [1, 2, 3].map(|bytes| payload(mac(B), mac(A), bytes));
        transmit(&*port, epoch, &[first.clone(), second.clone()]);
        assert_eq!(
            *guest.taken.lock().unwrap(),
            [first.clone(), second.clone()]
        );
        // Told once.
        assert_eq!(guest.batches.load(Ordering::Relaxed), 1);
        // By the lanes to the director, and past those to the guest.
        host.send(A, &third);
        let session = port.session(epoch).unwrap();
        let end = Instant::now() + PATIENCE;
        while session.lane_frames() < 1 {
            assert!(Instant::now() < end, "frame does not arrive");
            std::thread::yield_now();
        }
        assert_eq!(guest.taken.lock().unwrap().len(), 3);
        // The guest has one more than was sent: a frame of another session. Nothing is in order.
        guest.lane_frames.store(1, Ordering::Release);
        transmit(&*port, epoch, std::slice::from_ref(&first));
        assert_eq!(host.receive(), (B, first.clone()));
        // That has come now: both counts are the same.
        transmit(&*port, epoch, std::slice::from_ref(&second));
        assert_eq!(guest.taken.lock().unwrap().last(), Some(&second));
        // The next one went by the lanes and is still underway.
        guest.lane_frames.store(0, Ordering::Release);
        transmit(&*port, epoch, std::slice::from_ref(&third));
        assert_eq!(host.receive(), (B, third));
        let vnic = "vnic vn02.vm1";
        assert_eq!(host.counter(vnic, "egress_frames"), 6);
        assert_eq!(host.counter("vnic vn01.vm1", "ingress_frames"), 6);
    });
}

#[test]
fn frames_past_the_lanes_are_checked_like_all_others() {
    in_namespace(|| {
        let host = Host::new(true);
        let epoch = host.lanes[&A].epoch();
        let (port, guest) = beside(&host, epoch);
        let stolen = payload(mac(B), OUTSIDE, 10);
        let good = payload(mac(B), mac(A), 20);
        transmit(&*port, epoch, &[stolen, vec![0; 5], good.clone()]);
        assert_eq!(*guest.taken.lock().unwrap(), [good]);
        let vnic = "vnic vn01.vm1";
        assert_eq!(host.counter(vnic, "dropped_foreign_source"), 1);
        assert_eq!(host.counter(vnic, "dropped_malformed"), 1);
    });
}

#[test]
fn another_session_has_no_way_past_the_lanes() {
    in_namespace(|| {
        let host = Host::new(true);
        let epoch = host.lanes[&A].epoch();
        let (port, guest) = beside(&host, epoch.wrapping_add(1));
        assert!(port.session(epoch.wrapping_add(1)).is_none());
        let sent = payload(mac(B), mac(A), 20);
        transmit(&*port, epoch, std::slice::from_ref(&sent));
        assert_eq!(host.receive(), (B, sent.clone()));
        assert!(guest.taken.lock().unwrap().is_empty());
        // A guest that is gone is no longer asked.
        drop(guest);
        transmit(&*port, epoch, std::slice::from_ref(&sent));
        assert_eq!(host.receive(), (B, sent));
    });
}

#[test]
fn on_a_port_with_a_rate_frames_wait_with_their_credit() {
    in_namespace(|| {
        let host = Host::of(&shaping::shaped("1G", |_| {}));
        let epoch = host.lanes[&A].epoch();
        assert!(
            host.director
                .direct_port(A, "host1")
                .session(epoch)
                .is_none()
        );
    });
}
