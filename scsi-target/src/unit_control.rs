//! Commands about the unit as a whole: ready, sense, start, prevent, flush.

use crate::cdb::Cdb;
use crate::command::{self, CommandContext, reply};
use crate::port_groups::RunsIn;
use crate::read_write::BlockRange;
use crate::sense::{AdditionalSense, Sense, SenseFormat, SenseKey};

/// Nothing to report.
pub(crate) const NO_SENSE: Sense = Sense::new(SenseKey::NoSense, AdditionalSense::NONE);

/// TEST UNIT READY (SPC-4 6.47): the table's checks are all there is.
pub(crate) fn test_unit_ready(_: &mut CommandContext<'_>) -> Result<(), Sense> {
    Ok(())
}

/// REQUEST SENSE (SPC-4 6.39): a pending unit attention is reported as data, and ends.
pub(crate) fn request_sense(context: &mut CommandContext<'_>) -> Result<(), Sense> {
    let sense = match command::take_unit_attention(context) {
        Some(condition) => condition.sense(),
        None => not_ready(context),
    };
    let cdb = context.cdb;
    sense_as_data(&cdb, sense, context.data_in);
    Ok(())
}

/// Why commands would be refused at this moment.
fn not_ready(context: &CommandContext<'_>) -> Sense {
    let unit = context.unit();
    let state = unit.state();
    let access_state = unit
        .port_groups()
        .state_of_port(context.nexus.id().target_port);
    if let Err(sense) = RunsIn::Active.check(access_state) {
        sense
    } else if let Some(sense) = state.sanitize.sense() {
        sense
    } else if state.stopped {
        command::stopped()
    } else {
        NO_SENSE
    }
}

/// Answers REQUEST SENSE with `sense` in the format DESC asks for.
pub(crate) fn sense_as_data(cdb: &Cdb, sense: Sense, data_in: &mut Vec<u8>) {
    let format = if cdb.has(1, 0x01) {
        SenseFormat::Descriptor
    } else {
        SenseFormat::Fixed
    };
    reply(data_in, &sense.encode(format), cdb.uint(4..5));
}

/// START STOP UNIT (SBC-3 5.25). Power conditions other than START_VALID, and LOEJ, are refused
/// by the table: the medium is not removable. IMMED makes no difference, both ways are instant.
/// A stopped unit is stopped for all its initiators, until one starts or resets it.
pub(crate) fn start_stop_unit(context: &mut CommandContext<'_>) -> Result<(), Sense> {
    let unit = context.unit();
    let start = context.cdb.has(4, 0x01);
    let no_flush = context.cdb.has(4, 0x04);
    if !start && !no_flush && !unit.state().stopped {
        unit.device().flush()?;
    }
    unit.update_state(|state| state.stopped = !start);
    Ok(())
}

/// PREVENT ALLOW MEDIUM REMOVAL (SPC-4 6.19): nothing here can be removed, both are true.
pub(crate) fn prevent_allow(_: &mut CommandContext<'_>) -> Result<(), Sense> {
    Ok(())
}

/// SYNCHRONIZE CACHE (SBC-3 5.26, 5.27). The whole cache is flushed whatever the range, and
/// before the answer also with IMMED, which allows but does not ask for an early one.
pub(crate) fn synchronize_cache(context: &mut CommandContext<'_>) -> Result<(), Sense> {
    let unit = context.unit();
    BlockRange::parse(&context.cdb).check_capacity(unit)?;
    unit.device().flush()?;
    Ok(())
}
