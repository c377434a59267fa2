//! MODE SENSE and MODE SELECT (S-05, S-06), and what the four changeable bits do.

use std::sync::atomic::Ordering;

use super::ram_device::{Fixture, RamDevice};
use crate::MediumErrorKind;

const RECOVERY: [u8; 12] = [1, 0x0A, 0xC0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const CACHING: [u8; 20] = [
    8, 0x12, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];
const CONTROL: [u8; 12] = [0x0A, 0x0A, 0x22, 0x10, 0, 0, 0, 0, 0, 0, 0, 0];
/// 0Ah/01h: IALUAE, at most 28 bytes of sense data.
const CONTROL_EXTENSION: [u8; 7] = [0x4A, 1, 0, 0x1C, 1, 0, 28];
const EXCEPTIONS: [u8; 12] = [0x1C, 0x0A, 0x08, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// MODE SELECT(6) of pages behind an empty header.
fn select(fixture: &Fixture, pages: &[u8]) -> Result<(), (u8, u8, u8)> {
    let list = [&[0, 0, 0, 0], pages].concat();
    select_list(fixture, &list)
}

fn select_list(fixture: &Fixture, list: &[u8]) -> Result<(), (u8, u8, u8)> {
    let cdb = [0x15, 0x10, 0, 0, u8::try_from(list.len()).unwrap(), 0];
    match fixture.run(&cdb, list).0.sense {
        None => Ok(()),
        Some(sense) => Err((
            sense.key.code(),
            sense.additional.asc,
            sense.additional.ascq,
        )),
    }
}

fn with_byte(page: &[u8], at: usize, value: u8) -> Vec<u8> {
    let mut page = page.to_vec();
    page[at] = value;
    page
}

#[test]
fn all_pages_come_ascending_behind_header_and_descriptor() {
    let fixture = Fixture::new(0x1234);
    let pages = [&RECOVERY[..], &CACHING, &CONTROL, &EXCEPTIONS].concat();
    let header_6 = [67, 0, 0x10, 8, 0, 0, 0x12, 0x34, 0, 0, 2, 0];
    assert_eq!(
        fixture.good(&[0x1A, 0, 0x3F, 0, 255, 0], &[]),
        [&header_6[..], &pages].concat()
    );
    let extension = [&CONTROL_EXTENSION[..], &[0; 25]].concat();
    let all = [&RECOVERY[..], &CACHING, &CONTROL, &extension, &EXCEPTIONS].concat();
    assert_eq!(fixture.good(&[0x1A, 0, 0x3F, 0xFF, 255, 0], &[])[12..], all);
    assert_eq!(
        fixture.good(&[0x1A, 8, 0x0A, 0x01, 255, 0], &[])[4..],
        extension
    );
    let header_10 = [0, 62, 0, 0x10, 0, 0, 0, 0];
    let no_descriptor = [0x5A, 0x08, 0x3F, 0, 0, 0, 0, 1, 0, 0];
    assert_eq!(
        fixture.good(&no_descriptor, &[]),
        [&header_10[..], &pages].concat()
    );
    let long = fixture.good(&[0x5A, 0x10, 0x08, 0, 0, 0, 0, 1, 0, 0], &[]);
    assert_eq!(long[..8], [0, 42, 0, 0x10, 1, 0, 0, 16]);
    assert_eq!(
        long[8..24],
        [0, 0, 0, 0, 0, 0, 0x12, 0x34, 0, 0, 0, 0, 0, 0, 2, 0]
    );
    assert_eq!(long[24..], CACHING);
}

#[test]
fn every_page_and_subpage_code_answers_or_is_refused() {
    // S-05
    let fixture = Fixture::new(8);
    for code in 0..0x40_u8 {
        for subpage in 0..=0xFF_u8 {
            for control in 0..4_u8 {
                let cdb = [0x1A, 0x08, control << 6 | code, subpage, 255, 0];
                let (completion, data) = fixture.run(&cdb, &[]);
                let there = [0x01, 0x08, 0x0A, 0x1C, 0x3F].contains(&code)
                    && ([0x00, 0xFF].contains(&subpage) || (code, subpage) == (0x0A, 0x01));
                match completion.sense {
                    None => {
                        assert!(there && control < 3);
                        assert_eq!(usize::from(data[0]) + 1, data.len());
                    }
                    Some(sense) if there => {
                        assert_eq!((control, sense.additional.asc), (3, 0x39));
                    }
                    Some(sense) => assert_eq!(sense.additional.asc, 0x24),
                }
            }
        }
    }
}

#[test]
fn capacity_beyond_32_bits_shows_as_all_ones_in_the_short_descriptor() {
    let fixture = Fixture::new(8);
    fixture.device.blocks.store(1 << 33, Ordering::SeqCst);
    let data = fixture.good(&[0x1A, 0, 0x08, 0, 255, 0], &[]);
    assert_eq!(data[4..12], [0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 2, 0]);
}

#[test]
fn write_cache_can_be_turned_off_which_flushes_and_makes_writes_durable() {
    let fixture = Fixture::new(8);
    let write = [0x2A, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    fixture.good(&write, &[1; 512]);
    assert!(!fixture.device.last_fua.load(Ordering::SeqCst));
    select(&fixture, &with_byte(&CACHING, 2, 0)).unwrap();
    assert_eq!(fixture.device.flushes.load(Ordering::SeqCst), 1);
    select(&fixture, &with_byte(&CACHING, 2, 0)).unwrap();
    assert_eq!(fixture.device.flushes.load(Ordering::SeqCst), 1);
    fixture.good(&write, &[2; 512]);
    assert!(fixture.device.last_fua.load(Ordering::SeqCst));
    let current = fixture.good(&[0x1A, 8, 0x08, 0, 255, 0], &[]);
    assert_eq!(current[4..], with_byte(&CACHING, 2, 0));
    let default = fixture.good(&[0x1A, 8, 0x88, 0, 255, 0], &[]);
    assert_eq!(default[4..], CACHING);
    for cache_type in [0, 1, 4, 5] {
        select(&fixture, &with_byte(&CACHING, 2, cache_type)).unwrap();
        assert_eq!(
            fixture.good(&[0x1A, 8, 0x08, 0, 255, 0], &[])[6],
            cache_type
        );
    }
}

#[test]
fn failed_flush_of_a_cache_turned_off_is_reported() {
    let fixture = Fixture::new(8);
    fixture.device.fail_at(Some((0, MediumErrorKind::Write)));
    assert_eq!(
        select(&fixture, &with_byte(&CACHING, 2, 0)),
        Err((3, 0x0C, 0))
    );
}

#[test]
fn software_write_protection_refuses_writes_until_cleared() {
    let fixture = Fixture::new(8);
    select(&fixture, &with_byte(&CONTROL, 4, 0x08)).unwrap();
    assert_eq!(fixture.good(&[0x1A, 8, 0x0A, 0, 255, 0], &[])[2], 0x90);
    let write = [0x2A, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    assert_eq!(fixture.sense(&write, &[1; 512]), (7, 0x27, 0x02));
    assert_eq!(fixture.device.contents()[..512], [0; 512]);
    select(&fixture, &CONTROL).unwrap();
    fixture.good(&write, &[1; 512]);
    assert_eq!(fixture.device.contents()[..512], [1; 512]);
}

#[test]
fn descriptor_sense_changes_the_format_of_sense_and_not_of_request_sense() {
    let fixture = Fixture::new(8);
    select(&fixture, &with_byte(&CONTROL, 2, 0x26)).unwrap();
    let (completion, _) = fixture.run(&[0xFF; 6], &[]);
    assert_eq!(completion.sense_bytes(), [0x72, 5, 0x20, 0, 0, 0, 0, 0]);
    assert_eq!(fixture.good(&[3, 0, 0, 0, 255, 0], &[]).len(), 18);
    assert_eq!(
        fixture.good(&[3, 1, 0, 0, 255, 0], &[]),
        [0x72, 0, 0, 0, 0, 0, 0, 0]
    );
}

#[test]
fn every_fixed_bit_of_every_page_is_refused_and_changes_nothing() {
    let fixture = Fixture::new(8);
    let all = [0x1A, 0, 0x3F, 0, 255, 0];
    let before = fixture.good(&all, &[]);
    let extension = [&CONTROL_EXTENSION[..], &[0; 25]].concat();
    for (page, code, subpage) in [
        (&RECOVERY[..], 0x01, 0),
        (&CACHING[..], 0x08, 0),
        (&CONTROL[..], 0x0A, 0),
        (&extension, 0x0A, 1),
        (&EXCEPTIONS[..], 0x1C, 0),
    ] {
        let changeable = fixture.good(&[0x1A, 8, 0x40 | code, subpage, 255, 0], &[]);
        for at in 0..page.len() {
            for bit in 0..8 {
                if at >= 2 && changeable[4 + at] & (1 << bit) != 0 {
                    continue;
                }
                // A good page in front must not be applied when a later one is bad.
                let wrong = with_byte(page, at, page[at] ^ (1 << bit));
                let list = [with_byte(&CACHING, 2, 0), wrong].concat();
                let refused = select(&fixture, &list);
                assert_eq!(
                    refused,
                    Err((5, 0x26, 0)),
                    "page {code:02x} byte {at} bit {bit}"
                );
            }
        }
    }
    assert_eq!(fixture.good(&all, &[]), before);
}

#[test]
fn block_descriptor_may_repeat_the_geometry_but_not_change_it() {
    // S-06
    let fixture = Fixture::new(8);
    let descriptor = |block_bytes: u32, blocks: u32| {
        let mut list = vec![0, 0, 0x10, 8];
        list.extend(blocks.to_be_bytes());
        list.extend(block_bytes.to_be_bytes());
        list
    };
    assert_eq!(select_list(&fixture, &descriptor(512, 8)), Ok(()));
    assert_eq!(select_list(&fixture, &descriptor(512, 0)), Ok(()));
    for block_bytes in [0, 1, 511, 4096, 65024] {
        assert_eq!(
            select_list(&fixture, &descriptor(block_bytes, 0)),
            Err((5, 0x26, 0))
        );
    }
    assert_eq!(
        select_list(&fixture, &descriptor(512, 7)),
        Err((5, 0x26, 0))
    );
    assert_eq!(select_list(&fixture, &[0, 1, 0, 0]), Err((5, 0x26, 0)));
    assert_eq!(
        select_list(&fixture, &[0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]),
        Err((5, 0x26, 0))
    );
    // The long form, and the whole of MODE SENSE(10) sent back.
    let sensed = fixture.good(&[0x5A, 0x10, 0x3F, 0, 0, 0, 0, 1, 0, 0], &[]);
    let length = u8::try_from(sensed.len()).unwrap();
    fixture.good(&[0x55, 0x10, 0, 0, 0, 0, 0, 0, length, 0], &sensed);
}

#[test]
fn cut_off_parameter_lists_are_a_length_error() {
    let fixture = Fixture::new(8);
    let sensed = fixture.good(&[0x1A, 0, 0x3F, 0xFF, 255, 0], &[]);
    let whole_until = [12, 24, 44, 56, 88, 100];
    for length in 1..=sensed.len() {
        let result = select_list(&fixture, &sensed[..length]);
        if whole_until.contains(&length) {
            assert_eq!(result, Ok(()), "{length}");
        } else {
            assert_eq!(result, Err((5, 0x1A, 0)), "{length}");
        }
    }
    assert_eq!(select_list(&fixture, &[]), Ok(()));
    // The transport brought less than the CDB says.
    assert_eq!(
        fixture.sense(&[0x15, 0x10, 0, 0, 24, 0], &[0; 23]),
        (5, 0x1A, 0)
    );
}

#[test]
fn saving_and_vendor_formats_are_refused() {
    let fixture = Fixture::new(8);
    let list = [&[0, 0, 0, 0], &CACHING[..]].concat();
    assert_eq!(
        fixture.sense(&[0x15, 0x11, 0, 0, 24, 0], &list),
        (5, 0x24, 0)
    );
    assert_eq!(
        fixture.sense(&[0x15, 0x00, 0, 0, 24, 0], &list),
        (5, 0x24, 0)
    );
}

#[test]
fn read_only_medium_shows_wp_and_refuses_every_write() {
    let fixture = Fixture::with_device(RamDevice::new(512, 64, true));
    fixture.device.read_only.store(true, Ordering::SeqCst);
    assert_eq!(fixture.good(&[0x1A, 8, 0x08, 0, 255, 0], &[])[2], 0x90);
    for cdb in [
        &[0x0A, 0, 0, 0, 1, 0][..],
        &[0x2A, 0, 0, 0, 0, 0, 0, 0, 1, 0],
        &[0xAA, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0],
        &[0x8A, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0],
        &[0x2E, 0, 0, 0, 0, 0, 0, 0, 1, 0],
        &[0x41, 0, 0, 0, 0, 0, 0, 0, 1, 0],
        &[0x93, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0],
        &[0x42, 0, 0, 0, 0, 0, 0, 0, 8, 0],
        &[0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0],
        &[0x8B, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0],
        &[0x48, 0x02, 0, 0, 0, 0, 0, 0, 0, 0],
    ] {
        assert_eq!(
            fixture.sense(cdb, &[0; 1024]),
            (7, 0x27, 0x00),
            "{cdb:02x?}"
        );
    }
    fixture.good(&[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[]);
}
