//! Single cases of reading, writing, comparing and unmapping; sequences are in `model`.

use std::sync::atomic::Ordering;

use super::ram_device::{Fixture, RamDevice};
use crate::{MediumErrorKind, Sense, Status, TRANSFER_BYTES_MAX};

/// A 10-byte CDB.
fn cdb_10(opcode: u8, flags: u8, lba: u32, blocks: u16) -> Vec<u8> {
    let mut cdb = vec![opcode, flags];
    cdb.extend(lba.to_be_bytes());
    cdb.push(0);
    cdb.extend(blocks.to_be_bytes());
    cdb.push(0);
    cdb
}

/// A 12-byte CDB.
fn cdb_12(opcode: u8, flags: u8, lba: u32, blocks: u32) -> Vec<u8> {
    let mut cdb = vec![opcode, flags];
    cdb.extend(lba.to_be_bytes());
    cdb.extend(blocks.to_be_bytes());
    cdb.extend([0, 0]);
    cdb
}

/// A 16-byte CDB.
fn cdb_16(opcode: u8, flags: u8, lba: u64, blocks: u32) -> Vec<u8> {
    let mut cdb = vec![opcode, flags];
    cdb.extend(lba.to_be_bytes());
    cdb.extend(blocks.to_be_bytes());
    cdb.extend([0, 0]);
    cdb
}

fn compare_and_write(lba: u64, blocks: u8) -> Vec<u8> {
    let mut cdb = cdb_16(0x89, 0, lba, 0);
    cdb[13] = blocks;
    cdb
}

fn numbered_blocks(count: u8) -> Vec<u8> {
    (1..=count).flat_map(|number| [number; 512]).collect()
}

fn failed(fixture: &Fixture, cdb: &[u8], data_out: &[u8]) -> Sense {
    fixture.run(cdb, data_out).0.sense.unwrap()
}

#[test]
fn every_cdb_length_reads_what_every_other_wrote() {
    let fixture = Fixture::new(1024);
    let data = numbered_blocks(2);
    let writes = [
        vec![0x0A, 0, 0, 10, 2, 0],
        cdb_10(0x2A, 0x18, 20, 2),
        cdb_12(0xAA, 0x08, 30, 2),
        cdb_16(0x8A, 0x10, 40, 2),
    ];
    for cdb in &writes {
        let (completion, _) = fixture.run(cdb, &data);
        assert_eq!(
            (completion.status, completion.data_out_used_bytes),
            (Status::Good, 1024)
        );
    }
    for lba in [10, 20, 30, 40] {
        let wide = u32::from(lba);
        assert_eq!(fixture.good(&[0x08, 0, 0, lba, 2, 0], &[]), data);
        assert_eq!(fixture.good(&cdb_10(0x28, 0, wide, 2), &[]), data);
        assert_eq!(fixture.good(&cdb_12(0xA8, 0, wide, 2), &[]), data);
        assert_eq!(fixture.good(&cdb_16(0x88, 0, u64::from(lba), 2), &[]), data);
    }
    // In 6-byte CDBs zero means 256, and the high bits of the LBA stand in byte 1.
    assert_eq!(fixture.good(&[0x08, 0, 0, 0, 0, 0], &[]).len(), 256 * 512);
    assert_eq!(fixture.sense(&[0x08, 0x1F, 0, 0, 1, 0], &[]), (5, 0x21, 0));
}

