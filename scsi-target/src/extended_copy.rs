//! EXTENDED COPY(LID1) and RECEIVE COPY (SPC-4 6.4, 6.21 ff): block to block, between units of
//! the map of the nexus that asks. A unit that is not in the map cannot be named (S-13).
//!
//! Everything is checked before the first block is copied, and all is copied before the answer.

use crate::cdb::be_uint;
use crate::command::{self, CommandContext};
use crate::command_table::Access;
use crate::logical_unit::LogicalUnit;
use crate::nexus::Attachment;
use crate::port_groups::RunsIn;
use crate::read_write::BlockRange;
use crate::reservation::Reserved;
use crate::sense::{AdditionalSense, Sense, SenseKey};

// Service actions of EXTENDED COPY and RECEIVE COPY RESULTS.
pub(crate) const EXTENDED_COPY_LID1: u8 = 0x00;
pub(crate) const COPY_STATUS: u8 = 0x00;
pub(crate) const OPERATING_PARAMETERS: u8 = 0x03;

/// Most target (CSCD) descriptors, and most segment descriptors.
pub(crate) const DESCRIPTORS_MAX: u16 = 16;
/// MAXIMUM DESCRIPTOR LIST LENGTH: both lists, full.
pub(crate) const DESCRIPTOR_LIST_BYTES_MAX: u32 = 16 * 32 + 16 * 28;
/// MAXIMUM SEGMENT LENGTH; bounds the time that a command takes to 16 of these.
pub(crate) const SEGMENT_BYTES_MAX: u32 = 16 * 1024 * 1024;
/// Identification descriptor, by a designator of page 83h.
pub(crate) const IDENTIFICATION: u8 = 0xE4;
/// Block to block segment.
pub(crate) const BLOCK_TO_BLOCK: u8 = 0x02;

const HEADER_BYTES: usize = 16;
const CSCD_BYTES: usize = 32;
const SEGMENT_BYTES: usize = 28;
/// Bytes copied at a time; a multiple of every block size.
const PIECE_BYTES: u64 = 256 * 1024;
/// Most results that a nexus keeps for RECEIVE COPY RESULTS on a unit; the oldest goes first.
const RESULTS_MAX: usize = 8;

/// What became of a copy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CopyResult {
    list_id: u8,
    complete: bool,
    segments: u16,
    bytes: u32,
}

/// A checked segment.
struct Segment {
    source: Attachment,
    destination: Attachment,
    source_range: BlockRange,
    destination_lba: u64,
}

/// | byte | field |
/// | --- | --- |
/// | 0 | LIST IDENTIFIER |
/// | 1 | STR, LIST ID USAGE, PRIORITY |
/// | 2..4 | length of the CSCD descriptors |
/// | 8..12 | length of the segment descriptors |
/// | 12..16 | length of the inline data, 0 here |
/// | 16.. | the two lists |
pub(crate) fn extended_copy(context: &mut CommandContext<'_>) -> Result<(), Sense> {
    const TRUNCATED: Sense = Sense::illegal(AdditionalSense::PARAMETER_LIST_LENGTH_ERROR);
    let list = context.take_data_out()?;
    if list.is_empty() {
        return Ok(());
    }
    let (header, rest) = list.split_at_checked(HEADER_BYTES).ok_or(TRUNCATED)?;
    let list_id = u8::try_from(be_uint(header, 0..1)).unwrap_or(0);
    let list_id_usage = (be_uint(header, 1..2) >> 3) & 0x03;
    if list_id_usage == 1 {
        return Err(Sense::parameter_field(1, Some(4)));
    }
    if list_id_usage == 3 && list_id != 0 {
        return Err(Sense::parameter_field(0, Some(7)));
    }
    if be_uint(header, 12..16) != 0 {
        return Err(Sense::parameter_field(12, None));
    }
    let (cscds, segments) = (be_uint(header, 2..4), be_uint(header, 8..12));
    if cscds + segments > u64::from(DESCRIPTOR_LIST_BYTES_MAX) {
        return Err(TRUNCATED);
    }
    let whole = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    let (cscds, rest) = rest.split_at_checked(whole(cscds)).ok_or(TRUNCATED)?;
    let segments = rest.get(..whole(segments)).ok_or(TRUNCATED)?;
    let cscds = parse_cscds(context, cscds)?;
    let segments = parse_segments(
        context,
        &cscds,
        segments,
        HEADER_BYTES + cscds.len() * CSCD_BYTES,
    )?;
    let mut result = CopyResult {
        list_id,
        complete: false,
        segments: 0,
        bytes: 0,
    };
    let copied = copy_all(&segments, &mut result);
    result.complete = copied.is_ok();
    // 00b: kept until it is asked for. 10b and 11b: nobody will.
    if list_id_usage == 0 {
        let mut results = context.attachment.nexus.copies();
        results.retain(|each| each.list_id != list_id);
        if results.len() >= RESULTS_MAX {
            results.remove(0);
        }
        results.push(result);
    }
    copied
}

