//! SANITIZE (SBC-3 5.24, 4.11): overwrite all blocks, or take their backing from all of them.
//!
//! It is done before the answer also with IMMED, which allows but does not ask for an early one.
//! Meanwhile other nexuses get 2/04/1B with the progress, afterwards 3/31/03 if it failed.
//! The state that says so is also that of FORMAT UNIT (`format_unit`).

use crate::cdb::be_uint;
use crate::command::CommandContext;
use crate::logical_unit::LogicalUnit;
use crate::opcode;
use crate::provisioning::UNMAP_BLOCKS_MAX;
use crate::sense::{AdditionalSense, Sense, SenseKey};

// Service actions.
pub(crate) const OVERWRITE: u8 = 0x01;
pub(crate) const BLOCK_ERASE: u8 = 0x02;
pub(crate) const EXIT_FAILURE_MODE: u8 = 0x1F;

/// Header of the parameter list of OVERWRITE.
const HEADER_BYTES: usize = 4;
/// Bytes written at a time.
const PIECE_BYTES: u32 = 64 * 1024;

/// What SANITIZE or FORMAT UNIT does or left behind. Outlives resets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Sanitize {
    /// Nothing.
    #[default]
    Idle,
    /// It is at work: 65536ths done.
    Running(u16),
    /// It failed. `unrestricted` (AUSE): EXIT FAILURE MODE gives the unit back.
    Failed {
        /// AUSE of the command.
        unrestricted: bool,
    },
    /// FORMAT UNIT is at work: 65536ths done.
    Formatting(u16),
    /// FORMAT UNIT failed.
    Unformatted,
}

impl Sanitize {
    /// Why commands are refused.
    pub(crate) const fn sense(self) -> Option<Sense> {
        match self {
            Self::Idle => None,
            Self::Running(done) => Some(in_progress(AdditionalSense::SANITIZE_IN_PROGRESS, done)),
            Self::Formatting(done) => Some(in_progress(AdditionalSense::FORMAT_IN_PROGRESS, done)),
            Self::Failed { .. } => Some(FAILED),
            Self::Unformatted => Some(UNFORMATTED),
        }
    }

    /// Whether this command gets the unit out of its state.
    pub(crate) const fn lets_run(self, opcode: u8) -> bool {
        match self {
            Self::Idle => true,
            Self::Running(_) | Self::Formatting(_) => false,
            Self::Failed { .. } => opcode == opcode::SANITIZE,
            Self::Unformatted => opcode == opcode::FORMAT_UNIT,
        }
    }
}

const fn in_progress(additional: AdditionalSense, done: u16) -> Sense {
    let mut sense = Sense::new(SenseKey::NotReady, additional);
    sense.progress = Some(done);
    sense
}

pub(crate) const UNFORMATTED: Sense = Sense::new(
    SenseKey::MediumError,
    AdditionalSense::MEDIUM_FORMAT_CORRUPTED,
);
const FAILED: Sense = Sense::new(SenseKey::MediumError, AdditionalSense::SANITIZE_FAILED);

pub(crate) fn sanitize(context: &mut CommandContext<'_>) -> Result<(), Sense> {
    let unit = context.unit();
    let cdb = context.cdb;
    let list = context.take_data_out()?;
    let action = cdb.service_action();
    let overwrite = match action {
        OVERWRITE => Some(Overwrite::parse(unit, list)?),
        _ if !list.is_empty() => return Err(Sense::cdb_field(7, None)),
        _ => None,
    };
    // Nobody is in the middle of a write, and whoever waits here writes after the end.
    let _alone = unit.alone();
    if action == EXIT_FAILURE_MODE {
        return exit_failure_mode(unit);
    }
    unit.update_state(|state| state.sanitize = Sanitize::Running(0));
    let done = match overwrite {
        Some(overwrite) => overwrite.run(unit),
        None => erase(unit),
    };
    let after = match done {
        Ok(()) => Sanitize::Idle,
        Err(_) => Sanitize::Failed {
            unrestricted: cdb.has(1, 0x20),
        },
    };
    unit.update_state(|state| state.sanitize = after);
    done.map_err(|_medium| FAILED)
}

fn exit_failure_mode(unit: &LogicalUnit) -> Result<(), Sense> {
    if unit.state().sanitize
        == (Sanitize::Failed {
            unrestricted: false,
        })
    {
        return Err(Sense::cdb_field(1, Some(4)));
    }
    unit.update_state(|state| state.sanitize = Sanitize::Idle);
    Ok(())
}

