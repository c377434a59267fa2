//! Damaged input for parsers.
//!
//! ```text
//! good input ──damage──> parser: any answer, no panic, no end       (cargo test: a fixed seed)
//!     ^                     │
//!     └─ reached new code ──┘                                       (cargo xtask fuzz)
//! ```
//!
//! A target is a test beside its parser that calls [`fuzz`]. In `cargo test` it tries the good input,
//! what is committed in its folder, every cut of the good input, and then a number of damaged ones, the
//! same each time. `cargo xtask fuzz` builds it so that each edge of the code counts: what reaches a
//! new one is damaged further, and the smallest set that reaches them all goes to the folder.
//!
//! Not libFuzzer: it brings its own `main` and a C++ compiler, and sees no private parser.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

pub use fastrand::Rng;

mod sys;

/// Set by `cargo xtask fuzz`: how many seconds a target looks for new input.
pub const SECONDS_VARIABLE: &str = "ORIMONO_FUZZ_SECONDS";
/// Bytes of an input that is kept at most.
const KEPT_BYTES_MAX: usize = 4095;
/// Inputs that are kept at most.
const KEPT_MAX: usize = 200;

/// `few`, or `many` with `ORIMONO_TEST_FULL=1`.
#[must_use]
pub fn inputs(few: usize, many: usize) -> usize {
    let full = std::env::var_os("ORIMONO_TEST_FULL").is_some();
    if full { many } else { few }
}

/// The files of a folder, by name; none if it is not there.
///
/// # Panics
/// One cannot be read.
#[must_use]
pub fn corpus(folder: impl AsRef<Path>) -> Vec<Vec<u8>> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    let mut files: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    files.retain(|path| path.is_file());
    files.sort();
    let read = |file| std::fs::read(file).unwrap_or_else(|error| panic!("{file:?}: {error}"));
    files.iter().map(read).collect()
}

/// An input of `corpus` with one to three damages. `corpus` must not be empty.
pub fn damaged(random: &mut Rng, corpus: &[Vec<u8>]) -> Vec<u8> {
    let any = |random: &mut Rng| random.choice(corpus).map_or(&[][..], Vec::as_slice);
    let mut bytes = any(random).to_vec();
    for _ in 0..random.usize(1..4) {
        let at = random.usize(..bytes.len().max(1));
        match random.u8(..8) {
            0 => bytes.truncate(at),
            1 => {
                let tail = any(random).iter().skip(at).copied();
                bytes.splice(at.min(bytes.len()).., tail);
            }
            2 => bytes.extend(std::iter::repeat_n(random.u8(..), random.usize(..64))),
            // Integers at their limits.
            3 => {
                let value = random.choice([0, 1, 0x7fff_ffff, u32::MAX]).unwrap_or(0);
                let aligned = random.choice([0, 1, 3]).unwrap_or(0);
                let room = bytes.iter_mut().skip(at & !aligned);
                for (byte, new) in room.zip(value.to_le_bytes()) {
                    *byte = new;
                }
            }
            4 => bytes.insert(at.min(bytes.len()), random.u8(..)),
            5 => bytes.extend_from_slice(any(random)),
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << random.u8(..8);
                }
            }
        }
    }
    bytes
}

/// Prints the input that was underway when its test fails.
struct Witness<'a>(&'a [u8]);

impl Drop for Witness<'_> {
    #[expect(clippy::print_stderr, reason = "the test harness shows it")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut text = String::new();
            for byte in self.0 {
                text += &format!("{byte:02x}");
            }
            eprintln!("guilty input of {} bytes: {text}", self.0.len());
        }
    }
}

/// Has `parse` answer `good` inputs, those in `folder`, every cut of the good ones, and `count` damaged
/// ones. Its panic is printed with the guilty input.
///
/// `folder` is that of the target, `CRATE/tests/corpus/TARGET`. Under `cargo xtask fuzz` it looks for
/// inputs that reach new code instead, and rewrites the folder.
///
/// # Panics
/// When `parse` does, or the folder cannot be written.
pub fn fuzz(folder: &str, good: &[Vec<u8>], count: usize, mut parse: impl FnMut(&[u8])) {
    let mut parse = |bytes: &[u8]| {
        let _witness = Witness(bytes);
        parse(bytes);
    };
    let mut known = good.to_vec();
    known.extend(corpus(folder));
    assert!(!known.is_empty(), "{folder}: nothing to begin with");
    known.iter().for_each(|input| parse(input));
    let seconds = std::env::var(SECONDS_VARIABLE).ok();
    if let Some(seconds) = seconds.and_then(|text| text.parse().ok()) {
        explore(
            folder,
            known,
            good,
            Duration::from_secs(seconds),
            &mut parse,
        );
        return;
    }
    for input in good {
        // The longest would take a second each.
        for cut in (0..input.len()).take(KEPT_BYTES_MAX) {
            parse(input.get(..cut).unwrap_or_default());
        }
    }
    let mut random = Rng::with_seed(1);
    for _ in 0..count {
        parse(&damaged(&mut random, &known));
    }
}

