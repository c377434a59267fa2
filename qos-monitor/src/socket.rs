//! The file of the control socket: made for this user alone, taken over from a dead process,
//! removed.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::monitor::MonitorError;

/// Who may connect: the user that started the process.
const MODE: u32 = 0o600;

/// A listening socket; its file is removed on drop if it is still ours.
#[derive(Debug)]
pub(crate) struct ControlSocket {
    pub(crate) listener: UnixListener,
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl ControlSocket {
    /// Binds `path`. The file appears there with its final mode, by a rename.
    pub(crate) fn bind(path: &Path) -> Result<Self, MonitorError> {
        refuse_if_served(path)?;
        let mut fresh = path.as_os_str().to_os_string();
        fresh.push(".new");
        let fresh = PathBuf::from(fresh);
        let failed = |action| {
            move |source| MonitorError::Socket {
                action,
                path: path.to_path_buf(),
                source,
            }
        };
        match fs::symlink_metadata(&fresh) {
            Ok(found) if found.file_type().is_socket() => {
                fs::remove_file(&fresh).map_err(failed("remove a left-over of"))?;
            }
            Ok(_) => return Err(MonitorError::NotASocket { path: fresh }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("look for a left-over of")(error)),
        }
        let listener = UnixListener::bind(&fresh).map_err(failed("bind"))?;
        let bound = settle(&listener, &fresh, path);
        let (device, inode) = bound.map_err(|error| {
            // Nothing is left to tell about a second failure.
            drop(fs::remove_file(&fresh));
            failed("set up")(error)
        })?;
        Ok(Self {
            listener,
            path: path.to_path_buf(),
            device,
            inode,
        })
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // A successor may have replaced the file meanwhile; then it is not ours to remove.
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|found| found.dev() == self.device && found.ino() == self.inode);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "control socket was not removed");
        }
    }
}

fn settle(listener: &UnixListener, fresh: &Path, path: &Path) -> io::Result<(u64, u64)> {
    fs::set_permissions(fresh, Permissions::from_mode(MODE))?;
    listener.set_nonblocking(true)?;
    let found = fs::symlink_metadata(fresh)?;
    fs::rename(fresh, path)?;
    Ok((found.dev(), found.ino()))
}

/// Whether the name is free, or left over from a process that no longer listens.
fn refuse_if_served(path: &Path) -> Result<(), MonitorError> {
    let failed = |source| MonitorError::Socket {
        action: "look at",
        path: path.to_path_buf(),
        source,
    };
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(failed)?,
    };
    if !found.file_type().is_socket() {
        return Err(MonitorError::NotASocket {
            path: path.to_path_buf(),
        });
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(_) | Err(_) => Err(MonitorError::InUse {
            path: path.to_path_buf(),
        }),
    }
}
