//! Sessions against targets in memory: good ones, and such that break every rule.

use proptest::prelude::*;

use super::error::SessionError;
use super::pdu::{Response, Sequence, task_tag_of};
use super::*;
use crate::name::{ChapCredential, Credentials, MutualChap};

const LUN: [u8; 8] = [0, 1, 0, 0, 0, 0, 0, 0];
const NOW: Duration = Duration::from_secs(100);

type TestSession = Session<u32, u32>;

fn config(credentials: Credentials) -> SessionConfig {
    SessionConfig {
        login: LoginConfig {
            initiator: "iqn.2026-01.org.orimono:golden".parse().unwrap(),
            target: Some("iqn.2026-01.org.orimono:disk1".parse().unwrap()),
            credentials,
            offer: Offer::default(),
            entropy: [9; ENTROPY_BYTES],
        },
        isid: [0x80, 1, 2, 3, 0, 0],
        number: 1,
        tasks_max: 8,
        bytes_max: 1 << 20,
        login_within: Duration::from_secs(10),
        ping_after: Duration::from_secs(5),
        pong_within: Duration::from_secs(3),
    }
}

/// The target's end: reads requests and writes responses, right or wrong.
struct Far {
    session: TestSession,
    digests: Digests,
    stat_sn: u32,
    cmd_sn: u32,
    window: u32,
}

type Sent = (Request, u32, Vec<u8>);

impl Far {
    fn new(credentials: Credentials) -> Self {
        Self {
            session: Session::new(config(credentials), NOW),
            digests: Digests::default(),
            stat_sn: 7,
            cmd_sn: 1,
            window: 64,
        }
    }

    /// One that is logged in, with these answers to the operational keys.
    fn up(answers: &[(&str, &str)]) -> Self {
        let mut far = Self::new(Credentials::None);
        let _ = far.requests();
        far.login((0, 1), true, &[]).unwrap();
        let _ = far.requests();
        far.login((1, 3), true, answers).unwrap();
        assert!(matches!(far.session.poll_event(), Some(Event::Up(_))));
        far.digests = far.session.digests;
        far
    }

    fn requests(&mut self) -> Vec<Sent> {
        let mut bytes = Vec::new();
        self.session.poll_transmit(&mut bytes);
        let mut rest = bytes.as_slice();
        let mut requests = Vec::new();
        while let Some((frame, used)) = frame::decode(rest, self.digests, 1 << 24).unwrap() {
            let (request, cmd_sn, _) = Request::parse(frame.header).unwrap();
            requests.push((request, cmd_sn, frame.data.to_vec()));
            rest = &rest[used..];
        }
        assert!(rest.is_empty());
        requests
    }

    fn text(&mut self) -> String {
        let [(Request::Login { .. }, _, text)] = &self.requests()[..] else {
            panic!("not one login request")
        };
        String::from_utf8(text.clone()).unwrap().replace('\0', " ")
    }

    fn sequence(&mut self, response: &Response) -> Sequence {
        let sequence = Sequence {
            stat_sn: self.stat_sn,
            exp_cmd_sn: self.cmd_sn,
            max_cmd_sn: self.cmd_sn + self.window - 1,
        };
        if has_status(response) {
            self.stat_sn += 1;
        }
        sequence
    }

    fn send(&mut self, response: Response, data: &[u8]) -> Result<(), SessionError> {
        let sequence = self.sequence(&response);
        let mut bytes = Vec::new();
        frame::encode(
            &mut bytes,
            response.to_bytes(sequence),
            &[],
            data,
            self.digests,
        );
        // In two parts, as networks do.
        let (part, _) = bytes.split_at(bytes.len() / 2);
        assert_eq!(self.session.handle_input(NOW, part)?, 0);
        let used = self.session.handle_input(NOW, &bytes)?;
        assert!(used == bytes.len() || self.session.has_ended());
        Ok(())
    }

