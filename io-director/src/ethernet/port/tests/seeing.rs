//! Captures and mirrors of real ports.

use qos_monitor::frames::{Capture, FrameDirection};
use qos_monitor::network::{FramesOf, FramesWanted};

use super::*;

fn capture(host: &Host, of: FramesOf) -> Result<Box<dyn Capture>, String> {
    let network = host.director.watched().network.unwrap();
    network.start_capture(&FramesWanted {
        of,
        filters: Vec::new(),
        snap_bytes: 66_000,
        frames_per_second: 40_000,
    })
}

/// Direction, length and comment of the next frames of a test. A frame may have arrived before it is
/// shown.
fn captured(capture: &dyn Capture, count: usize) -> Vec<(FrameDirection, usize, String)> {
    let mut seen = Vec::new();
    let end = Instant::now() + PATIENCE;
    while seen.len() < count {
        assert!(Instant::now() < end, "{seen:?}");
        let frames = capture.take().frames.into_iter();
        let frames = frames.filter(|frame| frame.bytes.get(12..14) == Some(&ETHERTYPE));
        seen.extend(frames.map(|frame| {
            let comment = frame.comment.unwrap_or_default();
            (frame.direction.unwrap(), frame.bytes.len() - 14, comment)
        }));
        std::thread::yield_now();
    }
    seen
}

#[test]
fn each_frame_is_seen_where_it_passes_with_what_became_of_it() {
    use FrameDirection::{Inbound, Outbound};
    in_namespace(|| {
        let host = Host::new(false);
        let refused = |of| capture(&host, of).map(drop).unwrap_err();
        assert!(refused(FramesOf::Vnic("vn09.vm1".to_owned())).contains("\"vn01.vm1\""));
        assert!(refused(FramesOf::Port("10/9".to_owned())).contains("\"10/1\""));
        let [a, b] = ["vn01.vm1", "vn02.vm1"]
            .map(|name| capture(&host, FramesOf::Vnic(name.to_owned())).unwrap());
        let port = capture(&host, FramesOf::Port("10/1".to_owned())).unwrap();
        host.send(A, &payload(mac(B), mac(A), 100));
        host.send(A, &payload(mac(B), OUTSIDE, 101));
        host.send(A, &payload(OUTSIDE, mac(A), 102));
        send_from_kernel(&payload(MacAddress([2, 9, 9, 9, 9, 9]), OUTSIDE, 103));
        send_from_kernel(&payload(mac(A), OUTSIDE, 104));
        let mut received = [host.receive(), host.receive()];
        received.sort();
        assert_eq!(received[0].1.len(), HEADER_BYTES + 14 + 104);
        // What comes after a frame that went through was seen.
        host.send(A, &payload(mac(B), mac(A), 105));
        host.receive();
        let of = |name: &str| format!("vnic {name}");
        let mut of_a = captured(&*a, 5);
        // Both ways have threads of their own.
        of_a.sort_by_key(|(_, bytes, _)| *bytes);
        let foreign = format!("{}, dropped: foreign_source", of("vn01.vm1"));
        let expected = [
            (Outbound, 100, of("vn01.vm1")),
            (Outbound, 101, foreign),
            (Outbound, 102, of("vn01.vm1")),
            (Inbound, 104, of("vn01.vm1")),
            (Outbound, 105, of("vn01.vm1")),
        ];
        assert_eq!(of_a, expected);
        let expected = [100, 105].map(|bytes| (Inbound, bytes, of("vn02.vm1")));
        assert_eq!(captured(&*b, 2), expected);
        let mut of_port = captured(&*port, 3);
        of_port.sort_by_key(|(_, bytes, _)| *bytes);
        let expected = [
            (Outbound, 102, of("vn01.vm1")),
            (Inbound, 103, "dropped: not_here".to_owned()),
            (Inbound, 104, of("vn01.vm1")),
        ];
        assert_eq!(of_port, expected);
    });
}

#[test]
fn private_network_shows_all_that_its_vnics_send() {
    let mut lab = lab(true);
    lab.ethernet_ports[0].interfaces.clear();
    let host = Host::of(&lab);
    let network = capture(&host, FramesOf::Port("10/1".to_owned())).unwrap();
    host.send(A, &payload(OUTSIDE, mac(A), 60));
    host.send(A, &payload(MacAddress::BROADCAST, mac(A), 61));
    host.receive();
    let of = |rest: &str| format!("vnic vn01.vm1{rest}");
    let expected = [
        (FrameDirection::Inbound, 60, of(", dropped: not_here")),
        (FrameDirection::Inbound, 61, of("")),
    ];
    assert_eq!(captured(&*network, 2), expected);
}

#[test]
fn vnics_that_mirror_each_other_make_no_loop() {
    in_namespace(|| {
        let mut lab = lab(false);
        for (vnic, to) in lab.hosts[0].vms[0]
            .vnics
            .iter_mut()
            .zip(["vn02.vm1", "vn01.vm1"])
        {
            vnic.mirror_to = Some(to.to_owned());
        }
        let host = Host::of(&lab);
        let of_b = capture(&host, FramesOf::Vnic("vn02.vm1".to_owned())).unwrap();
        // To A, and a copy to B.
        let sent = payload(mac(A), OUTSIDE, 100);
        send_from_kernel(&sent);
        let mut received = [host.receive(), host.receive()];
        received.sort();
        assert_eq!(received, [(A, sent.clone()), (B, sent)]);
        // From A to the LAN, and a copy to B; what A gets of that would be its own.
        let sent = payload(OUTSIDE, mac(A), 101);
        host.send(A, &sent);
        assert_eq!(host.receive(), (B, sent));
        let comment = "vnic vn02.vm1, mirrored".to_owned();
        let expected = [100, 101].map(|bytes| (FrameDirection::Inbound, bytes, comment.clone()));
        assert_eq!(captured(&*of_b, 2), expected);
        // Also of the kernel's own frames, which may have been copied: only to B.
        assert_eq!(host.counter("vnic vn01.vm1", "dropped_copies"), 0);
        assert!(host.counter("vnic vn02.vm1", "egress_copies") >= 2);
    });
}

#[test]
fn copies_that_cannot_be_delivered_are_counted_and_hold_up_nobody() {
    in_namespace(|| {
        let mut lab = lab(false);
        let vnics = &mut lab.hosts[0].vms[0].vnics;
        let mut absent = vnics[0].clone();
        (absent.name, absent.id, absent.mac) = (
            "vn03.vm1".to_owned(),
            DeviceId(3),
            MacAddress([2, 0, 0, 0, 0, 3]),
        );
        vnics.push(absent);
        lab.ethernet_ports[0].mirror_to = Some("vn03.vm1".to_owned());
        let host = Host::of(&lab);
        for _ in 0..20 {
            host.send(A, &payload(OUTSIDE, mac(A), 100));
        }
        host.send(A, &payload(mac(B), mac(A), 101));
        assert_eq!(host.receive(), (B, payload(mac(B), mac(A), 101)));
        let end = Instant::now() + PATIENCE;
        // The kernel's own frames are copied as well.
        while host.counter("vnic vn03.vm1", "dropped_copies") < 20 {
            assert!(Instant::now() < end);
            std::thread::yield_now();
        }
        assert_eq!(host.counter("vnic vn03.vm1", "egress_copies"), 0);
        assert_eq!(host.counter("ethernet-port 10/1", "sent_frames"), 20);
    });
}
