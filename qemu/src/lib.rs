//! Guests of QEMU for tests, demos and people: packages, image, machine line, channel.
//!
//! In the order a guest comes to be:
//!
//! 1. [`packages`]: which Debian packages are needed, and their installation;
//! 2. [`image`]: kernel and initramfs in a cache folder, rebuilt only when an input changed
//!    ([`cpio`], [`kernel_modules`] and [`elf`] are its parts);
//! 3. [`emulator`] and [`accelerator`]: which QEMU, which version, KVM or TCG; [`backports`]: a
//!    newer QEMU beside the installed one;
//! 4. [`machine`] and [`device`]: the argument vector;
//! 5. [`guest`]: a running guest and its commands; [`qmp`]: its monitor.
//!
//! ```no_run
//! use std::{path::Path, time::Duration};
//! use orimono_qemu::{AcceleratorChoice, GuestImage, Machine, Qemu, Vnic};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let cache = Path::new("target/guest");
//! let image = GuestImage::ensure(cache)?;
//! let qemu = Qemu::find()?;
//! let accelerator = AcceleratorChoice::Auto.resolve(&qemu, &image, cache)?;
//! let guest = Machine::new(qemu, image, accelerator)
//!     .vnic(Vnic::new("vn01", "/run/orimono/vn01.sock", "02:15:97:00:00:01".parse()?))
//!     .boot()?;
//! let output = guest.run("ip -br link", Duration::from_secs(5))?;
//! assert!(output.status.success());
//! # Ok(())
//! # }
//! ```
//!
//! What is deliberately absent: anything about back-ends, fabric or profiles. A device is a
//! socket path here.

#![forbid(unsafe_code)]

pub mod accelerator;
pub mod backports;
pub mod cpio;
pub mod device;
pub mod elf;
pub mod emulator;
pub mod guest;
pub mod image;
pub mod kernel_modules;
pub mod machine;
pub mod packages;
pub mod qmp;

mod channel;
mod tool;

pub use accelerator::{Accelerator, AcceleratorChoice};
pub use device::{
    MacAddress, Plug, Vhba, Vnic, monitor_args, root_port, root_port_args, vhba_args, vnic_args,
};
pub use emulator::{Qemu, Version};
pub use guest::{CommandId, ExitStatus, Guest, GuestError, Output};
pub use image::GuestImage;
pub use machine::{Firmware, Machine};