    fn login(
        &mut self,
        stages: (u8, u8),
        transit: bool,
        pairs: &[(&str, &str)],
    ) -> Result<(), SessionError> {
        let mut text = Vec::new();
        for (key, value) in pairs {
            text::append(&mut text, key, value);
        }
        let response = Response::Login {
            transit,
            continues: false,
            stages,
            tsih: 1,
            task_tag: LOGIN_TAG,
            class: 0,
            detail: 0,
        };
        self.send(response, &text)
    }

    /// Submits a command and returns its tag once it is sent, with what was sent.
    fn command(&mut self, context: u32, transfer: Transfer) -> (u32, Vec<Sent>) {
        let tag = self.session.submit(command(transfer), context).unwrap();
        (tag.tag, self.requests())
    }

    fn good(&mut self, task_tag: u32) -> Result<(), SessionError> {
        let response = Response::Command {
            residual: Residual::None,
            response: 0,
            status: 0,
            task_tag,
        };
        self.send(response, &[])
    }
}

fn command(transfer: Transfer) -> Command {
    Command {
        lun: LUN,
        cdb: vec![0x28; 10],
        attribute: TaskAttribute::Simple,
        transfer,
    }
}

fn data_in(task_tag: u32, data_sn: u32, offset: u32) -> Response {
    Response::DataIn {
        status: None,
        task_tag,
        data_sn,
        offset,
    }
}

fn ready(task_tag: u32, r2t_sn: u32, offset: u32, desired_bytes: u32) -> Response {
    Response::ReadyToTransfer {
        lun: LUN,
        task_tag,
        transfer_tag: 5,
        r2t_sn,
        offset,
        desired_bytes,
    }
}

fn rule<T: std::fmt::Debug>(result: Result<T, SessionError>) -> &'static str {
    match result {
        Err(SessionError::Protocol { rule, .. }) => rule,
        other => panic!("{other:?}"),
    }
}

// --- Bytes of another implementation

fn unhex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2);
    digits
        .map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

#[test]
fn a_recorded_session_of_libiscsi_and_tgt_is_read_and_written_byte_by_byte() {
    let lines = include_str!("golden.txt").lines();
    let mut seen = Vec::new();
    for line in lines.filter(|line| !line.starts_with('#')) {
        let (direction, hex) = line.split_once(' ').unwrap();
        let bytes = unhex(hex);
        let limit = SEGMENT_BYTES_DEFAULT;
        let (frame, used) = frame::decode(&bytes, Digests::default(), limit)
            .unwrap()
            .unwrap();
        assert_eq!(used, bytes.len());
        let mut again = Vec::new();
        let header = if direction == ">" {
            let (request, cmd_sn, stat_sn) = Request::parse(frame.header).unwrap();
            request.to_bytes(cmd_sn, stat_sn)
        } else {
            let (response, sequence) = Response::parse(frame.header).unwrap();
            seen.push(response);
            let mut header = response.to_bytes(sequence);
            // Of no use to an initiator at recovery level 0: its own ISID, and a transfer tag.
            let unread = match response {
                Response::Login { .. } => 8..14,
                Response::DataIn { .. } => 20..24,
                _ => 0..0,
            };
            header[unread.clone()].copy_from_slice(&frame.header[unread]);
            header
        };
        frame::encode(&mut again, header, &[], frame.data, Digests::default());
        assert_eq!(again, bytes, "{line}");
    }
    let [
        Response::Login {
            transit: true,
            stages: (1, 3),
            tsih: 256,
            ..
        },
        Response::Command { status: 2, .. },
        Response::Command { status: 0, .. },
        Response::DataIn {
            status: Some((0, Residual::None)),
            ..
        },
        Response::DataIn { .. },
        Response::Logout { response: 0, .. },
    ] = seen[..]
    else {
        panic!("{seen:?}")
    };
}

// --- Login

