//! A TAP interface as an Ethernet port's medium: frames with a virtio-net header in front.
//!
//! With offloads the header is the kernel's own. The plain path, through `tun-tap`, has none: 12
//! zero bytes are put in front of what arrives and taken from what leaves. The interface lives as
//! long as the value, unless somebody made it persistent before.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use fabric_payload::ethernet::{HEADER_BYTES, Offloads};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::uio::writev;

use super::netlink::{Interfaces, Wanted};
use super::sys;

const TUN: &str = "/dev/net/tun";

/// What frames may leave unfinished on an interface with a virtio-net header.
pub(super) const OFFLOADING: Offloads = Offloads {
    uso: false,
    ..Offloads::ALL
};

/// Why an interface cannot be opened; ends with the next step.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// No TUN driver.
    #[error("{TUN} is missing; load the tun module (modprobe tun)")]
    NoDriver(#[source] io::Error),
    /// Not allowed.
    #[error("interface {name} may not be opened; run as root or with CAP_NET_ADMIN")]
    Permission {
        /// Its name.
        name: String,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// Another process has it open.
    #[error("interface {name} is in use; stop the process that holds it or choose another tap")]
    Busy {
        /// Its name.
        name: String,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// It exists and is something else.
    #[error("interface {name} exists and is no TAP of this kind; choose another tap")]
    OtherKind {
        /// Its name.
        name: String,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// It is not there.
    #[error("interface {name} is not there; make it, or correct interface or namespace")]
    Missing {
        /// Its name.
        name: String,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// Its bridge is not there.
    #[error(
        "bridge {name} is not there; make it (ip link add {name} type bridge), or correct bridge"
    )]
    Bridge {
        /// Its name.
        name: String,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// Its network namespace cannot be entered.
    #[error(
        "network namespace {namespace} cannot be entered; make it (ip netns add {namespace}), or correct namespace"
    )]
    Namespace {
        /// Its name.
        namespace: String,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// A step failed for another reason.
    #[error("cannot {step} of interface {name}; see dmesg, or choose another interface")]
    Step {
        /// Its name.
        name: String,
        /// What was tried.
        step: &'static str,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
}

enum Medium {
    Offloading(File),
    Plain(tun_tap::Iface),
}

/// An open TAP interface.
pub struct Tap {
    name: String,
    medium: Medium,
}

impl std::fmt::Debug for Tap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tap")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Tap {
    /// Opens or makes the interface `name`, non-blocking, with this MTU and up.
    ///
    /// # Errors
    /// [`TapError`]; an interface that did not exist before is gone again.
    pub fn open(name: &str, offloads: bool, mtu: u16) -> Result<Self, TapError> {
        let medium = if offloads {
            open_offloading(name)?
        } else {
            open_plain(name)?
        };
        let tap = Self {
            name: name.to_owned(),
            medium,
        };
        tap.set_non_blocking()
            .map_err(|source| step(name, "set the mode", source))?;
        let interfaces = Interfaces::open();
        let interfaces = interfaces.map_err(|source| step(name, "ask the kernel", source))?;
        let wanted = Wanted {
            up: Some(true),
            mtu: Some(mtu.into()),
            bridge: None,
        };
        let found = interfaces.find(name);
        let set = found.and_then(|found| interfaces.set(found.index, wanted));
        set.map_err(|source| step(name, "set the mtu and state", source))?;
        Ok(tap)
    }

    /// The interface's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What frames to this interface may leave unfinished.
    #[must_use]
    pub fn offloads(&self) -> Offloads {
        match self.medium {
            Medium::Offloading(_) => OFFLOADING,
            Medium::Plain(_) => Offloads::default(),
        }
    }

    /// Reads one header and frame.
    ///
    /// # Errors
    /// `WouldBlock` when there is none; any other: the interface is gone.
    pub fn read(&self, payload: &mut [u8]) -> io::Result<usize> {
        match &self.medium {
            Medium::Offloading(file) => {
                let bytes = (&mut &*file).read(payload)?;
                // The kernel leaves the last field, `num_buffers`, as it finds it.
                if let Some(num_buffers) = payload.get_mut(HEADER_BYTES - 2..HEADER_BYTES) {
                    num_buffers.fill(0);
                }
                Ok(bytes)
            }
            Medium::Plain(interface) => {
                let Some((header, frame)) = payload.split_first_chunk_mut::<HEADER_BYTES>() else {
                    return Err(io::ErrorKind::InvalidInput.into());
                };
                *header = [0; HEADER_BYTES];
                Ok(HEADER_BYTES + interface.recv(frame)?)
            }
        }
    }

    /// Writes one header and frame in two pieces, whole or not at all. The first is empty or begins
    /// with the header.
    ///
    /// # Errors
    /// `WouldBlock` when the queue is full; any other: the kernel refused this frame.
    pub fn write(&self, pieces: [&[u8]; 2]) -> io::Result<()> {
        let [head, tail] = pieces;
        match (&self.medium, head.is_empty()) {
            (Medium::Offloading(file), true) => (&mut &*file).write(tail),
            (Medium::Offloading(file), false) => {
                (&mut &*file).write_vectored(&pieces.map(IoSlice::new))
            }
            (Medium::Plain(interface), true) => {
                interface.send(tail.get(HEADER_BYTES..).unwrap_or_default())
            }
            (Medium::Plain(_), false) => {
                let head = head.get(HEADER_BYTES..).unwrap_or_default();
                Ok(writev(self, &[head, tail].map(IoSlice::new))?)
            }
        }
        .map(drop)
    }

    fn set_non_blocking(&self) -> io::Result<()> {
        let flags = fcntl(self, FcntlArg::F_GETFL)?;
        let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
        fcntl(self, FcntlArg::F_SETFL(flags))?;
        Ok(())
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.medium {
            Medium::Offloading(file) => file.as_fd(),
            Medium::Plain(interface) => sys::interface_fd(interface),
        }
    }
}

fn step(name: &str, step: &'static str, source: io::Error) -> TapError {
    TapError::Step {
        name: name.to_owned(),
        step,
        source,
    }
}

/// What an error of opening the driver or of TUNSETIFF means.
fn opening(name: &str, source: io::Error) -> TapError {
    let name = name.to_owned();
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => TapError::NoDriver(source),
        Some(libc::EPERM | libc::EACCES) => TapError::Permission { name, source },
        Some(libc::EBUSY) => TapError::Busy { name, source },
        Some(libc::EINVAL | libc::EEXIST) => TapError::OtherKind { name, source },
        _ => TapError::Step {
            name,
            step: "open the TAP device",
            source,
        },
    }
}

fn open_offloading(name: &str) -> Result<Medium, TapError> {
    let file = OpenOptions::new().read(true).write(true).open(TUN);
    let file = file.map_err(|source| opening(name, source))?;
    sys::set_interface(&file, name).map_err(|source| opening(name, source))?;
    let header_bytes = i32::try_from(HEADER_BYTES).unwrap_or(i32::MAX);
    sys::set_header_bytes(&file, header_bytes)
        .map_err(|source| step(name, "set the virtio-net header size", source))?;
    sys::set_offloads(&file).map_err(|source| step(name, "set the offloads", source))?;
    Ok(Medium::Offloading(file))
}

fn open_plain(name: &str) -> Result<Medium, TapError> {
    tun_tap::Iface::without_packet_info(name, tun_tap::Mode::Tap)
        .map(Medium::Plain)
        .map_err(|source| opening(name, source))
}
