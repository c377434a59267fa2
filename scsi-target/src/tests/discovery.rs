//! What an initiator reads first: INQUIRY, LUNs, capacity, supported commands. Golden bytes are
//! typed from SPC-4 and SBC-3.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::ram_device::{Fixture, LUN_0, RamDevice, run_at, second_nexus, sense_of};
use crate::{Designator, Identity, ItNexus, LogicalUnit, LogicalUnitError, Lun, Status};

const WELL_KNOWN: [u8; 8] = [0xC1, 0x01, 0, 0, 0, 0, 0, 0];

fn vpd(fixture: &Fixture, page: u8) -> Vec<u8> {
    fixture.good(&[0x12, 1, page, 0x01, 0x00, 0], &[])
}

#[test]
fn standard_inquiry_claims_spc_4_and_what_is_there() {
    let data = Fixture::new(8).good(&[0x12, 0, 0, 0, 0xFF, 0], &[]);
    let mut expected = vec![0x00, 0x00, 0x06, 0x12, 91, 0x18, 0x00, 0x02];
    expected.extend(b"ORIMONO FABRIC LUN      0001");
    expected.extend([0; 22]);
    expected.extend([0x00, 0xA0, 0x04, 0x60, 0x04, 0xC0]);
    expected.extend([0; 32]);
    assert_eq!(data, expected);
}

#[test]
fn page_code_without_evpd_and_unknown_pages_point_at_byte_2() {
    let fixture = Fixture::new(8);
    for cdb in [[0x12, 0, 0x80, 0, 0xFF, 0], [0x12, 1, 0x89, 0, 0xFF, 0]] {
        let (completion, _) = fixture.run(&cdb, &[]);
        assert_eq!(
            completion.sense_bytes(),
            [
                0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x24, 0, 0, 0xCF, 0, 2
            ]
        );
    }
    // CMDDT is obsolete.
    assert_eq!(fixture.sense(&[0x12, 2, 0, 0, 0xFF, 0], &[]), (5, 0x24, 0));
}

#[test]
fn every_listed_vpd_page_can_be_read_and_has_its_length() {
    let fixture = Fixture::new(8);
    let list = vpd(&fixture, 0x00);
    assert_eq!(
        list,
        [
            0, 0, 0, 10, 0x00, 0x80, 0x83, 0x86, 0x87, 0x88, 0x8F, 0xB0, 0xB1, 0xB2
        ]
    );
    for code in 0..=0xFF {
        if list[4..].contains(&code) {
            let page = vpd(&fixture, code);
            assert_eq!(page[..2], [0, code]);
            assert_eq!(
                usize::from(page[2]) << 8 | usize::from(page[3]),
                page.len() - 4
            );
        } else {
            assert_eq!(
                fixture.sense(&[0x12, 1, code, 0, 0xFF, 0], &[]),
                (5, 0x24, 0)
            );
        }
    }
}

#[test]
fn vpd_pages_of_a_thin_unit_match_golden_bytes() {
    let fixture = Fixture::new(8);
    assert_eq!(vpd(&fixture, 0x80), b"\x00\x80\x00\x08lun-0001");
    let designation = vpd(&fixture, 0x83);
    assert_eq!(designation[..8], [0, 0x83, 0, 64, 0x01, 0x03, 0, 8]);
    assert_eq!(designation[8] >> 4, 3);
    assert_eq!(designation[16..20], [0x02, 0x01, 0, 32]);
    assert_eq!(designation[20..52], *b"ORIMONO FABRIC LUN      lun-0001");
    // Relative target port 1, target port group 1.
    assert_eq!(
        designation[52..],
        [1, 0x14, 0, 4, 0, 0, 0, 1, 1, 0x15, 0, 4, 0, 0, 0, 1]
    );
    assert_eq!(
        vpd(&fixture, 0x88),
        [0, 0x88, 0, 12, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]
    );
    assert_eq!(
        vpd(&fixture, 0x86)[..14],
        [0, 0x86, 0, 0x3C, 0, 7, 1, 1, 0, 0, 0, 0, 0, 28]
    );
    let mut limits = vec![0, 0xB0, 0, 0x3C, 0x01, 0xFF, 0, 8];
    limits.extend([0, 0, 0x08, 0x00, 0, 0, 0, 0, 0, 0, 0, 0]);
    limits.extend([0, 0x10, 0, 0, 0, 0, 0x01, 0x00, 0, 0, 0, 8, 0x80, 0, 0, 0]);
    limits.extend([0, 0, 0, 0, 0, 1, 0, 0]);
    limits.extend([0; 20]);
    assert_eq!(vpd(&fixture, 0xB0), limits);
    assert_eq!(vpd(&fixture, 0xB1)[..8], [0, 0xB1, 0, 0x3C, 0, 1, 0, 0x40]);
    assert_eq!(vpd(&fixture, 0xB2), [0, 0xB2, 0, 4, 0, 0xE4, 2, 0]);
}

