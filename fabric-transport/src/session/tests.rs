//! Two sessions in virtual time, joined by a list of frames, and hostile peers.

use super::*;
use crate::frame::FrameBuffer;
use proptest::prelude::*;

const DEVICE: DeviceId = DeviceId(7);
const WINDOWS: Windows = [4, 4, 64, 64];
const NETWORK: VirtualLane = VirtualLane::Network;

fn at(millis: u64) -> MonotonicTime {
    MonotonicTime::from_nanos(millis * 1_000_000)
}

/// The first link of a session.
const FIRST: u16 = 1;
/// A link beside it, of lower priority.
const SECOND: u16 = 2;

fn sealed(header: &FrameHeader, control: &Control) -> FrameBuffer {
    let mut frame = FrameBuffer::with_capacity(0);
    frame.append_with(|bytes| control.encode(bytes));
    frame.seal(header, true);
    frame
}

/// Passes every waiting control frame of `from` to `to` by link `path`, as bytes.
fn carry_by(
    now: MonotonicTime,
    path: u16,
    from: &mut Session,
    to: &mut Session,
) -> Result<(), ProtocolError> {
    while let Some((header, control)) = from.poll_transmit(now, path) {
        let frame = sealed(&header, &control);
        let (header, payload) = FrameHeader::parse(frame.frame(), true)?;
        to.handle_frame(now, path, &header, payload)?;
    }
    Ok(())
}

fn carry(now: MonotonicTime, from: &mut Session, to: &mut Session) -> Result<(), ProtocolError> {
    carry_by(now, FIRST, from, to)
}

fn events(session: &mut Session) -> Vec<SessionEvent> {
    std::iter::from_fn(|| session.poll_event()).collect()
}

fn established(version: u8, features: u64, peer: &str) -> Established {
    Established {
        version,
        epoch: 3,
        features,
        peer: peer.to_owned(),
        peer_instance: 1,
    }
}

/// A host and a director without devices, joined by the first link.
fn pair(version: u8, features: u64) -> (Session, Session) {
    let end = |role, name, peer| {
        let established = established(version, features, peer);
        let mut session = Session::new(role, SessionConfig::new(name, 1), established, at(0));
        assert_eq!(session.state(), SessionState::Interrupted);
        assert!(session.add_path(at(0), FIRST, 0));
        assert_eq!(session.state(), SessionState::Active);
        session
    };
    (end(Role::Host, "h1", "d1"), end(Role::Director, "d1", "h1"))
}

fn attach(host: &mut Session, director: &mut Session) {
    host.attach(DEVICE, 9, WINDOWS);
    carry(at(0), host, director).unwrap();
    let requested = SessionEvent::AttachRequested {
        device: DEVICE,
        generation: 9,
    };
    assert_eq!(events(director), [requested]);
    director.accept(DEVICE, WINDOWS);
    carry(at(0), director, host).unwrap();
    assert_eq!(events(host), [SessionEvent::Attached { device: DEVICE }]);
    // The answer is acknowledged.
    host.handle_timeout(at(0));
    carry(at(0), host, director).unwrap();
    carry(at(0), director, host).unwrap();
}

/// A host and a director with one attached device.
fn active_pair() -> (Session, Session) {
    let (mut host, mut director) = pair(2, 0);
    attach(&mut host, &mut director);
    (host, director)
}

/// The same in protocol version 1.
fn first_version_pair() -> (Session, Session) {
    let (mut host, mut director) = pair(1, 0);
    attach(&mut host, &mut director);
    (host, director)
}

fn underway(session: &Session) -> usize {
    session.paths().map(|path| path.underway_bytes).sum()
}

fn data(from: &mut Session, payload_bytes: usize) -> FrameHeader {
    let sequence = from.take_credit(DEVICE, NETWORK, payload_bytes);
    let sent = from.transmit_data(at(1), DEVICE, NETWORK, sequence, payload_bytes);
    sent.unwrap().1
}

