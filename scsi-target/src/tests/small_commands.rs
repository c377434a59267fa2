//! LOG SENSE, SEND DIAGNOSTIC, identifying information, timestamp, PRE-FETCH, ORWRITE, WRITE
//! ATOMIC, SANITIZE, FORMAT UNIT.

use std::sync::Arc;

use super::ram_device::{Fixture, LUN_0, RamDevice, run_at, second_nexus, sense_of};
use crate::{Clock, Identity, LogicalUnit, MediumErrorKind, Status};

/// A 16-byte CDB.
fn cdb_16(opcode: u8, flags: u8, lba: u64, blocks: u32) -> Vec<u8> {
    let mut cdb = vec![opcode, flags];
    cdb.extend(lba.to_be_bytes());
    cdb.extend(blocks.to_be_bytes());
    cdb.extend([0, 0]);
    cdb
}

#[test]
fn log_pages_are_listed_and_claim_no_measurement() {
    let fixture = Fixture::new(8);
    let log = |page: u8, subpage: u8, pointer: u8| {
        let cdb = [0x4D, 0, 0x40 | page, subpage, 0, 0, pointer, 1, 0, 0];
        fixture.run(&cdb, &[])
    };
    assert_eq!(log(0, 0, 0).1, [0, 0, 0, 3, 0x00, 0x0D, 0x2F]);
    let subpages = [0x40, 0xFF, 0, 8, 0, 0, 0, 0xFF, 0x0D, 0, 0x2F, 0];
    assert_eq!(log(0, 0xFF, 0).1, subpages);
    let reference = [0, 1, 3, 2, 0, 0xFF];
    let temperature = [&[0x0D, 0, 0, 12, 0, 0, 3, 2, 0, 0xFF][..], &reference].concat();
    assert_eq!(log(0x0D, 0, 0).1, temperature);
    let second = [&[0x0D, 0, 0, 6][..], &reference].concat();
    assert_eq!(log(0x0D, 0, 1).1, second);
    assert_eq!(
        log(0x2F, 0, 0).1,
        [0x2F, 0, 0, 8, 0, 0, 3, 4, 0, 0, 0xFF, 0]
    );
    for (page, subpage, pointer, byte) in [(0x0D, 0, 2, 5), (0x0D, 1, 0, 3), (0x15, 0, 0, 2)] {
        let sense = log(page, subpage, pointer).0.sense.unwrap();
        assert_eq!(
            (sense.additional.asc, sense.field.unwrap().byte),
            (0x24, byte)
        );
    }
    // SP: nothing can be saved.
    let saved = [0x4D, 1, 0x40, 0, 0, 0, 0, 1, 0, 0];
    assert_eq!(fixture.sense(&saved, &[]), (5, 0x24, 0));
}

#[test]
fn self_test_reads_both_ends_of_the_medium() {
    let fixture = Fixture::new(8);
    fixture.good(&[0x1D, 0x04, 0, 0, 0, 0], &[]);
    fixture.good(&[0x1D, 0x10, 0, 0, 0, 0], &[]);
    fixture.device.fail_at(Some((7, MediumErrorKind::Read)));
    assert_eq!(fixture.sense(&[0x1D, 0x04, 0, 0, 0, 0], &[]), (4, 0x3E, 3));
    fixture.good(&[0x1D, 0x10, 0, 0, 0, 0], &[]);
    // A parameter list, and an extended self-test.
    for cdb in [[0x1D, 0x10, 0, 0, 4, 0], [0x1D, 0x40, 0, 0, 0, 0]] {
        assert_eq!(fixture.sense(&cdb, &[0; 4]), (5, 0x24, 0));
    }
}

#[derive(Debug)]
struct Noon;

impl Clock for Noon {
    fn unix_milliseconds(&self) -> u64 {
        0x0123_4567_89AB_CDEF
    }
}

