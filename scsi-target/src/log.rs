//! LOG SENSE (SPC-4 6.8, 7.3).
//!
//! The core measures nothing: temperature is reported as not known, and there are no
//! informational exceptions.

use crate::command::CommandContext;
use crate::sense::Sense;

const SUPPORTED_PAGES: u8 = 0x00;
const TEMPERATURE: u8 = 0x0D;
const INFORMATIONAL_EXCEPTIONS: u8 = 0x2F;
/// Ascending, as the list of pages must be.
const PAGES: [u8; 3] = [SUPPORTED_PAGES, TEMPERATURE, INFORMATIONAL_EXCEPTIONS];
/// Subpage of [`SUPPORTED_PAGES`]: pages with their subpages.
const SUBPAGES: u8 = 0xFF;

/// A temperature that is not known.
const NOT_KNOWN: u8 = 0xFF;
/// Parameter control byte: a binary list, not changed by anything.
const BINARY_LIST: u8 = 0x03;

/// One page; PC makes no difference, since all parameters are lists. A parameter pointer leaves
/// out the parameters before it.
pub(crate) fn log_sense(context: &mut CommandContext<'_>) -> Result<(), Sense> {
    let cdb = context.cdb;
    let (code, subpage) = (cdb.byte(2) & 0x3F, cdb.byte(3));
    let pointer = cdb.uint(5..7);
    let parameters: Vec<Vec<u8>> = match (code, subpage) {
        (SUPPORTED_PAGES, 0) => vec![PAGES.to_vec()],
        (SUPPORTED_PAGES, SUBPAGES) => {
            let mut list = vec![SUPPORTED_PAGES, 0, SUPPORTED_PAGES, SUBPAGES];
            list.extend(PAGES.into_iter().skip(1).flat_map(|page| [page, 0]));
            vec![list]
        }
        // Temperature and reference temperature.
        (TEMPERATURE, 0) => vec![
            vec![0, 0, BINARY_LIST, 2, 0, NOT_KNOWN],
            vec![0, 1, BINARY_LIST, 2, 0, NOT_KNOWN],
        ],
        // No additional sense; the most recent temperature.
        (INFORMATIONAL_EXCEPTIONS, 0) => vec![vec![0, 0, BINARY_LIST, 4, 0, 0, NOT_KNOWN, 0]],
        _ if PAGES.contains(&code) => return Err(Sense::cdb_field(3, Some(7))),
        _ => return Err(Sense::cdb_field(2, Some(5))),
    };
    let skipped = usize::try_from(pointer).unwrap_or(usize::MAX);
    if skipped >= parameters.len() {
        return Err(Sense::cdb_field(5, None));
    }
    let body: Vec<u8> = parameters.into_iter().skip(skipped).flatten().collect();
    let spf = if subpage == 0 { 0 } else { 0x40 };
    let mut data = vec![spf | code, subpage];
    data.extend(u16::try_from(body.len()).unwrap_or(u16::MAX).to_be_bytes());
    data.extend(body);
    context.reply(&data, cdb.uint(7..9));
    Ok(())
}
