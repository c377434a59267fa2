//! Vital product data pages (SPC-4 7.8, SBC-3 6.5).

use crate::inquiry::t10_designator;
use crate::logical_unit::{LogicalUnit, TRANSFER_BYTES_MAX};
use crate::provisioning::{UNMAP_BLOCKS_MAX, UNMAP_DESCRIPTORS_MAX, write_same_blocks_max};
use crate::sense::SENSE_BYTES_MAX;
use crate::verify::compare_and_write_blocks_max;

/// Page codes, ascending as the list of pages must be.
const PAGES: [u8; 8] = [0x00, 0x80, 0x83, 0x86, 0x87, 0xB0, 0xB1, 0xB2];

/// Transfers that are a multiple of this many bytes suit files and flash.
const OPTIMAL_BYTES: u32 = 4096;

/// A page with its four-byte header; `None` for pages that are not supported.
pub(crate) fn page(code: u8, unit: &LogicalUnit) -> Option<Vec<u8>> {
    let body = match code {
        0x00 => PAGES.to_vec(),
        0x80 => unit.identity().serial().as_bytes().to_vec(),
        0x83 => device_identification(unit),
        0x86 => extended_inquiry(),
        // Mode page policy: one set of all pages and subpages, shared by all nexuses.
        0x87 => vec![0x3F, 0xFF, 0, 0],
        0xB0 => block_limits(unit),
        0xB1 => block_device_characteristics(),
        0xB2 => logical_block_provisioning(unit),
        _ => return None,
    };
    // No page comes near 64 KiB: the longest, 83h, is bounded by SERIAL_BYTES_MAX.
    let length = u16::try_from(body.len()).ok()?;
    let mut data = vec![0x00, code];
    data.extend(length.to_be_bytes());
    data.extend(body);
    Some(data)
}

/// Two designators of the logical unit: its NAA or EUI-64 name, and the T10 vendor ID text.
fn device_identification(unit: &LogicalUnit) -> Vec<u8> {
    const BINARY: u8 = 1;
    const ASCII: u8 = 2;
    const T10_VENDOR_ID: u8 = 1;
    let identity = unit.identity();
    let mut body = Vec::new();
    for (code_set, kind, name) in [
        (
            BINARY,
            identity.designator().kind(),
            identity.designator().as_bytes(),
        ),
        (ASCII, T10_VENDOR_ID, &t10_designator(identity)),
    ] {
        // Names are at most 16 and 8 + 16 + SERIAL_BYTES_MAX bytes.
        let length = u8::try_from(name.len()).unwrap_or(u8::MAX);
        body.extend([code_set, kind, 0, length]);
        body.extend(name.iter().take(usize::from(length)));
    }
    body
}

/// | byte | field |
/// | --- | --- |
/// | 5 | SIMPSUP |
/// | 6 | V_SUP: there may be a volatile cache |
/// | 7 | LUICLR: 3F/0E is cleared for the whole nexus |
/// | 13 | most bytes of sense data |
fn extended_inquiry() -> Vec<u8> {
    let mut body = vec![0x00, 0x01, 0x01, 0x01, 0, 0, 0, 0, 0];
    body.push(u8::try_from(SENSE_BYTES_MAX).unwrap_or(u8::MAX));
    body.resize(0x3C, 0);
    body
}

/// | byte | field |
/// | --- | --- |
/// | 4 | WSNZ: WRITE SAME of 0 blocks is refused |
/// | 5 | maximum compare and write length |
/// | 6..8 | optimal transfer length granularity |
/// | 8..12 | maximum transfer length |
/// | 20..24 | maximum unmap LBA count |
/// | 24..28 | maximum unmap block descriptor count |
/// | 28..32 | optimal unmap granularity |
/// | 32..36 | UGAVALID, unmap granularity alignment 0 |
/// | 36..44 | maximum write same length |
fn block_limits(unit: &LogicalUnit) -> Vec<u8> {
    let granularity = unit.blocks_in(OPTIMAL_BYTES);
    let mut body = vec![0x01, compare_and_write_blocks_max(unit)];
    body.extend(u16::try_from(granularity).unwrap_or(0).to_be_bytes());
    body.extend(unit.blocks_in(TRANSFER_BYTES_MAX).to_be_bytes());
    body.resize(16, 0);
    if unit.thin() {
        body.extend(UNMAP_BLOCKS_MAX.to_be_bytes());
        body.extend(UNMAP_DESCRIPTORS_MAX.to_be_bytes());
        body.extend(granularity.to_be_bytes());
        body.extend([0x80, 0, 0, 0]);
    } else {
        body.resize(32, 0);
    }
    body.extend(u64::from(write_same_blocks_max(unit)).to_be_bytes());
    body.resize(0x3C, 0);
    body
}

/// Medium rotation rate 1: does not rotate.
fn block_device_characteristics() -> Vec<u8> {
    let mut body = vec![0x00, 0x01];
    body.resize(0x3C, 0);
    body
}

/// Thin: LBPU, LBPWS, LBPWS10, LBPRZ (unmapped blocks read as zeroes), provisioning type 2.
/// Full: nothing is offered, provisioning type 0.
fn logical_block_provisioning(unit: &LogicalUnit) -> Vec<u8> {
    if unit.thin() {
        vec![0, 0xE4, 0x02, 0]
    } else {
        vec![0, 0, 0, 0]
    }
}
