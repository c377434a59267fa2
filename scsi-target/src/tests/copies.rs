//! EXTENDED COPY and RECEIVE COPY RESULTS.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::ram_device::{Fixture, LUN_0, RamDevice, run_at, second_nexus, sense_of};
use crate::{Identity, LogicalUnit, Lun, MediumErrorKind, Status, TaskManagementFunction};

/// An identification descriptor of the unit with this serial number.
pub(super) fn cscd(serial: &str, block_bytes: u32) -> Vec<u8> {
    let identity = Identity::from_serial(serial).unwrap();
    let name = identity.designator().as_bytes();
    let mut descriptor = vec![0xE4, 0, 0, 0, 1, 3, 0, 8];
    descriptor.extend(name);
    descriptor.resize(28, 0);
    descriptor.extend(block_bytes.to_be_bytes());
    descriptor
}

/// A block to block segment.
pub(super) fn segment(units: (u8, u8), flags: u8, blocks: u16, from: u64, to: u64) -> Vec<u8> {
    let mut descriptor = vec![2, flags, 0, 24, 0, units.0, 0, units.1, 0, 0];
    descriptor.extend(blocks.to_be_bytes());
    descriptor.extend(from.to_be_bytes());
    descriptor.extend(to.to_be_bytes());
    descriptor
}

pub(super) fn list(
    id: u8,
    usage: u8,
    cscds: &[impl AsRef<[u8]>],
    segments: &[impl AsRef<[u8]>],
) -> Vec<u8> {
    let cscds: Vec<u8> = cscds.iter().flat_map(AsRef::as_ref).copied().collect();
    let segments: Vec<u8> = segments.iter().flat_map(AsRef::as_ref).copied().collect();
    let mut list = vec![id, usage << 3];
    list.extend(u16::try_from(cscds.len()).unwrap().to_be_bytes());
    list.extend([0; 4]);
    list.extend(u32::try_from(segments.len()).unwrap().to_be_bytes());
    list.extend([0; 4]);
    [list, cscds, segments].concat()
}

