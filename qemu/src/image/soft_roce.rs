//! The image of a guest with RDMA: soft-RoCE (rdma_rxe) on any network interface.
//!
//! Debian's full kernel has it, the cloud kernel has not. libibverbs finds the part of it that
//! belongs to soft-RoCE by its name in `/etc/libibverbs.d`.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use super::{ImageError, Recipe, entries, find_all, program_missing};

/// The meta package of the kernel with all drivers.
const KERNEL: &str = "linux-image-amd64";
/// rdma_rxe takes crc32 from the kernel's crypto and does not load it. On the loopback interface
/// the connection manager finds no route (ENODEV, Linux 6.1), so there is a dummy one.
const MODULES: [&str; 5] = [
    "crc32_generic",
    "dummy",
    "ib_uverbs",
    "rdma_rxe",
    "rdma_ucm",
];
/// `rdma link add` makes the device.
const PROGRAMS: [(&str, &str); 1] = [("rdma", "iproute2")];
/// Where Debian keeps libraries.
const LIBRARIES: &str = "/usr/lib/x86_64-linux-gnu";
/// Opened by name at run time, so that no list of needed libraries has them. glibc opens libgcc_s
/// so, when a thread is cancelled.
const OPENED: [(&str, &str); 3] = [
    ("libibverbs.so.1", "libibverbs1"),
    ("librdmacm.so.1", "librdmacm1"),
    ("libgcc_s.so.1", "libgcc-s1"),
];
const PROVIDERS: &str = "ibverbs-providers";

/// The cache folder of this checkout for this image: `guest-rdma` in cargo's target folder.
#[must_use]
pub fn default_cache() -> PathBuf {
    super::default_cache().with_file_name("guest-rdma")
}

/// The recipe, with these programs of the host in it too.
///
/// # Errors
///
/// [`ImageError::ProgramMissing`]: [`crate::packages::RDMA_PACKAGES`] are to be installed.
pub fn recipe(programs: impl IntoIterator<Item = PathBuf>) -> Result<Recipe, ImageError> {
    let mut files: BTreeSet<_> = programs.into_iter().collect();
    files.extend(find_all(&PROGRAMS)?);
    for (library, package) in OPENED {
        let path = Path::new(LIBRARIES).join(library);
        if !path.exists() {
            return Err(program_missing(library, package));
        }
        files.insert(path);
    }
    // The number in its name is the interface of libibverbs.
    let folder = Path::new(LIBRARIES).join("libibverbs");
    let providers = entries(&folder).map_err(|_missing| program_missing("librxe", PROVIDERS))?;
    let is_soft_roce = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("librxe-")
    };
    let provider = providers.into_iter().find(|path| is_soft_roce(path));
    files.insert(provider.ok_or_else(|| program_missing("librxe", PROVIDERS))?);
    files.insert("/etc/libibverbs.d/rxe.driver".into());
    Ok(Recipe {
        kernel: KERNEL,
        modules: &MODULES,
        files,
    })
}
