//! What the fabric costs and holds: the figures F1 to F11, each next to its limit in the same run.

mod failover;
mod latency;
mod scale;
mod throughput;

use anyhow::Result;

pub(super) use failover::measure as failover;
pub(super) use throughput::record;

use super::Figure;

pub(super) fn measure() -> Result<Vec<Figure>> {
    let mut figures = throughput::measure()?;
    figures.extend(latency::measure()?);
    figures.extend(scale::measure()?);
    Ok(figures)
}
