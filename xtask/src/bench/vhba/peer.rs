//! vhost-device-scsi of rust-vmm: what others serve a file by.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use orimono_tests::front_end::PATIENCE;
use orimono_tests::lab::{Namespace, Process};

use crate::check::root;
use crate::say;

/// With its lock file, so that the reference stays what it is.
const VERSION: &str = "0.1.0";

/// The program; installed beside our own builds if it is not there.
///
/// # Errors
/// Cargo cannot install it.
pub(super) fn install() -> Result<PathBuf> {
    let folder = root()?.join("target/peers");
    let program = folder.join("bin/vhost-device-scsi");
    if program.is_file() {
        return Ok(program);
    }
    say(&format!(
        "cargo installs vhost-device-scsi {VERSION} into {}",
        folder.display()
    ));
    let status = crate::cargo()
        .args(["install", "vhost-device-scsi", "--locked", "--quiet"])
        .args(["--version", VERSION])
        .arg("--root")
        .arg(&folder)
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "cargo cannot install vhost-device-scsi");
    Ok(program)
}

/// Serves `file` on `socket`; it ends with its first connection.
///
/// # Errors
/// It does not start.
pub(super) fn start(
    program: &Path,
    namespace: &Namespace,
    socket: &Path,
    file: &Path,
) -> Result<Process> {
    let mut command = Command::new(program);
    command.arg("--socket-path").arg(socket).arg(file);
    let process = Process::start("vhost-device-scsi", namespace, &mut command)?;
    let end = Instant::now() + PATIENCE;
    // It says nothing when it listens.
    while !socket.exists() {
        ensure!(Instant::now() < end, "vhost-device-scsi makes no socket");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(process)
}
