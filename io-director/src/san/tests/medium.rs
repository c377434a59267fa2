//! Media that fail, do not answer or change their size, as a host sees it.

use fabric_config::MediumConfig;
use scsi_target::MediumErrorKind;

use super::super::backend::faulty::{self, Faults};
use super::*;
use crate::san::nexus::EXECUTORS_MAX;

const CHECK_CONDITION: u8 = 2;
const SYNCHRONIZE_CACHE: [u8; 10] = [0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Lets go what it holds up at the end of a test, whose director waits for it.
pub(super) struct Faulty(pub(super) Arc<Faults>);

impl std::ops::Deref for Faulty {
    type Target = Faults;

    fn deref(&self) -> &Faults {
        &self.0
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        self.0.stall(false);
    }
}

/// A lab whose LUN 0 fails as `Faults` say, after `timeout`; LUN 1 is as any other.
fn lab(timeout: Duration) -> (Lab, Faulty) {
    let mut faults = None;
    let lab = Lab::with(|config| {
        let [fast, slow] = &mut config.luns[..] else {
            panic!("two LUNs")
        };
        fast.timeout = timeout;
        slow.delay = Duration::ZERO;
        faults = fast.medium.path().map(faulty::of);
    });
    (lab, Faulty(faults.unwrap()))
}

pub(super) fn patient() -> (Lab, Faulty) {
    lab(Duration::from_secs(3600))
}

/// The sense key, ASC and ASCQ that ended `tag`, in fixed format.
fn sense(lab: &Lab, tag: u64) -> (u8, u8, u8) {
    let (response, status, sense, _) = lab.status(tag);
    assert_eq!(
        (response, status),
        (ServiceResponse::TaskComplete, CHECK_CONDITION)
    );
    (sense[2] & 0xf, sense[12], sense[13])
}

fn good(lab: &Lab, tag: u64) -> Vec<u8> {
    let (response, status, sense, data) = lab.status(tag);
    assert_eq!((response, status), GOOD, "{sense:x?}");
    data
}

fn lun_count(lab: &Lab, name: &str) -> u64 {
    let snapshots = lab.director.snapshot();
    let snapshot = snapshots
        .iter()
        .find(|snapshot| snapshot.object == "lun fast");
    snapshot.unwrap().count(name).unwrap()
}

/// Takes the unit attention that the first command to LUN 1 ends with.
fn greet_slow(lab: &Lab) {
    lab.send(MIXED, [command(8000, 1, &[0; 6], 0, 0)]);
    assert_eq!(sense(lab, 8000), (6, 0x29, 0));
}

#[test]
fn what_the_medium_cannot_do_is_told_by_its_sense() {
    let (lab, faults) = patient();
    for (kind, expected) in [
        (MediumErrorKind::Read, (3, 0x11, 0)),
        (MediumErrorKind::OutOfRange, (5, 0x21, 0)),
        (MediumErrorKind::Unavailable, (2, 0x04, 0)),
    ] {
        faults.fail_reads(Some(kind));
        lab.send(MIXED, [read(1, 0, 8, 8)]);
        assert_eq!(sense(&lab, 1), expected);
    }
    faults.fail_reads(None);
    for (kind, expected) in [
        (MediumErrorKind::Write, (3, 0x0c, 0)),
        (MediumErrorKind::NoSpace, (7, 0x27, 7)),
        (MediumErrorKind::WriteProtected, (7, 0x27, 0)),
    ] {
        faults.fail_writes(Some(kind));
        lab.send(MIXED, write(2, 0, 8, &[7; 4096]));
        assert_eq!(sense(&lab, 2), expected);
    }
    faults.fail_writes(None);
    lab.send(MIXED, write(3, 0, 8, &[7; 4096]));
    good(&lab, 3);
    assert_eq!(lun_count(&lab, "no_space"), 1);
    assert_eq!(lun_count(&lab, "write_protected"), 0);
}

#[test]
fn a_file_that_shrank_is_no_medium_error() {
    let (lab, _faults) = patient();
    let file = File::options()
        .write(true)
        .open(lab.folder.path().join("fast.img"));
    file.unwrap().set_len(4096).unwrap();
    lab.send(MIXED, [read(1, 0, 100, 8)]);
    let (response, status, sense, _) = loop {
        match lab.next() {
            Seen::Status {
                tag: 1,
                response,
                status,
                sense,
                ..
            } => break (response, status, sense, ()),
            // The change of size may have been seen first.
            Seen::Event(_) => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(
        (response, status),
        (ServiceResponse::TaskComplete, CHECK_CONDITION)
    );
    let expected = [(5, 0x21, 0), (6, 0x2a, 9)];
    assert!(expected.contains(&(sense[2] & 0xf, sense[12], sense[13])));
}

#[test]
fn after_a_failed_flush_the_unit_is_read_only_and_others_are_not() {
    let (lab, faults) = patient();
    greet_slow(&lab);
    lab.send(MIXED, write(1, 0, 8, &[7; 4096]));
    good(&lab, 1);
    faults.fail_flushes(Some(MediumErrorKind::Write));
    lab.send(MIXED, [command(2, 0, &SYNCHRONIZE_CACHE, 0, 0)]);
    assert_eq!(sense(&lab, 2), (3, 0x0c, 0));
    faults.fail_flushes(None);
    lab.send(MIXED, write(3, 0, 8, &[8; 4096]));
    assert_eq!(sense(&lab, 3), (7, 0x27, 0));
    lab.send(MIXED, [command(4, 0, &SYNCHRONIZE_CACHE, 0, 0)]);
    assert_eq!(sense(&lab, 4), (3, 0x0c, 0));
    lab.send(MIXED, [read(5, 0, 8, 8)]);
    assert_eq!(good(&lab, 5), [7; 4096]);
    assert_eq!(lun_count(&lab, "write_protected"), 1);
    lab.send(MIXED, write(6, 1, 8, &[8; 4096]));
    good(&lab, 6);
}

#[test]
fn commands_of_a_medium_that_does_not_answer_end_not_ready_and_it_recovers_by_itself() {
    let (lab, faults) = lab(Duration::from_millis(100));
    greet_slow(&lab);
    faults.stall(true);
    lab.send(MIXED, write(1, 0, 0, &[1; 4096]));
    faults.wait_stalled(1);
    assert_eq!(sense(&lab, 1), (2, 0x04, 0));
    assert_eq!(lun_count(&lab, "unreachable"), 1);
    // At once now, the same tag again, and whatever needs no medium goes on.
    for _ in 0..100 {
        lab.send(MIXED, [read(1, 0, 0, 8)]);
        assert_eq!(sense(&lab, 1), (2, 0x04, 0));
    }
    lab.send(MIXED, [command(2, 0, &[0x12, 0, 0, 0, 96, 0], 0, 96)]);
    assert_eq!(good(&lab, 2).len(), 96);
    lab.send(MIXED, [read(3, 1, 0, 8)]);
    good(&lab, 3);
    // Nobody waits for the overdue write, not even who wants it gone.
    lab.send(MIXED, [manage(TaskFunction::AbortTaskSet, 50, 0, 0)]);
    assert!(matches!(
        lab.next(),
        Seen::Management {
            tag: 50,
            response: TaskResponse::Complete
        }
    ));
    assert_eq!(lun_count(&lab, "timeouts"), 1);
    faults.stall(false);
    loop {
        lab.send(MIXED, write(4, 0, 0, &[4; 4096]));
        let (_, status, ..) = lab.status(4);
        if status == 0 {
            break;
        }
    }
    assert_eq!(lun_count(&lab, "unreachable"), 0);
    // The write that was given up came before the one that was not.
    lab.send(MIXED, [read(5, 0, 0, 8)]);
    assert_eq!(good(&lab, 5), [4; 4096]);
}

#[test]
fn a_function_that_waits_for_an_overdue_task_ends_with_it() {
    let (lab, faults) = lab(Duration::from_millis(100));
    faults.stall(true);
    lab.send(MIXED, [read(1, 0, 0, 8)]);
    faults.wait_stalled(1);
    lab.send(MIXED, [manage(TaskFunction::LogicalUnitReset, 50, 0, 0)]);
    let mut ended = Vec::new();
    for _ in 0..2 {
        match lab.next() {
            Seen::Status { tag: 1, .. } => ended.push(1),
            Seen::Management { tag: 50, .. } => ended.push(50),
            other => panic!("{other:?}"),
        }
    }
    ended.sort_unstable();
    assert_eq!(ended, [1, 50]);
    faults.stall(false);
}

#[test]
fn a_slow_medium_gets_several_commands_at_a_time_and_no_more_than_the_limit() {
    let (lab, faults) = patient();
    faults.stall(true);
    lab.send(MIXED, (0..40).map(|tag| read(tag, 0, 0, 8)));
    faults.wait_stalled(EXECUTORS_MAX);
    faults.stall(false);
    let mut ended = 0;
    while ended < 40 {
        match lab.next() {
            // More than the share of one of two LUNs is refused.
            Seen::Status {
                status: 0 | 0x28, ..
            } => ended += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(faults.waiting_peak(), EXECUTORS_MAX);
}

#[test]
fn an_ordered_command_is_alone_at_a_slow_medium() {
    let (lab, faults) = patient();
    faults.stall(true);
    lab.send(MIXED, [read(1, 0, 0, 8), read(2, 0, 0, 8)]);
    faults.wait_stalled(2);
    let cdb = [0x28, 0, 0, 0, 0, 0, 0, 0, 8, 0];
    let ordered = command_of(1, 3, (0, &cdb), 0, 4096);
    lab.send(MIXED, [ordered, read(4, 0, 0, 8)]);
    lab.wait_queued(MIXED, 4, 0);
    faults.stall(false);
    let mut ended = Vec::new();
    for _ in 0..4 {
        match lab.next() {
            Seen::Status { tag, status: 0, .. } => ended.push(tag),
            other => panic!("{other:?}"),
        }
    }
    ended[..2].sort_unstable();
    assert_eq!(ended, [1, 2, 3, 4]);
    assert_eq!(faults.waiting_peak(), 2);
}

#[test]
fn a_change_of_size_reaches_every_host_as_an_event_and_a_unit_attention() {
    let (lab, _faults) = patient();
    let file = File::options()
        .write(true)
        .open(lab.folder.path().join("slow.img"));
    let file = file.unwrap();
    greet_slow(&lab);
    for (bytes, blocks) in [(8_u64 << 20, 16384_u32), (2 << 20, 4096)] {
        file.set_len(bytes).unwrap();
        let mut told = Vec::new();
        for _ in 0..2 {
            match lab.seen.recv_timeout(PATIENCE).unwrap() {
                (device, Seen::Event(Event::ParameterChanged { lun, asc, ascq })) => {
                    assert_eq!((asc, ascq), (0x2a, 9));
                    told.push((device, lun[1]));
                }
                other => panic!("{other:?}"),
            }
        }
        told.sort_unstable();
        assert_eq!(told, [(MIXED, 1), (SHARING, 0)]);
        lab.send(MIXED, [command(1, 1, &[0; 6], 0, 0)]);
        assert_eq!(sense(&lab, 1), (6, 0x2a, 9));
        lab.send(
            MIXED,
            [command(2, 1, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0, 8)],
        );
        assert_eq!(good(&lab, 2)[..4], (blocks - 1).to_be_bytes());
    }
}

#[test]
fn memory_and_nothing_are_media_too() {
    let lab = Lab::with(|config| {
        config.luns[0].medium = MediumConfig::Ram { bytes: 8 << 20 };
        config.luns[1].medium = MediumConfig::Null { bytes: 8 << 20 };
        config.luns[1].delay = Duration::ZERO;
    });
    greet_slow(&lab);
    let data: Vec<u8> = (0..64 * 1024_u32)
        .map(|at| (at % 251).to_le_bytes()[0])
        .collect();
    for (lun, expected) in [(0, &data), (1, &vec![0; data.len()])] {
        lab.send(MIXED, write(1, lun, 100, &data));
        good(&lab, 1);
        lab.send(MIXED, [read(2, lun, 100, 128)]);
        assert!(good(&lab, 2) == *expected);
    }
}
