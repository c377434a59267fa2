//! The iSCSI initiator against a target by other authors: Debian's `tgt`, on loopback.
#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use iscsi_initiator::{
    Answer, ChapCredential, Command, ConnectionError, Credentials, DigestPolicy, Initiator,
    MutualChap, Notice, Offer, Options, Outcome, Residual, SessionError, State, Target,
    TaskAttribute, TaskFunction, TaskFunctionOutcome, Transfer, discover, lun_field,
};
use orimono_tests::tgt::{DISK_BYTES, TARGET, Tgt};

const INITIATOR: &str = "iqn.2026-01.org.orimono:test";
const BLOCK_BYTES: usize = 512;
/// How long anything may take before the test fails.
const PATIENCE: Duration = Duration::from_secs(60);

fn target(tgt: &Tgt, credentials: Credentials) -> Target {
    Target {
        portal: tgt.portal(),
        name: TARGET.parse().unwrap(),
        initiator: INITIATOR.parse().unwrap(),
        credentials,
    }
}

fn connect(tgt: &Tgt, credentials: Credentials, offer: Offer) -> Result<Initiator, String> {
    let options = Options {
        offer,
        ..Options::default()
    };
    Initiator::connect(target(tgt, credentials), options, |_| {}).map_err(|error| {
        let source = std::error::Error::source(&*error).map(ToString::to_string);
        source.unwrap_or_default()
    })
}

fn command(cdb: &[u8], transfer: Transfer) -> Command {
    Command {
        lun: lun_field(1).unwrap(),
        cdb: cdb.to_owned(),
        attribute: TaskAttribute::Simple,
        transfer,
    }
}

fn block_cdb(opcode: u8, offset_bytes: usize, bytes: usize) -> Vec<u8> {
    let mut cdb = vec![opcode, 0];
    cdb.extend(
        u32::try_from(offset_bytes / BLOCK_BYTES)
            .unwrap()
            .to_be_bytes(),
    );
    cdb.push(0);
    cdb.extend(u16::try_from(bytes / BLOCK_BYTES).unwrap().to_be_bytes());
    cdb.push(0);
    cdb
}

fn read(offset_bytes: usize, bytes: usize) -> Command {
    let transfer = Transfer::In(u32::try_from(bytes).unwrap());
    command(&block_cdb(0x28, offset_bytes, bytes), transfer)
}

fn write(offset_bytes: usize, data: Vec<u8>) -> Command {
    let cdb = block_cdb(0x2a, offset_bytes, data.len());
    command(&cdb, Transfer::Out(data))
}

/// Bytes that differ from block to block and from seed to seed.
fn pattern(seed: u64, bytes: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| random.u8(..))
        .take(bytes)
        .collect()
}

fn outcome(initiator: &Initiator, command: Command) -> Outcome {
    let (done, outcome) = mpsc::channel();
    let tell = move |outcome| done.send(outcome).unwrap();
    initiator.submit(command, tell).unwrap();
    outcome.recv_timeout(PATIENCE).unwrap()
}

fn answer(initiator: &Initiator, command: &Command) -> Answer {
    // The first command of a session learns of the unit's power on.
    loop {
        match outcome(initiator, command.clone()) {
            Outcome::Answered(answer) if sense_key(&answer) == Some(6) => {}
            Outcome::Answered(answer) => return answer,
            other => panic!("{other:?}"),
        }
    }
}

fn sense_key(answer: &Answer) -> Option<u8> {
    answer.sense.get(2).map(|key| key & 15)
}

fn good(initiator: &Initiator, command: &Command) -> Vec<u8> {
    let answer = answer(initiator, command);
    assert_eq!(answer.status, 0, "{answer:?}");
    answer.data_in
}

fn chap(name: &str, secret: &str) -> ChapCredential {
    ChapCredential::new(name, secret.as_bytes()).unwrap()
}

#[test]
fn a_target_by_others_is_found_and_named() {
    let tgt = Tgt::new().unwrap();
    let initiator = INITIATOR.parse().unwrap();
    let options = Options::default();
    let targets = discover(tgt.portal(), &initiator, &Credentials::None, &options).unwrap();
    let [found] = targets.as_slice() else {
        panic!("{targets:?}")
    };
    assert_eq!(found.name, TARGET);
    assert_eq!(found.addresses, [format!("{},1", tgt.portal())]);
}