const fn aborted(additional: AdditionalSense) -> Sense {
    Sense::new(SenseKey::CopyAborted, additional)
}

/// Identification descriptors (SPC-4 6.4.6.2) and the units they name. A unit that is not there
/// is an error only for the segment that needs it.
///
/// | byte | field |
/// | --- | --- |
/// | 0 | E4h |
/// | 1 | LU ID TYPE (ignored beside a designator, SPC-4 6.4.6.1), NUL, peripheral device type |
/// | 4 | code set |
/// | 5 | association, designator type |
/// | 7 | length of the designator |
/// | 8..28 | designator |
/// | 29..32 | block length; 0: not told |
fn parse_cscds(
    context: &CommandContext<'_>,
    list: &[u8],
) -> Result<Vec<Option<Attachment>>, Sense> {
    let descriptors = list.chunks_exact(CSCD_BYTES);
    if !descriptors.remainder().is_empty() {
        return Err(Sense::parameter_field(2, None));
    }
    if descriptors.len() > usize::from(DESCRIPTORS_MAX) {
        return Err(Sense::illegal(AdditionalSense::TOO_MANY_CSCD_DESCRIPTORS));
    }
    let mut units = Vec::new();
    for (descriptor, at) in descriptors.zip((HEADER_BYTES..).step_by(CSCD_BYTES)) {
        if be_uint(descriptor, 0..1) != u64::from(IDENTIFICATION) {
            return Err(Sense::illegal(AdditionalSense::UNSUPPORTED_CSCD_DESCRIPTOR));
        }
        let flags = be_uint(descriptor, 1..2);
        if flags & 0x1F != 0 {
            return Err(Sense::parameter_field(at + 1, Some(4)));
        }
        let designator_bytes = usize::try_from(be_uint(descriptor, 7..8)).unwrap_or(usize::MAX);
        if designator_bytes > 20 {
            return Err(Sense::parameter_field(at + 7, None));
        }
        let kind = be_uint(descriptor, 5..6) & 0x3F;
        let binary = be_uint(descriptor, 4..5) & 0x0F == 1;
        let name = descriptor.get(8..8 + designator_bytes).unwrap_or_default();
        let is_named = |attachment: &&Attachment| {
            let designator = attachment.unit.identity().designator();
            binary && kind == u64::from(designator.kind()) && name == designator.as_bytes()
        };
        let nul = flags & 0x20 != 0;
        let luns = context.nexus.read_luns();
        let unit = luns.values().find(is_named).filter(|_| !nul).cloned();
        let block_bytes = be_uint(descriptor, 29..32);
        let other_size = |unit: &Attachment| u64::from(unit.unit.block_bytes()) != block_bytes;
        if block_bytes != 0 && unit.as_ref().is_some_and(other_size) {
            return Err(Sense::parameter_field(at + 29, None));
        }
        units.push(unit);
    }
    Ok(units)
}

