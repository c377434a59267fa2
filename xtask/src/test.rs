//! `cargo xtask test`: every suite, or the ones that are named.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use orimono_qemu::image::{debian, soft_roce};
use orimono_qemu::packages::Package;
use orimono_qemu::{GuestImage, image, packages};
use serde_json::Value;

use crate::check::root;
use crate::{model, say, setup};

/// Runs the test suites; installs what they need first, after saying so.
#[derive(Debug, clap::Args)]
pub(crate) struct Test {
    /// The suites to run; all of them when none is named
    #[arg(value_enum)]
    suites: Vec<Suite>,
    /// Also the slow cases, RDMA in a guest, booting from a LUN and, when no suite is named, the models
    #[arg(long)]
    full: bool,
    /// Only tests whose name contains this
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// One part of the suite `guest`, with its slow cases
    #[arg(long, value_enum, value_name = "PART", conflicts_with = "filter")]
    suite: Option<Part>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Suite {
    /// Beside the code of every crate, and the front end without QEMU
    Unit,
    /// Whole fabrics in virtual time
    Simulation,
    /// Host agent and director in network namespaces, no guest
    Netns,
    /// Real QEMU guests
    Guest,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// What iscsi-test-cu, sg3-utils and fio say about a LUN
    ScsiConformance,
    /// vNICs of stock guests
    Ethernet,
}

impl Part {
    /// As [`Suite::runs`].
    fn runs(self) -> &'static [&'static [&'static str]] {
        match self {
            Self::ScsiConformance => &[&[
                "--workspace",
                "--test",
                "guest_scsi_conformance",
                "--",
                "--test-threads=1",
                "--nocapture",
            ]],
            Self::Ethernet => &[&[
                "--workspace",
                "--test",
                "guest_ethernet*",
                "--",
                "--test-threads=1",
            ]],
        }
    }
}

impl Suite {
    const ALL: [Self; 4] = [Self::Unit, Self::Simulation, Self::Netns, Self::Guest];

    /// What belongs to the suite, as arguments of one or more runs of `cargo test`.
    ///
    /// The test files of the package `tests` are named after their suite. All runs select the
    /// whole workspace, so that cargo resolves features, and builds dependencies, only once.
    fn runs(self) -> &'static [&'static [&'static str]] {
        match self {
            Self::Unit => &[
                &["--workspace", "--exclude", "orimono-tests"],
                &[
                    "--workspace",
                    "--test",
                    "front_end*",
                    "--test",
                    "impairment",
                ],
            ],
            Self::Simulation => &[&["--workspace", "--test", "simulation*"]],
            Self::Netns => &[&["--workspace", "--test", "netns*"]],
            // One guest at a time: two already keep two cores busy.
            Self::Guest => &[&["--workspace", "--test", "guest*", "--", "--test-threads=1"]],
        }
    }

    /// Whether it starts the real programs.
    fn needs_programs(self) -> bool {
        matches!(self, Self::Netns | Self::Guest)
    }
}

pub(crate) fn run(test: &Test) -> Result<ExitCode> {
    let suites = match (test.suite, test.suites.as_slice()) {
        (Some(_), [] | [Suite::Guest]) => vec![Suite::Guest],
        (Some(_), _) => bail!("--suite is a part of `guest`: cargo xtask test guest --suite NAME"),
        (None, []) => Suite::ALL.to_vec(),
        (None, suites) => suites.to_vec(),
    };
    if suites.iter().any(|suite| suite.needs_programs()) {
        setup::ensure_packages()?;
        build_programs()?;
    }
    if suites.contains(&Suite::Guest) {
        GuestImage::ensure_telling(&image::default_cache(), &mut say)?;
    }
    if test.full && test.suite.is_none() && suites.contains(&Suite::Guest) {
        install(&packages::SAN_BOOT_PACKAGES)
            .context("cannot install packages for booting from a SAN")?;
        debian::ensure(&image::default_cache(), &mut say)
            .context("cannot make a disk with Debian")?;
    }
    let rdma = (test.full && test.suite.is_none() && suites.contains(&Suite::Guest))
        .then(rdma_tests)
        .transpose()?;
    let mut failed = Vec::new();
    for suite in suites {
        let started = Instant::now();
        let name = format!("{suite:?}").to_lowercase();
        say(&format!("test {name}"));
        let mut passed = true;
        for arguments in test.suite.map_or_else(|| suite.runs(), Part::runs) {
            passed &= cargo_test(arguments, test, rdma.as_ref())?;
        }
        let verdict = if passed { "ok" } else { "FAILED" };
        say(&format!(
            "test {name}: {verdict} in {:.0} s",
            started.elapsed().as_secs_f64()
        ));
        if !passed {
            failed.push(name);
        }
    }
    if test.full && test.suites.is_empty() && test.filter.is_none() {
        say("test models");
        if let Err(error) = model::check(&[]) {
            say(&format!("test models: FAILED: {error:#}"));
            failed.push("models".to_owned());
        }
    }
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    bail!("suites failed: {}", failed.join(", "))
}

/// Builds the programs that labs start, with cargo's own progress.
pub(crate) fn build_programs() -> Result<()> {
    let mut command = crate::cargo();
    command
        .current_dir(root()?)
        .args(["build", "--locked", "--workspace", "--bins"]);
    if !cfg!(debug_assertions) {
        // Labs start the programs that stand beside this one.
        command.arg("--release");
    }
    let status = command.status().context("cannot run cargo")?;
    if !status.success() {
        bail!("the programs do not build");
    }
    Ok(())
}

/// Installs those of `all` that are not there, after saying so.
fn install(all: &[Package]) -> Result<()> {
    let missing = packages::missing_of(all);
    for package in &missing {
        say(&format!("missing: {} ({})", package.name, package.purpose));
    }
    Ok(packages::install(&missing, &mut say)?)
}

/// Builds the tests of fabric-transport with RDMA, and the guest that has a device for them;
/// installs what that needs first, after saying so.
fn rdma_tests() -> Result<PathBuf> {
    install(&packages::RDMA_PACKAGES).context("cannot install packages for RDMA")?;
    say("building the tests of RDMA links");
    let output = crate::cargo()
        .current_dir(root()?)
        .args(["test", "--locked", "--no-run", "--lib"])
        .args(["--package", "fabric-transport", "--features", "rdma"])
        .args(["--message-format", "json-render-diagnostics"])
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("cannot run cargo test")?;
    if !output.status.success() {
        bail!("the tests of RDMA links do not build");
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let messages = text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    let program = messages
        .filter_map(|message: Value| Some(message.get("executable")?.as_str()?.into()))
        .next_back();
    let program: PathBuf = program.context("cargo names no test program of fabric-transport")?;
    let recipe = soft_roce::recipe([program.clone()])?;
    GuestImage::ensure_recipe(&soft_roce::default_cache(), &recipe, &mut say)
        .context("cannot make the image of a guest with RDMA")?;
    Ok(program)
}

fn cargo_test(arguments: &[&str], test: &Test, rdma: Option<&PathBuf>) -> Result<bool> {
    let mut command = crate::cargo();
    command
        .current_dir(root()?)
        .args(["test", "--locked", "--no-fail-fast"])
        .args(arguments);
    if test.full || test.suite.is_some() {
        command.env("ORIMONO_TEST_FULL", "1");
    }
    if let Some(program) = rdma {
        command.env("ORIMONO_RDMA_TESTS", program);
    }
    if let Some(filter) = &test.filter {
        command
            .args((!arguments.contains(&"--")).then_some("--"))
            .arg(filter);
    }
    let status = command.status().context("cannot run cargo test")?;
    Ok(status.success())
}