#[test]
fn commands_are_answered_and_data_are_those_of_the_file() {
    let tgt = Tgt::new().unwrap();
    let disk = File::open(tgt.disk()).unwrap();
    let mut seed = 0;
    for digest in [DigestPolicy::Never, DigestPolicy::Required] {
        let (digests, initial_r2t) = match digest {
            DigestPolicy::Required => ("CRC32C", "Yes"),
            _ => ("None", "No"),
        };
        for (key, value) in [
            ("HeaderDigest", digests),
            ("DataDigest", digests),
            ("InitialR2T", initial_r2t),
        ] {
            let update = "--mode target --op update --tid 1";
            tgt.admin(&format!("{update} --name {key} --value {value}"))
                .unwrap();
        }
        for (initial_r2t, immediate_data) in [(false, true), (true, true), (false, false)] {
            let offer = Offer {
                header_digest: digest,
                data_digest: digest,
                initial_r2t,
                immediate_data,
                ..Offer::default()
            };
            let initiator = connect(&tgt, Credentials::None, offer).unwrap();
            let State::Up(parameters) = initiator.state() else {
                panic!("{:?}", initiator.state())
            };
            let wanted = digest == DigestPolicy::Required;
            assert_eq!(parameters.digests(), (wanted, wanted));

            let inquiry = command(&[0x12, 0, 0, 0, 96, 0], Transfer::In(96));
            let inquiry = answer(&initiator, &inquiry);
            assert_eq!(&inquiry.data_in[8..24], b"IET     VIRTUAL-");
            let short = 96 - u32::try_from(inquiry.data_in.len()).unwrap();
            assert_eq!(inquiry.residual, Residual::Underflow(short));
            let mut cdb = [0; 16];
            cdb[..2].copy_from_slice(&[0x9e, 0x10]);
            cdb[13] = 32;
            let capacity = good(&initiator, &command(&cdb, Transfer::In(32)));
            let blocks = DISK_BYTES / u64::try_from(BLOCK_BYTES).unwrap();
            assert_eq!(capacity[..8], (blocks - 1).to_be_bytes());

            for kib in [4, 7, 64, 65, 256, 1024] {
                seed += 1;
                let data = pattern(seed, kib * 1024);
                let at = kib * 4096;
                good(&initiator, &write(at, data.clone()));
                let mut in_file = vec![0; data.len()];
                let offset = u64::try_from(at).unwrap();
                disk.read_exact_at(&mut in_file, offset).unwrap();
                assert!(in_file == data, "{kib} KiB written with {offer:?}");
                let back = good(&initiator, &read(at, data.len()));
                assert!(back == data, "{kib} KiB read with {offer:?}");
            }
            let beyond = usize::try_from(DISK_BYTES).unwrap();
            let refused = answer(&initiator, &read(beyond, 4096));
            assert_eq!(refused.status, 2);
            assert_eq!(sense_key(&refused), Some(5), "{refused:?}");
        }
    }
}

#[test]
fn many_commands_are_in_flight_at_once() {
    const DEPTH: usize = 32;
    const BYTES: usize = 64 * 1024;
    let tgt = Tgt::new().unwrap();
    let initiator = connect(&tgt, Credentials::None, Offer::default()).unwrap();
    good(&initiator, &read(0, 4096));
    for round in 0..8u64 {
        let (done, answers) = mpsc::channel();
        let data = |index: usize| pattern(round * 100 + u64::try_from(index).unwrap(), BYTES);
        for is_read in [false, true] {
            for index in 0..DEPTH {
                let at = index * BYTES;
                let done = done.clone();
                let command = if is_read {
                    read(at, BYTES)
                } else {
                    write(at, data(index))
                };
                let tell = move |outcome| done.send((index, outcome)).unwrap();
                initiator.submit(command, tell).unwrap();
            }
            for _ in 0..DEPTH {
                let (index, outcome) = answers.recv_timeout(PATIENCE).unwrap();
                let Outcome::Answered(answer) = outcome else {
                    panic!("{outcome:?}")
                };
                assert_eq!(answer.status, 0);
                assert!(!is_read || answer.data_in == data(index), "block {index}");
            }
        }
    }
}

