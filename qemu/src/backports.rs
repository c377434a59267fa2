//! QEMU 10 of Debian bookworm-backports beside the installed QEMU 7.2, unpacked and not installed.
//!
//! | path in the cache | what |
//! | --- | --- |
//! | `backports.lock` | held while the rest is looked at or made |
//! | `qemu-backports/` | the packages, unpacked; there only when whole and seen to run |
//!
//! apt gets a source list, package lists and caches of its own in a temporary folder, so the
//! machine's stay as they are and root is not needed. Mirror and key are those of the machine's
//! own bookworm source: a machine that may only talk to its own mirror goes on doing that. The
//! shared libraries are those of the installed `qemu-system-x86`, which has all that QEMU 10 asks
//! for.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::Command,
};

use thiserror::Error;

use crate::{
    emulator::{PROGRAM, Qemu, QemuError, in_path},
    packages::{self, PackageError},
    tool::{self, ToolError},
};

/// The release whose sources are looked for; later ones have a newer QEMU themselves.
const RELEASE: &str = "bookworm";
/// The suite the packages are taken from.
const SUITE: &str = "bookworm-backports";
/// Folder in the cache.
const FOLDER: &str = "qemu-backports";
/// The emulator, what it loads at start, its firmware.
const PACKAGES: [&str; 4] = [
    "qemu-system-x86",
    "qemu-system-common",
    "qemu-system-data",
    "seabios",
];
/// Where apt reads its sources from: one list in the old form, and a folder of lists.
const SOURCES_LIST: &str = "/etc/apt/sources.list";
const SOURCES_PARTS: &str = "/etc/apt/sources.list.d";

