//! `cargo xtask model`: the models of the fabric protocol, searched state by state with SPIN.
//!
//! Each `fabric-transport/models/*.pml` must hold, and each mistake that is planted in it behind
//! `BUG_n` must be found: a model that cannot fail says nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use orimono_qemu::packages::{Package, install_command_line};

use crate::check::root;
use crate::say;

/// Searches the models of the fabric protocol for states that must not be.
#[derive(Debug, clap::Args)]
pub(crate) struct Model {
    /// Only these: `credit`, `failover`, `fencing`; all when none is named
    names: Vec<String>,
}

/// What the search needs.
const TOOLS: [Package; 2] = [
    Package {
        name: "spin",
        program: "spin",
        purpose: "turns a model into a search",
    },
    Package {
        name: "gcc",
        program: "gcc",
        purpose: "compiles the search",
    },
];

/// For the search: states may take so many MiB, and fairness has room for all the processes of a
/// model.
const COMPILER_OPTIONS: [&str; 4] = ["-O2", "-w", "-DMEMLIM=1900", "-DNFAIR=3"];
/// Steps of the longest path; memory for it is taken in advance.
const DEPTH: &str = "-m2000000";
/// Lines of the way to an error that are shown.
const STEPS_SHOWN: usize = 60;

pub(crate) fn run(task: &Model) -> Result<ExitCode> {
    check(&task.names)?;
    Ok(ExitCode::SUCCESS)
}

