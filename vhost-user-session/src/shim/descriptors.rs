//! What the front-end's file descriptors really are.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::stat::{SFlag, fstat};

use super::message::Request;
use crate::Refusal;

/// Link target of an eventfd in /proc/self/fd.
const EVENTFD: &str = "anon_inode:[eventfd]";

/// Checks that the descriptors, if any, are plain eventfds, and makes them non-blocking.
///
/// Anything else could block a worker thread or end it: a full pipe, a socket whose peer has
/// gone. A semaphore eventfd gives back one unit per read, so that one write of 2^63 would keep a
/// worker busy for ever.
pub(super) fn check_eventfd(
    request: Request,
    index: usize,
    descriptors: &[OwnedFd],
) -> Result<(), Refusal> {
    let failed = |what| move |source| Refusal::Io { what, source };
    for descriptor in descriptors {
        let fd = descriptor.as_raw_fd();
        let target = fs::read_link(format!("/proc/self/fd/{fd}"))
            .map_err(failed("looking at a file descriptor"))?;
        let refuse = |kind| {
            Err(Refusal::NotEventfd {
                request: request.name(),
                index,
                kind,
            })
        };
        if target.as_os_str() != EVENTFD {
            return refuse(target.display().to_string());
        }
        let details = fs::read_to_string(format!("/proc/self/fdinfo/{fd}"))
            .map_err(failed("looking at a file descriptor"))?;
        // Linux 6.6 and later say so; before, nobody can tell.
        let semaphore = details.lines().any(|line| {
            line.split_once(':')
                .is_some_and(|(name, value)| name == "eventfd-semaphore" && value.trim() != "0")
        });
        if semaphore {
            return refuse("a semaphore eventfd".to_owned());
        }
        let flags = fcntl(descriptor, FcntlArg::F_GETFL)
            .map(OFlag::from_bits_retain)
            .map_err(io::Error::from)
            .map_err(failed("F_GETFL"))?;
        fcntl(descriptor, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))
            .map_err(io::Error::from)
            .map_err(failed("F_SETFL"))?;
    }
    Ok(())
}

/// Checks that a file holds `needed` bytes, and will go on doing so.
///
/// A mapping beyond the end of its file raises SIGBUS when touched, so the file must have been
/// sealed against shrinking, or the front-end be trusted (`allow_unsealed`).
pub(super) fn check_file(
    file: BorrowedFd<'_>,
    guest_address: u64,
    needed: u64,
    allow_unsealed: bool,
) -> Result<(), Refusal> {
    let found = fstat(file.as_fd())
        .map_err(io::Error::from)
        .map_err(|source| Refusal::Io {
            what: "fstat",
            source,
        })?;
    if SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
        return Err(Refusal::Region {
            guest_address,
            problem: "descriptor is not a file",
        });
    }
    // The seal first: a file that is sealed later than measured could have shrunk in between.
    let seals =
        fcntl(file, FcntlArg::F_GET_SEALS).map_or(SealFlag::empty(), SealFlag::from_bits_retain);
    if !seals.contains(SealFlag::F_SEAL_SHRINK) && !allow_unsealed {
        return Err(Refusal::NotSealed { guest_address });
    }
    let found = fstat(file)
        .map_err(io::Error::from)
        .map_err(|source| Refusal::Io {
            what: "fstat",
            source,
        })?;
    let size = u64::try_from(found.st_size).unwrap_or(0);
    if size < needed {
        return Err(Refusal::FileTooShort {
            guest_address,
            needed,
            found: size,
        });
    }
    Ok(())
}