#[test]
fn a_login_without_secrets_takes_two_requests() {
    let mut far = Far::new(Credentials::None);
    assert_eq!(
        far.text(),
        "InitiatorName=iqn.2026-01.org.orimono:golden SessionType=Normal \
         TargetName=iqn.2026-01.org.orimono:disk1 AuthMethod=None "
    );
    far.login((0, 1), true, &[("AuthMethod", "None")]).unwrap();
    assert!(far.text().starts_with("HeaderDigest=CRC32C,None "));
    far.login((1, 3), false, &[("X-new", "1"), ("InitialR2T", "Yes")])
        .unwrap();
    assert_eq!(far.text(), "X-new=NotUnderstood ");
    assert!(!far.session.is_up());
    far.login((1, 3), true, &[]).unwrap();
    assert!(far.session.is_up());
}

#[test]
fn mutual_chap_wants_a_proof() {
    let own = ChapCredential::new("guest", b"s3cr3t-of-guest").unwrap();
    let target = ChapCredential::new("tgt", b"s3cr3t-of-target").unwrap();
    let both = Credentials::MutualChap(MutualChap::new(own.clone(), target).unwrap());
    let answered = |reflect: bool| {
        let mut far = Far::new(both.clone());
        assert!(far.text().contains("AuthMethod=CHAP "));
        far.login((0, 1), false, &[("AuthMethod", "CHAP")]).unwrap();
        assert_eq!(far.text(), "CHAP_A=5 ");
        let challenge = text::hexadecimal(&[if reflect { 9 } else { 1 }; 16]);
        let keys = [("CHAP_A", "5"), ("CHAP_I", "9"), ("CHAP_C", &*challenge)];
        far.login((0, 1), false, &keys).map(|()| far)
    };
    let mut far = answered(false).unwrap();
    let answer = text::hexadecimal(&chap::response(9, b"s3cr3t-of-guest", &[1; 16]));
    let challenge = text::hexadecimal(&[9; 16]);
    assert_eq!(
        far.text(),
        format!("CHAP_N=guest CHAP_R={answer} CHAP_I=9 CHAP_C={challenge} ")
    );
    let proof = text::hexadecimal(&chap::response(9, b"s3cr3t-of-target", &[9; 16]));
    let keys = [("CHAP_N", "tgt"), ("CHAP_R", &*proof)];
    far.login((0, 1), true, &keys).unwrap();
    assert!(far.text().starts_with("HeaderDigest"));

    let mut unproven = answered(false).unwrap();
    let error = unproven.login((0, 1), true, &[]);
    assert_eq!(error, Err(SessionError::TargetUnproven));
    // Our own challenge sent back.
    let error = answered(true).map(drop);
    assert_eq!(error, Err(SessionError::TargetUnproven));
    // Leaving CHAP out.
    let mut far = Far::new(both);
    let error = far.login((0, 1), true, &[("AuthMethod", "None")]);
    assert_eq!(error, Err(SessionError::TargetUnproven));
}

#[test]
fn a_login_that_never_ends_is_ended() {
    let mut far = Far::new(Credentials::None);
    assert_eq!(far.session.handle_timeout(NOW), Ok(()));
    let late = NOW + Duration::from_secs(10);
    assert_eq!(
        far.session.handle_timeout(late),
        Err(SessionError::LoginTimeout)
    );
    let endless = (0..100).find_map(|_| far.login((0, 1), false, &[]).err());
    assert_eq!(rule(endless.map_or(Ok(()), Err)), "came too often");
    let mut far = Far::new(Credentials::None);
    assert_eq!(rule(far.login((0, 3), true, &[])), "is of another stage");
}

// --- Commands

