//! Kernel and initramfs of the guests, in a cache folder; one folder for each [`Recipe`].
//!
//! | path in the cache | what |
//! | --- | --- |
//! | `lock` | held while the rest is looked at or made: tests start at the same time |
//! | `kernel/` | Debian's kernel package, unpacked, with `modules.dep` |
//! | `guest-init-target/` | cargo's folder for PID 1 |
//! | `initramfs.cpio` | not compressed: unpacking costs more under TCG than copying |
//! | `tools.cpio` | programs with large libraries and file systems, a disk of the guest, unpacked at first use |
//! | `debian.img`, `debian.recipe` | a disk that firmware boots ([`debian`]), and what it was made from |
//! | `initramfs.inputs` | the recipe and, for each file in the initramfs, its size and time |
//!
//! Everything is made beside its name and renamed, so that what is there is whole.

pub mod debian;
mod kernel;
mod root;
pub mod soft_roce;

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, BufWriter},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
};

use thiserror::Error;

use self::{kernel::Kernel, root::Root};
use crate::{
    elf,
    emulator::in_path,
    kernel_modules::ModulesError,
    packages::{KERNEL_META_PACKAGE, PackageError},
    tool::{self, ToolError},
};

/// To be raised when the layout below changes without a change of any file.
const RECIPE: u32 = 5;
/// Target of PID 1; its glibc is linked statically.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Programs of the host that guests get, and the package each is from.
const PROGRAMS: [(&str, &str); 10] = [
    ("busybox", "busybox-static"),
    ("dash", "dash"),
    ("bash", "bash"),
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("ss", "iproute2"),
    ("ethtool", "ethtool"),
    ("iperf3", "iperf3"),
    ("flock", "util-linux"),
    ("sg_inq", "sg3-utils"),
];
/// Programs of the tools archive. Debian's fio brings 70 MB of clients for storage clusters; to
/// unpack them takes a guest under TCG a second, which most guests need not spend.
const LATE_PROGRAMS: [(&str, &str); 2] = [("fio", "fio"), ("iscsi-test-cu", "libiscsi-bin")];
/// Serial number of the disk that is the tools archive.
pub(crate) const TOOLS_SERIAL: &str = "orimono-tools";
/// All programs of sg3-utils begin so.
const SG_PREFIX: &str = "sg_";
/// Why there is no image.
#[derive(Debug, Error)]
pub enum ImageError {
    /// A file or folder of the cache.
    #[error("cannot {what} {}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A program that goes into the image is not on the host.
    #[error("{program} is not there; `cargo xtask setup` installs package {package}")]
    ProgramMissing {
        /// The program.
        program: String,
        /// The package that brings it.
        package: String,
    },
    /// The kernel's package could not be had.
    #[error("no kernel for guests")]
    Kernel(#[from] PackageError),
    /// The unpacked package is not as expected.
    #[error("package {package} has no {what}")]
    KernelLayout {
        /// The package.
        package: String,
        /// What was looked for.
        what: &'static str,
    },
    /// Modules of the kernel.
    #[error("cannot order the kernel's modules")]
    Modules(#[from] ModulesError),
    /// PID 1 needs a dynamic linker, which a guest does not have when it starts.
    #[error("guest-init was built as a dynamic program: {}", path.display())]
    NotStatic {
        /// The program.
        path: PathBuf,
    },
    /// A program that helps to build failed.
    #[error("cannot {what}")]
    Tool {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: ToolError,
    },
}

/// What an image has beyond what all have.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// The meta package of the kernel.
    pub kernel: &'static str,
    /// Modules that are loaded at boot after the usual ones, in this order.
    pub modules: &'static [&'static str],
    /// Programs, libraries and other files of the host, which stand at the same path in the guest
    /// with all libraries that they need.
    pub files: BTreeSet<PathBuf>,
}

impl Default for Recipe {
    /// Debian's cloud kernel, and nothing more.
    fn default() -> Self {
        Self {
            kernel: KERNEL_META_PACKAGE,
            modules: &[],
            files: BTreeSet::new(),
        }
    }
}

/// A kernel and an initramfs that fit each other.
#[derive(Clone, Debug)]
pub struct GuestImage {
    kernel: PathBuf,
    kernel_version: String,
    initramfs: PathBuf,
    tools: PathBuf,
}

/// The cache folder of this checkout: `guest` in cargo's target folder.
#[must_use]
pub fn default_cache() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map(PathBuf::from)
        .unwrap_or_else(|| {
            Path::new(env!("CARGO_MANIFEST_DIR"))
                .parent()
                .unwrap_or(Path::new("."))
                .join("target")
        });
    target.join("guest")
}