#[test]
fn data_is_delivered_and_its_credit_returns() {
    let (mut host, mut director) = active_pair();
    // A frame of 96 bytes of payload costs two blocks: 32 frames fill the window of 64.
    for _ in 0..32 {
        assert_eq!(host.may_send(DEVICE, [0, 0, 0, 2]), Ok(()));
        let header = data(&mut host, 96);
        assert_eq!(
            director.handle_frame(at(1), FIRST, &header, &[0; 96]),
            Ok(true)
        );
    }
    assert_eq!(
        host.may_send(DEVICE, [0, 0, 0, 1]),
        Err(SendBlocked::NoCredit)
    );
    for _ in 0..16 {
        director.release(DEVICE, NETWORK, 2);
    }
    carry(at(1), &mut director, &mut host).unwrap();
    assert_eq!(
        events(&mut host),
        [SessionEvent::Credited { device: DEVICE }]
    );
    assert_eq!(host.may_send(DEVICE, [0, 0, 0, 32]), Ok(()));
    assert_eq!(
        host.may_send(DEVICE, [0, 0, 0, 33]),
        Err(SendBlocked::NoCredit)
    );
}

#[test]
fn credit_too_small_for_a_grant_returns_with_the_next_heartbeat() {
    let (mut host, mut director) = active_pair();
    let header = data(&mut host, 96);
    director
        .handle_frame(at(1), FIRST, &header, &[0; 96])
        .unwrap();
    director.release(DEVICE, NETWORK, 2);
    carry(at(1), &mut director, &mut host).unwrap();
    assert_eq!(
        host.may_send(DEVICE, [0, 0, 0, 64]),
        Err(SendBlocked::NoCredit)
    );
    director.handle_timeout(at(250));
    carry(at(250), &mut director, &mut host).unwrap();
    assert_eq!(host.may_send(DEVICE, [0, 0, 0, 64]), Ok(()));
}

#[test]
fn one_lane_without_credit_refuses_the_whole_send_and_no_other_lane() {
    let (host, _) = active_pair();
    assert_eq!(
        host.may_send(DEVICE, [0, 5, 1, 0]),
        Err(SendBlocked::NoCredit)
    );
    assert_eq!(host.may_send(DEVICE, [0, 4, 64, 0]), Ok(()));
}

#[test]
fn acknowledgements_bound_what_is_underway() {
    let (mut host, mut director) = active_pair();
    let header = data(&mut host, 1000);
    assert_eq!(underway(&host), 1032);
    director
        .handle_frame(at(1), FIRST, &header, &[0; 1000])
        .unwrap();
    director.handle_timeout(at(250));
    carry(at(250), &mut director, &mut host).unwrap();
    assert_eq!(underway(&host), 0);
}

#[test]
fn silent_peer_is_given_up_at_the_deadline_and_the_session_later() {
    let (mut host, _) = active_pair();
    // The PING of the start was answered; that of 250 ms is not.
    for millis in [250, 2249] {
        host.handle_timeout(at(millis));
        assert_eq!(host.state(), SessionState::Active);
    }
    assert!(host.poll_timeout().unwrap() <= at(2250));
    host.handle_timeout(at(2250));
    assert_eq!(host.state(), SessionState::Interrupted);
    let lost = SessionEvent::PathLost {
        path: FIRST,
        acknowledged: 1,
        cause: PathCause::Silent { silence_ms: 2000 },
    };
    assert_eq!(events(&mut host).last(), Some(&lost));
    assert_eq!(host.poll_timeout(), Some(at(7250)));
    host.handle_timeout(at(7249));
    assert_eq!(host.state(), SessionState::Interrupted);
    host.handle_timeout(at(7250));
    let reason = CloseReason::Link("none for 5000 ms".into());
    assert_eq!(host.close_reason(), Some(&reason));
    assert_eq!(host.poll_timeout(), None);
}

#[test]
fn heartbeats_keep_an_idle_session() {
    let (mut host, mut director) = active_pair();
    for millis in (250..20_000).step_by(250) {
        host.handle_timeout(at(millis));
        carry(at(millis), &mut host, &mut director).unwrap();
        carry(at(millis), &mut director, &mut host).unwrap();
        director.handle_timeout(at(millis));
    }
    assert_eq!(host.state(), SessionState::Active);
    assert_eq!(director.state(), SessionState::Active);
}

#[test]
fn close_reaches_the_peer_with_its_reason() {
    let (mut host, mut director) = active_pair();
    director.close("maintenance");
    carry(at(1), &mut director, &mut host).unwrap();
    assert_eq!(
        host.close_reason(),
        Some(&CloseReason::Peer("maintenance".into()))
    );
}