/// Block to block segments (SPC-4 6.4.7.3). `at` is where they begin in the list.
///
/// | byte | field |
/// | --- | --- |
/// | 0 | 02h |
/// | 1 | DC: the number counts blocks of the destination; CAT |
/// | 2..4 | length of the rest, 24 |
/// | 4..6, 6..8 | CSCD descriptors of source and destination |
/// | 10..12 | number of blocks |
/// | 12..20, 20..28 | LBAs |
fn parse_segments(
    context: &CommandContext<'_>,
    units: &[Option<Attachment>],
    mut list: &[u8],
    mut at: usize,
) -> Result<Vec<Segment>, Sense> {
    const UNREACHABLE: Sense = aborted(AdditionalSense::COPY_TARGET_NOT_REACHABLE);
    let mut segments = Vec::new();
    while !list.is_empty() {
        if segments.len() == usize::from(DESCRIPTORS_MAX) {
            return Err(Sense::illegal(
                AdditionalSense::TOO_MANY_SEGMENT_DESCRIPTORS,
            ));
        }
        if be_uint(list, 0..1) != u64::from(BLOCK_TO_BLOCK) {
            let additional = AdditionalSense::UNSUPPORTED_SEGMENT_DESCRIPTOR;
            return Err(Sense::illegal(additional));
        }
        let truncated = Sense::illegal(AdditionalSense::PARAMETER_LIST_LENGTH_ERROR);
        let (segment, rest) = list.split_at_checked(SEGMENT_BYTES).ok_or(truncated)?;
        if be_uint(segment, 2..4) != 24 {
            return Err(Sense::parameter_field(at + 2, None));
        }
        let unit = |index: u64| {
            let found = units.get(usize::try_from(index).unwrap_or(usize::MAX));
            found.and_then(Clone::clone).ok_or(UNREACHABLE)
        };
        let (source, destination) = (unit(be_uint(segment, 4..6))?, unit(be_uint(segment, 6..8))?);
        let (from, to) = (&source.unit, &destination.unit);
        let counted = if be_uint(segment, 1..2) & 0x02 != 0 {
            to
        } else {
            from
        };
        let bytes = be_uint(segment, 10..12) * u64::from(counted.block_bytes());
        if bytes > u64::from(SEGMENT_BYTES_MAX) {
            return Err(Sense::parameter_field(at + 10, None));
        }
        let blocks = |unit: &LogicalUnit| {
            let exact = bytes.is_multiple_of(u64::from(unit.block_bytes()));
            let inexact = aborted(AdditionalSense::INEXACT_SEGMENT);
            exact
                .then_some(bytes / u64::from(unit.block_bytes()))
                .ok_or(inexact)
        };
        let source_range = BlockRange {
            lba: be_uint(segment, 12..20),
            blocks: blocks(from)?,
        };
        let destination_range = BlockRange {
            lba: be_uint(segment, 20..28),
            blocks: blocks(to)?,
        };
        let beyond = |_| aborted(AdditionalSense::NONE);
        source_range.check_capacity(from).map_err(beyond)?;
        destination_range.check_capacity(to).map_err(beyond)?;
        check_use(context, &source, Access::Medium)?;
        check_use(context, &destination, Access::Write)?;
        segments.push(Segment {
            source,
            destination,
            source_range,
            destination_lba: destination_range.lba,
        });
        list = rest;
        at += SEGMENT_BYTES;
    }
    Ok(segments)
}

/// What a READ or WRITE by this nexus would be refused for, a copy is, too.
fn check_use(
    context: &CommandContext<'_>,
    attachment: &Attachment,
    access: Access,
) -> Result<(), Sense> {
    let unit = &attachment.unit;
    let state = unit
        .port_groups()
        .state_of_port(context.nexus.id().target_port);
    if RunsIn::Active.check(state).is_err() {
        return Err(aborted(AdditionalSense::COPY_TARGET_NOT_REACHABLE));
    }
    let rule = if access == Access::Write {
        Reserved::Writes
    } else {
        Reserved::Reads
    };
    let conflict = unit
        .reservations()
        .conflict(context.nexus.id(), rule, &context.cdb);
    let state = unit.state();
    let sanitized = state.sanitize.sense().is_some();
    if conflict || sanitized || command::check_ready(unit, state, access).is_err() {
        return Err(aborted(AdditionalSense::THIRD_PARTY_DEVICE_FAILURE));
    }
    Ok(())
}

fn copy_all(segments: &[Segment], result: &mut CopyResult) -> Result<(), Sense> {
    let mut buffer = Vec::new();
    for segment in segments {
        let (from, to) = (&segment.source.unit, &segment.destination.unit);
        let block_bytes = u64::from(from.block_bytes());
        let all_bytes = segment.source_range.blocks * block_bytes;
        let mut done = 0;
        while done < all_bytes {
            let bytes = PIECE_BYTES.min(all_bytes - done);
            buffer.resize(usize::try_from(bytes).unwrap_or(0), 0);
            let failed = |_| aborted(AdditionalSense::THIRD_PARTY_DEVICE_FAILURE);
            let source_lba = segment.source_range.lba + done / block_bytes;
            from.device()
                .read(source_lba, &mut buffer)
                .map_err(failed)?;
            let to_lba = segment.destination_lba + done / u64::from(to.block_bytes());
            let writing = to.writing();
            let durable = to.durable(false);
            to.device()
                .write(to_lba, &buffer, durable)
                .map_err(failed)?;
            drop(writing);
            done += bytes;
            // At most 16 segments of 16 MiB.
            result.bytes = result
                .bytes
                .saturating_add(u32::try_from(bytes).unwrap_or(0));
        }
        result.segments += 1;
    }
    Ok(())
}