impl GuestImage {
    /// The image in `cache`, made or made anew if it must be. Silent; see [`Self::ensure_telling`].
    ///
    /// # Errors
    ///
    /// [`ImageError`].
    pub fn ensure(cache: &Path) -> Result<Self, ImageError> {
        Self::ensure_telling(cache, &mut |_line| {})
    }

    /// As [`Self::ensure`]; `tell` gets a line before each step that takes time.
    ///
    /// # Errors
    ///
    /// [`ImageError`].
    pub fn ensure_telling(cache: &Path, tell: &mut dyn FnMut(&str)) -> Result<Self, ImageError> {
        Self::ensure_recipe(cache, &Recipe::default(), tell)
    }

    /// As [`Self::ensure_telling`], with more in it. Each recipe needs a cache of its own.
    ///
    /// # Errors
    ///
    /// [`ImageError`].
    pub fn ensure_recipe(
        cache: &Path,
        recipe: &Recipe,
        tell: &mut dyn FnMut(&str),
    ) -> Result<Self, ImageError> {
        fs::create_dir_all(cache).map_err(file("create", cache))?;
        // Paths go to QEMU and to cargo, which may run in other folders.
        let cache = &fs::canonicalize(cache).map_err(file("find", cache))?;
        let lock_path = cache.join("lock");
        let lock = File::create(&lock_path).map_err(file("create", &lock_path))?;
        lock.lock().map_err(file("lock", &lock_path))?;

        let kernel = Kernel::ensure(cache, recipe.kernel, tell)?;
        let image = Self {
            kernel: kernel.image.clone(),
            kernel_version: kernel.version.clone(),
            initramfs: cache.join("initramfs.cpio"),
            tools: cache.join("tools.cpio"),
        };
        let (mut programs, late) = (programs()?, find_all(&LATE_PROGRAMS)?);
        programs.extend(recipe.files.iter().cloned());
        let line = recipe_line(&kernel, recipe.modules, programs.union(&late));
        let inputs_path = cache.join("initramfs.inputs");
        if image.is_there() && inputs_are_unchanged(&inputs_path, &line) {
            return Ok(image);
        }
        tell("building the guest's initramfs");
        let init = build_guest_init(cache)?;
        let mut root = Root::default();
        root.add_init(&init);
        root.add_modules(&kernel, recipe.modules)?;
        root.add_programs(&programs)?;
        let mut tools = root.split_off(&late)?;
        tools.add_late_modules(&kernel, &root)?;
        // The list goes first: a crash in between leaves an old list or none, never a wrong one.
        remove_if_there(&inputs_path)?;
        tools.write(&image.tools)?;
        root.write(&image.initramfs)?;
        let mut sources = guest_init_sources()?;
        sources.extend(root.inputs);
        sources.extend(tools.inputs);
        let text = inputs_text(&line, &sources);
        replace(&inputs_path, |out| {
            io::Write::write_all(out, text.as_bytes())
        })?;
        Ok(image)
    }

    fn is_there(&self) -> bool {
        self.initramfs.is_file() && self.tools.is_file()
    }

    /// The kernel, a bzImage.
    #[must_use]
    pub fn kernel(&self) -> &Path {
        &self.kernel
    }

    /// The initramfs.
    #[must_use]
    pub fn initramfs(&self) -> &Path {
        &self.initramfs
    }

    /// The tools archive, for a read-only disk.
    #[must_use]
    pub fn tools(&self) -> &Path {
        &self.tools
    }

    /// The kernel's version, as `uname -r` says it.
    #[must_use]
    pub fn kernel_version(&self) -> &str {
        &self.kernel_version
    }
}

fn file(what: &'static str, path: &Path) -> impl Fn(io::Error) -> ImageError {
    move |source| ImageError::File {
        what,
        path: path.to_owned(),
        source,
    }
}

fn tool(what: &'static str) -> impl Fn(ToolError) -> ImageError {
    move |source| ImageError::Tool { what, source }
}

fn remove_if_there(path: &Path) -> Result<(), ImageError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(file("remove", path)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Writes a file beside `path` and renames it.
fn replace(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<&mut File>) -> io::Result<()>,
) -> Result<(), ImageError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut new = tempfile::NamedTempFile::new_in(folder).map_err(file("write", path))?;
    let mut out = BufWriter::new(new.as_file_mut());
    write(&mut out)
        .and_then(|()| io::Write::flush(&mut out))
        .map_err(file("write", path))?;
    drop(out);
    new.persist(path)
        .map_err(|error| file("rename", path)(error.error))?;
    Ok(())
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, ImageError> {
    let mut all = fs::read_dir(folder)
        .and_then(|entries| {
            entries
                .map(|entry| Ok(entry?.path()))
                .collect::<io::Result<Vec<_>>>()
        })
        .map_err(file("list", folder))?;
    all.sort();
    Ok(all)
}