#[test]
fn identifying_information_is_empty_and_the_time_needs_a_clock() {
    let fixture = Fixture::new(8);
    let identify = |kind: u8| [0xA3, 0x05, 0, 0, 0, 0, 0, 0, 1, 0, kind << 1, 0];
    for kind in [0, 2, 0x7F] {
        assert_eq!(fixture.good(&identify(kind), &[]), [0; 4]);
    }
    assert_eq!(fixture.sense(&identify(1), &[]), (5, 0x24, 0));
    let timestamp = [0xA3, 0x0F, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0];
    assert_eq!(fixture.sense(&timestamp, &[]), (5, 0x24, 0));
    let device = Arc::new(RamDevice::new(512, 8, false));
    let unit = LogicalUnit::new(Identity::from_serial("s").unwrap(), device).unwrap();
    let nexus = second_nexus(&Arc::new(unit.with_clock(Arc::new(Noon))), 1);
    assert_eq!(sense_of(&nexus, LUN_0, &[0; 6], &[]), (6, 0x29, 0));
    let (_, data) = run_at(&nexus, LUN_0, &timestamp, &[]);
    assert_eq!(
        data,
        [0, 10, 3, 0, 0x45, 0x67, 0x89, 0xAB, 0xCD, 0xEF, 0, 0]
    );
}

#[test]
fn pre_fetch_is_good_inside_the_unit() {
    let fixture = Fixture::new(64);
    for cdb in [
        vec![0x34, 0x02, 0, 0, 0, 60, 0x1F, 0, 4, 0],
        vec![0x34, 0, 0, 0, 0, 64, 0, 0, 0, 0],
        cdb_16(0x90, 2, 0, 64),
        cdb_16(0x90, 0, 64, 0),
    ] {
        assert!(fixture.good(&cdb, &[]).is_empty());
    }
    for cdb in [
        vec![0x34, 0, 0, 0, 0, 60, 0, 0, 5, 0],
        cdb_16(0x90, 0, 65, 0),
        cdb_16(0x90, 0, u64::MAX, 2),
    ] {
        assert_eq!(fixture.sense(&cdb, &[]), (5, 0x21, 0));
    }
}

#[test]
fn or_write_sets_bits_and_clears_none() {
    let fixture = Fixture::new(64);
    fixture.good(&cdb_16(0x8A, 0, 3, 1), &[0x0F; 512]);
    fixture.good(&cdb_16(0x8B, 0x18, 3, 2), &[0xA0; 1024]);
    let contents = fixture.device.contents();
    assert_eq!(contents[3 * 512..4 * 512], [0xAF; 512]);
    assert_eq!(contents[4 * 512..5 * 512], [0xA0; 512]);
    fixture.good(&cdb_16(0x8B, 0, 64, 0), &[]);
    assert_eq!(
        fixture.sense(&cdb_16(0x8B, 0, 63, 2), &[0; 1024]),
        (5, 0x21, 0)
    );
    assert_eq!(
        fixture.sense(&cdb_16(0x8B, 0, 3, 2), &[0; 1023]),
        (5, 0x24, 0)
    );
    assert_eq!(
        fixture.sense(&cdb_16(0x8B, 0x20, 3, 1), &[0; 512]),
        (5, 0x24, 0)
    );
    assert_eq!(fixture.device.contents(), contents);
}

#[test]
fn write_atomic_is_there_where_the_device_can() {
    let cdb = |lba: u8, boundary: u8, blocks: u8| {
        [
            0x9C, 0, 0, 0, 0, 0, 0, 0, 0, lba, 0, boundary, 0, blocks, 0, 0,
        ]
    };
    let plain = Fixture::new(64);
    assert_eq!(plain.sense(&cdb(0, 0, 1), &[0; 512]), (5, 0x20, 0));
    let limits = |fixture: &Fixture| fixture.good(&[0x12, 1, 0xB0, 0, 64, 0], &[])[44..].to_vec();
    assert_eq!(limits(&plain), [0; 20]);
    let fixture = Fixture::with_device(RamDevice::new(512, 64, true).with_atomic_blocks(8));
    assert_eq!(limits(&fixture)[..4], [0, 0, 0, 8]);
    fixture.good(&cdb(1, 0, 8), &[5; 4096]);
    assert_eq!(fixture.device.contents()[512..4608], [5; 4096]);
    fixture.good(&cdb(64, 0, 0), &[]);
    assert_eq!(fixture.sense(&cdb(1, 0, 9), &[5; 4608]), (5, 0x24, 0));
    assert_eq!(fixture.sense(&cdb(1, 1, 8), &[5; 4096]), (5, 0x24, 0));
    assert_eq!(fixture.sense(&cdb(60, 0, 5), &[5; 2560]), (5, 0x21, 0));
}