#[test]
fn a_write_sends_what_was_agreed_and_no_more() {
    let data: Vec<u8> = (0..20_000u32).map(|at| at.to_be_bytes()[3]).collect();
    let mut far = Far::up(&[
        ("HeaderDigest", "CRC32C"),
        ("DataDigest", "CRC32C"),
        ("InitialR2T", "No"),
        ("MaxRecvDataSegmentLength", "2048"),
        ("FirstBurstLength", "4096"),
        ("MaxBurstLength", "8192"),
    ]);
    let (tag, sent) = far.command(1, Transfer::Out(data.clone()));
    let pieces = |sent: &[Sent]| -> Vec<(bool, u32, u32, usize)> {
        sent.iter()
            .map(|(request, _, piece)| match request {
                Request::Command { last, .. } => (*last, 0, 0, piece.len()),
                Request::DataOut {
                    last,
                    data_sn,
                    offset,
                    ..
                } => {
                    let at = usize::try_from(*offset).unwrap();
                    assert_eq!(piece[..], data[at..at + piece.len()]);
                    (*last, *data_sn, *offset, piece.len())
                }
                other => panic!("{other:?}"),
            })
            .collect()
    };
    assert_eq!(pieces(&sent), [(false, 0, 0, 2048), (true, 0, 2048, 2048)]);
    far.send(ready(tag, 0, 4096, 5000), &[]).unwrap();
    assert_eq!(
        pieces(&far.requests()),
        [
            (false, 0, 4096, 2048),
            (false, 1, 6144, 2048),
            (true, 2, 8192, 904)
        ]
    );
    far.good(tag).unwrap();
    let Some(Event::Done(1, Outcome::Answered(answer))) = far.session.poll_event() else {
        panic!("no answer")
    };
    assert_eq!(answer, Answer::default());
}

#[test]
fn a_read_collects_its_data_and_sense() {
    let mut far = Far::up(&[]);
    let (tag, sent) = far.command(1, Transfer::In(8));
    assert!(matches!(
        sent[..],
        [(
            Request::Command {
                read: true,
                write: false,
                last: true,
                expected_bytes: 8,
                ..
            },
            1,
            _
        )]
    ));
    far.send(data_in(tag, 0, 0), &[1, 2, 3]).unwrap();
    let end = Response::DataIn {
        status: Some((0, Residual::Underflow(3))),
        task_tag: tag,
        data_sn: 1,
        offset: 3,
    };
    far.send(end, &[4, 5]).unwrap();
    let Some(Event::Done(1, Outcome::Answered(answer))) = far.session.poll_event() else {
        panic!("no answer")
    };
    assert_eq!(answer.data_in, [1, 2, 3, 4, 5]);
    assert_eq!(answer.residual, Residual::Underflow(3));

    let (tag, _) = far.command(2, Transfer::None);
    let check = Response::Command {
        residual: Residual::None,
        response: 0,
        status: 2,
        task_tag: tag,
    };
    far.send(check, &[0, 3, 0x70, 0, 6, 0xee]).unwrap();
    let Some(Event::Done(2, Outcome::Answered(answer))) = far.session.poll_event() else {
        panic!("no answer")
    };
    assert_eq!((answer.status, &answer.sense[..]), (2, &[0x70, 0, 6][..]));
}

#[test]
fn a_long_cdb_goes_on_in_an_additional_segment() {
    let mut far = Far::up(&[]);
    let cdb: Vec<u8> = (0..32).collect();
    let long = Command {
        cdb: cdb.clone(),
        ..command(Transfer::None)
    };
    far.session.submit(long, 1).unwrap();
    let mut bytes = Vec::new();
    far.session.poll_transmit(&mut bytes);
    assert_eq!(bytes[4], 5);
    assert_eq!(bytes[32..48], cdb[..16]);
    assert_eq!(bytes[48..52], [0, 17, 1, 0]);
    assert_eq!(bytes[52..], cdb[16..]);
}

#[test]
fn the_window_and_the_limits_hold_commands_back() {
    let mut far = Far::up(&[]);
    far.window = 0;
    let (first, sent) = far.command(0, Transfer::None);
    assert_eq!(sent.len(), 1);
    // The login had opened the window for 64; the target cannot shrink it.
    far.cmd_sn = 65;
    let commands = 1..8;
    for context in commands {
        let (_, sent) = far.command(context, Transfer::None);
        assert_eq!(sent.len(), 1);
    }
    let full = far.session.submit(command(Transfer::None), 9).unwrap_err();
    assert_eq!((full.0, full.2), (SubmitError::Full, 9));
    far.good(first).unwrap();
    let too_long = command(Transfer::In(2 << 20));
    assert_eq!(
        far.session.submit(too_long, 9).unwrap_err().0,
        SubmitError::Invalid
    );
    far.session.max_cmd_sn = far.session.cmd_sn - 1;
    let (waiting, sent) = far.command(9, Transfer::None);
    assert!(sent.is_empty());
    far.session.end();
    let events: Vec<_> = std::iter::from_fn(|| far.session.poll_event()).collect();
    let fate = |context| {
        let of_context =
            |event: &&Event<u32, u32>| matches!(event, Event::Done(of, _) if *of == context);
        events.iter().find(of_context).unwrap()
    };
    assert!(matches!(fate(9), Event::Done(9, Outcome::NotSent(_))));
    assert!(matches!(fate(1), Event::Done(1, Outcome::UnknownFate(_))));
    assert_eq!(events.len(), 9);
    assert_ne!(waiting, first);
}