fn program_missing(program: &str, package: &str) -> ImageError {
    ImageError::ProgramMissing {
        program: program.to_owned(),
        package: package.to_owned(),
    }
}

/// The host's programs for the image, sorted by path.
fn programs() -> Result<BTreeSet<PathBuf>, ImageError> {
    let mut all = find_all(&PROGRAMS)?;
    let sg_inq = in_path("sg_inq").ok_or_else(|| program_missing("sg_inq", "sg3-utils"))?;
    let folder = sg_inq.parent().unwrap_or(Path::new("/usr/bin"));
    all.extend(entries(folder)?.into_iter().filter(|path| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(SG_PREFIX))
    }));
    Ok(all)
}

fn find_all(programs: &[(&str, &str)]) -> Result<BTreeSet<PathBuf>, ImageError> {
    programs
        .iter()
        .map(|(program, package)| in_path(program).ok_or_else(|| program_missing(program, package)))
        .collect()
}

/// One line that changes when something other than a file's content does.
fn recipe_line<'a>(
    kernel: &Kernel,
    modules: &[&str],
    programs: impl Iterator<Item = &'a PathBuf>,
) -> String {
    let (version, modules) = (&kernel.version, modules.join(" "));
    let mut text = format!("recipe {RECIPE} kernel {version} modules {modules} programs");
    for path in programs {
        text.push(' ');
        text.push_str(&path.to_string_lossy());
    }
    text
}

/// Size and time of a file, one line; empty for a file that is not there.
fn fingerprint(path: &Path) -> String {
    fs::metadata(path).map_or_else(
        |_not_there| String::new(),
        |data| {
            let (size, seconds, nanos) = (data.len(), data.mtime(), data.mtime_nsec());
            format!("{size} {seconds}.{nanos:09} {}", path.display())
        },
    )
}

fn inputs_text(recipe: &str, inputs: &BTreeSet<PathBuf>) -> String {
    let mut text = format!("{recipe}\n");
    for path in inputs {
        text.push_str(&fingerprint(path));
        text.push('\n');
    }
    text
}

fn inputs_are_unchanged(list: &Path, recipe: &str) -> bool {
    let Ok(text) = fs::read_to_string(list) else {
        return false;
    };
    let mut lines = text.lines();
    lines.next() == Some(recipe)
        && lines.all(|line| {
            line.splitn(3, ' ')
                .nth(2)
                .is_some_and(|path| fingerprint(Path::new(path)) == line)
        })
}

fn guest_init_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("guest-init")
}

fn guest_init_sources() -> Result<BTreeSet<PathBuf>, ImageError> {
    let folder = guest_init_folder();
    let mut sources: BTreeSet<PathBuf> = entries(&folder.join("src"))?.into_iter().collect();
    sources.insert(folder.join("Cargo.toml"));
    Ok(sources)
}

/// Builds PID 1 as a static program, in a target folder of its own: the caller's cargo may hold
/// the lock of the usual one.
fn build_guest_init(cache: &Path) -> Result<PathBuf, ImageError> {
    let target = cache.join("guest-init-target");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build
        .args([
            "build",
            "--quiet",
            "--package",
            "guest-init",
            "--bin",
            "guest-init",
        ])
        .args(["--target", TARGET, "--target-dir"])
        .arg(&target)
        .current_dir(guest_init_folder())
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            "-Ctarget-feature=+crt-static\u{1f}-Cstrip=symbols",
        )
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_BUILD_TARGET");
    tool::run(&mut build).map_err(tool("build guest-init"))?;
    let path = target.join(TARGET).join("debug").join("guest-init");
    let bytes = fs::read(&path).map_err(file("read", &path))?;
    if elf::is_static_program(&bytes) {
        Ok(path)
    } else {
        Err(ImageError::NotStatic { path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_input_or_recipe_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let (input, list) = (folder.path().join("an input"), folder.path().join("list"));
        fs::write(&input, "1").unwrap();
        fs::write(
            &list,
            inputs_text("recipe 1", &BTreeSet::from([input.clone()])),
        )
        .unwrap();
        assert!(inputs_are_unchanged(&list, "recipe 1"));
        assert!(!inputs_are_unchanged(&list, "recipe 2"));
        fs::write(&input, "22").unwrap();
        assert!(!inputs_are_unchanged(&list, "recipe 1"));
        fs::remove_file(&input).unwrap();
        assert!(!inputs_are_unchanged(&list, "recipe 1"));
    }
}