#[test]
fn a_callback_may_submit_and_drop_the_initiator() {
    fn chain(initiator: Arc<Initiator>, left: usize, done: mpsc::Sender<usize>) {
        let next = Arc::clone(&initiator);
        let tell = move |outcome| match outcome {
            Outcome::Answered(_) if left > 0 => chain(next, left - 1, done),
            Outcome::Answered(_) => {
                drop(next);
                done.send(left).unwrap();
            }
            other => panic!("{other:?}"),
        };
        initiator.submit(read(left * 4096, 4096), tell).unwrap();
    }
    let tgt = Tgt::new().unwrap();
    let initiator = connect(&tgt, Credentials::None, Offer::default()).unwrap();
    let (done, ends) = mpsc::channel();
    let initiator = Arc::new(initiator);
    for _ in 0..4 {
        chain(Arc::clone(&initiator), 100, done.clone());
    }
    drop(initiator);
    for _ in 0..4 {
        assert_eq!(ends.recv_timeout(PATIENCE).unwrap(), 0);
    }
}

#[test]
fn chap_lets_in_who_knows_the_secret() {
    let tgt = Tgt::new().unwrap();
    tgt.admin("--mode account --op new --user guest --password s3cr3t-of-guest")
        .unwrap();
    tgt.admin("--mode account --op bind --tid 1 --user guest")
        .unwrap();
    let right = chap("guest", "s3cr3t-of-guest");
    let login = |credentials| connect(&tgt, credentials, Offer::default());

    good(
        &login(Credentials::Chap(right.clone())).unwrap(),
        &read(0, 4096),
    );
    for wrong in [
        Credentials::None,
        Credentials::Chap(chap("guest", "another-secret")),
        Credentials::Chap(chap("nobody", "s3cr3t-of-guest")),
    ] {
        let error = login(wrong).unwrap_err();
        assert!(error.contains("authentication"), "{error}");
    }

    tgt.admin("--mode account --op new --user tgt --password s3cr3t-of-target")
        .unwrap();
    tgt.admin("--mode account --op bind --tid 1 --user tgt --outgoing")
        .unwrap();
    let mutual = |name, secret| {
        let both = MutualChap::new(right.clone(), chap(name, secret)).unwrap();
        login(Credentials::MutualChap(both))
    };
    good(&mutual("tgt", "s3cr3t-of-target").unwrap(), &read(0, 4096));
    for (name, secret) in [("tgt", "another-secret"), ("other", "s3cr3t-of-target")] {
        let error = mutual(name, secret).unwrap_err();
        assert_eq!(error, SessionError::TargetUnproven.to_string());
    }
}

#[test]
fn a_wrong_target_or_portal_is_told() {
    let tgt = Tgt::new().unwrap();
    let mut target = target(&tgt, Credentials::None);
    target.name = "iqn.2026-01.org.orimono:other".parse().unwrap();
    let error = Initiator::connect(target.clone(), Options::default(), |_| {}).unwrap_err();
    let ConnectionError::Session { source, .. } = &*error else {
        panic!("{error:?}")
    };
    assert!(source.to_string().contains("no such target"), "{source}");
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
    target.portal = nobody.local_addr().unwrap();
    drop(nobody);
    let error = Initiator::connect(target, Options::default(), |_| {}).unwrap_err();
    assert!(
        matches!(*error, ConnectionError::Connect { .. }),
        "{error:?}"
    );
}