/// BLOCK ERASE: a unit that can has all its blocks unmapped, which read as zeroes.
fn erase(unit: &LogicalUnit) -> Result<(), Sense> {
    let pieces = Pieces::new(unit, u64::from(UNMAP_BLOCKS_MAX), 1);
    for (lba, blocks, done) in pieces {
        unit.device().unmap(lba, blocks)?;
        unit.update_state(|state| state.sanitize = Sanitize::Running(done));
    }
    Ok(unit.device().flush()?)
}

/// OVERWRITE's parameter list.
///
/// | byte | field |
/// | --- | --- |
/// | 0 | INVERT, TEST (0 here), OVERWRITE COUNT |
/// | 2..4 | length of the pattern |
/// | 4.. | pattern, at most a block, repeated in each block |
struct Overwrite {
    inverts: bool,
    passes: u8,
    block: Vec<u8>,
}

impl Overwrite {
    fn parse(unit: &LogicalUnit, list: &[u8]) -> Result<Self, Sense> {
        let block_bytes = usize::try_from(unit.block_bytes()).unwrap_or(usize::MAX);
        let (header, pattern) = list
            .split_at_checked(HEADER_BYTES)
            .filter(|(_, pattern)| (1..=block_bytes).contains(&pattern.len()))
            .ok_or(Sense::cdb_field(7, None))?;
        let first = u8::try_from(be_uint(header, 0..1)).unwrap_or(0);
        if first & 0x60 != 0 {
            return Err(Sense::parameter_field(0, Some(6)));
        }
        if first & 0x1F == 0 {
            return Err(Sense::parameter_field(0, Some(4)));
        }
        if usize::try_from(be_uint(header, 2..4)) != Ok(pattern.len()) {
            return Err(Sense::parameter_field(2, None));
        }
        Ok(Self {
            inverts: first & 0x80 != 0,
            passes: first & 0x1F,
            block: pattern.iter().copied().cycle().take(block_bytes).collect(),
        })
    }

    fn run(mut self, unit: &LogicalUnit) -> Result<(), Sense> {
        let piece_blocks = u64::from(unit.blocks_in(PIECE_BYTES));
        let mut piece = Vec::new();
        let mut pass_at = u64::MAX;
        for (lba, blocks, done) in Pieces::new(unit, piece_blocks, self.passes) {
            if lba == 0 {
                if self.inverts && pass_at == 0 {
                    self.block.iter_mut().for_each(|byte| *byte = !*byte);
                }
                pass_at = 0;
                piece = self
                    .block
                    .repeat(usize::try_from(piece_blocks).unwrap_or(1));
            }
            let bytes = usize::try_from(blocks).unwrap_or(0) * self.block.len();
            unit.device()
                .write(lba, piece.get(..bytes).unwrap_or_default(), false)?;
            unit.update_state(|state| state.sanitize = Sanitize::Running(done));
        }
        Ok(unit.device().flush()?)
    }
}

/// The pieces of a unit, pass by pass: LBA, blocks, and 65536ths done with this piece.
pub(crate) struct Pieces {
    blocks: u64,
    piece_blocks: u64,
    passes: u64,
    pass: u64,
    lba: u64,
}

impl Pieces {
    pub(crate) fn new(unit: &LogicalUnit, piece_blocks: u64, passes: u8) -> Self {
        Self {
            blocks: unit.block_count().max(1),
            piece_blocks,
            passes: u64::from(passes),
            pass: 0,
            lba: 0,
        }
    }
}

impl Iterator for Pieces {
    type Item = (u64, u64, u16);

    fn next(&mut self) -> Option<Self::Item> {
        if self.pass == self.passes {
            return None;
        }
        let (lba, now) = (self.lba, self.piece_blocks.min(self.blocks - self.lba));
        self.lba += now;
        let done = u128::from(self.pass) * u128::from(self.blocks) + u128::from(self.lba);
        let all = u128::from(self.passes) * u128::from(self.blocks);
        if self.lba == self.blocks {
            self.lba = 0;
            self.pass += 1;
        }
        let share = u16::try_from(done * 0x1_0000 / all).unwrap_or(u16::MAX);
        Some((lba, now, share))
    }
}
