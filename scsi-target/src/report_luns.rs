//! REPORT LUNS (SPC-4 6.33).

use crate::cdb::Cdb;
use crate::command::{CommandContext, reply};
use crate::lun::LunAddress;
use crate::nexus::ItNexus;
use crate::sense::Sense;

/// Shortest allocation length: the header and one LUN.
const ALLOCATION_BYTES_MIN: u64 = 16;

pub(crate) fn report_luns_of_unit(context: &mut CommandContext<'_>) -> Result<(), Sense> {
    let cdb = context.cdb;
    report_luns(context.nexus, &cdb, context.data_in)
}

/// Lists what this nexus may use and nothing else. SELECT REPORT 0: units, 1: well known units,
/// 2: both. Ends a pending 3F/0E on all units of the nexus (SAM-5 5.14).
pub(crate) fn report_luns(nexus: &ItNexus, cdb: &Cdb, data_in: &mut Vec<u8>) -> Result<(), Sense> {
    let (units, well_known) = match cdb.byte(2) {
        0 => (true, false),
        1 => (false, true),
        2 => (true, true),
        _ => return Err(Sense::cdb_field(2, Some(7))),
    };
    let allocation_bytes = cdb.uint(6..10);
    if allocation_bytes < ALLOCATION_BYTES_MIN {
        return Err(Sense::cdb_field(6, None));
    }
    // Before the list is read: a change after that is told again.
    nexus.luns_known();
    let mut list = Vec::new();
    if well_known {
        list.extend(LunAddress::REPORT_LUNS_BYTES);
    }
    if units {
        for lun in nexus.luns() {
            list.extend(lun.to_bytes());
        }
    }
    let length = u32::try_from(list.len()).unwrap_or(u32::MAX);
    let mut data = length.to_be_bytes().to_vec();
    data.extend([0; 4]);
    data.extend(list);
    reply(data_in, &data, allocation_bytes);
    Ok(())
}