#[test]
fn fua_and_zero_length_do_what_they_say() {
    let fixture = Fixture::new(64);
    fixture.good(&cdb_10(0x2A, 0x08, 0, 1), &[1; 512]);
    assert!(fixture.device.last_fua.load(Ordering::SeqCst));
    fixture.good(&cdb_10(0x2A, 0x10, 0, 1), &[1; 512]);
    assert!(!fixture.device.last_fua.load(Ordering::SeqCst));
    fixture.good(&cdb_10(0x2E, 0x00, 0, 1), &[1; 512]);
    assert!(fixture.device.last_fua.load(Ordering::SeqCst));
    let swap = [[1; 512], [1; 512]].concat();
    for (flags, durable) in [(0x00, false), (0x08, true), (0x10, false)] {
        let mut cdb = compare_and_write(0, 1);
        cdb[1] = flags;
        fixture.good(&cdb, &swap);
        assert_eq!(fixture.device.last_fua.load(Ordering::SeqCst), durable);
    }
    fixture.good(&cdb_10(0x28, 0x08, 0, 1), &[]);
    assert_eq!(fixture.device.flushes.load(Ordering::SeqCst), 1);
    for cdb in [
        cdb_10(0x28, 0, 64, 0),
        cdb_10(0x2A, 0, 64, 0),
        cdb_10(0x2E, 2, 64, 0),
        cdb_10(0x2F, 2, 64, 0),
        cdb_10(0x2F, 6, 64, 0),
        compare_and_write(64, 0),
        cdb_10(0x42, 0, 0, 0),
    ] {
        assert!(fixture.good(&cdb, &[]).is_empty(), "{cdb:02x?}");
        let mut beyond = cdb;
        if beyond[0] != 0x42 {
            let last = if beyond[0] == 0x89 { 9 } else { 5 };
            beyond[last] += 1;
            assert_eq!(fixture.sense(&beyond, &[]), (5, 0x21, 0), "{beyond:02x?}");
        }
    }
    assert_eq!(fixture.device.contents()[..512], [1; 512]);
}

#[test]
fn ranges_that_end_beyond_the_unit_or_wrap_are_refused() {
    // S-09
    let fixture = Fixture::new(64);
    let data = vec![1; 1 << 20];
    for (opcode, flags) in [
        (0x88, 0),
        (0x8A, 0),
        (0x8E, 0),
        (0x8F, 0),
        (0x8F, 2),
        (0x91, 0),
        (0x93, 0),
        (0x93, 8),
    ] {
        for (lba, blocks) in [
            (64, 1),
            (63, 2),
            (0, 65),
            (u64::MAX, 1),
            (u64::MAX, u32::MAX),
            (u64::MAX - 1, 2),
            (1 << 63, 1),
            (u64::from(u32::MAX), u32::MAX),
        ] {
            let sense = failed(&fixture, &cdb_16(opcode, flags, lba, blocks), &data);
            assert_eq!(
                sense.additional.asc, 0x21,
                "{opcode:02x} {lba:x} {blocks:x}"
            );
        }
    }
    for lba in [64, u64::MAX] {
        assert_eq!(
            fixture.sense(&compare_and_write(lba, 1), &data),
            (5, 0x21, 0)
        );
        assert_eq!(
            fixture.sense(&cdb_16(0x9E, 0x12, lba, 64), &data),
            (5, 0x21, 0)
        );
    }
    assert_eq!(fixture.device.contents(), vec![0; 64 * 512]);
}

#[test]
fn transfers_above_the_limit_are_refused_and_at_the_limit_run() {
    let fixture = Fixture::new(8192);
    let most = TRANSFER_BYTES_MAX / 512;
    let data = vec![3; 2 << 20];
    for (opcode, flags) in [(0x88, 0), (0x8A, 0), (0x8E, 0), (0x8F, 0), (0x8F, 2)] {
        let over = cdb_16(opcode, flags, 0, most + 1);
        assert_eq!(fixture.sense(&over, &data), (5, 0x24, 0));
        fixture.good(&cdb_16(opcode, flags, 0, most), &data);
    }
    let sense = failed(&fixture, &cdb_16(0x93, 0, 0, 0), &data);
    assert_eq!(sense.field.unwrap().byte, 10);
    assert_eq!(
        failed(&fixture, &cdb_10(0x41, 0, 0, 0), &data)
            .field
            .unwrap()
            .byte,
        7
    );
    fixture.device.blocks.store(1 << 20, Ordering::SeqCst);
    assert_eq!(
        fixture.sense(&cdb_16(0x93, 0, 0, 65537), &data),
        (5, 0x24, 0)
    );
    let small_units = Fixture::with_device(RamDevice::new(4096, 300, false));
    assert_eq!(
        small_units.sense(&compare_and_write(0, 129), &data),
        (5, 0x24, 0)
    );
    small_units.good(
        &compare_and_write(0, 128),
        &[vec![0; 1 << 19], vec![9; 1 << 19]].concat(),
    );
    assert_eq!(small_units.device.contents()[..1 << 19], vec![9; 1 << 19]);
}