#[test]
fn p07_frame_of_an_old_epoch_closes_the_session() {
    let (mut host, mut director) = active_pair();
    let header = FrameHeader {
        epoch: 2,
        ..data(&mut host, 10)
    };
    let error = ProtocolError::Epoch {
        epoch: 2,
        session_epoch: 3,
    };
    assert_eq!(
        director.handle_frame(at(1), FIRST, &header, &[0; 10]),
        Err(error)
    );
    assert_eq!(director.state(), SessionState::Closed);
}

#[test]
fn p04_skipped_data_closes_the_session_and_repeated_data_is_ignored() {
    let (mut host, mut director) = active_pair();
    let first = data(&mut host, 10);
    assert_eq!(
        director.handle_frame(at(1), FIRST, &first, &[0; 10]),
        Ok(true)
    );
    assert_eq!(
        director.handle_frame(at(1), FIRST, &first, &[0; 10]),
        Ok(false)
    );
    assert_eq!(director.ignored_frames(), 1);
    let skipped = FrameHeader {
        sequence: 2,
        ..data(&mut host, 10)
    };
    let error = ProtocolError::Sequence {
        device: DEVICE,
        lane: NETWORK,
        expected: 1,
        sequence: 2,
    };
    assert_eq!(
        director.handle_frame(at(1), FIRST, &skipped, &[0; 10]),
        Err(error)
    );
}

#[test]
fn p04_version_1_takes_neither_repeated_nor_skipped_data() {
    for sequence in [0, 2] {
        let (mut host, mut director) = first_version_pair();
        let header = data(&mut host, 10);
        assert_eq!(
            director.handle_frame(at(1), FIRST, &header, &[0; 10]),
            Ok(true)
        );
        let header = FrameHeader {
            sequence,
            ..data(&mut host, 10)
        };
        let error = ProtocolError::Sequence {
            device: DEVICE,
            lane: NETWORK,
            expected: 1,
            sequence,
        };
        assert_eq!(
            director.handle_frame(at(1), FIRST, &header, &[0; 10]),
            Err(error)
        );
    }
}

#[test]
fn p05_data_of_a_device_that_is_not_attached_reaches_nobody() {
    let (mut host, mut director) = active_pair();
    let right = data(&mut host, 10);
    let wrong = [
        FrameHeader {
            device: DeviceId(8),
            ..right
        },
        // Of an attachment before, which a slow link held back.
        FrameHeader {
            attachment: right.attachment.wrapping_sub(1),
            ..right
        },
    ];
    for header in wrong {
        assert_eq!(
            director.handle_frame(at(1), FIRST, &header, &[0; 10]),
            Ok(false)
        );
    }
    assert_eq!(director.ignored_frames(), 2);
    assert_eq!(
        director.handle_frame(at(1), FIRST, &right, &[0; 10]),
        Ok(true)
    );
}

#[test]
fn p05_version_1_closes_the_session_for_an_unknown_device() {
    let (mut host, mut director) = first_version_pair();
    let header = FrameHeader {
        device: DeviceId(8),
        ..data(&mut host, 10)
    };
    let error = ProtocolError::UnknownDevice {
        device: DeviceId(8),
    };
    assert_eq!(
        director.handle_frame(at(1), FIRST, &header, &[0; 10]),
        Err(error)
    );
}

#[test]
fn p06_data_without_credit_closes_the_session() {
    let (mut host, mut director) = active_pair();
    // 65 blocks on a lane of 64; the honest sender's own check is passed over.
    let header = FrameHeader {
        payload_bytes: 4100,
        ..data(&mut host, 10)
    };
    let error = ProtocolError::NoCredit {
        device: DEVICE,
        lane: NETWORK,
    };
    assert_eq!(
        director.handle_frame(at(1), FIRST, &header, &[0; 4100]),
        Err(error)
    );
}

#[test]
fn p06_acknowledging_what_was_not_sent_closes_the_session() {
    let (mut host, mut director) = active_pair();
    let header = FrameHeader {
        acknowledge: 1000,
        ..data(&mut host, 10)
    };
    assert_eq!(
        director.handle_frame(at(1), FIRST, &header, &[0; 10]),
        Err(ProtocolError::Acknowledge)
    );
}

#[test]
fn p06_credit_far_ahead_closes_the_session_and_an_older_limit_is_ignored() {
    let (mut host, mut director) = active_pair();
    let header = FrameHeader {
        credit_limit: 63,
        ..data(&mut host, 10)
    };
    assert_eq!(
        director.handle_frame(at(1), FIRST, &header, &[0; 10]),
        Ok(true)
    );
    assert_eq!(director.may_send(DEVICE, [0, 0, 0, 64]), Ok(()));
    let header = FrameHeader {
        credit_limit: 1 << 30,
        ..data(&mut host, 10)
    };
    let error = ProtocolError::Credit {
        device: DEVICE,
        lane: NETWORK,
    };
    assert_eq!(
        director.handle_frame(at(1), FIRST, &header, &[0; 10]),
        Err(error)
    );
}