fn sanitize(action: u8, bytes: u16) -> [u8; 10] {
    let [high, low] = bytes.to_be_bytes();
    [0x48, action, 0, 0, 0, 0, 0, high, low, 0]
}

#[test]
fn sanitize_overwrites_or_unmaps_every_block() {
    let fixture = Fixture::new(200);
    fixture.good(&cdb_16(0x93, 0, 0, 200), &[7; 512]);
    // Three passes that invert: 11, ee, 11 in each byte; the pattern begins anew in each block.
    let list = [&[0x83, 0, 0, 3][..], &[0x11, 0x22, 0x33]].concat();
    fixture.good(&sanitize(0x01, 7), &list);
    let block: Vec<u8> = [0x11, 0x22, 0x33].into_iter().cycle().take(512).collect();
    assert_eq!(fixture.device.contents(), block.repeat(200));
    let list = [&[0x82, 0, 0, 1][..], &[0xF0]].concat();
    fixture.good(&sanitize(0x01, 5), &list);
    assert_eq!(fixture.device.contents(), vec![0x0F; 200 * 512]);
    assert_eq!(
        fixture
            .device
            .flushes
            .load(std::sync::atomic::Ordering::SeqCst),
        2
    );
    fixture.good(&sanitize(0x82, 0), &[]);
    assert_eq!(fixture.device.contents(), vec![0; 200 * 512]);
    let status = fixture.good(&cdb_16(0x9E, 0x12, 0, 64), &[]);
    assert_eq!(status[8..21], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 200, 1]);
}

#[test]
fn malformed_sanitize_commands_change_nothing() {
    let fixture = Fixture::new(8);
    fixture.good(&cdb_16(0x93, 0, 0, 8), &[7; 512]);
    let pattern = |first: u8, told: u16, given: usize| {
        let mut list = vec![first, 0];
        list.extend(told.to_be_bytes());
        list.resize(4 + given, 0);
        list
    };
    for list in [
        vec![],
        vec![1, 0, 0],
        pattern(1, 0, 0),
        pattern(1, 513, 513),
        pattern(0, 4, 4),
        pattern(0x21, 4, 4),
        pattern(1, 5, 4),
        pattern(1, 3, 4),
        pattern(1, 0, 4),
    ] {
        let cdb = sanitize(0x01, u16::try_from(list.len()).unwrap());
        let (key, asc, _) = fixture.sense(&cdb, &list);
        assert!(key == 5 && [0x24, 0x26].contains(&asc), "{list:02x?}");
    }
    for action in [0x02, 0x1F] {
        assert_eq!(fixture.sense(&sanitize(action, 8), &[0; 8]), (5, 0x24, 0));
    }
    // Cryptographic erasure, and none where blocks cannot be unmapped.
    assert_eq!(fixture.sense(&sanitize(0x03, 0), &[]), (5, 0x24, 0));
    let full = Fixture::with_device(RamDevice::new(512, 8, false));
    assert_eq!(full.sense(&sanitize(0x02, 0), &[]), (5, 0x24, 0));
    assert_eq!(fixture.device.contents(), vec![7; 8 * 512]);
}

