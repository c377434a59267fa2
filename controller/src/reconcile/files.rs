//! The lab file of a node.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const LAB_FILE: &str = "lab.toml";

/// Replaces the lab file in `folder` unless it is this already, and says so to the program. True if it
/// was replaced.
pub(super) fn replace(folder: &Path, text: &str) -> io::Result<bool> {
    let path = folder.join(LAB_FILE);
    if fs::read(&path).is_ok_and(|old| old == text.as_bytes()) {
        return Ok(false);
    }
    fs::create_dir_all(folder)?;
    // Whoever reads it meanwhile reads the old one whole.
    let new = folder.join(".lab.toml.new");
    let mut file = fs::File::create(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, &path)?;
    tell(folder);
    Ok(true)
}

/// Sends SIGHUP to the process that left its number. A program that would end by it leaves none.
fn tell(folder: &Path) {
    let Ok(text) = fs::read_to_string(folder.join("pid")) else {
        return;
    };
    let Some(pid) = text.trim().parse().ok().filter(|pid| *pid > 1) else {
        tracing::warn!(folder = %folder.display(), "pid is no process number: nobody is told");
        return;
    };
    if let Err(error) = kill(Pid::from_raw(pid), Signal::SIGHUP) {
        tracing::warn!(pid, %error, "cannot be told of its new lab file");
    }
}
