//! F7: how long nothing gets through when a link closes or falls silent, by the host agent's own
//! record, while a stock guest verifies what it reads and keeps a TCP connection.

use std::time::Duration;

use anyhow::Result;
use fabric_transport::session::SessionConfig;
use orimono_qemu::{GuestImage, image};
use orimono_tests::failover::Failover;

use super::super::Figure;
use crate::test::build_programs;
use crate::{say, setup};

const CLOSED: usize = 50;
const SILENT: usize = 10;
/// How long the guest works: through all of it.
const WORK: Duration = Duration::from_secs(150);

pub(in super::super) fn measure() -> Result<Vec<Figure>> {
    setup::ensure_packages()?;
    GuestImage::ensure_telling(&image::default_cache(), &mut say)?;
    build_programs()?;
    let failover = Failover::start("", WORK, |lab| {
        lab.namespace.ip("addr add 10.1.0.1/24 dev orimono0")?;
        Ok(())
    })?;
    let mut closed = Vec::new();
    for round in 0..CLOSED {
        closed.push(failover.close(round % 2)?.gap_us);
    }
    let mut silent = Vec::new();
    // Each cut is to be the first for a while: a session is more patient after one.
    let apart = SessionConfig::new("", 0).more_patient_for();
    for round in 0..SILENT {
        std::thread::sleep(apart);
        silent.push(failover.silence((CLOSED + round) % 2)?.gap_us);
    }
    // Errors of the guest are errors of the bench.
    failover.finish()?;
    closed.sort_unstable();
    silent.sort_unstable();
    let figure = |case: &str, micros: Option<&u64>, limit_ms: f64| Figure {
        bench: "failover",
        case: case.to_owned(),
        value: micros.map_or(f64::NAN, |micros| *micros as f64 / 1e3),
        unit: "ms",
        reference: limit_ms,
        goal: (0.0, 1.0),
    };
    Ok(vec![
        figure("F7 link closed, gap p50", closed.get(CLOSED / 2), 20.0),
        figure("F7 link closed, gap p99", closed.last(), 50.0),
        figure("F7 link silent, gap, worst", silent.last(), 250.0),
    ])
}
