//! Two sessions in virtual time, joined by a list of frames, and hostile peers.

use super::*;
use crate::frame::FrameBuffer;
use proptest::prelude::*;

const DEVICE: DeviceId = DeviceId(7);
const WINDOWS: Windows = [4, 4, 64, 64];
const NETWORK: VirtualLane = VirtualLane::Network;

fn config(name: &str) -> SessionConfig {
    SessionConfig {
        name: name.to_owned(),
        instance: 1,
        heartbeat: Duration::from_millis(250),
        silence_max: Duration::from_secs(2),
        greeting_max: Duration::from_secs(5),
    }
}

fn at(millis: u64) -> MonotonicTime {
    MonotonicTime::from_nanos(millis * 1_000_000)
}

/// Passes every waiting control frame of `from` to `to`, as bytes.
fn carry(now: MonotonicTime, from: &mut Session, to: &mut Session) -> Result<(), ProtocolError> {
    while let Some((header, control)) = from.poll_transmit() {
        let mut frame = FrameBuffer::with_capacity(0);
        frame.append_with(|bytes| control.encode(bytes));
        frame.seal(&header, true);
        let (header, payload) = FrameHeader::parse(frame.frame(), true)?;
        to.handle_frame(now, &header, payload)?;
    }
    Ok(())
}

fn events(session: &mut Session) -> Vec<SessionEvent> {
    std::iter::from_fn(|| session.poll_event()).collect()
}

/// A host and a director with one attached device.
fn active_pair() -> (Session, Session) {
    let mut host = Session::new(Role::Host, config("h1"), at(0));
    let mut director = Session::new(Role::Director, config("d1"), at(0));
    carry(at(0), &mut host, &mut director).unwrap();
    let greeted = SessionEvent::Greeted {
        host: "h1".into(),
        instance: 1,
    };
    assert_eq!(events(&mut director), [greeted]);
    director.welcome(3);
    carry(at(0), &mut director, &mut host).unwrap();
    assert_eq!(
        events(&mut host),
        [SessionEvent::Active {
            director: "d1".into()
        }]
    );
    host.attach(DEVICE, 9, WINDOWS);
    carry(at(0), &mut host, &mut director).unwrap();
    let requested = SessionEvent::AttachRequested {
        device: DEVICE,
        generation: 9,
    };
    assert_eq!(events(&mut director), [requested]);
    director.accept(DEVICE, WINDOWS);
    carry(at(0), &mut director, &mut host).unwrap();
    assert_eq!(
        events(&mut host),
        [SessionEvent::Attached { device: DEVICE }]
    );
    assert_eq!((host.epoch(), director.epoch()), (3, 3));
    (host, director)
}

fn data(from: &mut Session, payload_bytes: usize) -> FrameHeader {
    let sequence = from.take_credit(DEVICE, NETWORK, payload_bytes);
    from.transmit_data(DEVICE, NETWORK, sequence, payload_bytes)
}

