//! `xtask setup`: the Debian packages that guests and tests need, and the guest's image.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use orimono_qemu::{GuestImage, image, packages};

use crate::say;

#[derive(Args, Debug)]
pub(crate) struct Setup {
    /// Only say what is missing; exit code 1 if anything is
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(task: &Setup) -> Result<ExitCode> {
    let missing = packages::missing();
    for package in &missing {
        say(&format!("missing: {} ({})", package.name, package.purpose));
    }
    if task.check {
        if missing.is_empty() {
            say("all packages are there");
            return Ok(ExitCode::SUCCESS);
        }
        say(&format!(
            "to install: {}",
            packages::install_command_line(&missing)
        ));
        return Ok(ExitCode::FAILURE);
    }
    ensure_packages()?;
    let image = GuestImage::ensure_telling(&image::default_cache(), &mut say)
        .context("cannot make the guest's image")?;
    say(&format!(
        "ready: guests run Linux {}",
        image.kernel_version()
    ));
    Ok(ExitCode::SUCCESS)
}

/// Installs what is missing, saying so first. Quick when nothing is.
pub(crate) fn ensure_packages() -> Result<()> {
    packages::install(&packages::missing(), &mut say).context("cannot install packages")
}
