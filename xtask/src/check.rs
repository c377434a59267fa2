//! `cargo xtask check`: what the compiler cannot see, and what it can with every warning on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::say;

/// Formatting, lints, layering, tidy and documentation; all run, all failures are named.
#[derive(Debug, clap::Args)]
pub(crate) struct Check {
    /// Only what needs no compiler: layering and tidy
    #[arg(long)]
    tidy: bool,
}

/// Which workspace members a member may depend on (design: dependencies point one way). Binaries
/// and chores at the end may use anything.
const LAYERS: &[(&str, &[&str])] = &[
    ("qos", &[]),
    ("pki", &[]),
    ("scsi-target", &[]),
    ("fabric-payload", &[]),
    ("fabric-bypass", &["fabric-payload"]),
    ("orimono-fuzz", &[]),
    ("iscsi-initiator", &[]),
    ("guest-init", &[]),
    ("fabric-transport", &["qos"]),
    ("qos-monitor", &["qos", "fabric-transport", "fabric-config"]),
    ("vhost-user-session", &[]),
    ("fabric-config", &["qos", "fabric-transport"]),
    ("lab-program", &["qos-monitor", "fabric-config"]),
    (
        "backend-program",
        &["qos", "fabric-transport", "vhost-user-session"],
    ),
    (
        "vnic-backend",
        &[
            "qos",
            "fabric-bypass",
            "fabric-payload",
            "fabric-transport",
            "vhost-user-session",
            "backend-program",
        ],
    ),
    (
        "vhba-backend",
        &[
            "qos",
            "fabric-bypass",
            "fabric-payload",
            "fabric-transport",
            "vhost-user-session",
            "backend-program",
        ],
    ),
    (
        "io-director",
        &[
            "qos",
            "qos-monitor",
            "fabric-bypass",
            "fabric-payload",
            "fabric-transport",
            "fabric-config",
            "scsi-target",
            "iscsi-initiator",
            "lab-program",
        ],
    ),
    (
        "edge-switch",
        &[
            "qos",
            "qos-monitor",
            "fabric-transport",
            "fabric-config",
            "lab-program",
        ],
    ),
    ("controller-api", &[]),
    (
        "controller",
        &["qos", "qos-monitor", "fabric-config", "controller-api"],
    ),
    ("fabricctl", &["controller-api"]),
    ("orimono-qemu", &["guest-init"]),
    (
        "host-agent",
        &[
            "qos",
            "qos-monitor",
            "fabric-payload",
            "fabric-transport",
            "fabric-config",
            "vnic-backend",
            "vhba-backend",
            "vhost-user-session",
            "io-director",
            "lab-program",
            "orimono-qemu",
        ],
    ),
];

/// Crates that must stay pure: no sockets, files, threads or clocks.
const CORES: &[&str] = &[
    "qos/src",
    "scsi-target/src",
    "fabric-payload/src",
    "fabric-transport/src/session",
    "edge-switch/src/relay",
    "iscsi-initiator/src/session",
    "controller/src/model",
    "io-director/src/ethernet/responder",
];

/// What a pure core must not name.
const IMPURE: &[&str] = &[
    "std::net",
    "std::fs",
    "std::thread",
    "std::io",
    "Instant::now",
    "SystemTime",
    "std::os::fd",
    "nix::",
    "libc::",
];

pub(crate) fn run(check: &Check) -> Result<ExitCode> {
    let root = root()?;
    let mut failed = Vec::new();
    let mut step = |name: &str, result: Result<()>| {
        match result {
            Ok(()) => say(&format!("check {name}: ok")),
            Err(error) => {
                say(&format!("check {name}: {error:#}"));
                failed.push(name.to_owned());
            }
        };
    };
    step("layering", layering(&root));
    step("purity", purity(&root));
    step("tidy", tidy(&root));
    if !check.tidy {
        step("fmt", cargo(&root, &["fmt", "--all", "--check"], &[]));
        let clippy = [
            "clippy",
            "--workspace",
            "--all-targets",
            "--locked",
            "--",
            "-D",
            "warnings",
        ];
        step("clippy", cargo(&root, &clippy, &[]));
        let doc = ["doc", "--workspace", "--no-deps", "--locked"];
        step(
            "doc",
            cargo(&root, &doc, &[("RUSTDOCFLAGS", "-D warnings")]),
        );
    }
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    bail!("{} failed", failed.join(", "));
}

/// The workspace's folder.
pub(crate) fn root() -> Result<PathBuf> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest
        .parent()
        .map(Path::to_owned)
        .context("xtask stands in no workspace")
}

