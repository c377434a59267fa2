//! KVM or TCG: an existing `/dev/kvm` proves nothing, a kernel that boots on it does.

use std::{fs, io, path::Path, str::FromStr, time::Duration};

use thiserror::Error;

use crate::{emulator::Qemu, image::GuestImage, machine::Machine};

/// A stock kernel boots in about a second under KVM; one that has not by then hangs.
const PROBE_WITHIN: Duration = Duration::from_secs(10);
const VERDICT_FILE: &str = "kvm-verdict";

/// What runs the guest's instructions.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Accelerator {
    /// The host's processor.
    Kvm,
    /// QEMU's translator.
    Tcg,
}

impl Accelerator {
    /// Value of QEMU's `accel=`.
    #[must_use]
    pub const fn qemu_name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// What the operator asked for.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum AcceleratorChoice {
    /// KVM where a guest really boots on it, else TCG.
    #[default]
    Auto,
    /// KVM, whatever comes of it.
    Kvm,
    /// TCG.
    Tcg,
}

/// A word that is none of `auto`, `kvm` and `tcg`.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[error("`{word}` is not an accelerator: auto, kvm or tcg")]
pub struct AcceleratorChoiceError {
    word: String,
}

impl FromStr for AcceleratorChoice {
    type Err = AcceleratorChoiceError;

    fn from_str(word: &str) -> Result<Self, AcceleratorChoiceError> {
        match word {
            "auto" => Ok(Self::Auto),
            "kvm" => Ok(Self::Kvm),
            "tcg" => Ok(Self::Tcg),
            _ => Err(AcceleratorChoiceError {
                word: word.to_owned(),
            }),
        }
    }
}

impl AcceleratorChoice {
    /// Decides. All but `Tcg` boot a guest once on KVM, at most 10 s, and keep the verdict in
    /// `cache` until QEMU's or the kernel's version, the host's kernel or `/dev/kvm` changes.
    ///
    /// # Errors
    ///
    /// The verdict cannot be written to `cache`; or `Kvm` was asked for and no guest gets to its
    /// init on it.
    pub fn resolve(self, qemu: &Qemu, image: &GuestImage, cache: &Path) -> io::Result<Accelerator> {
        match self {
            Self::Kvm => match probe(qemu, image, cache)? {
                Accelerator::Kvm => Ok(Accelerator::Kvm),
                Accelerator::Tcg => Err(io::Error::new(
                    io::ErrorKind::Unsupported,
                    "a stock kernel does not get to its init on this machine's KVM: \
                     use --accel tcg, or auto",
                )),
            },
            Self::Tcg => Ok(Accelerator::Tcg),
            Self::Auto => probe(qemu, image, cache),
        }
    }
}

fn probe(qemu: &Qemu, image: &GuestImage, cache: &Path) -> io::Result<Accelerator> {
    if fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_err()
    {
        return Ok(Accelerator::Tcg);
    }
    let host = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let key = format!(
        "qemu {} guest {} host {}",
        qemu.version(),
        image.kernel_version(),
        host.trim_end()
    );
    let file = cache.join(VERDICT_FILE);
    let kept = fs::read_to_string(&file).unwrap_or_default();
    match kept.trim_end().strip_prefix(&key) {
        Some(" kvm") => return Ok(Accelerator::Kvm),
        Some(" tcg") => return Ok(Accelerator::Tcg),
        _ => {}
    }
    let attempt = Machine::new(qemu.clone(), image.clone(), Accelerator::Kvm)
        .boot_within(PROBE_WITHIN)
        .boot();
    // Dropping the guest, or the failed attempt, ends its QEMU.
    let verdict = if attempt.is_ok() {
        Accelerator::Kvm
    } else {
        Accelerator::Tcg
    };
    let mut kept = tempfile::NamedTempFile::new_in(cache)?;
    io::Write::write_all(
        &mut kept,
        format!("{key} {}\n", verdict.qemu_name()).as_bytes(),
    )?;
    kept.persist(&file).map_err(|error| error.error)?;
    Ok(verdict)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_three_words() {
        assert_eq!("auto".parse(), Ok(AcceleratorChoice::Auto));
        assert_eq!("kvm".parse(), Ok(AcceleratorChoice::Kvm));
        assert_eq!("tcg".parse(), Ok(AcceleratorChoice::Tcg));
        assert!("KVM".parse::<AcceleratorChoice>().is_err());
    }
}
