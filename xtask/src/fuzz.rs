//! `cargo xtask fuzz`: looks for input that takes a parser where no test did.
//!
//! The target is built with SanitizerCoverage of LLVM, which stable rustc passes on, so that
//! `tests/fuzz` sees which edges an input reaches. Nothing else is needed. What it finds is written to
//! the target's folder, the smallest set that reaches the same; commit it. A guilty input is printed:
//! make it a test, then repair what it found.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::check::root;
use crate::say;

/// Looks for new input of a parser, guided by coverage, and rewrites its corpus.
#[derive(Debug, clap::Args)]
pub(crate) struct Fuzz {
    /// Which; all, one after the other, when none is named
    #[arg(value_enum)]
    targets: Vec<Target>,
    /// How long each runs
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u32,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Target {
    Frames,
    Conversations,
    Discovery,
    SharedMemoryGreeting,
    SharedMemoryRing,
    Ethernet,
    EthernetFrame,
    Responder,
    Scsi,
    EdgeSwitch,
    QosRequest,
    QosAnswer,
    QosRecording,
    VhostUser,
    VhbaRequest,
    VhbaControl,
    VnicReceive,
    CommandLanguage,
}

impl Target {
    /// Its package, where in it the test is, and the test's name.
    fn test(self) -> [&'static str; 3] {
        let (package, place, test) = match self {
            Self::Frames => (
                "fabric-transport",
                "--test=fuzz",
                "p01_damaged_frames_are_answered_by_every_parser",
            ),
            Self::Conversations => (
                "fabric-transport",
                "--test=fuzz",
                "p04_damaged_conversations_are_answered_by_sessions_of_both_ends",
            ),
            Self::Discovery => (
                "fabric-transport",
                "--test=fuzz",
                "p01_damaged_datagrams_of_discovery_are_answered",
            ),
            Self::SharedMemoryGreeting => (
                "fabric-transport",
                "--lib",
                "link::shared_memory::tests::p03_any_greeting_of_a_shared_memory_link_is_answered",
            ),
            Self::SharedMemoryRing => (
                "fabric-transport",
                "--lib",
                "link::shared_memory::tests::p06_any_content_of_the_rings_is_answered",
            ),
            Self::Ethernet => (
                "fabric-payload",
                "--test=fuzz",
                "p01_damaged_network_frames_are_answered",
            ),
            Self::EthernetFrame => (
                "io-director",
                "--lib",
                "ethernet::access_list::tests::n12_any_damaged_frame_is_judged",
            ),
            Self::Responder => (
                "io-director",
                "--lib",
                "ethernet::responder::tests::n09_any_damaged_question_is_answered_or_dropped",
            ),
            Self::Scsi => (
                "fabric-payload",
                "--test=fuzz",
                "p01_damaged_information_units_are_answered",
            ),
            Self::EdgeSwitch => (
                "edge-switch",
                "--lib",
                "event_loop::tests::p01_any_first_bytes_are_answered",
            ),
            Self::QosRequest => (
                "qos-monitor",
                "--lib",
                "protocol::tests::p01_any_request_is_answered",
            ),
            Self::QosAnswer => (
                "qos-monitor",
                "--lib",
                "protocol::tests::p01_any_answer_is_understood_or_refused",
            ),
            Self::QosRecording => (
                "qos-monitor",
                "--lib",
                "recording::tests::p01_any_content_of_a_recording_is_answered",
            ),
            Self::VhostUser => (
                "vhost-user-session",
                "--lib",
                "shim::message::tests::f01_any_messages_are_answered",
            ),
            Self::VhbaRequest => (
                "vhba-backend",
                "--lib",
                "request::tests::g12_any_damaged_request_is_answered",
            ),
            Self::VhbaControl => (
                "vhba-backend",
                "--lib",
                "control::tests::g12_any_damaged_control_request_is_answered",
            ),
            Self::VnicReceive => (
                "vnic-backend",
                "--lib",
                "receive::tests::p01_any_damaged_frame_is_fitted_or_dropped",
            ),
            Self::CommandLanguage => (
                "fabricctl",
                "--lib",
                "language::tests::any_line_is_answered",
            ),
        };
        [package, place, test]
    }
}

/// One counter of eight bits for each edge.
const RUSTFLAGS: &str = "--cfg coverage_guided -Ccodegen-units=1 -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=3 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters";

pub(crate) fn run(fuzz: &Fuzz) -> Result<ExitCode> {
    let all = Target::value_variants();
    let targets = if fuzz.targets.is_empty() {
        all
    } else {
        &fuzz.targets
    };
    let host = host()?;
    for target in targets {
        say(&format!("fuzz {target:?} for {} s", fuzz.seconds));
        let [package, place, test] = target.test();
        let status = crate::cargo()
            .current_dir(root()?)
            .args(["test", "--locked", "--package", package, place])
            // With a target the flags are not those of build scripts, which count nothing.
            .args(["--target", &host])
            .args(["--", "--exact", "--nocapture", test])
            .env("RUSTFLAGS", RUSTFLAGS)
            .env(orimono_fuzz::SECONDS_VARIABLE, fuzz.seconds.to_string())
            .status()
            .context("cannot run cargo test")?;
        if !status.success() {
            bail!("{target:?} failed; if it printed a guilty input, make that a test");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What rustc calls this machine.
fn host() -> Result<String> {
    let output = Command::new("rustc").arg("-vV").output();
    let output = output.context("cannot run rustc")?;
    let text = String::from_utf8(output.stdout).context("rustc -vV")?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned)
        .context("rustc -vV names no host; install rustc by rustup")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cargo says nothing about a test that is not there.
    #[test]
    fn every_target_is_a_test_of_its_package() {
        for target in Target::value_variants() {
            let [package, place, test] = target.test();
            let folder = root().unwrap().join(package);
            let (module, name) = test.rsplit_once("::").unwrap_or(("", test));
            let module = module.trim_end_matches("tests").trim_end_matches("::");
            let module = module.replace("::", "/");
            let files = match place {
                "--lib" => ["", "/tests"].map(|end| format!("src/{module}{end}.rs")),
                _ => ["tests/fuzz.rs"; 2].map(str::to_owned),
            };
            let texts = files.map(|file| std::fs::read_to_string(folder.join(file)));
            let mut texts = texts.into_iter().flatten();
            let wanted = format!("fn {name}(");
            assert!(texts.any(|text| text.contains(&wanted)), "{target:?}");
        }
    }
}
