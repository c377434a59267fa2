//! Lines for the person who reads the serial log.

use std::io::Write;

/// Writes one line to the kernel's console. Nobody is left to tell when that fails.
pub(crate) fn say(line: &str) {
    let written = writeln!(std::io::stderr(), "guest-init: {line}");
    drop(written);
}