#[test]
fn p03_frames_of_the_wrong_role_or_state_close_the_session() {
    for control in [
        Control::Welcome {
            version: 2,
            epoch: 3,
            path: 1,
            features: 0,
            instance: 1,
            name: "x".into(),
        },
        Control::Attached {
            generation: 9,
            windows: WINDOWS,
        },
        Control::Refused {
            generation: 9,
            reason: String::new(),
        },
    ] {
        let (mut host, mut director) = active_pair();
        let mut header = data(&mut host, 0);
        header.kind = control.kind();
        (header.acknowledge, header.sequence) = (1, 1);
        let mut payload = Vec::new();
        control.encode(&mut payload);
        assert!(
            director
                .handle_frame(at(1), FIRST, &header, &payload)
                .is_err(),
            "{control:?}"
        );
    }
}

#[test]
fn p03_frame_of_another_version_closes_the_session() {
    let (mut host, mut director) = active_pair();
    let header = FrameHeader {
        version: 1,
        ..data(&mut host, 10)
    };
    assert_eq!(
        director.handle_frame(at(1), FIRST, &header, &[0; 10]),
        Err(ProtocolError::FrameVersion { version: 1 })
    );
}

#[test]
fn detached_device_may_be_attached_again_while_its_last_frames_arrive() {
    let (mut host, mut director) = active_pair();
    let late = data(&mut director, 10);
    host.detach(DEVICE);
    assert_eq!(host.handle_frame(at(1), FIRST, &late, &[0; 10]), Ok(false));
    carry(at(1), &mut host, &mut director).unwrap();
    assert_eq!(
        events(&mut director),
        [SessionEvent::Detached { device: DEVICE }]
    );
    carry(at(1), &mut director, &mut host).unwrap();
    host.attach(DEVICE, 10, WINDOWS);
    carry(at(1), &mut host, &mut director).unwrap();
    let requested = SessionEvent::AttachRequested {
        device: DEVICE,
        generation: 10,
    };
    assert_eq!(events(&mut director), [requested]);
}

#[test]
fn refused_device_is_forgotten_and_named() {
    let (mut host, mut director) = pair(2, 0);
    host.attach(DEVICE, 0, WINDOWS);
    carry(at(0), &mut host, &mut director).unwrap();
    director.refuse(DEVICE, "not yours".into());
    carry(at(0), &mut director, &mut host).unwrap();
    let refused = SessionEvent::Refused {
        device: DEVICE,
        reason: "not yours".into(),
    };
    assert_eq!(events(&mut host).last(), Some(&refused));
    assert_eq!(host.may_send(DEVICE, [0; 4]), Err(SendBlocked::Down));
}

/// Two answers to one request broke the protocol: DETACH, then REFUSED of what the host had forgotten.
#[test]
fn device_that_is_let_go_before_its_request_is_answered_gets_one_answer() {
    let (mut host, mut director) = pair(2, 0);
    host.attach(DEVICE, 0, WINDOWS);
    carry(at(0), &mut host, &mut director).unwrap();
    director.detach(DEVICE);
    director.refuse(DEVICE, "taken away".into());
    carry(at(0), &mut director, &mut host).unwrap();
    let refused = SessionEvent::Refused {
        device: DEVICE,
        reason: "taken away".into(),
    };
    assert_eq!(events(&mut host).last(), Some(&refused));
}

#[test]
fn peer_that_does_not_read_cannot_make_us_queue_without_bound() {
    let (mut host, mut director) = active_pair();
    let mut header = data(&mut host, 0);
    header.acknowledge = 1;
    let mut result = Ok(false);
    for device in 0..u32::try_from(2 * CONTROL_FRAMES_MAX).unwrap() {
        for control in [
            Control::Attach {
                generation: 0,
                windows: WINDOWS,
            },
            Control::Detach { generation: 0 },
        ] {
            let mut payload = Vec::new();
            control.encode(&mut payload);
            header.kind = control.kind();
            header.device = DeviceId(100 + device);
            header.sequence += 1;
            result = result.and(director.handle_frame(at(1), FIRST, &header, &payload));
            events(&mut director);
        }
    }
    assert_eq!(result, Err(ProtocolError::ControlQueue));
}

