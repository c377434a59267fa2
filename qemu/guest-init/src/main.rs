//! PID 1 of the test guest: mounts, loads modules, then runs what the host asks for.
//!
//! Read `protocol.rs` first. One thread, one poll loop (`serve.rs`). PID 1 must not end, or the
//! kernel panics: every error is written to the console and to the notes of the ready frame, and
//! what cannot be repaired powers the guest off.

#![forbid(unsafe_code)]

mod boot;
mod command;
mod console;
mod serve;

use nix::sys::reboot::{RebootMode, reboot};

fn main() {
    if std::process::id() != 1 {
        console::say("guest-init must be the first process of a guest");
        return;
    }
    let notes = boot::prepare();
    if let Err(error) = boot::open_port().and_then(|port| serve::Session::new(port, notes)?.run()) {
        console::say(&format!("channel to the host failed: {error}"));
    }
    power_off();
}

/// Ends the guest. Never returns: when the machine has no power switch, it is reset instead
/// (which ends QEMU too, as it is started with `-no-reboot`).
fn power_off() {
    nix::unistd::sync();
    loop {
        for mode in [RebootMode::RB_POWER_OFF, RebootMode::RB_AUTOBOOT] {
            let Err(error) = reboot(mode);
            console::say(&format!("reboot({mode:?}) failed: {error}"));
        }
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
}