#[test]
fn short_data_out_is_refused_and_nothing_is_written() {
    let fixture = Fixture::new(64);
    let data = vec![7; 4096];
    for (cdb, needed) in [
        (vec![0x0A, 0, 0, 0, 2, 0], 1024),
        (cdb_10(0x2A, 0, 0, 2), 1024),
        (cdb_12(0xAA, 0, 0, 2), 1024),
        (cdb_16(0x8A, 0, 0, 2), 1024),
        (cdb_10(0x2E, 0, 0, 2), 1024),
        (cdb_10(0x2E, 2, 0, 2), 1024),
        (cdb_10(0x2F, 2, 0, 2), 1024),
        (cdb_10(0x2F, 6, 0, 2), 512),
        (cdb_10(0x41, 0, 0, 2), 512),
        (cdb_16(0x93, 0, 0, 2), 512),
        (compare_and_write(0, 2), 2048),
    ] {
        for given in [0, 1, needed / 2, needed - 1] {
            let (completion, _) = fixture.run(&cdb, &data[..given]);
            assert_eq!(
                completion.sense.unwrap().additional.asc,
                0x24,
                "{cdb:02x?} {given}"
            );
            assert_eq!(completion.data_out_used_bytes, 0);
        }
    }
    assert_eq!(
        fixture.sense(&cdb_10(0x42, 0, 0, 24), &data[..23]),
        (5, 0x1A, 0)
    );
    assert_eq!(fixture.device.contents(), vec![0; 64 * 512]);
}

#[test]
fn protection_group_and_obsolete_bits_are_refused_with_a_pointer() {
    // S-17
    let fixture = Fixture::new(64);
    for opcode in [0x28, 0x2A, 0x2E, 0x2F, 0x41] {
        for protect in 1..8 {
            let sense = failed(&fixture, &cdb_10(opcode, protect << 5, 0, 1), &[0; 512]);
            assert_eq!((sense.additional.asc, sense.field.unwrap().byte), (0x24, 1));
        }
        for (byte, mask) in [(6, 0x01), (9, 0x04)] {
            let mut cdb = cdb_10(opcode, 0, 0, 1);
            cdb[byte] = mask;
            let sense = failed(&fixture, &cdb, &[0; 512]);
            assert_eq!(usize::from(sense.field.unwrap().byte), byte);
        }
    }
    let sense = failed(&fixture, &cdb_10(0x28, 0x20, 0, 1), &[]);
    assert_eq!(sense.field.unwrap().bit, Some(5));
    assert_eq!(
        fixture.sense(&cdb_10(0x2F, 0x04, 0, 1), &[0; 512]),
        (5, 0x24, 0)
    );
    assert_eq!(
        fixture.sense(&cdb_16(0x93, 0x10, 0, 1), &[0; 512]),
        (5, 0x24, 0)
    );
    assert_eq!(
        fixture.sense(&cdb_10(0x2E, 0x04, 0, 1), &[0; 512]),
        (5, 0x24, 0)
    );
    assert_eq!(fixture.sense(&cdb_10(0x42, 0x01, 0, 0), &[]), (5, 0x24, 0));
}

#[test]
fn verify_finds_the_first_block_that_differs() {
    let fixture = Fixture::new(1024);
    let data: Vec<u8> = (0..300 * 512_u32).map(|at| at.to_le_bytes()[1]).collect();
    fixture.good(&cdb_10(0x2A, 0, 4, 300), &data);
    fixture.good(&cdb_10(0x2F, 0, 0, 304), &[]);
    fixture.good(&cdb_10(0x2F, 2, 4, 300), &data);
    let mut wrong = data.clone();
    wrong[299 * 512 + 511] ^= 1;
    let sense = failed(&fixture, &cdb_10(0x2F, 2, 4, 300), &wrong);
    assert_eq!(
        sense.encode(crate::SenseFormat::Fixed),
        [
            0xF0, 0, 0x0E, 0, 0, 0x01, 0x2F, 10, 0, 0, 0, 0, 0x1D, 0, 0, 0, 0, 0
        ]
    );
    fixture.good(&cdb_10(0x41, 0, 600, 200), &[5; 512]);
    fixture.good(&cdb_16(0x8F, 6, 600, 200), &[5; 512]);
    let sense = failed(&fixture, &cdb_12(0xAF, 6, 600, 201), &[5; 512]);
    assert_eq!((sense.key.code(), sense.information), (0x0E, Some(800)));
}

