//! The lab file of a node.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

const LAB_FILE: &str = "lab.toml";

/// Replaces the lab file in `folder` unless it is this already. True if it was replaced.
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
    Ok(true)
}
