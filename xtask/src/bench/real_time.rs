//! `SCHED_FIFO` for as long as something is measured.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::say;

/// The threads of this process, and what they start, run before everything else of the machine
/// while this lives: whether others let us run is not what a figure of QoS is about.
pub(super) struct RealTime;

impl RealTime {
    /// # Errors
    /// Not root, or no `chrt` program.
    pub(super) fn start() -> Result<Self> {
        policy("--fifo", "10").context("real-time priority cannot be had: run this as root")?;
        Ok(Self)
    }
}

impl Drop for RealTime {
    fn drop(&mut self) {
        if let Err(error) = policy("--other", "0") {
            say(&format!("real-time priority stays: {error:#}"));
        }
    }
}

fn policy(policy: &str, priority: &str) -> Result<()> {
    let this = std::process::id().to_string();
    let status = Command::new("chrt")
        .args(["--all-tasks", policy, "--pid", priority, &this])
        .status()
        .context("cannot run chrt (util-linux)")?;
    ensure!(status.success(), "chrt refused");
    Ok(())
}
