//! The socket that the front-end connects to: made, taken over from a dead process, removed.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Longest path of a Unix socket: `sun_path` less its final zero.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Where connections come from.
#[derive(Debug)]
pub enum SocketSource {
    /// Bind this path; the file is removed when the session stops.
    Path {
        /// Path of the socket file.
        path: PathBuf,
        /// Access mode, usually `0o660`: the front-end must be able to write.
        mode: u32,
        /// User to own the file.
        owner: Option<u32>,
        /// Group to own the file, for example that of QEMU.
        group: Option<u32>,
    },
    /// A socket that listens already, as socket activation hands it over.
    Listening(OwnedFd),
    /// One connection, as `--fd` hands it over; the session ends with it.
    Connected(OwnedFd),
}

impl SocketSource {
    /// A path with mode 0660 and the process's own user and group.
    #[must_use]
    pub fn path(path: impl Into<PathBuf>) -> Self {
        Self::Path {
            path: path.into(),
            mode: 0o660,
            owner: None,
            group: None,
        }
    }
}

/// Why a socket cannot be had.
#[derive(Debug, Error)]
pub enum SocketError {
    /// Somebody serves the path already.
    #[error("another process listens on {path}: stop it, or give this device another socket path")]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// Something that is no socket has the name.
    #[error("{path} exists and is not a socket: remove it, or choose another path")]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The kernel's limit.
    #[error(
        "socket path {path} is longer than {SOCKET_PATH_BYTES_MAX} bytes: choose a shorter one"
    )]
    PathTooLong {
        /// The path.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// The error.
        #[source]
        source: io::Error,
    },
    /// An inherited descriptor is not usable.
    #[error("cannot {action} the inherited socket")]
    Inherited {
        /// What was tried.
        action: &'static str,
        /// The error.
        #[source]
        source: io::Error,
    },
}

/// A bound socket file, removed on drop if it is still ours.
#[derive(Debug)]
pub(crate) struct BoundPath {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Drop for BoundPath {
    fn drop(&mut self) {
        // A successor may have replaced the file meanwhile; then it is not ours to remove.
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|found| found.dev() == self.device && found.ino() == self.inode);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "socket file was not removed");
        }
    }
}

/// Binds `path`, replacing what a killed process left behind.
///
/// The file appears under its name with its final mode and owner, by a rename: nobody connects
/// before the permissions are right, and there is no moment without a file when replacing one.
pub(crate) fn bind(
    path: &Path,
    mode: u32,
    owner: Option<u32>,
    group: Option<u32>,
) -> Result<(UnixListener, BoundPath), SocketError> {
    let failed = |action| {
        move |source| SocketError::Io {
            action,
            path: path.to_path_buf(),
            source,
        }
    };
    let mut fresh = path.as_os_str().to_os_string();
    fresh.push(".new");
    let fresh = PathBuf::from(fresh);
    if fresh.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
        return Err(SocketError::PathTooLong {
            path: path.to_path_buf(),
        });
    }
    refuse_if_served(path)?;
    refuse_if_served(&fresh)?;
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("remove the left-over of")(error));
        }
        _ => {}
    }
    let listener = UnixListener::bind(&fresh).map_err(failed("bind"))?;
    let settled = fs::set_permissions(&fresh, fs::Permissions::from_mode(mode))
        .map_err(failed("set the mode of"))
        .and_then(|()| match (owner, group) {
            (None, None) => Ok(()),
            _ => std::os::unix::fs::chown(&fresh, owner, group).map_err(failed("set the owner of")),
        })
        .and_then(|()| fs::symlink_metadata(&fresh).map_err(failed("look at")))
        .and_then(|found| {
            fs::rename(&fresh, path).map_err(failed("rename to"))?;
            Ok(BoundPath {
                path: path.to_path_buf(),
                device: found.dev(),
                inode: found.ino(),
            })
        });
    match settled {
        Ok(bound) => Ok((listener, bound)),
        Err(error) => {
            // Nothing is left to tell about a second failure.
            drop(fs::remove_file(&fresh));
            Err(error)
        }
    }
}

/// Whether the name is free, or left over from a process that no longer listens.
fn refuse_if_served(path: &Path) -> Result<(), SocketError> {
    let failed = |action| {
        move |source| SocketError::Io {
            action,
            path: path.to_path_buf(),
            source,
        }
    };
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(failed("look at"))?,
    };
    if !found.file_type().is_socket() {
        return Err(SocketError::NotASocket {
            path: path.to_path_buf(),
        });
    }
    match UnixStream::connect(path) {
        Ok(_somebody) => Err(SocketError::InUse {
            path: path.to_path_buf(),
        }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // A full backlog: somebody is there, only slow.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(SocketError::InUse {
            path: path.to_path_buf(),
        }),
        Err(error) => Err(failed("try")(error)),
    }
}
