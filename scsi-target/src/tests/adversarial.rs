//! Commands no initiator should send: they end with a status, in bounded memory.

use proptest::prelude::*;

use super::ram_device::{Fixture, LUN_0, RamDevice};
use crate::{Status, TRANSFER_BYTES_MAX, TaskAttribute};

/// Nothing may be above the transfer limit or the initiator's buffer.
fn check_bounds(status: Status, data_in: &[u8], data_in_max: usize) {
    assert!(data_in.len() <= data_in_max);
    assert!(data_in.len() <= usize::try_from(TRANSFER_BYTES_MAX).unwrap());
    assert!(matches!(
        status,
        Status::Good | Status::CheckCondition | Status::ReservationConflict
    ));
}

#[test]
fn any_opcode_action_length_and_filling_ends_with_a_status() {
    // S-01: 256 operation codes, 32 service actions, odd CDB lengths, four fillings.
    for device in [
        RamDevice::new(512, 300, true),
        RamDevice::new(4096, 9, false),
    ] {
        let fixture = Fixture::with_device(device);
        let data_out = [0xFF; 1024];
        let mut data_in = Vec::new();
        for opcode in 0..=0xFF_u8 {
            for action in 0..32_u8 {
                for filling in [0x00, 0x01, 0x80, 0xFF] {
                    let mut cdb = [filling; 33];
                    cdb[0] = opcode;
                    cdb[1] = action;
                    for length in [0, 1, 5, 6, 9, 10, 11, 12, 15, 16, 32, 33] {
                        let completion = fixture.nexus.execute(
                            LUN_0,
                            &cdb[..length],
                            TaskAttribute::Simple,
                            &data_out,
                            &mut data_in,
                            77,
                        );
                        check_bounds(completion.status, &data_in, 77);
                        assert!(completion.sense_bytes().len() <= 96);
                        if length == 0 {
                            assert_eq!(completion.sense.unwrap().additional.asc, 0x20);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn cdb_shorter_than_its_command_is_refused_and_longer_is_not() {
    let fixture = Fixture::new(8);
    let read = [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    for length in 1..10 {
        assert_eq!(fixture.sense(&read[..length], &[]), (5, 0x24, 0));
    }
    let padded = [&read[..], &[0xFF; 22]].concat();
    assert_eq!(fixture.good(&padded, &[]).len(), 512);
}

/// A CDB, and byte and length of its allocation length if it has one.
type CommandWithDataIn = (Vec<u8>, Option<(usize, usize)>);

/// Every command with data-in; transfers have no allocation length.
#[rustfmt::skip]
fn commands_with_data_in() -> Vec<CommandWithDataIn> {
    let mut commands = vec![
        (vec![0x03, 0, 0, 0, 0, 0], Some((4, 1))),
        (vec![0x03, 1, 0, 0, 0, 0], Some((4, 1))),
        (vec![0x12, 0, 0, 0, 0, 0], Some((3, 2))),
        (vec![0x1A, 0, 0x3F, 0, 0, 0], Some((4, 1))),
        (vec![0x5A, 0, 0x3F, 0, 0, 0, 0, 0, 0, 0], Some((7, 2))),
        (vec![0x5A, 0x10, 0x3F, 0xFF, 0, 0, 0, 0, 0, 0], Some((7, 2))),
        (vec![0x9E, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], Some((10, 4))),
        (vec![0x9E, 0x12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], Some((10, 4))),
        (vec![0xA0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0], Some((6, 4))),
        (vec![0xA3, 0x0C, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], Some((6, 4))),
        (vec![0xA3, 0x0C, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0], Some((6, 4))),
        (vec![0xA3, 0x0C, 0x81, 0x28, 0, 0, 0, 0, 0, 0, 0, 0], Some((6, 4))),
        (vec![0xA3, 0x0D, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0], Some((6, 4))),
        (vec![0xA3, 0x05, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], Some((6, 4))),
        (vec![0xA3, 0x2A, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], Some((6, 4))),
        (vec![0x4D, 0, 0x40, 0xFF, 0, 0, 0, 0, 0, 0], Some((7, 2))),
        (vec![0x4D, 0, 0x4D, 0, 0, 0, 0, 0, 0, 0], Some((7, 2))),
        (vec![0x5E, 0, 0, 0, 0, 0, 0, 0, 0, 0], Some((7, 2))),
        (vec![0x5E, 2, 0, 0, 0, 0, 0, 0, 0, 0], Some((7, 2))),
        (vec![0x84, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], Some((10, 4))),
        (vec![0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], None),
        (vec![0x08, 0, 0, 0, 2, 0], None),
        (vec![0x28, 0, 0, 0, 0, 0, 0, 0, 2, 0], None),
    ];
    for page in [0x00, 0x80, 0x83, 0x86, 0x87, 0x88, 0x8F, 0xB0, 0xB1, 0xB2] {
        commands.push((vec![0x12, 1, page, 0, 0, 0], Some((3, 2))));
    }
    commands
}

#[test]
fn allocation_length_cuts_and_never_changes_the_data() {
    // S-02
    let fixture = Fixture::new(300);
    for (cdb, allocation) in commands_with_data_in() {
        let Some((at, bytes)) = allocation else {
            continue;
        };
        let with = |length: u64| {
            let mut cdb = cdb.clone();
            cdb[at..at + bytes].copy_from_slice(&length.to_be_bytes()[8 - bytes..]);
            cdb
        };
        let most = u64::MAX >> (64 - 8 * bytes);
        let whole = fixture.good(&with(most), &[]);
        assert!(!whole.is_empty() && whole.len() < 2048, "{cdb:02x?}");
        let shortest = match (cdb[0], cdb[1]) {
            (0xA0, _) => 16,
            (0xA3, 0x0D) => 4,
            // GET LBA STATUS gives as many descriptors as there is room for.
            (0x9E, 0x12) => 24,
            _ => 0,
        };
        for length in (0..=u64::try_from(whole.len()).unwrap() + 1).chain([most - 1]) {
            let (completion, data) = fixture.run(&with(length), &[]);
            if length < shortest && cdb[0] != 0x9E {
                assert_eq!(completion.sense.unwrap().additional.asc, 0x24);
                continue;
            }
            let expected = whole.len().min(usize::try_from(length).unwrap());
            assert_eq!(data, whole[..expected], "{cdb:02x?} {length}");
            assert_eq!(completion.data_in_offered_bytes, expected);
        }
    }
}

#[test]
fn short_buffer_cuts_and_the_offer_tells_the_residual() {
    // S-03
    let fixture = Fixture::new(300);
    fixture.good(&[0x2A, 0, 0, 0, 0, 0, 0, 0, 2, 0], &[0x5A; 1024]);
    for (mut cdb, allocation) in commands_with_data_in() {
        if let Some((at, bytes)) = allocation {
            cdb[at..at + bytes].fill(if bytes == 4 { 0x01 } else { 0xFF });
        }
        let whole = fixture.good(&cdb, &[]);
        for data_in_max in (0..=whole.len() + 1).chain([usize::MAX]) {
            let mut data_in = vec![0xEE; 3];
            let attribute = TaskAttribute::Simple;
            let completion =
                fixture
                    .nexus
                    .execute(LUN_0, &cdb, attribute, &[], &mut data_in, data_in_max);
            assert_eq!(completion.status, Status::Good);
            assert_eq!(data_in, whole[..whole.len().min(data_in_max)], "{cdb:02x?}");
            assert_eq!(completion.data_in_offered_bytes, whole.len());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_end_with_a_status(
        commands in prop::collection::vec(
            (
                prop::sample::select(&[0x08_u8, 0x0A, 0x15, 0x16, 0x17, 0x1D, 0x28, 0x2A, 0x34, 0x41,
                    0x42, 0x48, 0x4D, 0x55, 0x5E, 0x5F, 0x83, 0x84, 0x89, 0x8A, 0x8B, 0x8E, 0x8F,
                    0x91, 0x93, 0x9C, 0x9E, 0xA3, 0xA4, 0xAF][..]),
                // Mostly zeroes, so that some get past the table.
                prop::collection::vec(prop_oneof![6 => Just(0_u8), 1 => any::<u8>()], 0..32),
                prop::collection::vec(prop_oneof![3 => Just(0_u8), 1 => any::<u8>()], 0..600),
                0..2000_usize,
            ),
            1..8,
        ),
        lun in prop_oneof![4 => Just([0; 8]), 1 => any::<[u8; 8]>()],
    ) {
        let fixture = Fixture::new(64);
        let mut data_in = Vec::new();
        for (opcode, rest, data_out, data_in_max) in &commands {
            let cdb = [&[*opcode][..], rest].concat();
            let completion = fixture.nexus.execute(
                lun,
                &cdb,
                TaskAttribute::Simple,
                data_out,
                &mut data_in,
                *data_in_max,
            );
            check_bounds(completion.status, &data_in, *data_in_max);
            prop_assert!(completion.data_out_used_bytes <= data_out.len());
        }
    }
}