#[test]
fn task_management_ends_what_it_concerns() {
    let mut far = Far::up(&[]);
    let (first, _) = far.command(1, Transfer::In(4));
    let (second, _) = far.command(2, Transfer::In(4));
    let abort = |session, tag| TaskFunction::AbortTask(TaskTag { session, tag });
    far.session.manage(abort(1, first), 10).unwrap();
    let [(request, _, _)] = &far.requests()[..] else {
        panic!("not one request")
    };
    let Request::Task {
        function: 1,
        task_tag,
        referenced_tag,
        referenced_cmd_sn: 1,
        lun: LUN,
    } = *request
    else {
        panic!("{request:?}")
    };
    assert_eq!(referenced_tag, first);
    far.send(
        Response::Task {
            response: 0,
            task_tag,
        },
        &[],
    )
    .unwrap();
    let session = &mut far.session;
    assert_eq!(session.poll_event(), Some(Event::Done(1, Outcome::Aborted)));
    let complete = TaskFunctionOutcome::Complete;
    assert_eq!(session.poll_event(), Some(Event::Managed(10, complete)));
    // A tag of another session names nothing here.
    session.manage(abort(2, second), 11).unwrap();
    let none = TaskFunctionOutcome::NoSuchTask;
    assert_eq!(session.poll_event(), Some(Event::Managed(11, none)));

    session
        .manage(TaskFunction::LogicalUnitReset(LUN), 12)
        .unwrap();
    let [(Request::Task { task_tag, .. }, _, _)] = far.requests()[..] else {
        panic!("not one request")
    };
    let (later, _) = far.command(3, Transfer::None);
    far.send(
        Response::Task {
            response: 0,
            task_tag,
        },
        &[],
    )
    .unwrap();
    let session = &mut far.session;
    assert_eq!(session.poll_event(), Some(Event::Done(2, Outcome::Aborted)));
    assert_eq!(session.poll_event(), Some(Event::Managed(12, complete)));
    far.good(later).unwrap();
}

// --- Keepalive, messages, logout

#[test]
fn a_silent_target_is_pinged_and_left() {
    let mut far = Far::up(&[]);
    let second = Duration::from_secs(1);
    assert_eq!(far.session.poll_timeout(), Some(NOW + 5 * second));
    far.session.handle_timeout(NOW + 4 * second).unwrap();
    assert!(far.requests().is_empty());
    far.session.handle_timeout(NOW + 5 * second).unwrap();
    let [(Request::NopOut { task_tag, .. }, _, _)] = far.requests()[..] else {
        panic!("no ping")
    };
    far.session.handle_timeout(NOW + 7 * second).unwrap();
    let pong = Response::NopIn {
        lun: [0; 8],
        task_tag,
        transfer_tag: NO_TAG,
    };
    far.send(pong, &[]).unwrap();
    assert_eq!(rule(far.send(pong, &[])), "answers no ping");
    far.session.handle_timeout(NOW + 5 * second).unwrap();
    let silent = far.session.handle_timeout(NOW + 8 * second);
    assert_eq!(silent, Err(SessionError::Silent));
}

