//! A guest without QEMU.
//!
//! * [`GuestRam`]: guest memory in sealed memfds, as QEMU's `memory-backend-memfd` makes it.
//! * [`DriverQueue`]: the driver's side of one split ring, with raw access for broken rings.
//! * [`RawFrontEnd`]: any bytes and any descriptors on a vhost-user socket.
//! * [`Guest`]: all of it set up by the stock front end of the `vhost` crate.
//!
//! Waiting is always on a descriptor and with a limit, [`PATIENCE`]; nothing sleeps.

mod guest;
mod ram;
mod raw;
mod ring;

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

pub use guest::{Guest, GuestOptions};
pub use ram::{GuestRam, RamOptions, sealed_memfd, unsealed_memfd};
pub use raw::{RawFrontEnd, Reply, request};
pub use ring::{Buffer, DESC_INDIRECT, DESC_NEXT, DESC_WRITE, DriverQueue, Used};

/// Longest wait for anything that should happen at once; a busy machine may take its time.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until `fd` is readable, at most until `end`.
///
/// # Errors
/// If it is not readable by then.
pub fn wait_readable(fd: BorrowedFd<'_>, end: Instant) -> Result<()> {
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!("nothing to read before the deadline");
        }
        let mut waiting = [PollFd::new(fd, PollFlags::POLLIN)];
        match poll(&mut waiting, PollTimeout::try_from(left)?) {
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}