/// Why there is no QEMU of the backports. One line each.
#[derive(Debug, Error)]
pub enum BackportsError {
    /// A file or folder of the cache, or of apt's configuration.
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
    /// The machine has no source whose mirror could have the backports.
    #[error(
        "no source of {RELEASE} main in {SOURCES_LIST} or {SOURCES_PARTS}: the QEMU of {SUITE} \
         is for machines with Debian 12"
    )]
    NoSource,
    /// apt could not get the packages.
    #[error("cannot get QEMU of {SUITE}")]
    Download(#[from] PackageError),
    /// dpkg could not unpack them.
    #[error("cannot unpack QEMU of {SUITE}")]
    Unpack(#[source] ToolError),
    /// What was unpacked is no emulator for this machine.
    #[error("QEMU of {SUITE} is not usable here; is qemu-system-x86 installed?")]
    NotUsable(#[from] QemuError),
}

impl Qemu {
    /// QEMU 10 of Debian bookworm-backports, in folder `qemu-backports` of `cache`; downloaded
    /// (14 MB) and unpacked (90 MB) at the first call, without being installed. `tell` gets a
    /// line before each step that takes time.
    ///
    /// Callers in other processes wait for each other; a call that fails leaves nothing behind.
    ///
    /// # Errors
    ///
    /// [`BackportsError`].
    pub fn backports(cache: &Path, tell: &mut dyn FnMut(&str)) -> Result<Self, BackportsError> {
        fs::create_dir_all(cache).map_err(file("create", cache))?;
        // The path goes to processes that may run in other folders.
        let cache = &fs::canonicalize(cache).map_err(file("find", cache))?;
        let lock_path = cache.join("backports.lock");
        let lock = File::create(&lock_path).map_err(file("create", &lock_path))?;
        lock.lock().map_err(file("lock", &lock_path))?;

        let folder = cache.join(FOLDER);
        if folder.exists() {
            return Ok(unpacked(&folder)?);
        }
        let temporary = tempfile::Builder::new()
            .prefix("qemu-backports-")
            .tempdir_in(cache)
            .map_err(file("create a folder in", cache))?;
        let source = Source::of_this_machine()?;
        let archives = download(&source, temporary.path(), tell)?;
        let root = temporary.path().join("root");
        tell(&format!("unpacking them into {}", folder.display()));
        for archive in &archives {
            tool::run(Command::new("dpkg-deb").arg("-x").arg(archive).arg(&root))
                .map_err(BackportsError::Unpack)?;
        }
        join_firmware(&root)?;
        unpacked(&root)?;
        fs::rename(&root, &folder).map_err(file("rename", &folder))?;
        Ok(unpacked(&folder)?)
    }
}

fn file(what: &'static str, path: &Path) -> impl Fn(io::Error) -> BackportsError {
    move |source| BackportsError::File {
        what,
        path: path.to_owned(),
        source,
    }
}

/// Debian keeps the BIOS in a folder of its own, whose place is compiled into QEMU: without this
/// QEMU 10 would take the BIOS of the installed QEMU, if there is one.
fn join_firmware(root: &Path) -> Result<(), BackportsError> {
    let [from, to] = ["seabios", "qemu"].map(|name| root.join("usr/share").join(name));
    for name in names(&from)? {
        fs::rename(from.join(&name), to.join(&name)).map_err(file("move", &from.join(&name)))?;
    }
    Ok(())
}

fn names(folder: &Path) -> Result<Vec<OsString>, BackportsError> {
    let mut names: Vec<OsString> = fs::read_dir(folder)
        .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect())
        .map_err(file("list", folder))?;
    names.sort();
    Ok(names)
}

fn unpacked(root: &Path) -> Result<Qemu, QemuError> {
    Qemu::at(
        root.join("usr/bin").join(PROGRAM),
        Some(root.join("usr/share/qemu")),
        None,
    )
}

/// Downloads the packages into `folder` and returns their archives.
fn download(
    source: &Source,
    folder: &Path,
    tell: &mut dyn FnMut(&str),
) -> Result<Vec<PathBuf>, BackportsError> {
    if in_path("apt-get").is_none() {
        return Err(BackportsError::Download(PackageError::NotDebian {
            names: PACKAGES.join(" "),
        }));
    }
    let list = folder.join("backports.sources");
    fs::write(&list, source.stanza()).map_err(file("write", &list))?;
    let [lists, caches] = ["lists", "caches"].map(|name| folder.join(name));
    // apt makes `partial` only in the folders of the distribution.
    for partial in [lists.join("partial"), caches.join("archives/partial")] {
        fs::create_dir_all(&partial).map_err(file("create", &partial))?;
    }
    let apt = |words: &[String]| {
        let mut command = Command::new("apt-get");
        for (name, path) in [
            ("Dir::Etc::sourcelist", list.as_path()),
            // No folder of further sources.
            ("Dir::Etc::sourceparts", Path::new("-")),
            // The machine's pins may forbid backports.
            ("Dir::Etc::preferences", Path::new("/dev/null")),
            ("Dir::Etc::preferencesparts", Path::new("/dev/null")),
            ("Dir::State::lists", lists.as_path()),
            ("Dir::Cache", caches.as_path()),
        ] {
            command.arg("-o").arg(format!("{name}={}", path.display()));
        }
        for option in [
            // As root apt would drop to a user who may not write here, and complain.
            "APT::Sandbox::User=root",
            "Acquire::Languages=none",
            // Else an update that could not reach the mirror counts as done.
            "APT::Update::Error-Mode=any",
        ] {
            command.args(["-o", option]);
        }
        packages::apt(command.args(words).current_dir(folder))
    };
    tell(&format!(
        "downloading {} of {SUITE} from {} (14 MB, not to be installed)",
        PACKAGES.join(", "),
        source.uris
    ));
    apt(&["update".to_owned()])?;
    let mut words = vec!["download".to_owned()];
    words.extend(PACKAGES.map(|name| format!("{name}/{SUITE}")));
    apt(&words)?;
    Ok(names(folder)?
        .into_iter()
        .map(|name| folder.join(name))
        .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .collect())
}

/// Where packages come from and who signs for them.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Source {
    /// Mirrors, separated by blanks.
    uris: String,
    /// Value of `Signed-By`: key ring, finger prints, or a key over several lines.
    signed_by: Option<String>,
}