#[test]
fn compare_and_write_tells_the_offset_of_the_first_difference() {
    let fixture = Fixture::new(64);
    let old = numbered_blocks(3);
    fixture.good(&cdb_10(0x2A, 0, 5, 3), &old);
    let mut expected = old.clone();
    expected[1025] ^= 0x80;
    let sense = failed(
        &fixture,
        &compare_and_write(5, 3),
        &[expected, vec![9; 1536]].concat(),
    );
    assert_eq!(
        (sense.key.code(), sense.additional.asc, sense.information),
        (0x0E, 0x1D, Some(1025))
    );
    assert_eq!(fixture.good(&cdb_10(0x28, 0, 5, 3), &[]), old);
    let (completion, _) = fixture.run(&compare_and_write(5, 3), &[old, vec![9; 1536]].concat());
    assert_eq!(
        (completion.status, completion.data_out_used_bytes),
        (Status::Good, 3072)
    );
    assert_eq!(fixture.good(&cdb_10(0x28, 0, 5, 3), &[]), vec![9; 1536]);
}

#[test]
fn compare_and_write_of_many_threads_loses_no_increment() {
    let fixture = Fixture::new(8);
    let counted = |block: &[u8]| u64::from_be_bytes(block[..8].try_into().unwrap());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..100 {
                    loop {
                        let old = fixture.good(&cdb_10(0x28, 0, 3, 1), &[]);
                        let mut new = old.clone();
                        new[..8].copy_from_slice(&(counted(&old) + 1).to_be_bytes());
                        let data = [old, new].concat();
                        if fixture.run(&compare_and_write(3, 1), &data).0.status == Status::Good {
                            break;
                        }
                    }
                }
            });
        }
    });
    assert_eq!(counted(&fixture.good(&cdb_10(0x28, 0, 3, 1), &[])), 400);
}

#[test]
fn write_same_repeats_writes_zeroes_or_unmaps() {
    let fixture = Fixture::new(1024);
    fixture.good(&cdb_10(0x41, 0, 10, 300), &[0xA6; 512]);
    assert_eq!(
        fixture.device.contents()[10 * 512..310 * 512],
        vec![0xA6; 300 * 512]
    );
    assert_eq!(fixture.device.contents()[310 * 512..], vec![0; 714 * 512]);
    // UNMAP with a pattern that unmapped blocks cannot read as: written.
    fixture.good(&cdb_16(0x93, 0x08, 10, 1), &[0x11; 512]);
    assert_eq!(fixture.device.contents()[10 * 512..11 * 512], [0x11; 512]);
    let status = |lba| {
        let data = fixture.good(&cdb_16(0x9E, 0x12, lba, 24), &[]);
        (
            u32::from_be_bytes(data[16..20].try_into().unwrap()),
            data[20],
        )
    };
    assert_eq!(status(10), (300, 0));
    fixture.good(&cdb_16(0x93, 0x09, 20, 5), &[]);
    assert_eq!(status(20), (5, 1));
    fixture.good(&cdb_16(0x93, 0x01, 20, 5), &[]);
    assert_eq!(status(20), (290, 0));
    assert_eq!(fixture.device.contents()[20 * 512..25 * 512], [0; 5 * 512]);
    fixture.good(&cdb_10(0x41, 0x08, 20, 5), &[0; 512]);
    assert_eq!(status(20), (5, 1));
}

#[test]
fn write_same_of_zeroes_covers_more_than_one_piece() {
    // The default `write_zeroes` works in pieces of 64 KiB, 128 blocks.
    let fixture = Fixture::new(1024);
    fixture.good(&cdb_10(0x41, 0, 0, 1024), &[7; 512]);
    fixture.good(&cdb_10(0x41, 0, 100, 300), &[0; 512]);
    let mut expected = vec![7; 1024 * 512];
    expected[100 * 512..400 * 512].fill(0);
    assert_eq!(fixture.device.contents(), expected);
}

