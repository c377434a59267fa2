//! The scheduler's promises as figures: what they are worth in virtual time, and what keeping them
//! costs in CPU time. Links are not a part of it.

mod calls;
mod cpu_time;
mod deck;
mod delay;
mod lateness;
mod load;
mod rate_change;
mod rte_sched;
mod sharing;
mod speed;
mod world;

use anyhow::Result;

use super::Figure;

pub(super) fn measure() -> Result<Vec<Figure>> {
    let parts = [
        lateness::measure,
        sharing::measure,
        delay::measure,
        rate_change::measure,
        deck::measure,
        speed::measure,
        calls::measure,
    ];
    let mut figures = Vec::new();
    for part in parts {
        figures.extend(part()?);
    }
    Ok(figures)
}

/// A figure whose value may be `reference` at most.
fn at_most(case: impl Into<String>, value: f64, reference: f64, unit: &'static str) -> Figure {
    Figure {
        bench: "qos",
        case: case.into(),
        value,
        unit,
        reference,
        goal: (0.0, 1.0),
    }
}

/// A figure that counts what must not happen among `all`.
fn never(case: impl Into<String>, count: u64, all: u64, unit: &'static str) -> Figure {
    Figure {
        goal: (0.0, 0.0),
        ..at_most(case, count as f64, all as f64, unit)
    }
}