#[test]
fn a_ping_of_the_target_is_answered_and_a_flood_is_not() {
    let mut far = Far::up(&[]);
    let ping = Response::NopIn {
        lun: LUN,
        task_tag: NO_TAG,
        transfer_tag: 77,
    };
    far.send(ping, &[]).unwrap();
    let [(request, _, _)] = far.requests()[..] else {
        panic!("no pong")
    };
    let pong = Request::NopOut {
        lun: LUN,
        task_tag: NO_TAG,
        transfer_tag: 77,
    };
    assert_eq!(request, pong);
    let flood = (0..100).find_map(|_| far.send(ping, &[]).err());
    let flood = flood.map_or(Ok(()), Err);
    assert_eq!(rule(flood), "comes faster than it can be answered");
}

#[test]
fn a_target_may_ask_for_a_logout() {
    let mut far = Far::up(&[]);
    let (tag, _) = far.command(1, Transfer::None);
    let leave = Response::Async {
        lun: [0; 8],
        event: 1,
        parameter2: 0,
        parameter3: 10,
    };
    far.send(leave, &[]).unwrap();
    let refused = far.session.submit(command(Transfer::None), 2);
    assert_eq!(refused.unwrap_err().0, SubmitError::Down);
    assert!(far.requests().is_empty());
    far.good(tag).unwrap();
    let [(Request::Logout { task_tag }, _, _)] = far.requests()[..] else {
        panic!("no logout")
    };
    let goodbye = Response::Logout {
        response: 0,
        task_tag,
    };
    far.send(goodbye, &[]).unwrap();
    assert!(far.session.has_ended());
}

#[test]
fn unasked_sense_is_passed_on() {
    let mut far = Far::up(&[]);
    let event = Response::Async {
        lun: LUN,
        event: 0,
        parameter2: 0,
        parameter3: 0,
    };
    far.send(event, &[0, 2, 0x70, 1]).unwrap();
    let sense = vec![0x70, 1];
    assert_eq!(
        far.session.poll_event(),
        Some(Event::Sense { lun: LUN, sense })
    );
}

// --- Hostile targets

#[test]
fn a_rejected_command_is_not_to_be_sent_again() {
    let mut far = Far::up(&[]);
    far.session.submit(command(Transfer::None), 1).unwrap();
    let (_, _) = far.command(2, Transfer::None);
    let mut header = [0; 48];
    header[16..20].copy_from_slice(&(1u32 << 16).to_be_bytes());
    assert_eq!(task_tag_of(header), 1 << 16);
    let error = far.send(Response::Reject { reason: 4 }, &header);
    assert_eq!(error, Err(SessionError::Rejected { reason: 4 }));
    far.session.end();
    let rejected = Event::Done(1, Outcome::Rejected { reason: 4 });
    assert_eq!(far.session.poll_event(), Some(rejected));
    assert!(matches!(
        far.session.poll_event(),
        Some(Event::Done(2, Outcome::UnknownFate(_)))
    ));
}