/// RECEIVE COPY STATUS(LID1): what became of a copy with this list identifier; asked for once.
///
/// | byte | field |
/// | --- | --- |
/// | 0..4 | length of the rest |
/// | 4 | status: 1 complete, 2 failed |
/// | 5..7 | segments done |
/// | 7 | unit of the count, bytes |
/// | 8..12 | bytes copied |
pub(crate) fn copy_status(context: &mut CommandContext<'_>) -> Result<(), Sense> {
    let list_id = context.cdb.byte(2);
    let mut results = context.attachment.nexus.copies();
    let found = results.iter().position(|each| each.list_id == list_id);
    let result = found.map(|at| results.remove(at));
    drop(results);
    let result = result.ok_or(Sense::cdb_field(2, Some(7)))?;
    let mut data = vec![0, 0, 0, 8, if result.complete { 1 } else { 2 }];
    data.extend(result.segments.to_be_bytes());
    data.push(0);
    data.extend(result.bytes.to_be_bytes());
    let allocation_bytes = context.cdb.uint(10..14);
    context.reply(&data, allocation_bytes);
    Ok(())
}

/// RECEIVE COPY OPERATING PARAMETERS.
///
/// | byte | field |
/// | --- | --- |
/// | 0..4 | length of the rest |
/// | 4 | SNLID: list identifiers are not needed |
/// | 8..10, 10..12 | most CSCD, most segment descriptors |
/// | 12..16 | most bytes of descriptors |
/// | 16..20 | most bytes of a segment |
/// | 34..36, 36 | concurrent copies |
/// | 37 | granularity of segments, 2^9 bytes |
/// | 43.. | descriptor type codes |
pub(crate) fn operating_parameters(context: &mut CommandContext<'_>) -> Result<(), Sense> {
    let mut data = vec![0, 0, 0, 42, 0x01, 0, 0, 0];
    data.extend(DESCRIPTORS_MAX.to_be_bytes());
    data.extend(DESCRIPTORS_MAX.to_be_bytes());
    data.extend(DESCRIPTOR_LIST_BYTES_MAX.to_be_bytes());
    data.extend(SEGMENT_BYTES_MAX.to_be_bytes());
    data.resize(34, 0);
    data.extend([0, 1, 1, 9, 0, 0, 0, 0, 0, 2, BLOCK_TO_BLOCK, IDENTIFICATION]);
    let allocation_bytes = context.cdb.uint(10..14);
    context.reply(&data, allocation_bytes);
    Ok(())
}

/// Third-party copy page, 8Fh (SPC-4 7.8.17), without its header.
pub(crate) fn vpd_page() -> Vec<u8> {
    let [max_high, max_low] = DESCRIPTORS_MAX.to_be_bytes();
    let mut body = Vec::new();
    let mut descriptor = |kind: u16, bytes: u16, data: &[&[u8]]| {
        let end = body.len() + 4 + usize::from(bytes);
        body.extend(kind.to_be_bytes());
        body.extend(bytes.to_be_bytes());
        body.extend(data.concat());
        body.resize(end, 0);
    };
    // Supported commands: operation code, number of service actions, service actions.
    let commands = [
        0x83,
        1,
        EXTENDED_COPY_LID1,
        0x84,
        2,
        COPY_STATUS,
        OPERATING_PARAMETERS,
    ];
    descriptor(0x0001, 8, &[&[7], &commands]);
    // Parameter data.
    let list_bytes = DESCRIPTOR_LIST_BYTES_MAX.to_be_bytes();
    let maxima = [max_high, max_low, max_high, max_low];
    descriptor(0x0004, 0x1C, &[&[0; 4], &maxima, &list_bytes]);
    // Supported descriptors, then supported CSCD identifiers: none.
    descriptor(0x0008, 4, &[&[2, BLOCK_TO_BLOCK, IDENTIFICATION]]);
    descriptor(0x000C, 4, &[]);
    // General copy operations: concurrent copies, segment length, granularities.
    let segment_bytes = SEGMENT_BYTES_MAX.to_be_bytes();
    descriptor(
        0x8001,
        0x20,
        &[&[0, 0, 0, 1], &[0, 0, 0, 1], &segment_bytes, &[9, 0]],
    );
    // Held data: none.
    descriptor(0xC001, 0x1C, &[]);
    body
}