#[test]
fn failed_sanitize_locks_the_unit_until_it_succeeds_or_may_be_left() {
    let fixture = Fixture::new(2048);
    let erase_unrestricted = sanitize(0x22, 0);
    for (erase, may_leave) in [(sanitize(0x02, 0), false), (erase_unrestricted, true)] {
        fixture.device.fail_at(Some((5, MediumErrorKind::Write)));
        assert_eq!(fixture.sense(&erase, &[]), (3, 0x31, 3));
        fixture.device.fail_at(None);
        let response = fixture
            .nexus
            .task_management(crate::TaskManagementFunction::LogicalUnitReset, LUN_0);
        assert_ne!(response, crate::TaskManagementResponse::FunctionRejected);
        assert_eq!(fixture.sense(&[0; 6], &[]), (6, 0x29, 3));
        assert_eq!(fixture.sense(&[0; 6], &[]), (3, 0x31, 3));
        assert_eq!(fixture.sense(&cdb_16(0x88, 0, 0, 1), &[]), (3, 0x31, 3));
        assert_eq!(fixture.good(&[0x03, 0, 0, 0, 18, 0], &[])[12], 0x31);
        fixture.good(&[0x12, 0, 0, 0, 36, 0], &[]);
        if may_leave {
            fixture.good(&sanitize(0x1F, 0), &[]);
        } else {
            assert_eq!(fixture.sense(&sanitize(0x1F, 0), &[]), (5, 0x24, 0));
            fixture.good(&erase, &[]);
        }
        fixture.good(&[0; 6], &[]);
    }
}

#[test]
fn others_are_told_of_the_progress_of_sanitize() {
    let fixture = Fixture::new(2048);
    let other = second_nexus(&fixture.unit, 2);
    assert_eq!(sense_of(&other, LUN_0, &[0; 6], &[]), (6, 0x29, 0));
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let notes = seen.clone();
    // Asked from inside the device, between two pieces.
    fixture.device.on_write(move || {
        let (completion, _) = run_at(&other, LUN_0, &[0; 6], &[]);
        notes.lock().unwrap().push(completion.sense.unwrap());
        let (completion, data) = run_at(&other, LUN_0, &[0x03, 0, 0, 0, 18, 0], &[]);
        assert_eq!(completion.status, Status::Good);
        assert_eq!((data[2], data[12], data[13], data[15]), (2, 4, 0x1B, 0x80));
    });
    fixture.good(&sanitize(0x01, 5), &[1, 0, 0, 1, 9]);
    let seen = seen.lock().unwrap();
    // 2048 blocks of 512 bytes in pieces of 64 KiB.
    assert_eq!(seen.len(), 16);
    for (sense, step) in seen.iter().zip(0_u16..) {
        assert_eq!((sense.key.code(), sense.additional.ascq), (2, 0x1B));
        assert_eq!(sense.progress, Some(step * 4096));
    }
    fixture.good(&[0; 6], &[]);
}

fn format(flags: u8) -> [u8; 6] {
    [0x04, flags, 0, 0, 0, 0]
}

const FMTDATA: u8 = 0x10;
const LONGLIST: u8 = 0x20;

#[test]
fn format_takes_the_backing_of_every_block_or_makes_it_zeroes() {
    for thin in [true, false] {
        let fixture = Fixture::with_device(RamDevice::new(512, 200, thin));
        for (cdb, list) in [
            (format(0), &[][..]),
            (format(FMTDATA), &[0, 0x02, 0, 0]),
            // What sg_format sends: CMPLST, and DCRT with FOV.
            (format(FMTDATA | 0x08), &[0, 0xA2, 0, 0]),
            (format(FMTDATA | LONGLIST), &[0, 0, 0, 0, 0, 0, 0, 0]),
        ] {
            fixture.good(&cdb_16(0x93, 0, 0, 200), &[7; 512]);
            fixture.good(&cdb, list);
            assert_eq!(fixture.device.contents(), vec![0; 200 * 512]);
            let status = fixture.good(&cdb_16(0x9E, 0x12, 0, 64), &[]);
            assert_eq!(status[19..21], [200, u8::from(thin)]);
        }
        let flushes = &fixture.device.flushes;
        assert_eq!(flushes.load(std::sync::atomic::Ordering::SeqCst), 4);
    }
}