/// How often each edge was passed, roughly, and by which inputs for the first time.
#[derive(Default)]
struct Coverage {
    /// By edge, a bit for each power of two of the count.
    edges: BTreeMap<usize, u8>,
}

impl Coverage {
    /// Whether `input` does what none before did.
    fn grows(&mut self, input: &[u8], parse: &mut impl FnMut(&[u8])) -> bool {
        let counters = sys::counters();
        for counter in counters {
            counter.store(0, Ordering::Relaxed);
        }
        parse(input);
        let mut grows = false;
        for (edge, counter) in counters.iter().enumerate() {
            let count = counter.load(Ordering::Relaxed);
            if count > 0 {
                let seen = self.edges.entry(edge).or_default();
                let bit = 1 << count.ilog2();
                grows |= *seen & bit == 0;
                *seen |= bit;
            }
        }
        grows
    }
}

fn explore(
    folder: &str,
    mut pool: Vec<Vec<u8>>,
    good: &[Vec<u8>],
    time: Duration,
    parse: &mut impl FnMut(&[u8]),
) {
    assert!(
        !sys::counters().is_empty(),
        "no coverage is counted; run cargo xtask fuzz"
    );
    let mut random = Rng::new();
    let mut coverage = Coverage::default();
    for input in &pool {
        coverage.grows(input, parse);
    }
    let known = coverage.edges.len();
    let (start, mut tried) = (Instant::now(), 0_u64);
    while start.elapsed() < time {
        let mut input = damaged(&mut random, &pool);
        input.truncate(KEPT_BYTES_MAX);
        tried += 1;
        if coverage.grows(&input, parse) {
            pool.push(input);
        }
    }
    let edges = coverage.edges.len();
    // Again from the shortest on: what a shorter one does as well is not kept.
    pool.sort_by_key(Vec::len);
    let mut coverage = Coverage::default();
    for input in good {
        coverage.grows(input, parse);
    }
    pool.retain(|input| input.len() <= KEPT_BYTES_MAX && coverage.grows(input, parse));
    pool.truncate(KEPT_MAX);
    let written = write(folder, &pool);
    written.unwrap_or_else(|error| panic!("{folder}: {error}"));
    #[expect(clippy::print_stdout, reason = "what the operator asked for")]
    {
        println!(
            "{tried} inputs, {known} edges before, {edges} now, {} inputs kept",
            pool.len()
        );
    }
}

/// Makes `inputs` the files of `folder`, named by their content.
fn write(folder: &str, inputs: &[Vec<u8>]) -> std::io::Result<()> {
    let folder = Path::new(folder);
    std::fs::create_dir_all(folder)?;
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_file() {
            std::fs::remove_file(path)?;
        }
    }
    for input in inputs {
        // FNV-1a.
        let name = input.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
        std::fs::write(folder.join(format!("{name:016x}")), input)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_planted_mistake_behind_three_conditions_is_found() {
        let good = vec![b"length\x08\0\0\0".to_vec()];
        let result = std::panic::catch_unwind(|| {
            fuzz("/none", &good, 100_000, |bytes| {
                let length = bytes.strip_prefix(b"length");
                if let Some([255, 255, 255, 127]) = length {
                    panic!("the planted one");
                }
            });
        });
        assert!(result.is_err());
    }

    #[test]
    fn the_same_inputs_come_each_time() {
        let inputs = || {
            let mut inputs = Vec::new();
            fuzz("/none", &[b"abc".to_vec()], 100, |bytes| {
                inputs.push(bytes.to_vec());
            });
            inputs
        };
        let once = inputs();
        assert_eq!(once.len(), 1 + 3 + 100);
        assert_eq!(once, inputs());
    }
}