#[test]
fn each_broken_rule_is_found() {
    type Attack = fn(&mut Far, u32, u32) -> Response;
    let attacks: &[(&str, Attack)] = &[
        ("is outside of the buffer", |_, read, _| data_in(read, 0, 0)),
        ("is out of order", |_, read, _| data_in(read, 0, 1)),
        ("is out of order", |_, read, _| data_in(read, 0, u32::MAX)),
        ("has another DataSN than the next", |_, read, _| {
            data_in(read, 1, 0)
        }),
        ("belongs to no read", |_, _, write| data_in(write, 0, 0)),
        ("belongs to no command", |_, read, _| {
            data_in(read ^ 1 << 20, 0, 0)
        }),
        ("belongs to no command", |_, _, _| data_in(NO_TAG, 0, 0)),
        ("asks for what is outside of the data", |_, _, write| {
            ready(write, 0, 65_536, 1 << 16)
        }),
        ("asks for what is outside of the data", |_, _, write| {
            ready(write, 0, u32::MAX, 2)
        }),
        ("asks for what is outside of the data", |_, read, _| {
            ready(read, 0, 0, 1)
        }),
        (
            "asks for nothing, or more than MaxBurstLength",
            |_, _, write| ready(write, 0, 65_536, 0),
        ),
        (
            "asks for nothing, or more than MaxBurstLength",
            |_, _, write| ready(write, 0, 65_536, 1 << 30),
        ),
        ("asks for data a second time", |_, _, write| {
            ready(write, 0, 0, 8)
        }),
        ("has another R2TSN than the next", |_, _, write| {
            ready(write, 3, 65_536, 8)
        }),
        ("has another StatSN than the next", |far, read, _| {
            far.stat_sn += 1;
            Response::Command {
                residual: Residual::None,
                response: 0,
                status: 0,
                task_tag: read,
            }
        }),
        ("belongs to no function", |_, read, _| Response::Task {
            response: 0,
            task_tag: read,
        }),
        ("came without a request", |_, _, _| Response::Logout {
            response: 0,
            task_tag: LOGOUT_TAG,
        }),
        ("answers no request", |_, _, _| Response::Text {
            last: true,
            continues: false,
            task_tag: TEXT_TAG,
            transfer_tag: NO_TAG,
        }),
        ("came after the login", |_, _, _| Response::Login {
            transit: true,
            continues: false,
            stages: (1, 3),
            tsih: 1,
            task_tag: LOGIN_TAG,
            class: 0,
            detail: 0,
        }),
    ];
    for (expected, attack) in attacks {
        let mut far = Far::up(&[]);
        let (read, _) = far.command(1, Transfer::In(8));
        let (write, _) = far.command(2, Transfer::Out(vec![0; 100_000]));
        let response = attack(&mut far, read, write);
        assert_eq!(rule(far.send(response, &[0; 9])), *expected, "{response:?}");
    }
}

#[test]
fn an_answer_comes_once_and_an_r2t_waits_for_the_last() {
    let mut far = Far::up(&[]);
    let (tag, _) = far.command(1, Transfer::None);
    far.good(tag).unwrap();
    assert_eq!(rule(far.good(tag)), "belongs to no command");

    let mut far = Far::up(&[]);
    let (tag, _) = far.command(1, Transfer::Out(vec![0; 100_000]));
    far.send(ready(tag, 0, 65_536, 1), &[]).unwrap();
    let second = far.send(ready(tag, 1, 65_537, 1), &[]);
    assert_eq!(rule(second), "comes before the last one is answered");
}

#[test]
fn lengths_and_digests_are_checked() {
    let mut far = Far::up(&[("HeaderDigest", "CRC32C"), ("DataDigest", "CRC32C")]);
    let (tag, _) = far.command(1, Transfer::In(8));
    let response = data_in(tag, 0, 0);
    let sequence = far.sequence(&response);
    let mut good = Vec::new();
    frame::encode(
        &mut good,
        response.to_bytes(sequence),
        &[],
        &[1; 8],
        far.digests,
    );
    for (at, error) in [(16, FrameError::HeaderDigest), (55, FrameError::DataDigest)] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        let result = far.session.handle_input(NOW, &bad);
        assert_eq!(result, Err(SessionError::Frame(error)));
    }
    let mut long = good;
    long[5] = 0xff;
    let result = far.session.handle_input(NOW, &long[..48]);
    assert!(matches!(
        result,
        Err(SessionError::Frame(FrameError::DataSegment { .. }))
    ));
}

