//! Verdicts of checks that other people wrote, and the tables of those that cannot pass here.

use std::collections::BTreeMap;
use std::fmt;

/// What became of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Passed,
    Failed,
    Skipped,
}

/// Why a check is skipped, or fails through no fault of ours.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Exception {
    /// The names, each the whole name or, with `*` at its end, how it begins.
    pub(crate) names: &'static [&'static str],
    pub(crate) verdict: Verdict,
    pub(crate) reason: &'static str,
}

/// Whether `known`, of [`Exception::names`], means `name`.
fn fits(known: &str, name: &str) -> bool {
    known
        .strip_suffix('*')
        .map_or(known == name, |start| name.starts_with(start))
}

/// Numbers of checks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) passed: usize,
    /// With [`Self::excused`].
    pub(crate) failed: usize,
    pub(crate) skipped: usize,
    /// Failures through no fault of ours.
    pub(crate) excused: usize,
}

impl std::ops::AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.excused += other.excused;
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )?;
        if self.excused > 0 {
            write!(f, " ({} failed by the tool's own faults)", self.excused)?;
        }
        Ok(())
    }
}

/// What a set of checks came to.
#[derive(Debug)]
pub(crate) struct Sheet {
    name: &'static str,
    exceptions: &'static [Exception],
    verdicts: BTreeMap<String, Verdict>,
    surprises: Vec<String>,
}

impl Sheet {
    pub(crate) fn new(name: &'static str, exceptions: &'static [Exception]) -> Self {
        Self {
            name,
            exceptions,
            verdicts: BTreeMap::new(),
            surprises: Vec::new(),
        }
    }

    /// Takes a verdict; `output` is shown if nobody expected it.
    pub(crate) fn enter(&mut self, name: &str, verdict: Verdict, output: &str) {
        let expected = self
            .exception(name)
            .map_or(Verdict::Passed, |known| known.verdict);
        if verdict != expected {
            let surprise = format!("{name}: {verdict:?}, expected {expected:?}\n{output}");
            println!("{}: {surprise}", self.name);
            self.surprises.push(surprise);
        }
        self.verdicts.insert(name.to_owned(), verdict);
    }

    fn exception(&self, name: &str) -> Option<&'static Exception> {
        self.exceptions
            .iter()
            .find(|exception| exception.names.iter().any(|known| fits(known, name)))
    }

    /// Prints the checks that did not pass with the reason, and the numbers.
    pub(crate) fn print(&self) -> Count {
        let mut count = Count::default();
        for (name, verdict) in &self.verdicts {
            let reason = self.exception(name).map_or("", |known| known.reason);
            match verdict {
                Verdict::Passed => {
                    count.passed += 1;
                    continue;
                }
                Verdict::Failed => count.failed += 1,
                Verdict::Skipped => count.skipped += 1,
            }
            if *verdict == Verdict::Failed && !reason.is_empty() {
                count.excused += 1;
            }
            println!("{}: {name} {verdict:?}: {reason}", self.name);
        }
        println!("{}: {count}", self.name);
        count
    }

    /// Expects that every check came out as the table says, and that the table names no other.
    pub(crate) fn assert_as_expected(&self) {
        assert!(
            self.surprises.is_empty(),
            "{}: {}",
            self.name,
            self.surprises.join("\n")
        );
        let unused: Vec<_> = self
            .exceptions
            .iter()
            .flat_map(|known| known.names)
            .filter(|known| !self.verdicts.keys().any(|name| fits(known, name)))
            .collect();
        assert!(
            unused.is_empty(),
            "{}: no such checks: {unused:?}",
            self.name
        );
    }
}
