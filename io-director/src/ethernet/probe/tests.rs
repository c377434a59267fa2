use fabric_config::AccessRule;
use qos_monitor::network::FramesOf;

use super::*;

/// UDP from 10.0.0.1:1 to 10.0.0.2:`port` with "hi", with a checksum that is right if `port` is 2.
fn udp(port: u8) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
    frame.extend([0x45, 0, 0, 30, 0, 0, 0, 0, 64, 17, 0, 0]);
    frame.extend([10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend([0, 1, 0, port, 0, 10, 0x83, 0x6b, b'h', b'i']);
    frame
}

fn wanted(filters: &[&str], snap_bytes: u32, frames_per_second: u32) -> FramesWanted {
    let filters = filters.iter().map(|text| AccessRule::of_filter(text));
    FramesWanted {
        of: FramesOf::Vnic("vn01.vm1".to_owned()),
        filters: filters.map(Result::unwrap).collect(),
        snap_bytes,
        frames_per_second,
    }
}

fn see(probe: &Probe, header: &[u8; HEADER_BYTES], frame: &[u8], dropped: Option<&'static str>) {
    let seen = Seen {
        direction: FrameDirection::Outbound,
        pieces: &[header, frame],
        dropped,
        copy: false,
    };
    probe.begin().end(seen, || Some("vn01.vm1".to_owned()));
}

fn start(probe: &Arc<Probe>, wanted: &FramesWanted) -> Box<dyn Capture> {
    probe.start_capture("vn01.vm1".to_owned(), "port 10/1".to_owned(), wanted)
}

const NO_HEADER: [u8; HEADER_BYTES] = [0; HEADER_BYTES];

#[test]
fn frames_are_captured_while_somebody_looks_and_then_no_more() {
    let probe = Arc::new(Probe::default());
    see(&probe, &NO_HEADER, &udp(2), None);
    let capture = start(&probe, &wanted(&[], 66_000, 1000));
    let other = start(&probe, &wanted(&[], 20, 1000));
    see(&probe, &NO_HEADER, &udp(2), Some("access"));
    see(&probe, &NO_HEADER, &udp(3), None);
    let captured = capture.take();
    assert_eq!((captured.seen, captured.dropped), (2, 0));
    let [first, second] = captured.frames.as_slice() else {
        panic!("{captured:?}");
    };
    assert_eq!(first.bytes, udp(2));
    assert_eq!(first.direction, Some(FrameDirection::Outbound));
    let comment = first.comment.as_deref();
    assert_eq!(comment, Some("vnic vn01.vm1, dropped: access"));
    assert_eq!(second.comment.as_deref(), Some("vnic vn01.vm1"));
    drop(capture);
    assert!(probe.is_active(), "the other one goes on");
    let cut = other.take().frames;
    assert_eq!((cut[0].bytes.len(), cut[0].original_bytes), (20, 44));
    drop(other);
    assert!(!probe.is_active());
}

#[test]
fn filters_take_what_one_of_them_meets_in_any_pieces() {
    let probe = Arc::new(Probe::default());
    let filters = ["protocol=udp destination-port=2", "protocol=0x88cc"];
    let capture = start(&probe, &wanted(&filters, 66_000, 1000));
    see(&probe, &NO_HEADER, &udp(2), None);
    see(&probe, &NO_HEADER, &udp(3), None);
    let lldp = [&[1; 12][..], &[0x88, 0xcc, 0, 0]].concat();
    see(&probe, &NO_HEADER, &lldp, None);
    let whole = [&NO_HEADER[..], &udp(2)].concat();
    for at in [0, 5, 12, 30] {
        let (head, tail) = whole.split_at(at);
        let seen = Seen {
            direction: FrameDirection::Inbound,
            pieces: &[head, tail],
            dropped: None,
            copy: false,
        };
        probe.begin().end(seen, || None);
    }
    let captured = capture.take();
    let frames: Vec<_> = captured.frames.iter().map(|frame| &frame.bytes).collect();
    let udp = udp(2);
    assert_eq!(frames, [&udp, &lldp, &udp, &udp, &udp, &udp]);
    assert_eq!(captured.seen, 6, "what nobody asked for is not missing");
}

#[test]
fn checksum_is_finished_over_the_whole_frame_before_it_is_cut() {
    let probe = Arc::new(Probe::default());
    let capture = start(&probe, &wanted(&[], 42, 1000));
    let mut header = NO_HEADER;
    (header[0], header[6], header[8]) = (FLAG_NEEDS_CSUM, 34, 6);
    let mut partial = udp(2);
    // The pseudo-header's sum, as in the test of `complete`.
    partial[40..42].copy_from_slice(&[0x14, 0x1e]);
    see(&probe, &header, &partial, None);
    // Of one whose checksum is outside nothing is changed.
    header[6] = 200;
    see(&probe, &header, &partial, None);
    let captured = capture.take().frames;
    assert_eq!(captured[0].bytes, udp(2)[..42]);
    assert_eq!(captured[1].bytes, partial[..42]);
}

#[test]
fn rate_is_kept_and_what_is_missing_is_counted() {
    for (rate, window_frames) in [(3, 3), (100, 10)] {
        let probe = Arc::new(Probe::default());
        let capture = start(&probe, &wanted(&[], 66_000, rate));
        for _ in 0..200 {
            see(&probe, &NO_HEADER, &udp(2), None);
        }
        let captured = capture.take();
        let frames = captured.frames.len();
        // The clock may enter the next window meanwhile.
        assert!(frames <= 2 * window_frames, "{frames} at {rate}");
        assert_eq!(captured.seen, 200);
        assert_eq!(captured.dropped + frames as u64, 200);
    }
}
