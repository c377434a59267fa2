//! Random command sequences against a plain vector of bytes, and one of which blocks are mapped.

use proptest::prelude::*;

use super::copies;
use super::ram_device::{Fixture, RamDevice};
use crate::Status;

pub(super) const BLOCKS: u64 = 24;
const BLOCK_BYTES: usize = 512;
/// Most blocks of WRITE ATOMIC.
const ATOMIC_BLOCKS: u8 = 2;

/// A command; fillings are few, so that comparisons succeed about as often as they fail.
#[derive(Clone, Debug)]
pub(super) enum Operation {
    Read {
        form: u8,
        lba: u64,
        blocks: u8,
    },
    Write {
        form: u8,
        lba: u64,
        fill: Vec<u8>,
    },
    WriteAndVerify {
        lba: u64,
        fill: Vec<u8>,
    },
    Verify {
        lba: u64,
        fill: Vec<u8>,
    },
    VerifySame {
        lba: u64,
        blocks: u8,
        fill: u8,
    },
    CompareAndWrite {
        lba: u64,
        expected: Vec<u8>,
        fill: u8,
    },
    WriteSame {
        lba: u64,
        blocks: u8,
        fill: u8,
        unmap: bool,
        no_data_out: bool,
    },
    Unmap {
        ranges: Vec<(u64, u8)>,
    },
    OrWrite {
        lba: u64,
        fill: Vec<u8>,
    },
    WriteAtomic {
        lba: u64,
        fill: Vec<u8>,
    },
    /// EXTENDED COPY within the unit.
    Copy {
        from: u64,
        to: u64,
        blocks: u8,
    },
    /// GET LBA STATUS with an allocation length for so many runs.
    LbaStatus {
        lba: u64,
        room: u8,
    },
}

/// Mostly inside, sometimes at or across the end, sometimes where additions wrap.
fn lba() -> impl Strategy<Value = u64> {
    prop_oneof![20 => 0..BLOCKS + 2, 1 => Just(u64::MAX)]
}

fn fill() -> impl Strategy<Value = u8> {
    0..3_u8
}

pub(super) fn operation() -> impl Strategy<Value = Operation> {
    use Operation as O;
    let fills = || prop::collection::vec(fill(), 0..4);
    prop_oneof![
        (0..4_u8, lba(), 0..8_u8).prop_map(|(form, lba, blocks)| O::Read { form, lba, blocks }),
        (0..4_u8, lba(), fills()).prop_map(|(form, lba, fill)| O::Write { form, lba, fill }),
        (lba(), fills()).prop_map(|(lba, fill)| O::WriteAndVerify { lba, fill }),
        (lba(), fills()).prop_map(|(lba, fill)| O::Verify { lba, fill }),
        (lba(), 0..4_u8, fill()).prop_map(|(lba, blocks, fill)| O::VerifySame {
            lba,
            blocks,
            fill
        }),
        (lba(), fills(), fill()).prop_map(|(lba, expected, fill)| O::CompareAndWrite {
            lba,
            expected,
            fill
        }),
        (lba(), 0..8_u8, fill(), any::<bool>(), any::<bool>()).prop_map(
            |(lba, blocks, fill, unmap, no_data_out)| {
                O::WriteSame {
                    lba,
                    blocks,
                    fill,
                    unmap,
                    no_data_out,
                }
            }
        ),
        prop::collection::vec((lba(), 0..6_u8), 0..4).prop_map(|ranges| O::Unmap { ranges }),
        (lba(), fills()).prop_map(|(lba, fill)| O::OrWrite { lba, fill }),
        (lba(), fills()).prop_map(|(lba, fill)| O::WriteAtomic { lba, fill }),
        (lba(), lba(), 0..6_u8).prop_map(|(from, to, blocks)| O::Copy { from, to, blocks }),
        (lba(), 0..5_u8).prop_map(|(lba, room)| O::LbaStatus { lba, room }),
    ]
}

