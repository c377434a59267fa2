//! Which QEMU there is, and what its version can and cannot do.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    str::FromStr,
};

use thiserror::Error;

use crate::tool::{self, ToolError};

/// Names the emulator to use instead of the first `qemu-system-x86_64` in `PATH`.
pub const QEMU_VARIABLE: &str = "ORIMONO_QEMU";
/// Folder of that emulator's firmware (`-L`), for an emulator that is not installed.
pub const QEMU_DATA_VARIABLE: &str = "ORIMONO_QEMU_DATA";
/// Folders of that emulator's shared libraries (`LD_LIBRARY_PATH`).
pub const QEMU_LIBRARIES_VARIABLE: &str = "ORIMONO_QEMU_LIBRARIES";

pub(crate) const PROGRAM: &str = "qemu-system-x86_64";

/// Why there is no usable emulator.
#[derive(Debug, Error)]
pub enum QemuError {
    /// Not installed.
    #[error("{PROGRAM} is not in PATH; `cargo xtask setup` installs package qemu-system-x86")]
    NotFound,
    /// It does not run.
    #[error("emulator {} does not run", path.display())]
    DoesNotRun {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: ToolError,
    },
    /// It does not say its version.
    #[error("cannot read a version in `{answer}`")]
    NoVersion {
        /// First line it printed.
        answer: String,
    },
}

/// Version of QEMU; the third number never decides anything here.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Version {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
}

impl Version {
    /// A version by its numbers.
    #[must_use]
    pub const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }

    /// Whether `vhost-user-scsi` connects again after its back-end went away. QEMU 8.2 brought
    /// it; 7.2 with `reconnect=` does not even start the device.
    #[must_use]
    pub fn vhost_user_scsi_reconnects(self) -> bool {
        self >= Self::new(8, 2)
    }

    /// Whether `vhost-user-net` under TCG survives MSI-X. QEMU 7.2 reads a null
    /// `vector_irqfd` in `kvm_virtio_pci_irqfd_use` and dies; 10.0 is known to be good, what lies
    /// between is not known and treated as 7.2.
    #[must_use]
    pub fn vhost_user_net_has_msix_under_tcg(self) -> bool {
        self >= Self::new(10, 0)
    }

    /// The chardev option, and its value, for one second between attempts to connect: `reconnect`
    /// became deprecated when `reconnect-ms` came with 9.2.
    #[must_use]
    pub fn reconnect(self) -> (&'static str, u32) {
        if self >= Self::new(9, 2) {
            ("reconnect-ms", 1_000)
        } else {
            ("reconnect", 1)
        }
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl FromStr for Version {
    type Err = QemuError;

    /// Reads `QEMU emulator version 7.2.22 (Debian ...)` or a bare `7.2`.
    fn from_str(text: &str) -> Result<Self, QemuError> {
        let first = text.lines().next().unwrap_or_default();
        let word = first
            .strip_prefix("QEMU emulator version ")
            .unwrap_or(first);
        let mut numbers = word
            .split(|c: char| !c.is_ascii_digit())
            .take(2)
            .map(|number| number.parse::<u32>().ok());
        match (numbers.next().flatten(), numbers.next().flatten()) {
            (Some(major), Some(minor)) => Ok(Self { major, minor }),
            _ => Err(QemuError::NoVersion {
                answer: first.to_owned(),
            }),
        }
    }
}

/// An emulator that runs.
#[derive(Clone, Debug)]
pub struct Qemu {
    path: PathBuf,
    version: Version,
    data: Option<PathBuf>,
    libraries: Option<PathBuf>,
}

impl Qemu {
    /// The emulator named by [`QEMU_VARIABLE`], else the first in `PATH`.
    ///
    /// # Errors
    ///
    /// [`QemuError`]: none there, it does not run, or it hides its version.
    pub fn find() -> Result<Self, QemuError> {
        let folder = |variable| env::var_os(variable).map(PathBuf::from);
        let path = folder(QEMU_VARIABLE)
            .or_else(|| in_path(PROGRAM))
            .ok_or(QemuError::NotFound)?;
        Self::at(
            path,
            folder(QEMU_DATA_VARIABLE),
            folder(QEMU_LIBRARIES_VARIABLE),
        )
    }

    /// The emulator at `path`; `data` and `libraries` for one that is unpacked, not installed.
    ///
    /// # Errors
    ///
    /// As [`Self::find`].
    pub fn at(
        path: PathBuf,
        data: Option<PathBuf>,
        libraries: Option<PathBuf>,
    ) -> Result<Self, QemuError> {
        let mut qemu = Self {
            path,
            version: Version::new(0, 0),
            data,
            libraries,
        };
        let answer =
            tool::run(qemu.command().arg("--version")).map_err(|source| QemuError::DoesNotRun {
                path: qemu.path.clone(),
                source,
            })?;
        qemu.version = String::from_utf8_lossy(&answer).parse()?;
        Ok(qemu)
    }

    /// The program.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it is able to do.
    #[must_use]
    pub const fn version(&self) -> Version {
        self.version
    }

    /// The program with its library path and firmware folder, without a machine.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        if let Some(libraries) = &self.libraries {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        if let Some(data) = &self.data {
            command.arg("-L").arg(data);
        }
        command
    }
}

/// The first executable file of that name in `PATH` or in the folders of the administrator's
/// programs, which a user's `PATH` lacks on Debian.
pub(crate) fn in_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_qemu_prints() {
        let debian = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright";
        assert_eq!(debian.parse::<Version>().unwrap(), Version::new(7, 2));
        assert_eq!(
            "QEMU emulator version 10.0.2".parse::<Version>().unwrap(),
            Version::new(10, 0)
        );
        assert_eq!("8.2".parse::<Version>().unwrap(), Version::new(8, 2));
        assert!("qemu, which version?".parse::<Version>().is_err());
        assert!("".parse::<Version>().is_err());
    }

    #[test]
    fn flags_follow_the_version() {
        let old = Version::new(7, 2);
        assert!(!old.vhost_user_scsi_reconnects() && !old.vhost_user_net_has_msix_under_tcg());
        assert_eq!(old.reconnect(), ("reconnect", 1));
        let new = Version::new(10, 0);
        assert!(new.vhost_user_scsi_reconnects() && new.vhost_user_net_has_msix_under_tcg());
        assert_eq!(new.reconnect(), ("reconnect-ms", 1_000));
    }

    #[test]
    fn an_emulator_that_is_not_there_is_named() {
        let error = Qemu::at("/nonexistent/qemu".into(), None, None).unwrap_err();
        assert_eq!(error.to_string(), "emulator /nonexistent/qemu does not run");
    }
}
