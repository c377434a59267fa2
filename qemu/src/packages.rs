//! The Debian packages that guests and suites need, and their installation.
//!
//! Nothing here guesses: a package is there when dpkg says so or when its program is in `PATH`,
//! and what apt is going to do is said before it does it.

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use thiserror::Error;

use crate::{
    emulator::in_path,
    tool::{self, ToolError},
};

/// How long another apt or dpkg is waited for.
const LOCK_WITHIN: Duration = Duration::from_secs(180);
const LOCK_STEP: Duration = Duration::from_secs(1);
/// The meta package that depends on the kernel of the day.
pub const KERNEL_META_PACKAGE: &str = "linux-image-cloud-amd64";

/// A Debian package and why it is needed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Package {
    /// Its name.
    pub name: &'static str,
    /// A program it brings, a copy of which from anywhere will do; empty if it brings none.
    pub program: &'static str,
    /// What it is needed for.
    pub purpose: &'static str,
}

/// What building with the feature `rdma`, and guests with soft-RoCE, need beyond [`PACKAGES`]. The
/// kernel of these guests is downloaded and not installed.
pub const RDMA_PACKAGES: [Package; 4] = [
    package("cmake", "cmake", "builds rdma-mummy-sys"),
    package(
        "libclang-dev",
        "",
        "reads the headers of RDMA for rdma-mummy-sys",
    ),
    package("librdmacm1", "", "connection manager of RDMA, for guests"),
    package(
        "ibverbs-providers",
        "",
        "libibverbs with soft-RoCE, for guests",
    ),
];

/// What making and starting a guest that boots from a disk ([`crate::image::debian`]) needs beyond
/// [`PACKAGES`].
pub const SAN_BOOT_PACKAGES: [Package; 8] = [
    package("mmdebstrap", "mmdebstrap", "makes a root file system"),
    package("fdisk", "sfdisk", "partitions a disk of a guest"),
    package("dosfstools", "mkfs.fat", "makes an EFI system partition"),
    package("mtools", "mcopy", "fills an EFI system partition"),
    package("grub-common", "grub-mkimage", "makes boot loaders"),
    package("grub-pc-bin", "", "boot loader for SeaBIOS"),
    package("grub-efi-amd64-bin", "", "boot loader for OVMF"),
    package("ovmf", "", "UEFI firmware of guests"),
];

/// All that guests and suites need beyond a Rust toolchain.
pub const PACKAGES: [Package; 14] = [
    package("qemu-system-x86", "qemu-system-x86_64", "runs the guests"),
    package("kmod", "depmod", "orders the guest's kernel modules"),
    package("busybox-static", "busybox", "shell of the guests"),
    package("iproute2", "ip", "network set-up on the host and in guests"),
    package(
        "ethtool",
        "ethtool",
        "shows offloads and queues of a vNIC in guests",
    ),
    package("iperf3", "iperf3", "network load in guests"),
    package("fio", "fio", "storage load in guests"),
    package(
        "xfsprogs",
        "mkfs.xfs",
        "makes and checks XFS on LUNs of suites",
    ),
    package(
        "btrfs-progs",
        "mkfs.btrfs",
        "makes and checks btrfs on LUNs of suites",
    ),
    package("tgt", "tgtd", "iSCSI target of suites"),
    package("tshark", "tshark", "decodes captured frames and commands"),
    package("tcpdump", "tcpdump", "reads captured frames"),
    package("sg3-utils", "sg_inq", "SCSI commands in guests"),
    package(
        "libiscsi-bin",
        "iscsi-test-cu",
        "conformance of logical units, in guests",
    ),
];

const fn package(name: &'static str, program: &'static str, purpose: &'static str) -> Package {
    Package {
        name,
        program,
        purpose,
    }
}