#[test]
fn data_is_delivered_and_its_credit_returns() {
    let (mut host, mut director) = active_pair();
    // A frame of 96 bytes of payload costs two blocks: 32 frames fill the window of 64.
    for _ in 0..32 {
        assert_eq!(host.may_send(DEVICE, [0, 0, 0, 2]), Ok(()));
        let header = data(&mut host, 96);
        assert_eq!(director.handle_frame(at(1), &header, &[0; 96]), Ok(true));
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
    director.handle_frame(at(1), &header, &[0; 96]).unwrap();
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
    assert_eq!(host.unacknowledged_bytes(), 1032);
    director.handle_frame(at(1), &header, &[0; 1000]).unwrap();
    director.handle_timeout(at(250));
    carry(at(250), &mut director, &mut host).unwrap();
    assert_eq!(host.unacknowledged_bytes(), 0);
}

#[test]
fn silent_peer_fails_the_session_at_the_deadline_and_not_before() {
    let (mut host, _) = active_pair();
    host.handle_timeout(at(1999));
    assert_eq!(host.state(), SessionState::Active);
    assert!(host.poll_timeout().unwrap() <= at(2000));
    host.handle_timeout(at(2000));
    assert_eq!(
        host.close_reason(),
        Some(&CloseReason::Silent { silence_ms: 2000 })
    );
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
fn p08_greeting_that_never_comes_is_given_up() {
    let mut director = Session::new(Role::Director, config("d1"), at(0));
    director.handle_timeout(at(4999));
    assert_eq!(director.state(), SessionState::Awaiting);
    director.handle_timeout(at(5000));
    assert_eq!(director.state(), SessionState::Closed);
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
    assert_eq!(director.handle_frame(at(1), &header, &[0; 10]), Err(error));
    assert_eq!(director.state(), SessionState::Closed);
}

#[test]
fn p04_repeated_or_skipped_data_closes_the_session() {
    for sequence in [0, 2] {
        let (mut host, mut director) = active_pair();
        let header = data(&mut host, 10);
        assert_eq!(director.handle_frame(at(1), &header, &[0; 10]), Ok(true));
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
        assert_eq!(director.handle_frame(at(1), &header, &[0; 10]), Err(error));
    }
}

#[test]
fn p05_data_of_an_unknown_device_closes_the_session() {
    let (mut host, mut director) = active_pair();
    let header = FrameHeader {
        device: DeviceId(8),
        ..data(&mut host, 10)
    };
    let error = ProtocolError::UnknownDevice {
        device: DeviceId(8),
    };
    assert_eq!(director.handle_frame(at(1), &header, &[0; 10]), Err(error));
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
        director.handle_frame(at(1), &header, &[0; 4100]),
        Err(error)
    );
}

#[test]
fn p06_acknowledging_what_was_not_sent_closes_the_session() {
    let (mut host, mut director) = active_pair();
    let header = FrameHeader {
        acknowledge: 1,
        ..data(&mut host, 10)
    };
    assert_eq!(
        director.handle_frame(at(1), &header, &[0; 10]),
        Err(ProtocolError::Acknowledge)
    );
}

#[test]
fn p06_credit_that_goes_back_closes_the_session() {
    let (mut host, mut director) = active_pair();
    let header = FrameHeader {
        credit_limit: 63,
        ..data(&mut host, 10)
    };
    let error = ProtocolError::Credit {
        device: DEVICE,
        lane: NETWORK,
    };
    assert_eq!(director.handle_frame(at(1), &header, &[0; 10]), Err(error));
}

#[test]
fn p03_frames_of_the_wrong_role_or_state_close_the_session() {
    for control in [
        Control::Welcome {
            version: 1,
            epoch: 3,
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
        header.acknowledge = 0;
        let mut payload = Vec::new();
        control.encode(&mut payload);
        assert!(
            director.handle_frame(at(1), &header, &payload).is_err(),
            "{control:?}"
        );
    }
}

#[test]
fn p03_peer_without_a_common_version_is_told_so() {
    let mut director = Session::new(Role::Director, config("d1"), at(0));
    let hello = Control::Hello {
        version_min: 2,
        version_max: 4,
        features: 0,
        instance: 1,
        name: "h1".into(),
    };
    let mut payload = Vec::new();
    hello.encode(&mut payload);
    let header = Session::new(Role::Host, config("h1"), at(0))
        .poll_transmit()
        .unwrap()
        .0;
    let error = ProtocolError::Version {
        version_min: 2,
        version_max: 4,
    };
    assert_eq!(director.handle_frame(at(0), &header, &payload), Err(error));
    let (_, Control::Close(reason)) = director.poll_transmit().unwrap() else {
        panic!("no CLOSE")
    };
    assert!(reason.contains("peer speaks 2 to 4"), "{reason}");
}

#[test]
fn detached_device_may_be_attached_again_while_its_last_frames_arrive() {
    let (mut host, mut director) = active_pair();
    let late = data(&mut director, 10);
    host.detach(DEVICE);
    assert_eq!(host.handle_frame(at(1), &late, &[0; 10]), Ok(false));
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
    let mut host = Session::new(Role::Host, config("h1"), at(0));
    let mut director = Session::new(Role::Director, config("d1"), at(0));
    carry(at(0), &mut host, &mut director).unwrap();
    director.welcome(1);
    carry(at(0), &mut director, &mut host).unwrap();
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

#[test]
fn peer_that_does_not_read_cannot_make_us_queue_without_bound() {
    let (mut host, mut director) = active_pair();
    let mut header = data(&mut host, 0);
    header.acknowledge = 0;
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
            result = result.and(director.handle_frame(at(1), &header, &payload));
            events(&mut director);
        }
    }
    assert_eq!(result, Err(ProtocolError::ControlQueue));
}

proptest! {
    /// Whatever frames arrive, nothing panics, memory stays bounded, and once closed it stays so.
    #[test]
    fn any_frames_are_answered(steps in proptest::collection::vec(
        (1u8..13, 0u8..5, 0u32..10, any::<u32>(), any::<u32>(), any::<u32>(), proptest::collection::vec(any::<u8>(), 0..40)), 1..60
    )) {
        let (_, mut director) = active_pair();
        for (kind, lane, device, sequence, credit_limit, acknowledge, payload) in steps {
            let header = FrameHeader {
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
            let result = director.handle_frame(at(1), &header, &payload);
            prop_assert!(!closed || result == Ok(false));
            prop_assert_eq!(result.is_err() && !closed, !closed && matches!(director.close_reason(), Some(CloseReason::Protocol(_))));
            events(&mut director);
        }
    }
}