fn cargo(root: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Result<()> {
    let mut command = crate::cargo();
    command
        .current_dir(root)
        .args(arguments)
        .envs(variables.iter().copied());
    let status = command.status().context("cannot run cargo")?;
    if !status.success() {
        bail!("cargo {} failed", arguments.join(" "));
    }
    Ok(())
}

fn layering(root: &Path) -> Result<()> {
    let output = crate::cargo()
        .current_dir(root)
        .args(["metadata", "--format-version", "1", "--no-deps", "--locked"])
        .output()
        .context("cannot run cargo metadata")?;
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    let packages = metadata
        .get("packages")
        .unwrap_or(&Value::Null)
        .as_array()
        .context("cargo metadata has no packages")?;
    let members: Vec<&str> = packages
        .iter()
        .filter_map(|package| package["name"].as_str())
        .collect();
    let mut wrong = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let Some((_, allowed)) = LAYERS.iter().find(|(member, _)| *member == name) else {
            if !["orimono-tests", "xtask"].contains(&name) {
                wrong.push(format!(
                    "{name} has no place in LAYERS of xtask/src/check.rs"
                ));
            }
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            // Tests may look across layers.
            if dependency["kind"] == "dev" {
                continue;
            }
            let dependency = dependency["name"].as_str().unwrap_or_default();
            if members.contains(&dependency) && !allowed.contains(&dependency) {
                wrong.push(format!("{name} must not depend on {dependency}"));
            }
        }
    }
    none_wrong(&wrong)
}

fn purity(root: &Path) -> Result<()> {
    let mut wrong = Vec::new();
    for core in CORES {
        for file in rust_files(&root.join(core))? {
            let text = fs::read_to_string(&file)?;
            let code = text
                .lines()
                .take_while(|line| !line.contains("#[cfg(test)]"));
            for (number, line) in code.enumerate() {
                let code = line.split("//").next().unwrap_or_default();
                if let Some(word) = IMPURE.iter().find(|word| code.contains(**word)) {
                    wrong.push(format!(
                        "{}:{}: a core names {word}",
                        file.display(),
                        number + 1
                    ));
                }
            }
        }
    }
    none_wrong(&wrong)
}

fn tidy(root: &Path) -> Result<()> {
    let mut wrong = Vec::new();
    let frame = fs::read(root.join("fabric-transport/src/frame.rs"))?;
    let hash = sha256(&frame)?;
    let protocol = fs::read_to_string(root.join("docs/fabric-protocol.md"))?;
    if !protocol.contains(&hash) {
        wrong.push(format!(
            "docs/fabric-protocol.md does not know fabric-transport/src/frame.rs: read both, then write sha256 {hash}"
        ));
    }
    let manifest = fs::read_to_string(root.join("Cargo.toml"))?;
    let architecture = fs::read_to_string(root.join("ARCHITECTURE.md"))?;
    let (_, list) = manifest
        .split_once("members = [")
        .context("Cargo.toml has no members")?;
    let list = list.split(']').next().unwrap_or_default();
    for member in list
        .split(',')
        .map(|member| member.trim().trim_matches('"'))
    {
        if !architecture.contains(member) {
            wrong.push(format!("ARCHITECTURE.md does not mention {member}"));
        }
    }
    let adrs = fs::read_dir(root.join("docs/adr"))?.filter_map(|entry| Some(entry.ok()?.path()));
    let documents = [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "docs/fabric-protocol.md",
    ];
    for document in documents.iter().map(|name| root.join(name)).chain(adrs) {
        let text = fs::read_to_string(&document)
            .with_context(|| format!("{} cannot be read", document.display()))?;
        for path in quoted_paths(&text) {
            if !root.join(path).exists() {
                wrong.push(format!(
                    "{} names {path}, which is not there",
                    document.display()
                ));
            }
        }
    }
    none_wrong(&wrong)
}

/// Paths of this repository in back quotes: a slash, an ending that we use, no placeholders.
fn quoted_paths(text: &str) -> Vec<&str> {
    let quoted = text.split('`').skip(1).step_by(2);
    quoted
        .filter(|word| {
            let known = [".rs", ".md", ".toml", ".json"]
                .iter()
                .any(|end| word.ends_with(end));
            known
                && word.contains('/')
                && !word.starts_with(['/', '.'])
                && !word.contains(['*', '<', ' ', ':'])
        })
        .collect()
}

fn none_wrong(wrong: &[String]) -> Result<()> {
    if wrong.is_empty() {
        return Ok(());
    }
    bail!("\n  {}", wrong.join("\n  "))
}

fn rust_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let is_test = path.file_stem().is_some_and(|stem| stem == "tests");
        if path.is_dir() && !is_test {
            files.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|end| end == "rs") && !is_test {
            files.push(path);
        }
    }
    Ok(files)
}

/// The hash as `sha256sum` of coreutils prints it.
fn sha256(bytes: &[u8]) -> Result<String> {
    use std::io::Write;
    let mut child = Command::new("sha256sum")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .context("cannot run sha256sum (coreutils)")?;
    child
        .stdin
        .take()
        .context("sha256sum has no input")?
        .write_all(bytes)?;
    let output = child.wait_with_output()?;
    let text = String::from_utf8(output.stdout)?;
    text.split_whitespace()
        .next()
        .map(str::to_owned)
        .context("sha256sum printed nothing")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_of_the_repository_are_looked_up() {
        let text =
            "see `qos/src/lib.rs` and `README.md`, not `/etc/x.toml`, `a b/c.rs` or `x/*.rs`";
        assert_eq!(quoted_paths(text), ["qos/src/lib.rs"]);
    }

    #[test]
    fn hash_is_the_one_of_the_standard() {
        // FIPS 180-4, example of one block: "abc".
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(b"abc").unwrap(), expected);
    }
}