/// Why packages were not installed. One line each.
#[derive(Debug, Error)]
pub enum PackageError {
    /// Installing needs root.
    #[error("not root; as root run: {command}")]
    NotRoot {
        /// What root would have to run.
        command: String,
    },
    /// No apt here.
    #[error("apt-get is not there: install by hand: {names}")]
    NotDebian {
        /// Packages, separated by blanks.
        names: String,
    },
    /// apt does not know the name.
    #[error("apt knows no package {name}: is Debian's `main` among its sources?")]
    Unknown {
        /// The name.
        name: String,
    },
    /// No server of packages could be reached.
    #[error("cannot download packages ({message}): is there a network?")]
    NoNetwork {
        /// apt's words.
        message: String,
    },
    /// Another apt or dpkg held its lock all the time.
    #[error("another apt or dpkg is running; it was waited for {} s", LOCK_WITHIN.as_secs())]
    LockHeld,
    /// Anything else.
    #[error("apt failed")]
    Apt(#[source] ToolError),
}

/// The packages of [`PACKAGES`] that are not there.
#[must_use]
pub fn missing() -> Vec<Package> {
    missing_of(&PACKAGES)
}

/// Those of `packages` that are not there.
#[must_use]
pub fn missing_of(packages: &[Package]) -> Vec<Package> {
    packages
        .iter()
        .filter(|package| !is_there(package))
        .copied()
        .collect()
}

fn is_there(package: &Package) -> bool {
    // An emulator from elsewhere replaces the package.
    let elsewhere = package.program == "qemu-system-x86_64"
        && std::env::var_os(crate::emulator::QEMU_VARIABLE).is_some();
    let program = !package.program.is_empty() && in_path(package.program).is_some();
    elsewhere || program || dpkg_knows(package.name)
}

fn dpkg_knows(name: &str) -> bool {
    let mut query = Command::new("dpkg-query");
    query.args(["-W", "-f", "${db:Status-Status}", name]);
    tool::run(&mut query).is_ok_and(|status| status == b"installed")
}

/// The line that installs these packages, for a person to read.
#[must_use]
pub fn install_command_line(packages: &[Package]) -> String {
    tool::command_line(&install_command(packages))
}

fn install_command(packages: &[Package]) -> Command {
    let mut command = Command::new("apt-get");
    command.args(["install", "--yes", "--no-install-recommends"]);
    command.args(packages.iter().map(|package| package.name));
    command
}

/// Installs packages with apt. `tell` gets a line before each step.
///
/// The package lists are fetched when there are none, or when apt does not find with them what
/// it should. Another apt is waited for, up to three minutes.
///
/// # Errors
///
/// [`PackageError`].
pub fn install(packages: &[Package], tell: &mut dyn FnMut(&str)) -> Result<(), PackageError> {
    if packages.is_empty() {
        return Ok(());
    }
    let line = install_command_line(packages);
    if in_path("apt-get").is_none() {
        let names: Vec<&str> = packages.iter().map(|package| package.name).collect();
        return Err(PackageError::NotDebian {
            names: names.join(" "),
        });
    }
    if !nix::unistd::geteuid().is_root() {
        return Err(PackageError::NotRoot { command: line });
    }
    with_package_lists(tell, |tell| {
        tell(&line);
        apt(install_command(packages).env("DEBIAN_FRONTEND", "noninteractive"))
    })
    .map(drop)
}

/// Does `step`, and does it again with fresh package lists when it fails for old or missing ones.
pub(crate) fn with_package_lists<T>(
    tell: &mut dyn FnMut(&str),
    mut step: impl FnMut(&mut dyn FnMut(&str)) -> Result<T, PackageError>,
) -> Result<T, PackageError> {
    if has_package_lists() {
        match step(tell) {
            Err(PackageError::Unknown { .. } | PackageError::NoNetwork { .. }) => {}
            other => return other,
        }
    }
    let mut update = Command::new("apt-get");
    update.arg("update");
    tell(&tool::command_line(&update));
    apt(&mut update)?;
    step(tell)
}

fn has_package_lists() -> bool {
    fs::read_dir("/var/lib/apt/lists").is_ok_and(|entries| {
        entries
            .flatten()
            .any(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
    })
}

/// Runs one apt command, waiting for its lock, and says in our words why it failed.
pub(crate) fn apt(command: &mut Command) -> Result<Vec<u8>, PackageError> {
    let start = Instant::now();
    loop {
        let error = match tool::run(command.env("LC_ALL", "C")) {
            Ok(output) => return Ok(output),
            Err(error) => error,
        };
        match classify(error) {
            PackageError::LockHeld if start.elapsed() < LOCK_WITHIN => {
                std::thread::sleep(LOCK_STEP);
            }
            error => return Err(error),
        }
    }
}

fn classify(error: ToolError) -> PackageError {
    let ToolError::Failed { message, .. } = &error else {
        return PackageError::Apt(error);
    };
    let is = |words: &[&str]| words.iter().any(|word| message.contains(word));
    if let Some(name) = message
        .strip_prefix("E: Unable to locate package ")
        .or_else(|| message.strip_prefix("E: Can't find a source to download version "))
        .or_else(|| message.strip_prefix("E: No packages found"))
    {
        return PackageError::Unknown {
            name: name.trim().to_owned(),
        };
    }
    if is(&["has no installation candidate"]) {
        let name = message.split('\'').nth(1).unwrap_or(message).to_owned();
        return PackageError::Unknown { name };
    }
    if is(&[
        "Could not get lock",
        "Unable to acquire the dpkg frontend lock",
        "Unable to lock",
    ]) {
        return PackageError::LockHeld;
    }
    if is(&[
        "Failed to fetch",
        "Could not resolve",
        "Could not connect",
        "Unable to connect",
    ]) {
        return PackageError::NoNetwork {
            message: message.clone(),
        };
    }
    PackageError::Apt(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(message: &str) -> ToolError {
        ToolError::Failed {
            command: "apt-get install x".to_owned(),
            status: "exit status: 100".to_owned(),
            message: message.to_owned(),
        }
    }

    #[test]
    fn failures_of_apt_get_one_plain_line() {
        let line = |message| classify(failed(message)).to_string();
        assert!(line("E: Unable to locate package fio").starts_with("apt knows no package fio:"));
        assert!(
            line("E: Package 'qemu-kvm' has no installation candidate")
                .starts_with("apt knows no package qemu-kvm:")
        );
        let lock = "E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 7";
        assert!(line(lock).starts_with("another apt or dpkg is running"));
        let network = "E: Failed to fetch http://deb.debian.org/x.deb  Temporary failure resolving";
        assert!(line(network).ends_with("is there a network?"));
        assert_eq!(line("E: Broken packages"), "apt failed");
    }

    #[test]
    fn the_line_for_people_is_what_is_run() {
        let two = [package("one", "", ""), package("two", "", "")];
        assert_eq!(
            install_command_line(&two),
            "apt-get install --yes --no-install-recommends one two"
        );
    }

    #[test]
    fn what_nobody_has_is_missing_and_what_all_have_is_not() {
        assert!(!is_there(&package(
            "orimono-no-such-package",
            "orimono-no-such-program",
            ""
        )));
        assert!(is_there(&package("dash", "sh", "")));
    }
}