#[test]
fn full_unit_of_4096_byte_blocks_offers_no_unmap() {
    let fixture = Fixture::with_device(RamDevice::new(4096, 300, false));
    let limits = vpd(&fixture, 0xB0);
    assert_eq!(limits[5], 128);
    assert_eq!(limits[8..12], [0, 0, 1, 0]);
    assert_eq!(limits[20..36], [0; 16]);
    assert_eq!(vpd(&fixture, 0xB2), [0, 0xB2, 0, 4, 0, 0, 0, 0]);
    let capacity = fixture.good(
        &[0x9E, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0],
        &[],
    );
    let mut expected = vec![0, 0, 0, 0, 0, 0, 0x01, 0x2B, 0, 0, 0x10, 0];
    expected.extend([0; 20]);
    assert_eq!(capacity, expected);
    assert_eq!(
        fixture.sense(&[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], &[0; 24]),
        (5, 0x20, 0)
    );
    let block = [0; 4096];
    assert_eq!(
        fixture.sense(&[0x41, 8, 0, 0, 0, 0, 0, 0, 1, 0], &block),
        (5, 0x24, 0)
    );
    fixture.good(&[0x41, 0, 0, 0, 0, 0, 0, 0, 1, 0], &block);
    // Not in the list, not in the map, not in the one-command format.
    let all = fixture.good(&[0xA3, 0x0C, 0, 0, 0, 0, 0, 0, 0xFF, 0, 0, 0], &[]);
    assert!(!all[4..].chunks(8).any(|row| row[0] == 0x42));
    let one = |opcode| fixture.good(&[0xA3, 0x0C, 1, opcode, 0, 0, 0, 0, 1, 0, 0, 0], &[]);
    assert_eq!(one(0x42), [0, 1, 0, 0]);
    assert_eq!(one(0x41)[4..6], [0x41, 0x00]);
}

#[test]
fn designators_of_other_forms_have_their_type_and_length() {
    let page = |designator| {
        let identity = Identity::new("s", designator).unwrap();
        let device = Arc::new(RamDevice::new(512, 1, false));
        let unit = Arc::new(LogicalUnit::new(identity, device).unwrap());
        let nexus = second_nexus(&unit, 1);
        run_at(&nexus, LUN_0, &[0x12, 1, 0x83, 0, 0xFF, 0], &[]).1
    };
    let eui = page(Designator::eui64(0x0102_0304_0506_0708));
    assert_eq!(eui[4..16], [1, 2, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8]);
    let naa = page(Designator::naa_extended([0x60; 16]).unwrap());
    assert_eq!(naa[4..8], [1, 3, 0, 16]);
    assert_eq!(naa[8..24], [0x60; 16]);
}