proptest! {
    /// Any bytes, in any state: an error at most, and every command comes back once.
    #[test]
    fn no_bytes_do_harm(
        headers in proptest::collection::vec(
            (any::<[u8; 48]>(), 0usize..10, proptest::collection::vec(any::<u8>(), 0..64)),
            1..20,
        ),
        logged_in in any::<bool>(),
        plausible in any::<bool>(),
    ) {
        const OPCODES: [u8; 10] = [0x20, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x31, 0x32, 0x3f];
        let mut far = if logged_in { Far::up(&[]) } else { Far::new(Credentials::None) };
        let mut tags = Vec::new();
        for context in 0..4 {
            let transfer = [Transfer::In(64), Transfer::Out(vec![1; 200_000]), Transfer::None];
            let transfer = transfer[context as usize % 3].clone();
            if let Ok(tag) = far.session.submit(command(transfer), context) {
                tags.push(tag.tag);
            }
        }
        let _ = far.requests();
        for (mut header, kind, data) in headers {
            if plausible {
                header[0] = OPCODES[kind];
                header[36..44].fill(0);
                let tag = tags.get(kind % 4).copied().unwrap_or(LOGIN_TAG);
                header[16..20].copy_from_slice(&tag.to_be_bytes());
                header[24..28].copy_from_slice(&far.session.exp_stat_sn.to_be_bytes());
            }
            let mut bytes = Vec::new();
            frame::encode(&mut bytes, header, &[], &data, Digests::default());
            if far.session.handle_input(NOW, &bytes).is_err() {
                break;
            }
            prop_assert!(far.session.tasks.bytes() <= far.session.config.bytes_max);
            let _ = far.requests();
        }
        far.session.end();
        let events = std::iter::from_fn(|| far.session.poll_event());
        let done = events.filter(|event| matches!(event, Event::Done(..))).count();
        prop_assert_eq!(done, tags.len());
    }

    #[test]
    fn requests_are_read_as_they_are_written(
        lun in any::<[u8; 8]>(),
        task_tag in any::<u32>(),
        other in any::<u32>(),
        number in any::<u32>(),
        flags in any::<[bool; 3]>(),
        small in 0u8..4,
        cdb in any::<[u8; 16]>(),
        sns in any::<(u32, u32)>(),
    ) {
        let [last, read, write] = flags;
        let isid = *lun.first_chunk().unwrap();
        let next = if last { small } else { 0 };
        for request in [
            Request::NopOut { lun, task_tag, transfer_tag: other },
            Request::Command {
                last, read, write, attribute: small, lun, task_tag, expected_bytes: other, cdb,
            },
            Request::Task {
                function: small, lun, task_tag, referenced_tag: other, referenced_cmd_sn: number,
            },
            Request::Login { transit: last, stages: (small, next), isid, tsih: 3, task_tag },
            Request::Text { task_tag, transfer_tag: other },
            Request::Logout { task_tag },
        ] {
            let header = request.to_bytes(sns.0, sns.1);
            prop_assert_eq!(Request::parse(header), Some((request, sns.0, sns.1)));
        }
        let data_out = Request::DataOut {
            last, lun, task_tag, transfer_tag: other, data_sn: number, offset: other,
        };
        let header = data_out.to_bytes(sns.0, sns.1);
        prop_assert_eq!(Request::parse(header), Some((data_out, 0, sns.1)));
    }

    #[test]
    fn responses_are_read_as_they_are_written(
        lun in any::<[u8; 8]>(),
        tags in any::<(u32, u32)>(),
        numbers in any::<[u32; 3]>(),
        flags in any::<[bool; 2]>(),
        bytes in any::<[u8; 2]>(),
        sns in any::<[u32; 3]>(),
    ) {
        let (task_tag, transfer_tag) = tags;
        let [first, second, third] = numbers;
        let [last, continues] = flags;
        let [response, status] = bytes;
        let sequence = Sequence { stat_sn: sns[0], exp_cmd_sn: sns[1], max_cmd_sn: sns[2] };
        let residual = if last { Residual::Overflow(third) } else { Residual::Underflow(third) };
        for sent in [
            Response::NopIn { lun, task_tag, transfer_tag },
            Response::Command { residual, response, status, task_tag },
            Response::Task { response, task_tag },
            Response::Login {
                transit: last, continues, stages: (1, 3), tsih: 9, task_tag,
                class: response, detail: status,
            },
            Response::Text { last, continues, task_tag, transfer_tag },
            Response::DataIn {
                status: continues.then_some((status, residual)),
                task_tag, data_sn: first, offset: second,
            },
            Response::Logout { response, task_tag },
            Response::ReadyToTransfer {
                lun, task_tag, transfer_tag, r2t_sn: first, offset: second, desired_bytes: third,
            },
            Response::Async { lun, event: response, parameter2: 7, parameter3: 8 },
            Response::Reject { reason: response },
        ] {
            prop_assert_eq!(Response::parse(sent.to_bytes(sequence)), Some((sent, sequence)));
        }
    }
}