fn cdb_16(opcode: u8, flags: u8, lba: u64, blocks: u8) -> Vec<u8> {
    let mut cdb = vec![opcode, flags];
    cdb.extend(lba.to_be_bytes());
    cdb.extend([0, 0, 0, blocks, 0, 0]);
    cdb
}

/// READ or WRITE in one of its four forms; the long one for LBAs the others cannot say.
fn cdb_of_form(form: u8, write: bool, lba: u64, blocks: u8) -> Vec<u8> {
    let [.., a, b, c, d] = lba.to_be_bytes();
    let opcode = |read: u8| if write { read + 2 } else { read };
    match form {
        // In 6-byte CDBs no blocks means 256.
        0 if lba < 1 << 21 && blocks > 0 => vec![opcode(0x08), b, c, d, blocks, 0],
        1 if lba < 1 << 32 => vec![opcode(0x28), 0, a, b, c, d, 0, 0, blocks, 0],
        2 if lba < 1 << 32 => vec![opcode(0xA8), 0, a, b, c, d, 0, 0, 0, blocks, 0, 0],
        _ => cdb_16(opcode(0x88), 0, lba, blocks),
    }
}

pub(super) fn expand(fills: &[u8]) -> Vec<u8> {
    fills.iter().flat_map(|&fill| [fill; BLOCK_BYTES]).collect()
}

fn count(fills: &[u8]) -> u8 {
    u8::try_from(fills.len()).unwrap()
}

/// What a command must do: status (`Err`: sense key, ASC, INFORMATION) and data.
pub(super) type Expected = Result<Vec<u8>, (u8, u8, Option<u64>)>;

const OUT_OF_RANGE: Expected = Err((5, 0x21, None));

/// The oracle: one byte of filling stands for each block, and whether it has a backing.
#[derive(Clone)]
pub(super) struct Model {
    fills: Vec<u8>,
    mapped: Vec<bool>,
}

/// The medium that [`Model::new`] is a model of.
pub(super) fn device() -> RamDevice {
    let blocks = usize::try_from(BLOCKS).unwrap();
    RamDevice::new(512, blocks, true).with_atomic_blocks(ATOMIC_BLOCKS.into())
}

impl Model {
    /// As a thin unit begins.
    pub(super) fn new() -> Self {
        let blocks = usize::try_from(BLOCKS).unwrap();
        Self {
            fills: vec![0; blocks],
            mapped: vec![false; blocks],
        }
    }

    pub(super) fn contents(&self) -> Vec<u8> {
        expand(&self.fills)
    }

    fn range(&self, lba: u64, blocks: usize) -> Option<std::ops::Range<usize>> {
        let lba = usize::try_from(lba).ok()?;
        let end = lba.checked_add(blocks)?;
        (end <= self.fills.len()).then_some(lba..end)
    }

    fn write(&mut self, lba: u64, fills: &[u8]) -> Expected {
        let Some(range) = self.range(lba, fills.len()) else {
            return OUT_OF_RANGE;
        };
        self.mapped[range.clone()].fill(true);
        self.fills[range].copy_from_slice(fills);
        Ok(Vec::new())
    }

    fn unmap(&mut self, lba: u64, blocks: u8) -> Expected {
        self.write(lba, &vec![0; blocks.into()])?;
        let range = self.range(lba, blocks.into()).unwrap();
        self.mapped[range].fill(false);
        Ok(Vec::new())
    }

    /// Runs of blocks that are alike: at least one, at most `room`.
    fn lba_status(&self, lba: u64, room: u8) -> Expected {
        let Some(first) = self.range(lba, 1) else {
            return OUT_OF_RANGE;
        };
        let mut runs: Vec<(usize, u32, bool)> = Vec::new();
        for at in first.start..self.mapped.len() {
            match runs.last_mut() {
                Some((_, blocks, mapped)) if *mapped == self.mapped[at] => *blocks += 1,
                _ => runs.push((at, 1, self.mapped[at])),
            }
        }
        runs.truncate(usize::from(room.max(1)));
        let length = u32::try_from(4 + runs.len() * 16).unwrap();
        let mut data = [length.to_be_bytes(), [0; 4]].concat();
        for (at, blocks, mapped) in runs {
            data.extend(u64::try_from(at).unwrap().to_be_bytes());
            data.extend(blocks.to_be_bytes());
            data.extend([u8::from(!mapped), 0, 0, 0]);
        }
        data.truncate(8 + usize::from(room) * 16);
        Ok(data)
    }