#[test]
fn capacity_10_says_when_the_16_byte_form_is_needed() {
    let fixture = Fixture::new(8);
    let cdb = [0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(fixture.good(&cdb, &[]), [0, 0, 0, 7, 0, 0, 2, 0]);
    fixture.device.blocks.store(1 << 32, Ordering::SeqCst);
    assert_eq!(fixture.good(&cdb, &[])[..4], [0xFF; 4]);
    fixture.device.blocks.store((1 << 32) + 1, Ordering::SeqCst);
    assert_eq!(fixture.good(&cdb, &[])[..4], [0xFF; 4]);
    let long = fixture.good(
        &[0x9E, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0],
        &[],
    );
    assert_eq!(
        long[..16],
        [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0xC0, 0]
    );
}

#[test]
fn devices_that_cannot_be_served_are_refused() {
    let make = |block_bytes, blocks| {
        let device = Arc::new(RamDevice::new(block_bytes, blocks, false));
        LogicalUnit::new(Identity::from_serial("s").unwrap(), device).err()
    };
    for block_bytes in [1, 511, 520, 1024, 65024] {
        assert_eq!(
            make(block_bytes, 1),
            Some(LogicalUnitError::BlockBytes { block_bytes })
        );
    }
    assert_eq!(make(512, 0), Some(LogicalUnitError::Empty));
    assert_eq!(make(4096, 1), None);
}

#[test]
fn report_luns_lists_units_well_known_units_or_both() {
    let fixture = Fixture::new(8);
    let other = Lun::new(300).unwrap();
    fixture
        .nexus
        .attach(other, Arc::clone(&fixture.unit))
        .unwrap();
    let luns = |select| fixture.good(&[0xA0, 0, select, 0, 0, 0, 0, 0, 1, 0, 0, 0], &[]);
    let unit_0 = [0; 8];
    let unit_300 = [0x41, 0x2C, 0, 0, 0, 0, 0, 0];
    assert_eq!(
        luns(0),
        [[0, 0, 0, 16, 0, 0, 0, 0], unit_0, unit_300].concat()
    );
    assert_eq!(luns(1), [[0, 0, 0, 8, 0, 0, 0, 0], WELL_KNOWN].concat());
    assert_eq!(
        luns(2),
        [[0, 0, 0, 24, 0, 0, 0, 0], WELL_KNOWN, unit_0, unit_300].concat()
    );
    assert_eq!(
        fixture.sense(&[0xA0, 0, 3, 0, 0, 0, 0, 0, 1, 0, 0, 0], &[]),
        (5, 0x24, 0)
    );
    assert_eq!(
        fixture.sense(&[0xA0, 0, 0, 0, 0, 0, 0, 0, 0, 15, 0, 0], &[]),
        (5, 0x24, 0)
    );
}

#[test]
fn absent_lun_answers_the_three_commands_and_refuses_the_rest() {
    let fixture = Fixture::new(8);
    for lun in [
        [0, 1, 0, 0, 0, 0, 0, 0],
        [0x7F, 0xFF, 0, 0, 0, 0, 0, 0],
        [0xFF; 8],
    ] {
        let (completion, data) = run_at(&fixture.nexus, lun, &[0x12, 0, 0, 0, 36, 0], &[]);
        assert_eq!(completion.status, Status::Good);
        assert_eq!((data[0], data.len()), (0x7F, 36));
        let (_, data) = run_at(&fixture.nexus, lun, &[0x03, 0, 0, 0, 18, 0], &[]);
        assert_eq!((data[0], data[2], data[12], data[13]), (0x70, 5, 0x25, 0));
        let (_, data) = run_at(&fixture.nexus, lun, &[0x03, 1, 0, 0, 18, 0], &[]);
        assert_eq!(data, [0x72, 5, 0x25, 0, 0, 0, 0, 0]);
        let report = [0xA0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
        let (_, data) = run_at(&fixture.nexus, lun, &report, &[]);
        assert_eq!(data[..8], [0, 0, 0, 8, 0, 0, 0, 0]);
        for opcode in (0..=0xFF).filter(|opcode| ![0x03, 0x12, 0xA0].contains(opcode)) {
            let mut cdb = [0; 16];
            cdb[0] = opcode;
            assert_eq!(sense_of(&fixture.nexus, lun, &cdb, &[0; 512]), (5, 0x25, 0));
        }
    }
}

#[test]
fn well_known_unit_lists_luns_and_is_no_disk() {
    let nexus = ItNexus::new(7);
    let run = |cdb: &[u8]| run_at(&nexus, WELL_KNOWN, cdb, &[]);
    assert_eq!(run(&[0x12, 0, 0, 0, 36, 0]).1[0], 0x1E);
    assert_eq!(run(&[0x12, 1, 0, 0, 36, 0]).1, [0x1E, 0, 0, 1, 0]);
    assert_eq!(run(&[0; 6]).0.status, Status::Good);
    assert_eq!(run(&[0x03, 0, 0, 0, 18, 0]).1[2], 0);
    assert_eq!(
        run(&[0xA0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0]).1[8..],
        WELL_KNOWN
    );
    assert_eq!(sense_of(&nexus, WELL_KNOWN, &[0x28; 10], &[]), (5, 0x20, 0));
}

#[test]
fn supported_opcodes_are_exactly_those_that_run() {
    let fixture = Fixture::new(4096);
    let all = fixture.good(&[0xA3, 0x0C, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0], &[]);
    let listed: Vec<(u8, u8)> = all[4..]
        .chunks_exact(8)
        .map(|row| (row[0], row[3]))
        .collect();
    assert_eq!(
        usize::from(all[2]) << 8 | usize::from(all[3]),
        all.len() - 4
    );
    assert_eq!(listed.len(), 65);
    for opcode in 0..=0xFF_u8 {
        for service_action in 0..32_u8 {
            let mut cdb = [0; 32];
            cdb[0] = opcode;
            cdb[1] = service_action;
            let (completion, _) = fixture.run(&cdb, &[]);
            let unknown = completion.sense.is_some_and(|sense| {
                let action = sense.field.is_some_and(|field| field.byte == 1);
                sense.additional.asc == 0x20 || (sense.additional.asc == 0x24 && action)
            });
            let has_actions = [0x48, 0x5E, 0x5F, 0x83, 0x84, 0x9E, 0xA3].contains(&opcode);
            if !has_actions && service_action > 0 {
                // The low bits of byte 1 are flags or part of an LBA.
                continue;
            }
            let known = listed.contains(&(opcode, service_action));
            assert_eq!(unknown, !known, "{opcode:02x}/{service_action:02x}");
        }
    }
}

#[test]
fn one_command_format_shows_the_usage_map_and_timeouts() {
    let fixture = Fixture::new(8);
    let report = |options, opcode, action| {
        fixture.run(
            &[0xA3, 0x0C, options, opcode, 0, action, 0, 0, 1, 0, 0, 0],
            &[],
        )
    };
    let read_10 = [
        0, 3, 0, 10, 0x28, 0x18, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0xFF, 0xFF, 0,
    ];
    assert_eq!(report(1, 0x28, 0).1, read_10);
    let mut with_timeouts = read_10.to_vec();
    with_timeouts[1] = 0x83;
    with_timeouts.extend([0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(report(0x81, 0x28, 0).1, with_timeouts);
    assert_eq!(report(2, 0xA3, 0x0D).1[..6], [0, 3, 0, 12, 0xA3, 0x0D]);
    assert_eq!(report(2, 0xA3, 0x1F).1, [0, 1, 0, 0]);
    assert_eq!(report(1, 0x07, 0).1, [0, 1, 0, 0]);
    assert_eq!(report(3, 0x28, 0).1, read_10);
    assert_eq!(report(3, 0x28, 1).1, [0, 1, 0, 0]);
    assert_eq!(report(3, 0x9E, 0x10).1[..5], [0, 3, 0, 16, 0x9E]);
    // An operation code with service actions needs one, others must not have one.
    for (options, opcode) in [(1, 0xA3), (2, 0x28), (4, 0x28), (7, 0x28)] {
        let (completion, _) = report(options, opcode, 0);
        assert_eq!(completion.sense.unwrap().additional.asc, 0x24);
    }
    let timed = fixture.good(&[0xA3, 0x0C, 0x80, 0, 0, 0, 0, 1, 0, 0, 0, 0], &[]);
    assert_eq!(timed.len(), 4 + 65 * 20);
    assert_eq!(timed[4 + 5] & 0x02, 0x02);
}

#[test]
fn task_management_functions_are_reported_in_both_forms() {
    let fixture = Fixture::new(8);
    let short = fixture.good(&[0xA3, 0x0D, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0], &[]);
    assert_eq!(short, [0xDC, 0x07, 0, 0]);
    let long = fixture.good(&[0xA3, 0x0D, 0x80, 0, 0, 0, 0, 0, 0, 16, 0, 0], &[]);
    assert_eq!((long.len(), long[3]), (16, 12));
    assert_eq!(
        fixture.sense(&[0xA3, 0x0D, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0], &[]),
        (5, 0x24, 0)
    );
}
