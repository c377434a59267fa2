//! INQUIRY: standard data (SPC-4 6.6.2). Vital product data pages are in `vpd`.

use crate::cdb::Cdb;
use crate::command::{CommandContext, reply};
use crate::identity::{Identity, VENDOR};
use crate::sense::Sense;
use crate::vpd;

/// Peripheral qualifier 0, type 00h: a connected direct access block device.
const DISK: u8 = 0x00;

/// Peripheral qualifier 0, type 1Eh: a well known logical unit.
pub(crate) const WELL_KNOWN_UNIT: u8 = 0x1E;

/// Peripheral qualifier 3, type 1Fh: there is no unit at this LUN.
pub(crate) const NO_UNIT: u8 = 0x7F;

/// Version descriptors: SAM-5, SPC-4, SBC-3, none naming a revision (SPC-4 table 142).
const VERSION_DESCRIPTORS: [u16; 3] = [0x00A0, 0x0460, 0x04C0];

/// TPGS, byte 5: states change by themselves, and by command.
const IMPLICIT_ACCESS: u8 = 0x10;
const EXPLICIT_ACCESS: u8 = 0x20;
/// 3PC, byte 5: EXTENDED COPY is there.
const THIRD_PARTY_COPY: u8 = 0x08;
/// MULTIP, byte 6: more than one target port.
const MULTIP: u8 = 0x10;

/// Length of standard INQUIRY data here: up to the end of the vendor-independent part.
const STANDARD_BYTES: usize = 96;

pub(crate) fn inquiry(context: &mut CommandContext<'_>) -> Result<(), Sense> {
    let cdb = context.cdb;
    let unit = context.unit();
    let data = if cdb.has(1, 0x01) {
        vpd::page(cdb.byte(2), unit, context.nexus.id().target_port)
            .ok_or(Sense::cdb_field(2, Some(7)))?
    } else {
        refuse_page_code(&cdb)?;
        let identity = unit.identity();
        let access = if unit.features().explicit_access {
            IMPLICIT_ACCESS | EXPLICIT_ACCESS
        } else {
            IMPLICIT_ACCESS
        };
        let multi_port = if unit.target_ports().len() > 1 {
            MULTIP
        } else {
            0
        };
        let flags = [access | THIRD_PARTY_COPY, multi_port];
        standard(DISK, flags, identity.product(), identity.revision())
    };
    context.reply(&data, cdb.uint(3..5));
    Ok(())
}

/// INQUIRY where no disk is: `byte_0` is [`NO_UNIT`] or [`WELL_KNOWN_UNIT`]. The only VPD page
/// is the list of pages.
pub(crate) fn without_unit(cdb: &Cdb, byte_0: u8, data_in: &mut Vec<u8>) -> Result<(), Sense> {
    let data = if cdb.has(1, 0x01) {
        if cdb.byte(2) != 0 {
            return Err(Sense::cdb_field(2, Some(7)));
        }
        vec![byte_0, 0x00, 0, 1, 0x00]
    } else {
        refuse_page_code(cdb)?;
        standard(byte_0, [0, 0], b"FABRIC TARGET   ", b"0001")
    };
    reply(data_in, &data, cdb.uint(3..5));
    Ok(())
}

/// A page code without EVPD is an error (SPC-4 6.6.1).
const fn refuse_page_code(cdb: &Cdb) -> Result<(), Sense> {
    if cdb.bytes()[2] == 0 {
        Ok(())
    } else {
        Err(Sense::cdb_field(2, Some(7)))
    }
}

/// | byte | field |
/// | --- | --- |
/// | 0 | peripheral qualifier and type |
/// | 2 | version 6: SPC-4 |
/// | 3 | HISUP, response data format 2 |
/// | 4 | additional length |
/// | 5, 6 | TPGS, 3PC, MULTIP: the flags |
/// | 7 | CMDQUE |
/// | 8..16, 16..32, 32..36 | vendor, product, revision |
/// | 58..64 | version descriptors |
fn standard(
    byte_0: u8,
    [byte_5, byte_6]: [u8; 2],
    product: &[u8; 16],
    revision: &[u8; 4],
) -> Vec<u8> {
    let mut data = Vec::with_capacity(STANDARD_BYTES);
    data.extend([byte_0, 0, 6, 0x12, 91, byte_5, byte_6, 0x02]);
    data.extend(VENDOR);
    data.extend(product);
    data.extend(revision);
    data.resize(58, 0);
    for descriptor in VERSION_DESCRIPTORS {
        data.extend(descriptor.to_be_bytes());
    }
    data.resize(STANDARD_BYTES, 0);
    data
}

/// Text of the T10 vendor ID designator: vendor, product, serial (SPC-4 7.8.6.4).
pub(crate) fn t10_designator(identity: &Identity) -> Vec<u8> {
    let mut text = VENDOR.to_vec();
    text.extend(identity.product());
    text.extend(identity.serial().as_bytes());
    text
}