    /// Whether all blocks of a copy are there.
    pub(super) fn in_range(&self, operation: &Operation) -> bool {
        match operation {
            Operation::Copy { from, to, blocks } => {
                let inside = |lba: u64| self.range(lba, usize::from(*blocks)).is_some();
                inside(*from) && inside(*to)
            }
            _ => true,
        }
    }

    fn copy(&mut self, from: u64, to: u64, blocks: u8) -> Expected {
        let (Some(source), Some(_)) = (
            self.range(from, blocks.into()),
            self.range(to, blocks.into()),
        ) else {
            return Err((0xA, 0, None));
        };
        let fills = self.fills[source].to_vec();
        self.write(to, &fills)
    }

    fn verify(&self, lba: u64, fills: &[u8]) -> Expected {
        let Some(range) = self.range(lba, fills.len()) else {
            return OUT_OF_RANGE;
        };
        match self.fills[range]
            .iter()
            .zip(fills)
            .position(|(found, wanted)| found != wanted)
        {
            Some(at) => Err((0x0E, 0x1D, Some(lba + u64::try_from(at).unwrap()))),
            None => Ok(Vec::new()),
        }
    }

    /// CDB, data-out and the wanted outcome.
    pub(super) fn apply(&mut self, operation: &Operation) -> (Vec<u8>, Vec<u8>, Expected) {
        match operation {
            Operation::Read { form, lba, blocks } => {
                let data = self
                    .range(*lba, usize::from(*blocks))
                    .map(|at| expand(&self.fills[at]));
                let cdb = cdb_of_form(*form, false, *lba, *blocks);
                // READ(6) has no form for 0 blocks: `cdb_of_form` took another.
                (cdb, Vec::new(), data.map_or(OUT_OF_RANGE, Ok))
            }
            Operation::Write { form, lba, fill } => {
                let cdb = cdb_of_form(*form, true, *lba, count(fill));
                (cdb, expand(fill), self.write(*lba, fill))
            }
            Operation::WriteAndVerify { lba, fill } => (
                cdb_16(0x8E, 0x02, *lba, count(fill)),
                expand(fill),
                self.write(*lba, fill),
            ),
            Operation::Verify { lba, fill } => (
                cdb_16(0x8F, 0x02, *lba, count(fill)),
                expand(fill),
                self.verify(*lba, fill),
            ),
            Operation::VerifySame { lba, blocks, fill } => {
                let expected = self.verify(*lba, &vec![*fill; usize::from(*blocks)]);
                (
                    cdb_16(0x8F, 0x06, *lba, *blocks),
                    expand(&[*fill]),
                    expected,
                )
            }
            Operation::CompareAndWrite {
                lba,
                expected,
                fill,
            } => {
                let new = vec![*fill; expected.len()];
                let outcome = match self.verify(*lba, expected) {
                    Ok(_) => self.write(*lba, &new),
                    // INFORMATION is an offset into the data-out here. Blocks are uniform, so
                    // the first byte of the first different block is the one.
                    Err((0x0E, asc, Some(block))) => {
                        let offset = usize::try_from(block - lba).unwrap() * BLOCK_BYTES;
                        Err((0x0E, asc, Some(u64::try_from(offset).unwrap())))
                    }
                    Err(other) => Err(other),
                };
                let cdb = cdb_16(0x89, 0, *lba, count(expected));
                (cdb, [expand(expected), expand(&new)].concat(), outcome)
            }
            Operation::WriteSame {
                lba,
                blocks,
                fill,
                unmap,
                no_data_out,
            } => {
                let fill = if *no_data_out { 0 } else { *fill };
                let flags = if *unmap { 0x08 } else { 0 } | u8::from(*no_data_out);
                let data = if *no_data_out {
                    Vec::new()
                } else {
                    expand(&[fill])
                };
                let written = if *unmap && fill == 0 {
                    self.unmap(*lba, *blocks)
                } else {
                    self.write(*lba, &vec![fill; usize::from(*blocks)])
                };
                let expected = match written {
                    Ok(_) if *blocks == 0 => Err((5, 0x24, None)),
                    other => other,
                };
                (cdb_16(0x93, flags, *lba, *blocks), data, expected)
            }
            Operation::OrWrite { lba, fill } => {
                let mut new = fill.clone();
                if let Some(range) = self.range(*lba, fill.len()) {
                    for (new, old) in new.iter_mut().zip(&self.fills[range]) {
                        *new |= old;
                    }
                }
                let expected = self.write(*lba, &new);
                (cdb_16(0x8B, 0, *lba, count(fill)), expand(fill), expected)
            }
            Operation::Unmap { ranges } => {
                let bytes = count(&vec![0; ranges.len() * 16]);
                let mut list = vec![0, bytes + 6, 0, bytes, 0, 0, 0, 0];
                for (lba, blocks) in ranges {
                    list.extend(lba.to_be_bytes());
                    list.extend([0, 0, 0, *blocks, 0, 0, 0, 0]);
                }
                let inside =
                    |&(lba, blocks): &(u64, u8)| self.range(lba, usize::from(blocks)).is_some();
                let expected = if ranges.iter().all(inside) {
                    for (lba, blocks) in ranges {
                        self.unmap(*lba, *blocks).unwrap();
                    }
                    Ok(Vec::new())
                } else {
                    OUT_OF_RANGE
                };
                let cdb = vec![0x42, 0, 0, 0, 0, 0, 0, 0, bytes + 8, 0];
                (cdb, list, expected)
            }
            Operation::WriteAtomic { lba, fill } => {
                let mut cdb = vec![0x9C, 0];
                cdb.extend(lba.to_be_bytes());
                cdb.extend([0, 0, 0, count(fill), 0, 0]);
                let expected = if count(fill) <= ATOMIC_BLOCKS {
                    self.write(*lba, fill)
                } else if self.range(*lba, fill.len()).is_some() {
                    Err((5, 0x24, None))
                } else {
                    OUT_OF_RANGE
                };
                (cdb, expand(fill), expected)
            }
            Operation::Copy { from, to, blocks } => {
                let segment = copies::segment((0, 0), 0, u16::from(*blocks), *from, *to);
                let list = copies::list(0, 3, &[copies::cscd("lun-0001", 512)], &[segment]);
                let expected = self.copy(*from, *to, *blocks);
                (copies::cdb(&list), list, expected)
            }
            Operation::LbaStatus { lba, room } => {
                let mut cdb = vec![0x9E, 0x12];
                cdb.extend(lba.to_be_bytes());
                cdb.extend([0, 0, 0, 8 + room * 16, 0, 0]);
                (cdb, Vec::new(), self.lba_status(*lba, *room))
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn unit_behaves_as_a_vector_of_bytes(
        operations in prop::collection::vec(operation(), 1..40),
    ) {
        let fixture = Fixture::with_device(device());
        let mut model = Model::new();
        for operation in &operations {
            let (cdb, data_out, expected) = model.apply(operation);
            let (completion, data_in) = fixture.run(&cdb, &data_out);
            let found = match completion.sense {
                None => Ok(data_in),
                Some(sense) => {
                    Err((sense.key.code(), sense.additional.asc, sense.information))
                }
            };
            prop_assert_eq!(&found, &expected, "{:?}", operation);
            if completion.status == Status::Good {
                prop_assert_eq!(completion.data_out_used_bytes, match operation {
                    Operation::VerifySame { blocks: 0, .. } => 0,
                    _ => data_out.len(),
                });
            }
            prop_assert_eq!(fixture.device.contents(), model.contents());
        }
    }
}