#[test]
fn format_with_defects_protection_or_a_pattern_changes_nothing() {
    let fixture = Fixture::new(8);
    fixture.good(&cdb_16(0x93, 0, 0, 8), &[7; 512]);
    let (data, long) = (FMTDATA, FMTDATA | LONGLIST);
    // FMTPINFO, DEFECT LIST FORMAT, CMPLST or LONGLIST without data.
    for flags in [0x40, 0x80, data | 0x40, data | 0x04, 0x08, LONGLIST] {
        assert_eq!(fixture.sense(&format(flags), &[0; 4]), (5, 0x24, 0));
    }
    // FFMT.
    assert_eq!(fixture.sense(&[4, 0, 0, 0, 1, 0], &[]), (5, 0x24, 0));
    for (flags, list) in [
        (data, &[1, 0, 0, 0][..]),
        // DCRT without FOV, IP, a vendor's bit.
        (data, &[0, 0x20, 0, 0]),
        (data, &[0, 0x88, 0, 0]),
        (data, &[0, 0x01, 0, 0]),
        // A defect.
        (data, &[0, 0, 0, 4, 0, 0, 0, 1]),
        (long, &[0, 0, 0, 0, 0, 0, 0, 8]),
        (long, &[0, 0, 0, 0x10, 0, 0, 0, 0]),
    ] {
        assert_eq!(
            fixture.sense(&format(flags), list),
            (5, 0x26, 0),
            "{list:x?}"
        );
    }
    for (flags, list) in [(data, &[0; 3][..]), (long, &[0; 4]), (data, &[])] {
        assert_eq!(fixture.sense(&format(flags), list), (5, 0x1A, 0));
    }
    fixture
        .device
        .read_only
        .store(true, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(fixture.sense(&format(0), &[]), (7, 0x27, 0));
    fixture
        .device
        .read_only
        .store(false, std::sync::atomic::Ordering::SeqCst);
    let other = second_nexus(&fixture.unit, 2);
    assert_eq!(sense_of(&other, LUN_0, &[0; 6], &[]), (6, 0x29, 0));
    let (completion, _) = run_at(&other, LUN_0, &[0x16, 0, 0, 0, 0, 0], &[]);
    assert_eq!(completion.status, Status::Good);
    let (completion, _) = fixture.run(&format(0), &[]);
    assert_eq!(completion.status, Status::ReservationConflict);
    assert_eq!(fixture.device.contents(), vec![7; 8 * 512]);
}

#[test]
fn failed_format_locks_the_unit_until_one_succeeds() {
    let fixture = Fixture::new(2048);
    fixture.device.fail_at(Some((5, MediumErrorKind::Write)));
    assert_eq!(fixture.sense(&format(0), &[]), (3, 0x31, 0));
    fixture.device.fail_at(None);
    for cdb in [&cdb_16(0x88, 0, 0, 1)[..], &[0; 6], &sanitize(0x1F, 0)] {
        assert_eq!(fixture.sense(cdb, &[]), (3, 0x31, 0));
    }
    assert_eq!(fixture.good(&[0x03, 0, 0, 0, 18, 0], &[])[12], 0x31);
    fixture.good(&format(0), &[]);
    fixture.good(&cdb_16(0x88, 0, 0, 1), &[]);
}

#[test]
fn others_are_told_of_the_progress_of_format() {
    let fixture = Fixture::with_device(RamDevice::new(512, 8192, false));
    let other = second_nexus(&fixture.unit, 2);
    assert_eq!(sense_of(&other, LUN_0, &[0; 6], &[]), (6, 0x29, 0));
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let notes = seen.clone();
    fixture.device.on_write(move || {
        let (completion, _) = run_at(&other, LUN_0, &[0; 6], &[]);
        notes.lock().unwrap().push(completion.sense.unwrap());
        let (_, data) = run_at(&other, LUN_0, &[0x03, 0, 0, 0, 18, 0], &[]);
        assert_eq!((data[2], data[12], data[13], data[15]), (2, 4, 4, 0x80));
    });
    fixture.good(&format(FMTDATA), &[0, 0x02, 0, 0]);
    let seen = seen.lock().unwrap();
    // In pieces of 1 MiB, each of which the device writes in pieces of 64 KiB.
    assert_eq!(seen.len(), 64);
    let progress: Vec<_> = seen.iter().map(|sense| sense.progress.unwrap()).collect();
    for (progress, step) in progress.chunks(16).zip(0_u16..) {
        assert_eq!(progress, [step << 14; 16]);
    }
    fixture.good(&[0; 6], &[]);
}