/// Checks the models of these names, or all.
///
/// # Errors
/// SPIN or a compiler is missing, a model does not hold, or a planted mistake is not found.
pub(crate) fn check(names: &[String]) -> Result<()> {
    ensure_tools()?;
    let mut failed = Vec::new();
    for path in models(names)? {
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let bugs = planted(&text);
        if bugs.len() < 2 {
            bail!("{}: plant at least two mistakes, BUG_n", path.display());
        }
        let name = stem(&path);
        for bug in std::iter::once(None).chain(bugs.iter().map(|bug| Some(bug.as_str()))) {
            let what = bug.map_or(name.clone(), |bug| format!("{name} with {bug}"));
            let started = Instant::now();
            let found = search_all(&path, &text, bug).with_context(|| format!("model {what}"))?;
            let seconds = started.elapsed().as_secs_f64();
            let (good, verdict) = match (bug, found) {
                (None, None) => (true, "holds".to_owned()),
                (None, Some(error)) => (false, format!("DOES NOT HOLD: {error}")),
                (Some(_), Some(error)) => (true, format!("found: {}", first_line(&error))),
                (Some(_), None) => (false, "NOT FOUND".to_owned()),
            };
            say(&format!("model {what}: {verdict} ({seconds:.0} s)"));
            if !good {
                failed.push(what);
            }
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    bail!("models failed: {}", failed.join(", "))
}

fn ensure_tools() -> Result<()> {
    // Both know this option and do nothing else then.
    let is_there = |tool: &Package| {
        let option = if tool.program == "spin" {
            "-V"
        } else {
            "--version"
        };
        Command::new(tool.program).arg(option).output().is_ok()
    };
    let missing: Vec<Package> = TOOLS.into_iter().filter(|tool| !is_there(tool)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for tool in &missing {
        say(&format!("missing: {} ({})", tool.name, tool.purpose));
    }
    bail!(
        "models need more packages; install them: {}",
        install_command_line(&missing)
    )
}

fn models(names: &[String]) -> Result<Vec<PathBuf>> {
    let folder = root()?.join("fabric-transport/models");
    let entries = fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    paths.retain(|path| path.extension().is_some_and(|end| end == "pml"));
    paths.sort();
    let known: Vec<String> = paths.iter().map(|path| stem(path)).collect();
    if let Some(name) = names.iter().find(|name| !known.contains(name)) {
        bail!("no model {name:?}; there are {}", known.join(", "));
    }
    paths.retain(|path| names.is_empty() || names.contains(&stem(path)));
    Ok(paths)
}

fn stem(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default();
    stem.to_string_lossy().into_owned()
}

/// The words `BUG_n` of a model.
fn planted(text: &str) -> Vec<String> {
    let words = text.split(|character: char| !character.is_alphanumeric() && character != '_');
    let mut bugs: Vec<String> = words
        .filter(|word| word.starts_with("BUG_"))
        .map(str::to_owned)
        .collect();
    bugs.sort();
    bugs.dedup();
    bugs
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// The first error, if there is one: of a state, then of an endless run where the model says what
/// must come in the end.
fn search_all(model: &Path, text: &str, bug: Option<&str>) -> Result<Option<String>> {
    if let Some(error) = search(model, bug, false)? {
        return Ok(Some(error));
    }
    let promises = text.lines().any(|line| line.starts_with("ltl "));
    if promises {
        return search(model, bug, true);
    }
    Ok(None)
}

/// Visits every state, or every endless run with weak fairness.
fn search(model: &Path, bug: Option<&str>, liveness: bool) -> Result<Option<String>> {
    let folder = tempfile::tempdir().context("no temporary folder")?;
    let folder = folder.path();
    let mut defines: Vec<String> = bug.iter().map(|bug| format!("-D{bug}")).collect();
    if liveness {
        defines.push("-DLIVENESS".to_owned());
    }
    // Spin looks for the way to an error beside the model.
    let name = format!("{}.pml", stem(model));
    fs::copy(model, folder.join(&name)).context("cannot copy the model")?;
    let model = name.as_str();
    let defines: Vec<&str> = defines.iter().map(String::as_str).collect();
    let generated = output(folder, "spin", &[&defines, &["-a", model]])?;
    if !folder.join("pan.c").exists() {
        bail!("spin does not understand it:\n{generated}");
    }
    let kind: &[&str] = if liveness {
        &[]
    } else {
        &["-DSAFETY", "-DNOCLAIM"]
    };
    let files = ["-o", "pan", "pan.c"];
    let compiled = output(folder, "gcc", &[&COMPILER_OPTIONS, kind, &files])?;
    let pan = folder.join("pan");
    if !pan.exists() {
        bail!("the search does not compile:\n{compiled}");
    }
    let pan = pan.to_str().context("the folder's path is no UTF-8")?;
    let mode: &[&str] = if liveness { &["-a", "-f"] } else { &[] };
    let report = output(folder, pan, &[&[DEPTH], mode])?;
    match judge(&report)? {
        Some(error) if bug.is_none() => {
            let steps = output(folder, "spin", &[&defines, &["-t", "-p", model]])?;
            let steps: Vec<&str> = steps.lines().collect();
            let shown = steps.len().saturating_sub(STEPS_SHOWN);
            let shown = steps.get(shown..).unwrap_or_default().join("\n");
            Ok(Some(format!("{error}; the last steps:\n{shown}")))
        }
        other => Ok(other),
    }
}

/// What a program prints, on either channel. `pan` and `spin` tell errors by text.
fn output(folder: &Path, program: &str, arguments: &[&[&str]]) -> Result<String> {
    let mut command = Command::new(program);
    command.current_dir(folder).args(arguments.concat());
    let output = command
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    Ok(text)
}

/// The error that a search reports; nothing if it has seen everything and found none.
fn judge(report: &str) -> Result<Option<String>> {
    let errors = report
        .split_once("errors: ")
        .and_then(|(_, rest)| rest.split_whitespace().next()?.parse::<u32>().ok());
    match errors {
        Some(0) => {
            let cut = ["max search depth too small", "Search not completed"];
            if let Some(cut) = cut.iter().find(|cut| report.contains(**cut)) {
                bail!("the search did not see every state ({cut}): make the model smaller");
            }
            Ok(None)
        }
        Some(_) => {
            let line = report.lines().find(|line| line.starts_with("pan:1:"));
            let line = line.unwrap_or("pan:1: an error without a name");
            Ok(Some(line.trim_start_matches("pan:1: ").to_owned()))
        }
        None => bail!("the search says nothing of errors:\n{report}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_planted_mistake_is_tried_once() {
        let text = "/* BUG_2: x. BUG_1: y */\n#if defined(BUG_1)\n#ifdef BUG_2\n#define DEBUG_3";
        assert_eq!(planted(text), ["BUG_1", "BUG_2"]);
    }

    #[test]
    fn a_search_counts_only_when_it_saw_everything() {
        let clean = "State-vector 92 byte, depth reached 834, errors: 0\n";
        assert_eq!(judge(clean).unwrap(), None);
        let wrong = "pan:1: assertion violated (held<=3) (at depth 502)\n\
            Warning: Search not completed\nState-vector 92 byte, errors: 1\n";
        assert_eq!(
            judge(wrong).unwrap().unwrap(),
            "assertion violated (held<=3) (at depth 502)"
        );
        assert!(judge("error: max search depth too small\n errors: 0\n").is_err());
        assert!(
            judge("pan: reached -DMEMLIM bound\nWarning: Search not completed\nerrors: 0").is_err()
        );
        assert!(judge("Segmentation fault").is_err());
    }
}