proptest! {
    /// Whatever frames arrive, nothing panics, memory stays bounded, and once closed it stays so.
    #[test]
    fn any_frames_are_answered(steps in proptest::collection::vec(
        (1u8..14, 0u8..5, 0u32..10, any::<u32>(), any::<u32>(), any::<u32>(), proptest::collection::vec(any::<u8>(), 0..40)), 1..60
    )) {
        let (_, mut director) = active_pair();
        for (kind, lane, device, sequence, credit_limit, acknowledge, payload) in steps {
            let header = FrameHeader {
                version: 2,
                attachment: 1,
                kind: FrameKind::from_number(kind).unwrap(),
                lane: VirtualLane::from_number(lane),
                more: false,
                epoch: 3,
                device: DeviceId(device),
                payload_bytes: u32::try_from(payload.len()).unwrap(),
                sequence: sequence % 4,
                credit_limit: credit_limit % 200,
                acknowledge: acknowledge % 2,
            };
            let closed = director.state() == SessionState::Closed;
            let result = director.handle_frame(at(1), FIRST, &header, &payload);
            prop_assert!(!closed || result == Ok(false));
            prop_assert_eq!(result.is_err() && !closed, !closed && matches!(director.close_reason(), Some(CloseReason::Protocol(_))));
            events(&mut director);
        }
    }
}

/// A pair with a second link, of lower priority.
fn two_paths(features: u64) -> (Session, Session) {
    let (mut host, mut director) = pair(2, features);
    attach(&mut host, &mut director);
    for session in [&mut host, &mut director] {
        assert!(session.add_path(at(0), SECOND, 1));
    }
    for session in [&mut host, &mut director] {
        session.handle_timeout(at(0));
    }
    for path in [FIRST, SECOND] {
        carry_by(at(0), path, &mut host, &mut director).unwrap();
        carry_by(at(0), path, &mut director, &mut host).unwrap();
        carry_by(at(0), path, &mut host, &mut director).unwrap();
    }
    (host, director)
}

/// Sends again by another link what `frames` bear.
fn replay(
    session: &mut Session,
    frames: &[FrameHeader],
    payload_bytes: usize,
) -> Vec<(u16, FrameHeader)> {
    let again = frames
        .iter()
        .map(|header| session.replay(at(2), header, payload_bytes));
    let again = again.collect::<Option<_>>().unwrap();
    session.replayed();
    again
}

#[test]
fn what_a_lost_link_did_not_bring_arrives_once_by_the_other() {
    let (mut host, mut director) = two_paths(0);
    let frames: Vec<_> = (0..3).map(|_| data(&mut host, 10)).collect();
    // The first two arrive, and nobody hears of it.
    for header in &frames[..2] {
        assert_eq!(
            director.handle_frame(at(1), FIRST, header, &[0; 10]),
            Ok(true)
        );
    }
    host.handle_path_end(at(2), FIRST, "cut".into());
    assert!(!host.may_transmit(|_, _| true));
    let again = replay(&mut host, &frames, 10);
    assert!(host.may_transmit(|_, _| true));
    let arrived: Vec<_> = again
        .iter()
        .map(|(path, header)| {
            assert_eq!(*path, SECOND);
            director
                .handle_frame(at(3), SECOND, header, &[0; 10])
                .unwrap()
        })
        .collect();
    assert_eq!(arrived, [false, false, true]);
    // What the first link still brings is no frame of this session any more.
    carry_by(at(3), SECOND, &mut host, &mut director).unwrap();
    assert_eq!(
        director.handle_frame(at(4), FIRST, &frames[2], &[0; 10]),
        Ok(false)
    );
    assert_eq!(director.paths().count(), 1);
    director.handle_timeout(at(250));
    carry_by(at(250), SECOND, &mut director, &mut host).unwrap();
    assert_eq!(underway(&host), 0);
    let changed = events(&mut host).into_iter().find_map(|event| match event {
        SessionEvent::PathChanged(change) => Some(change),
        _ => None,
    });
    let changed = changed.unwrap();
    assert_eq!((changed.from, changed.to), (FIRST, SECOND));
    // From when the first of them went out.
    assert_eq!(changed.gap, Duration::from_millis(249));
}