pub(super) fn cdb(list: &[u8]) -> Vec<u8> {
    let mut cdb = vec![0x83, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    cdb.extend(u32::try_from(list.len()).unwrap().to_be_bytes());
    cdb.extend([0, 0]);
    cdb
}

fn copy_status(id: u8) -> [u8; 16] {
    [0x84, 0, id, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0]
}

/// Blocks of 512 bytes in `lun-0001` at LUN 0, of 4096 bytes in `other` at LUN 1.
fn two_units() -> (Fixture, Arc<RamDevice>, Arc<LogicalUnit>) {
    let fixture = Fixture::new(1024);
    let device = Arc::new(RamDevice::new(4096, 64, true));
    let identity = Identity::from_serial("other").unwrap();
    let unit = Arc::new(LogicalUnit::new(identity, device.clone()).unwrap());
    let lun = Lun::new(1).unwrap();
    fixture.nexus.attach(lun, unit.clone()).unwrap();
    assert_eq!(fixture.sense(&[0; 6], &[]), (6, 0x3F, 0x0E));
    assert_eq!(
        sense_of(&fixture.nexus, lun.to_bytes(), &[0; 6], &[]),
        (6, 0x29, 0)
    );
    for at in 0..16 {
        fixture.good(&[0x0A, 0, 0, at, 1, 0], &[at + 1; 512]);
    }
    (fixture, device, unit)
}

#[test]
fn blocks_are_copied_within_and_between_units_of_any_block_size() {
    let (fixture, other, _) = two_units();
    let cscds = [cscd("lun-0001", 512), cscd("other", 0)];
    let segments = [
        segment((0, 0), 0, 4, 0, 100),
        segment((0, 1), 0, 16, 0, 3),
        // The number counts blocks of the destination.
        segment((1, 0), 0x02, 8, 4, 200),
        segment((0, 1), 0x02, 1, 8, 9),
        segment((0, 0), 0, 0, 0, 0),
    ];
    let list = list(7, 0, &cscds, &segments);
    fixture.good(&cdb(&list), &list);
    let contents = fixture.device.contents();
    assert_eq!(contents[100 * 512..104 * 512], contents[..4 * 512]);
    assert_eq!(other.contents()[3 * 4096..5 * 4096], contents[..16 * 512]);
    assert_eq!(contents[200 * 512..208 * 512], contents[8 * 512..16 * 512]);
    assert_eq!(
        other.contents()[9 * 4096..10 * 4096],
        contents[8 * 512..16 * 512]
    );
    // 2 + 8 + 4 + 4 KiB in five segments; told once.
    let told = [0, 0, 0, 8, 1, 0, 5, 0, 0, 0, 0x48, 0];
    assert_eq!(fixture.good(&copy_status(7), &[]), told);
    assert_eq!(fixture.sense(&copy_status(7), &[]), (5, 0x24, 0));
    fixture.good(&cdb(&[]), &[]);
}

#[test]
fn s13_units_outside_the_map_are_not_reachable() {
    let (fixture, device, unit) = two_units();
    let outsider = second_nexus(&fixture.unit, 2);
    assert_eq!(sense_of(&outsider, LUN_0, &[0; 6], &[]), (6, 0x29, 0));
    let cscds = [cscd("lun-0001", 512), cscd("other", 4096)];
    for units in [(0, 1), (1, 0)] {
        let list = list(1, 0, &cscds, &[segment(units, 2, 8, 0, 0)]);
        assert_eq!(
            sense_of(&outsider, LUN_0, &cdb(&list), &list),
            (0xA, 0x0D, 2)
        );
    }
    assert_eq!(device.contents(), vec![0; 64 * 4096]);
    // In the map, but the nexus may not write there.
    let guard = second_nexus(&unit, 3);
    assert_eq!(sense_of(&guard, LUN_0, &[0; 6], &[]), (6, 0x29, 0));
    let _reserved = run_at(&guard, LUN_0, &[0x16, 0, 0, 0, 0, 0], &[]);
    let list = list(1, 0, &cscds, &[segment((0, 1), 0, 8, 0, 0)]);
    assert_eq!(fixture.sense(&cdb(&list), &list), (0xA, 0x0D, 1));
    let _released = run_at(&guard, LUN_0, &[0x17, 0, 0, 0, 0, 0], &[]);
    device.read_only.store(true, Ordering::SeqCst);
    assert_eq!(fixture.sense(&cdb(&list), &list), (0xA, 0x0D, 1));
    assert_eq!(device.contents(), vec![0; 64 * 4096]);
}

#[test]
fn malformed_lists_are_refused_before_anything_is_copied() {
    let (fixture, ..) = two_units();
    let before = fixture.device.contents();
    let unit = cscd("lun-0001", 512);
    let one = segment((0, 0), 0, 4, 0, 100);
    let with = |bytes: &[u8], at: usize, value: u8| {
        let mut bytes = bytes.to_vec();
        bytes[at] = value;
        bytes
    };
    let cases: Vec<(Vec<u8>, (u8, u8, u8))> = vec![
        (list(1, 1, &[&unit], &[&one]), (5, 0x26, 0)),
        (list(1, 3, &[&unit], &[&one]), (5, 0x26, 0)),
        (list(1, 0, &[unit[..31].to_vec()], &[&one]), (5, 0x26, 0)),
        (list(1, 0, &[&unit; 17], &[&one]), (5, 0x26, 6)),
        (list(1, 0, &[&unit], &[&one; 17]), (5, 0x26, 8)),
        (list(1, 0, &[&unit; 17], &[&one; 17]), (5, 0x1A, 0)),
        (list(1, 0, &[with(&unit, 0, 0xE0)], &[&one]), (5, 0x26, 7)),
        (list(1, 0, &[with(&unit, 1, 0x01)], &[&one]), (5, 0x26, 0)),
        (list(1, 0, &[with(&unit, 7, 21)], &[&one]), (5, 0x26, 0)),
        (list(1, 0, &[with(&unit, 30, 9)], &[&one]), (5, 0x26, 0)),
        // Nobody's name, no name, and the null device.
        (list(1, 0, &[with(&unit, 9, 9)], &[&one]), (0xA, 0x0D, 2)),
        (list(1, 0, &[with(&unit, 7, 0)], &[&one]), (0xA, 0x0D, 2)),
        (list(1, 0, &[with(&unit, 1, 0x20)], &[&one]), (0xA, 0x0D, 2)),
        (list(1, 0, &[&unit], &[with(&one, 0, 3)]), (5, 0x26, 9)),
        (list(1, 0, &[&unit], &[vec![3, 0, 0, 0]]), (5, 0x26, 9)),
        (list(1, 0, &[&unit], &[with(&one, 3, 25)]), (5, 0x26, 0)),
        (list(1, 0, &[&unit], &[one[..27].to_vec()]), (5, 0x1A, 0)),
        (
            list(1, 0, &[&unit], &[segment((0, 1), 0, 4, 0, 100)]),
            (0xA, 0x0D, 2),
        ),
        (
            list(1, 0, &[&unit], &[segment((0, 0), 0, 4, 0, 1021)]),
            (0xA, 0, 0),
        ),
        (
            list(1, 0, &[&unit], &[segment((0, 0), 0, 4, u64::MAX, 0)]),
            (0xA, 0, 0),
        ),
        (
            list(1, 0, &[&unit], &[segment((0, 0), 0, 0xFFFF, 0, 0)]),
            (5, 0x26, 0),
        ),
        (
            list(
                1,
                0,
                &[&unit, &cscd("other", 4096)],
                &[segment((0, 1), 0, 7, 0, 0)],
            ),
            (0xA, 0x26, 0x0A),
        ),
        // A good segment in front of a bad one.
        (
            list(1, 0, &[&unit], &[&one, &with(&one, 0, 3)]),
            (5, 0x26, 9),
        ),
    ];
    for (at, (list, sense)) in cases.iter().enumerate() {
        assert_eq!(fixture.sense(&cdb(list), list), *sense, "case {at}");
    }
    let whole = list(1, 0, &[&unit], &[&one]);
    for length in 1..whole.len() {
        let cut = &whole[..length];
        assert_eq!(fixture.sense(&cdb(cut), cut), (5, 0x1A, 0), "{length}");
        assert_eq!(fixture.sense(&cdb(&whole), cut), (5, 0x1A, 0), "{length}");
    }
    let inline = with(&whole, 15, 1);
    assert_eq!(fixture.sense(&cdb(&inline), &inline), (5, 0x26, 0));
    assert_eq!(fixture.device.contents(), before);
    // None of these has begun.
    assert_eq!(fixture.sense(&copy_status(1), &[]), (5, 0x24, 0));
}

#[test]
fn lu_id_type_means_nothing_beside_a_designator() {
    let (fixture, ..) = two_units();
    let mut unit = cscd("lun-0001", 512);
    unit[1] = 0xC0;
    let list = list(1, 2, &[&unit], &[segment((0, 0), 0, 4, 0, 100)]);
    fixture.good(&cdb(&list), &list);
}

#[test]
fn copy_that_fails_underway_tells_how_far_it_came() {
    let (fixture, ..) = two_units();
    let unit = [cscd("lun-0001", 512)];
    let segments = [
        segment((0, 0), 0, 4, 0, 100),
        segment((0, 0), 0, 1024 - 512, 0, 512),
    ];
    fixture.device.fail_at(Some((600, MediumErrorKind::Write)));
    let list_of = |usage| list(if usage == 3 { 0 } else { 9 }, usage, &unit, &segments);
    let kept = list_of(0);
    assert_eq!(fixture.sense(&cdb(&kept), &kept), (0xA, 0x0D, 1));
    let status = fixture.good(&copy_status(9), &[]);
    assert_eq!(status, [0, 0, 0, 8, 2, 0, 1, 0, 0, 0, 8, 0]);
    for (usage, id) in [(2, 9), (3, 0)] {
        let list = list_of(usage);
        assert_eq!(fixture.sense(&cdb(&list), &list), (0xA, 0x0D, 1));
        assert_eq!(fixture.sense(&copy_status(id), &[]), (5, 0x24, 0));
    }
}

#[test]
fn results_are_kept_for_the_last_eight_copies() {
    let (fixture, ..) = two_units();
    for id in 0..20 {
        let list = list(id, 0, &[[0_u8; 0]; 0], &[[0_u8; 0]; 0]);
        fixture.good(&cdb(&list), &list);
    }
    for id in 0..20 {
        let (completion, _) = fixture.run(&copy_status(id), &[]);
        assert_eq!(completion.sense.is_none(), id >= 12, "{id}");
    }
}

#[test]
fn results_end_with_a_reset_of_the_unit_and_with_the_nexus() {
    use TaskManagementFunction::{ItNexusReset, LogicalUnitReset};
    let (fixture, ..) = two_units();
    for function in [LogicalUnitReset, ItNexusReset] {
        let list = list(7, 0, &[[0_u8; 0]; 0], &[[0_u8; 0]; 0]);
        fixture.good(&cdb(&list), &list);
        let _complete = fixture.nexus.task_management(function, LUN_0);
        assert_eq!(fixture.run(&[0; 6], &[]).0.status, Status::CheckCondition);
        assert_eq!(fixture.sense(&copy_status(7), &[]), (5, 0x24, 0));
    }
}

#[test]
fn operating_parameters_and_the_vpd_page_say_the_same() {
    let fixture = Fixture::new(8);
    let parameters = fixture.good(&[0x84, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0], &[]);
    let mut expected = vec![
        0, 0, 0, 42, 1, 0, 0, 0, 0, 16, 0, 16, 0, 0, 3, 0xC0, 1, 0, 0, 0,
    ];
    expected.resize(34, 0);
    expected.extend([0, 1, 1, 9, 0, 0, 0, 0, 0, 2, 0x02, 0xE4]);
    assert_eq!(parameters, expected);
    let page = fixture.good(&[0x12, 1, 0x8F, 1, 0, 0], &[]);
    assert_eq!(page[4..16], [0, 1, 0, 8, 7, 0x83, 1, 0, 0x84, 2, 0, 3]);
    assert_eq!(
        page[16..32],
        [0, 4, 0, 28, 0, 0, 0, 0, 0, 16, 0, 16, 0, 0, 3, 0xC0]
    );
    assert_eq!(page[48..56], [0, 8, 0, 4, 2, 0x02, 0xE4, 0]);
    assert_eq!(page.len() % 4, 0);
}
