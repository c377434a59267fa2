//! The kernel of the guests: Debian's package, unpacked and never installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{ImageError, entries, file, program_missing, tool};
use crate::{
    emulator::in_path,
    packages::{self, PackageError},
    tool as host,
};

/// An unpacked kernel package.
pub(super) struct Kernel {
    pub(super) image: PathBuf,
    pub(super) version: String,
    /// Folder with `modules.dep`.
    pub(super) modules: PathBuf,
}

impl Kernel {
    /// The kernel in `cache/kernel`, downloaded if there is none.
    pub(super) fn ensure(
        cache: &Path,
        meta_package: &str,
        tell: &mut dyn FnMut(&str),
    ) -> Result<Self, ImageError> {
        let folder = cache.join("kernel");
        if let Some(kernel) = Self::in_folder(&folder) {
            return Ok(kernel);
        }
        let package = packages::with_package_lists(tell, |_tell| kernel_package(meta_package))
            .map_err(ImageError::Kernel)?;
        let temporary = tempfile::Builder::new()
            .prefix("kernel-")
            .tempdir_in(cache)
            .map_err(file("create a folder in", cache))?;
        packages::with_package_lists(tell, |tell| {
            let mut download = Command::new("apt-get");
            // As root apt would drop to a user who may not write here, and complain.
            download.args(["-o", "APT::Sandbox::User=root", "download", &package]);
            tell(&host::command_line(&download));
            packages::apt(download.current_dir(temporary.path()))
        })?;
        let archive = entries(temporary.path())?
            .into_iter()
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .ok_or(ImageError::KernelLayout {
                package: package.clone(),
                what: "archive",
            })?;
        let root = temporary.path().join("root");
        host::run(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&root))
            .map_err(tool("unpack the kernel"))?;
        let Some(kernel) = Self::in_folder(&root) else {
            return Err(ImageError::KernelLayout {
                package,
                what: "boot/vmlinuz or modules",
            });
        };
        // The package's own script would run this at installation.
        let depmod = in_path("depmod").ok_or_else(|| program_missing("depmod", "kmod"))?;
        host::run(
            Command::new(depmod)
                .arg("-b")
                .arg(&root)
                .arg(&kernel.version),
        )
        .map_err(tool("list the kernel's modules"))?;
        if folder.exists() {
            fs::remove_dir_all(&folder).map_err(file("remove", &folder))?;
        }
        fs::rename(&root, &folder).map_err(file("rename", &folder))?;
        Self::in_folder(&folder).ok_or(ImageError::KernelLayout {
            package,
            what: "boot/vmlinuz or modules",
        })
    }

    fn in_folder(folder: &Path) -> Option<Self> {
        let all = fs::read_dir(folder.join("lib/modules")).ok()?;
        let version = all.flatten().next()?.file_name().into_string().ok()?;
        let image = folder.join("boot").join(format!("vmlinuz-{version}"));
        let modules = folder.join("lib/modules").join(&version);
        image.is_file().then_some(Self {
            image,
            version,
            modules,
        })
    }
}

/// The kernel that the meta package depends on today.
fn kernel_package(meta_package: &str) -> Result<String, PackageError> {
    let mut depends = Command::new("apt-cache");
    depends.args(["depends", meta_package]);
    let text = packages::apt(&mut depends)?;
    String::from_utf8_lossy(&text)
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-"))
        .map(str::to_owned)
        .ok_or_else(|| PackageError::Unknown {
            name: meta_package.to_owned(),
        })
}