#[test]
fn silent_link_beside_another_is_given_up_soon_and_the_last_one_late() {
    let (mut host, _) = two_paths(0);
    data(&mut host, 10);
    // 25 ms after the frame somebody asks, 100 ms after that nobody has answered.
    assert_eq!(host.poll_timeout(), Some(at(26)));
    host.handle_timeout(at(26));
    host.handle_timeout(at(125));
    assert_eq!(host.paths().count(), 2);
    host.handle_timeout(at(126));
    let left: Vec<_> = host.paths().map(|path| path.path).collect();
    assert_eq!(left, [SECOND]);
    host.replayed();
    data(&mut host, 10);
    host.handle_timeout(at(400));
    assert_eq!(host.state(), SessionState::Active);
}

/// What goes out again may keep a slow link busy for longer than the shortest silence. If each link
/// were given up after that, every one would begin with the same frames, and none bring them.
#[test]
fn each_silent_link_gives_the_next_one_more_time() {
    let (mut host, _) = two_paths(0);
    let config = SessionConfig::new("h1", 1);
    let (mut now, mut silences) = (1, Vec::new());
    for path in 3..12 {
        data(&mut host, 10);
        let before = events(&mut host).len();
        assert_eq!(before, 0);
        let silence_ms = loop {
            host.handle_timeout(at(now));
            let lost = events(&mut host).into_iter().find_map(|event| match event {
                SessionEvent::PathLost {
                    cause: PathCause::Silent { silence_ms },
                    ..
                } => Some(silence_ms),
                _ => None,
            });
            match lost {
                Some(silence_ms) => break silence_ms,
                None => now += 1,
            }
        };
        silences.push(silence_ms);
        host.replayed();
        let free = host.paths().next().map_or(0, |path| 1 - path.priority);
        assert!(host.add_path(at(now), path, free));
        events(&mut host);
    }
    assert_eq!(silences.first(), Some(&config.path_silence_min.as_millis()));
    assert_eq!(silences.last(), Some(&config.silence_max.as_millis()));
}

#[test]
fn control_frames_are_sent_again_too_and_taken_once() {
    let (mut host, mut director) = two_paths(0);
    host.detach(DEVICE);
    let (header, control) = host.poll_transmit(at(1), FIRST).unwrap();
    let frame = sealed(&header, &control);
    let (header, payload) = FrameHeader::parse(frame.frame(), true).unwrap();
    director
        .handle_frame(at(1), FIRST, &header, payload)
        .unwrap();
    assert_eq!(
        events(&mut director),
        [SessionEvent::Detached { device: DEVICE }]
    );
    host.handle_path_end(at(2), FIRST, "cut".into());
    let again = replay(&mut host, &[header], payload.len());
    director
        .handle_frame(at(3), SECOND, &again[0].1, payload)
        .unwrap();
    assert_eq!(director.ignored_frames(), 1);
    let attach_requested = |event: &SessionEvent| matches!(event, SessionEvent::Detached { .. });
    assert!(!events(&mut director).iter().any(attach_requested));
}

#[test]
fn new_frames_wait_until_each_of_two_lost_links_has_been_dealt_with() {
    let (mut host, _) = two_paths(0);
    assert!(host.add_path(at(1), 3, 2));
    host.handle_path_end(at(2), FIRST, "cut".into());
    host.handle_path_end(at(2), SECOND, "cut".into());
    host.replayed();
    assert!(!host.may_transmit(|_, _| true));
    host.replayed();
    assert!(host.may_transmit(|_, _| true));
}

#[test]
fn session_waits_for_a_new_link_and_goes_on_where_it_was() {
    let (mut host, mut director) = active_pair();
    let lost = data(&mut host, 10);
    for session in [&mut host, &mut director] {
        session.handle_path_end(at(2), FIRST, "cut".into());
        assert_eq!(session.state(), SessionState::Interrupted);
        session.handle_timeout(at(4000));
        assert!(session.add_path(at(4000), 7, 0));
    }
    let sequence = host.take_credit(DEVICE, NETWORK, 10);
    let (path, header) = host.replay(at(4000), &lost, 10).unwrap();
    host.replayed();
    assert_eq!(
        director.handle_frame(at(4001), path, &header, &[0; 10]),
        Ok(true)
    );
    let (path, header) = host
        .transmit_data(at(4001), DEVICE, NETWORK, sequence, 10)
        .unwrap();
    assert_eq!(path, 7);
    assert_eq!(
        director.handle_frame(at(4001), path, &header, &[0; 10]),
        Ok(true)
    );
}