#[test]
fn lba_status_lists_runs_as_far_as_the_allocation_length_goes() {
    let fixture = Fixture::new(64);
    fixture.good(&cdb_10(0x41, 0, 8, 4), &[1; 512]);
    let all = fixture.good(&cdb_16(0x9E, 0x12, 2, 4096), &[]);
    let mut expected = vec![0, 0, 0, 52, 0, 0, 0, 0];
    for (lba, blocks, state) in [(2, 6, 1), (8, 4, 0), (12, 52, 1)] {
        expected.extend([0, 0, 0, 0, 0, 0, 0, lba, 0, 0, 0, blocks, state, 0, 0, 0]);
    }
    assert_eq!(all, expected);
    // The unit ends before the run, and after what the device can tell about.
    fixture.device.blocks.store(32, Ordering::SeqCst);
    let shrunk = fixture.good(&cdb_16(0x9E, 0x12, 12, 4096), &[]);
    assert_eq!(
        shrunk[8..],
        [0, 0, 0, 0, 0, 0, 0, 12, 0, 0, 0, 20, 1, 0, 0, 0]
    );
    fixture.device.blocks.store(100, Ordering::SeqCst);
    let grown = fixture.good(&cdb_16(0x9E, 0x12, 64, 4096), &[]);
    assert_eq!(
        grown[8..],
        [0, 0, 0, 0, 0, 0, 0, 64, 0, 0, 0, 36, 0, 0, 0, 0]
    );
    let one = fixture.good(&cdb_16(0x9E, 0x12, 2, 24), &[]);
    assert_eq!((one.len(), one[3]), (24, 20));
}

/// An UNMAP parameter list.
fn unmap_list(ranges: &[(u64, u32)]) -> Vec<u8> {
    let bytes = u16::try_from(ranges.len() * 16).unwrap();
    let mut list = (bytes + 6).to_be_bytes().to_vec();
    list.extend(bytes.to_be_bytes());
    list.extend([0; 4]);
    for (lba, blocks) in ranges {
        list.extend(lba.to_be_bytes());
        list.extend(blocks.to_be_bytes());
        list.extend([0; 4]);
    }
    list
}

fn unmap_cdb(list: &[u8]) -> Vec<u8> {
    cdb_10(0x42, 0, 0, u16::try_from(list.len()).unwrap())
}

#[test]
fn unmap_checks_all_descriptors_before_the_first_acts() {
    // S-09
    let fixture = Fixture::new(64);
    fixture.good(&cdb_10(0x41, 0, 0, 64), &[1; 512]);
    let unmap = |ranges: &[(u64, u32)]| {
        let list = unmap_list(ranges);
        fixture.run(&unmap_cdb(&list), &list).0.sense
    };
    for bad in [
        (64, 1),
        (63, 2),
        (u64::MAX, 1),
        (u64::MAX, u32::MAX),
        (0, u32::MAX),
    ] {
        assert_eq!(unmap(&[(0, 8), bad]).unwrap().additional.asc, 0x21);
    }
    assert_eq!(unmap(&[(0, 0); 257]).unwrap().additional.asc, 0x26);
    fixture.device.blocks.store(1 << 40, Ordering::SeqCst);
    assert_eq!(unmap(&[(0, 1 << 20), (0, 1)]).unwrap().additional.asc, 0x26);
    fixture.device.blocks.store(64, Ordering::SeqCst);
    assert_eq!(fixture.device.contents(), vec![1; 64 * 512]);
    assert_eq!(unmap(&[]), None);
    assert_eq!(unmap(&[(0, 0); 256]), None);
    assert_eq!(fixture.device.contents(), vec![1; 64 * 512]);
    // Overlapping and touching ranges are all right.
    assert_eq!(unmap(&[(0, 8), (4, 8), (63, 1)]), None);
    let mut expected = vec![1; 64 * 512];
    expected[..12 * 512].fill(0);
    expected[63 * 512..].fill(0);
    assert_eq!(fixture.device.contents(), expected);
}