#[test]
fn a_reset_of_the_unit_ends_its_commands() {
    let tgt = Tgt::new().unwrap();
    let initiator = connect(&tgt, Credentials::None, Offer::default()).unwrap();
    good(&initiator, &read(0, 4096));
    let (done, outcomes) = mpsc::channel();
    for index in 0..32 {
        let done = done.clone();
        let tell = move |outcome| done.send(outcome).unwrap();
        initiator.submit(read(index << 20, 1 << 20), tell).unwrap();
    }
    drop(done);
    let (managed, outcome) = mpsc::channel();
    let reset = TaskFunction::LogicalUnitReset(lun_field(1).unwrap());
    let tell = move |outcome| managed.send(outcome).unwrap();
    initiator.manage(reset, tell).unwrap();
    let outcome = outcome.recv_timeout(PATIENCE).unwrap();
    assert_eq!(outcome, TaskFunctionOutcome::Complete);
    // All of them ended before the answer to the reset, whichever way.
    let outcomes: Vec<_> = outcomes.try_iter().collect();
    assert_eq!(outcomes.len(), 32);
    let expected = |outcome: &Outcome| matches!(outcome, Outcome::Answered(_) | Outcome::Aborted);
    assert!(outcomes.iter().all(expected));
    // The session goes on.
    good(&initiator, &read(0, 4096));
    assert!(matches!(initiator.state(), State::Up(_)));
}

/// Writers repeat what has an unknown fate until it is answered; so in the end every block is
/// what was written last.
#[test]
fn a_target_killed_under_load_is_logged_in_to_again() {
    const WRITERS: usize = 8;
    const BYTES: usize = 16 * 1024;
    let mut tgt = Tgt::new().unwrap();
    let (told, notices) = mpsc::channel();
    let notify = move |notice: &Notice<'_>| {
        let up = matches!(notice, Notice::Up(_));
        told.send(up).unwrap();
    };
    let options = Options {
        pause: (Duration::from_millis(20), Duration::from_millis(500)),
        ..Options::default()
    };
    let initiator = Initiator::start(target(&tgt, Credentials::None), options, notify).unwrap();
    assert!(notices.recv_timeout(PATIENCE).unwrap());
    let stop = AtomicBool::new(false);
    let written: Vec<AtomicU32> = (0..WRITERS).map(|_| AtomicU32::new(0)).collect();
    let unknown = AtomicU32::new(0);
    let data = |writer: usize, round: u32| {
        pattern(
            (u64::from(round) << 8) + u64::try_from(writer).unwrap(),
            BYTES,
        )
    };
    std::thread::scope(|scope| {
        for (writer, written) in written.iter().enumerate() {
            let (initiator, stop, unknown) = (&initiator, &stop, &unknown);
            scope.spawn(move || {
                let (done, outcomes) = mpsc::channel();
                let done = Arc::new(done);
                let mut round = 0;
                while !stop.load(Ordering::Relaxed) {
                    round += 1;
                    let mut command = write(writer * BYTES, data(writer, round));
                    loop {
                        let done = Arc::clone(&done);
                        let tell = move |outcome| done.send(outcome).unwrap();
                        if let Err(refused) = initiator.submit(command, tell) {
                            command = refused.command;
                            std::thread::yield_now();
                            continue;
                        }
                        command = match outcomes.recv_timeout(PATIENCE).unwrap() {
                            Outcome::Answered(answer) if answer.status == 0 => break,
                            Outcome::Answered(_) => write(writer * BYTES, data(writer, round)),
                            Outcome::UnknownFate(command) => {
                                unknown.fetch_add(1, Ordering::Relaxed);
                                command
                            }
                            Outcome::NotSent(command) => command,
                            other => panic!("{other:?}"),
                        };
                    }
                    written.store(round, Ordering::Relaxed);
                }
            });
        }
        let progress = || -> u32 {
            written
                .iter()
                .map(|round| round.load(Ordering::Relaxed))
                .sum()
        };
        for _ in 0..3 {
            let before = progress();
            let start = Instant::now();
            while progress() < before + 200 {
                assert!(start.elapsed() < PATIENCE, "no progress");
                std::thread::yield_now();
            }
            tgt.kill().unwrap();
            assert!(!notices.recv_timeout(PATIENCE).unwrap());
            tgt.restart().unwrap();
            // Some logins may fail before the target is set up.
            while !notices.recv_timeout(PATIENCE).unwrap() {}
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(unknown.load(Ordering::Relaxed) > 0, "nothing was in flight");
    for (writer, written) in written.iter().enumerate() {
        let back = good(&initiator, &read(writer * BYTES, BYTES));
        assert!(
            back == data(writer, written.load(Ordering::Relaxed)),
            "writer {writer}"
        );
    }
}
