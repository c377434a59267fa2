//! Vital product data pages (SPC-4 7.8, SBC-3 6.5).

use crate::extended_copy;
use crate::inquiry::t10_designator;
use crate::logical_unit::{LogicalUnit, TRANSFER_BYTES_MAX};
use crate::port_groups::TargetPort;
use crate::provisioning::{UNMAP_BLOCKS_MAX, UNMAP_DESCRIPTORS_MAX, write_same_blocks_max};
use crate::sense::SENSE_BYTES_MAX;
use crate::verify::compare_and_write_blocks_max;

/// Page codes, ascending as the list of pages must be.
const PAGES: [u8; 10] = [0x00, 0x80, 0x83, 0x86, 0x87, 0x88, 0x8F, 0xB0, 0xB1, 0xB2];

/// Transfers that are a multiple of this many bytes suit files and flash.
const OPTIMAL_BYTES: u32 = 4096;

/// A page with its four-byte header; `None` for pages that are not supported.
///
/// `target_port` is the one that asks.
pub(crate) fn page(code: u8, unit: &LogicalUnit, target_port: u16) -> Option<Vec<u8>> {
    let body = match code {
        0x00 => PAGES.to_vec(),
        0x80 => unit.identity().serial().as_bytes().to_vec(),
        0x83 => device_identification(unit, target_port),
        0x86 => extended_inquiry(),
        // Mode page policy: one set of all pages and subpages, shared by all nexuses.
        0x87 => vec![0x3F, 0xFF, 0, 0],
        0x88 => scsi_ports(unit),
        0x8F => extended_copy::vpd_page(),
        0xB0 => block_limits(unit),
        0xB1 => block_device_characteristics(unit),
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

const BINARY: u8 = 1;
/// PIV and association "target port"; the protocol identifier 0 beside it is Fibre Channel.
const OF_PORT: u8 = 0x90;

/// A designation descriptor; names are at most 16 and 8 + 16 + `SERIAL_BYTES_MAX` bytes.
fn designator(code_set: u8, kind: u8, name: &[u8]) -> Vec<u8> {
    let length = u8::try_from(name.len()).unwrap_or(u8::MAX);
    let mut descriptor = vec![code_set, kind, 0, length];
    descriptor.extend(name.iter().take(usize::from(length)));
    descriptor
}

/// Two designators of the logical unit: its NAA or EUI-64 name, and the T10 vendor ID text. Then
/// those of the target port: its name, relative identifier and group.
fn device_identification(unit: &LogicalUnit, target_port: u16) -> Vec<u8> {
    const ASCII: u8 = 2;
    const T10_VENDOR_ID: u8 = 1;
    let identity = unit.identity();
    let name = identity.designator();
    let mut body = designator(BINARY, name.kind(), name.as_bytes());
    body.extend(designator(ASCII, T10_VENDOR_ID, &t10_designator(identity)));
    for group in unit.target_port_groups() {
        for port in group
            .ports
            .iter()
            .filter(|port| port.relative == target_port)
        {
            body.extend(port_name(port));
            let number = |number: u16| [[0, 0], number.to_be_bytes()].concat();
            body.extend(designator(BINARY, 0x14, &number(port.relative)));
            body.extend(designator(BINARY, 0x15, &number(group.id)));
        }
    }
    body
}

/// The NAA name of a target port, if it has one.
fn port_name(port: &TargetPort) -> Vec<u8> {
    let name = port.name.map(u64::to_be_bytes);
    name.map_or_else(Vec::new, |name| designator(BINARY, OF_PORT | 3, &name))
}

/// SCSI ports: for each target port its relative identifier, no initiator port, and its name.
fn scsi_ports(unit: &LogicalUnit) -> Vec<u8> {
    let mut body = Vec::new();
    for port in unit
        .target_port_groups()
        .iter()
        .flat_map(|group| &group.ports)
    {
        body.extend([0, 0]);
        body.extend(port.relative.to_be_bytes());
        let name = port_name(port);
        let length = u8::try_from(name.len()).unwrap_or(u8::MAX);
        body.extend([0, 0, 0, 0, 0, 0, 0, length]);
        body.extend(name);
    }
    body
}

/// | byte | field |
/// | --- | --- |
/// | 5 | HEADSUP, ORDSUP, SIMPSUP |
/// | 6 | V_SUP: there may be a volatile cache |
/// | 7 | LUICLR: 3F/0E is cleared for the whole nexus |
/// | 13 | most bytes of sense data |
fn extended_inquiry() -> Vec<u8> {
    let mut body = vec![0x00, 0x07, 0x01, 0x01, 0, 0, 0, 0, 0];
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
/// | 44..48 | maximum atomic transfer length |
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
    body.extend(unit.atomic_blocks().to_be_bytes());
    body.resize(0x3C, 0);
    body
}

/// Medium rotation rate 1: does not rotate. WABEREQ 01b where blocks can be erased: they can be
/// read before they are written again.
fn block_device_characteristics(unit: &LogicalUnit) -> Vec<u8> {
    let mut body = vec![0x00, 0x01, 0x00, if unit.thin() { 0x40 } else { 0 }];
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