impl Source {
    /// The first source of the release that apt would use.
    fn of_this_machine() -> Result<Self, BackportsError> {
        let mut files = vec![PathBuf::from(SOURCES_LIST)];
        let parts = Path::new(SOURCES_PARTS);
        if parts.is_dir() {
            files.extend(names(parts)?.into_iter().map(|name| parts.join(name)));
        }
        for path in files {
            // apt ignores files with other endings.
            let parse = match path.extension().and_then(|extension| extension.to_str()) {
                Some("list") => Self::in_list,
                Some("sources") => Self::in_stanzas,
                _ => continue,
            };
            let text = match fs::read_to_string(&path) {
                Ok(text) => text,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(file("read", &path)(error)),
            };
            if let Some(source) = parse(&text) {
                return Ok(source);
            }
        }
        Err(BackportsError::NoSource)
    }

    /// Reads the form of one line each (`sources.list(5)`, "ONE-LINE-STYLE FORMAT"):
    /// `deb [option=value ...] uri suite component ...`.
    fn in_list(text: &str) -> Option<Self> {
        text.lines().find_map(|line| {
            let line = line.split('#').next().unwrap_or_default();
            let rest = line.trim().strip_prefix("deb")?;
            let rest = rest.strip_prefix([' ', '\t'])?.trim_start();
            let (options, rest) = match rest.strip_prefix('[') {
                Some(rest) => rest.split_once(']')?,
                None => ("", rest),
            };
            let mut words = rest.split_whitespace();
            let (uri, suite) = (words.next()?, words.next()?);
            let signed_by = options
                .split_whitespace()
                .find_map(|option| option.strip_prefix("signed-by="));
            // One option holds several keys between commas, a stanza between blanks.
            let signed_by = signed_by.map(|keys| keys.replace(',', " "));
            Self::usable([uri], [suite], words, signed_by)
        })
    }

    /// Reads the form of one stanza each (`sources.list(5)`, "DEB822-STYLE FORMAT").
    fn in_stanzas(text: &str) -> Option<Self> {
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        lines
            .split(|line| line.trim().is_empty())
            .find_map(Self::in_stanza)
    }

    fn in_stanza(lines: &[&str]) -> Option<Self> {
        let field = |wanted: &str| {
            let mut lines = lines.iter().skip_while(|line| {
                !line
                    .split_once(':')
                    .is_some_and(|(name, _)| name.eq_ignore_ascii_case(wanted))
            });
            let (_, first) = lines.next()?.split_once(':')?;
            let mut value = first.trim().to_owned();
            for line in lines.take_while(|line| line.starts_with([' ', '\t'])) {
                value.push('\n');
                value.push_str(line);
            }
            Some(value)
        };
        let types = field("Types")?;
        let off = field("Enabled").is_some_and(|value| {
            ["no", "false", "without", "off", "disable"]
                .iter()
                .any(|word| value.eq_ignore_ascii_case(word))
        });
        if off || !types.split_whitespace().any(|word| word == "deb") {
            return None;
        }
        let (uris, suites) = (field("URIs")?, field("Suites")?);
        let components = field("Components")?;
        Self::usable(
            uris.split_whitespace(),
            suites.split_whitespace(),
            components.split_whitespace(),
            field("Signed-By"),
        )
    }