#[test]
fn malformed_unmap_lists_are_refused() {
    let fixture = Fixture::new(64);
    fixture.good(&cdb_10(0x41, 0, 0, 64), &[1; 512]);
    let list = unmap_list(&[(0, 8)]);
    for length in 1..list.len() {
        let sense = failed(&fixture, &unmap_cdb(&list[..length]), &list[..length]);
        assert_eq!(sense.additional.asc, 0x1A, "{length}");
    }
    // Descriptors longer than the list says it is.
    let mut wrong = list.clone();
    wrong[1] = 21;
    assert_eq!(
        failed(&fixture, &unmap_cdb(&wrong), &wrong).additional.asc,
        0x26
    );
    // A part of a descriptor is ignored.
    let mut part = list;
    part[1] = 21;
    part[3] = 15;
    fixture.good(&unmap_cdb(&part), &part);
    assert_eq!(fixture.device.contents(), vec![1; 64 * 512]);
}

#[test]
fn medium_errors_become_sense_with_the_lba() {
    let fixture = Fixture::new(64);
    let write_then_read = [1; 1024];
    for (kind, triple) in [
        (MediumErrorKind::Read, (3, 0x11, 0)),
        (MediumErrorKind::Write, (3, 0x0C, 0)),
        (MediumErrorKind::NoSpace, (7, 0x27, 7)),
        (MediumErrorKind::Internal, (4, 0x44, 0)),
    ] {
        fixture.device.fail_at(Some((9, kind)));
        for cdb in [
            cdb_10(0x28, 0, 8, 2),
            cdb_10(0x2A, 0, 8, 2),
            cdb_10(0x2E, 0, 8, 2),
            cdb_10(0x2F, 0, 8, 2),
            cdb_10(0x41, 0, 8, 2),
            cdb_16(0x93, 9, 8, 2),
            compare_and_write(9, 1),
        ] {
            let (completion, data) = fixture.run(&cdb, &write_then_read);
            let sense = completion.sense.unwrap();
            let got = (
                sense.key.code(),
                sense.additional.asc,
                sense.additional.ascq,
            );
            assert_eq!((got, sense.information), (triple, Some(9)), "{cdb:02x?}");
            assert!(data.is_empty());
        }
    }
    assert_eq!(fixture.sense(&cdb_10(0x35, 0, 0, 0), &[]), (4, 0x44, 0));
    fixture.device.fail_at(None);
    fixture.good(&cdb_10(0x35, 0x02, 0, 0), &[]);
    // SYNC_NV is obsolete.
    assert_eq!(fixture.sense(&cdb_10(0x35, 0x04, 0, 0), &[]), (5, 0x24, 0));
    fixture.good(&cdb_16(0x91, 0, 60, 4), &[]);
    assert_eq!(fixture.device.flushes.load(Ordering::SeqCst), 3);
}

#[test]
fn stopped_unit_is_not_ready_until_started() {
    let fixture = Fixture::new(64);
    fixture.good(&[0x1B, 0, 0, 0, 0, 0], &[]);
    assert_eq!(fixture.device.flushes.load(Ordering::SeqCst), 1);
    assert_eq!(fixture.sense(&[0; 6], &[]), (2, 0x04, 0x02));
    assert_eq!(fixture.sense(&cdb_10(0x28, 0, 0, 1), &[]), (2, 0x04, 0x02));
    let sense = fixture.good(&[3, 0, 0, 0, 18, 0], &[]);
    assert_eq!((sense[2], sense[12], sense[13]), (2, 0x04, 0x02));
    fixture.good(&[0x12, 0, 0, 0, 36, 0], &[]);
    fixture.good(&[0x1B, 1, 0, 0, 1, 0], &[]);
    fixture.good(&[0x1B, 0, 0, 0, 4, 0], &[]);
    assert_eq!(fixture.device.flushes.load(Ordering::SeqCst), 1);
    fixture.good(&[0x1B, 0, 0, 0, 1, 0], &[]);
    fixture.good(&[0; 6], &[]);
    // LOEJ and power conditions have no meaning here.
    assert_eq!(fixture.sense(&[0x1B, 0, 0, 0, 0x02, 0], &[]), (5, 0x24, 0));
    assert_eq!(fixture.sense(&[0x1B, 0, 0, 0, 0x31, 0], &[]), (5, 0x24, 0));
    fixture.good(&[0x1E, 0, 0, 0, 1, 0], &[]);
    assert_eq!(fixture.sense(&[0x1E, 0, 0, 0, 2, 0], &[]), (5, 0x24, 0));
}