#[test]
fn version_1_ends_with_its_link() {
    let (mut host, _) = first_version_pair();
    host.handle_path_end(at(1), FIRST, "cut".into());
    assert_eq!(host.state(), SessionState::Closed);
}

#[test]
fn switchover_waits_for_what_is_underway_and_takes_both_directions_along() {
    let (mut host, mut director) = two_paths(0);
    let header = data(&mut host, 10);
    host.switchover(at(1), SECOND).unwrap();
    assert!(
        !host.may_transmit(|_, _| true),
        "a frame is underway on the old link"
    );
    assert_eq!(
        director.handle_frame(at(1), FIRST, &header, &[0; 10]),
        Ok(true)
    );
    director.handle_timeout(at(250));
    carry_by(at(250), FIRST, &mut director, &mut host).unwrap();
    assert!(host.may_transmit(|path, _| path == SECOND));
    carry_by(at(250), SECOND, &mut host, &mut director).unwrap();
    carry_by(at(250), FIRST, &mut host, &mut director).unwrap();
    assert!(director.may_transmit(|path, _| path == SECOND));
    assert_eq!(
        host.switchover(at(251), 9),
        Err(SwitchoverRefused::NoPath { path: 9 })
    );
    // It stays there, as long as it is there.
    host.handle_timeout(at(20_000));
    assert!(host.may_transmit(|path, _| path == SECOND));
}

#[test]
fn frames_go_back_to_a_better_link_when_it_has_stayed() {
    let (mut host, _) = two_paths(0);
    host.handle_path_end(at(1), FIRST, "cut".into());
    host.replayed();
    assert!(host.may_transmit(|path, _| path == SECOND));
    assert!(host.add_path(at(1000), 3, 0));
    host.handle_timeout(at(1000));
    let carries = |host: &Session| host.paths().find(|path| path.carries).unwrap().path;
    assert_eq!(carries(&host), SECOND);
    for millis in (1000..11_000).step_by(100) {
        let ping = host
            .poll_transmit(at(millis), 3)
            .into_iter()
            .chain(host.poll_transmit(at(millis), SECOND));
        let pings: Vec<_> = ping.collect();
        for (_, control) in pings {
            let Control::Ping(nonce) = control else {
                continue;
            };
            for path in [SECOND, 3] {
                let header = FrameHeader {
                    kind: FrameKind::Pong,
                    lane: None,
                    sequence: 0,
                    attachment: 0,
                    device: DeviceId(0),
                    acknowledge: 0,
                    ..host.header(path, FrameKind::Pong, DeviceId(0), 0).unwrap()
                };
                host.handle_frame(at(millis), path, &header, &nonce.to_le_bytes())
                    .unwrap();
            }
        }
        host.handle_timeout(at(millis));
        assert_eq!(carries(&host), SECOND);
    }
    host.handle_timeout(at(11_000));
    assert_eq!(carries(&host), 3);
}

#[test]
fn spread_device_changes_its_link_between_two_frames_only() {
    let (mut host, mut director) = two_paths(features::SPREAD);
    let send = |host: &mut Session| {
        let sequence = host.take_credit(DEVICE, NETWORK, 10);
        host.transmit_data(at(1), DEVICE, NETWORK, sequence, 10)
            .unwrap()
    };
    let (first, header) = send(&mut host);
    assert_eq!(send(&mut host).0, first);
    assert_eq!(
        director.handle_frame(at(1), first, &header, &[0; 10]),
        Ok(true)
    );
    let mut rest = FrameHeader {
        sequence: 1,
        ..header
    };
    rest.acknowledge = header.acknowledge;
    assert_eq!(
        director.handle_frame(at(1), first, &rest, &[0; 10]),
        Ok(true)
    );
    director.handle_timeout(at(250));
    carry_by(at(250), first, &mut director, &mut host).unwrap();
    // The other has sent less so far.
    assert_ne!(send(&mut host).0, first);
}

#[test]
fn host_that_makes_a_link_anew_replaces_the_old_one() {
    let (_, mut director) = two_paths(0);
    assert!(director.add_path(at(5), 3, 1));
    let paths: Vec<_> = director.paths().map(|path| path.path).collect();
    assert_eq!(paths, [FIRST, 3]);
    assert!(!director.add_path(at(5), 4, u8::try_from(PATHS_MAX).unwrap()));
}