    /// A source of the release's main archive that is not a disc.
    fn usable<'a>(
        uris: impl IntoIterator<Item = &'a str>,
        suites: impl IntoIterator<Item = &'a str>,
        components: impl IntoIterator<Item = &'a str>,
        signed_by: Option<String>,
    ) -> Option<Self> {
        let is_main = components.into_iter().any(|word| word == "main");
        let is_release = suites
            .into_iter()
            .any(|suite| suite == RELEASE || suite == SUITE);
        let uris: Vec<&str> = uris
            .into_iter()
            .filter(|uri| !uri.starts_with("cdrom:"))
            .collect();
        (is_main && is_release && !uris.is_empty()).then(|| Self {
            uris: uris.join(" "),
            signed_by,
        })
    }

    /// The source for the backports, in the form of stanzas.
    fn stanza(&self) -> String {
        let mut text = format!(
            "Types: deb\nURIs: {}\nSuites: {SUITE}\nComponents: main\n",
            self.uris
        );
        if let Some(signed_by) = &self.signed_by {
            text.push_str("Signed-By: ");
            text.push_str(signed_by);
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(uris: &str, signed_by: Option<&str>) -> Option<Source> {
        Some(Source {
            uris: uris.to_owned(),
            signed_by: signed_by.map(str::to_owned),
        })
    }

    #[test]
    fn lists_of_lines_are_read() {
        for (text, expected) in [
            (
                "# deb http://a/ bookworm main\n\
                 deb-src http://b/ bookworm main\n\
                 deb http://c/ bookworm-security main\n\
                 deb http://d/ trixie main\n\
                 deb http://e/ bookworm contrib\n\
                 deb cdrom:[Debian]/ bookworm main\n\
                 deb http://f/ bookworm main contrib # ours\n",
                source("http://f/", None),
            ),
            (
                "deb [ arch=amd64 signed-by=/k/a.gpg,/k/b.gpg ] http://a bookworm main",
                source("http://a", Some("/k/a.gpg /k/b.gpg")),
            ),
            ("deb\thttp://a\tbookworm\tmain", source("http://a", None)),
            ("deb [arch=amd64 http://a bookworm main", None),
            ("deb http://a", None),
            ("", None),
        ] {
            assert_eq!(Source::in_list(text), expected, "{text}");
        }
    }

    #[test]
    fn stanzas_are_read() {
        // As Debian's own container and cloud images have it.
        let debian = "Types: deb deb-src\n\
            # an archive of old states\n\
            URIs: http://a/debian\n\
            Suites: bookworm bookworm-updates\n\
            Components: main\n\
            Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\
            \n\
            Types: deb\n\
            URIs: http://a/debian-security\n\
            Suites: bookworm-security\n\
            Components: main\n";
        let key = Some("/usr/share/keyrings/debian-archive-keyring.gpg");
        assert_eq!(Source::in_stanzas(debian), source("http://a/debian", key));

        let base = "URIs: http://a\nSuites: bookworm\nComponents: main\n";
        for (fields, expected) in [
            ("Types: deb", source("http://a", None)),
            ("types: deb\nEnabled: yes", source("http://a", None)),
            ("Types: deb\nEnabled: No", None),
            ("Types: deb-src", None),
            ("", None),
        ] {
            let text = format!("{fields}\n{base}").trim_start().to_owned();
            assert_eq!(Source::in_stanzas(&text), expected, "{text}");
        }
    }

    #[test]
    fn a_key_within_a_source_is_handed_on_whole() {
        let text = "Types: deb\nURIs: http://a\nSuites: bookworm\nComponents: main\n\
            Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQ\n";
        let stanza = Source::in_stanzas(text).unwrap().stanza();
        let end = "Signed-By: \n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQ\n";
        assert!(stanza.ends_with(end), "{stanza}");
        assert!(stanza.contains("Suites: bookworm-backports\n"), "{stanza}");
    }

    #[test]
    fn what_is_unpacked_is_used_and_not_downloaded_again() {
        let cache = tempfile::tempdir().unwrap();
        let programs = cache.path().join(FOLDER).join("usr/bin");
        fs::create_dir_all(&programs).unwrap();
        let program = programs.join(PROGRAM);
        fs::write(&program, "#!/bin/sh\necho QEMU emulator version 10.0.2\n").unwrap();
        // Until the program may be run there is no emulator, and the error names it.
        let error = Qemu::backports(cache.path(), &mut |_line| {}).unwrap_err();
        assert!(matches!(error, BackportsError::NotUsable(_)), "{error}");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&program, mode).unwrap();
        let mut said = Vec::new();
        let qemu = Qemu::backports(cache.path(), &mut |line| said.push(line.to_owned())).unwrap();
        assert_eq!(qemu.version(), crate::Version::new(10, 0));
        assert!(said.is_empty(), "{said:?}");
    }
}
