//! A network namespace that is gone with its last process: it has no name and leaves no file.

use std::fs::File;
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace of its own, with `lo` up.
#[derive(Debug)]
pub struct Namespace {
    handle: File,
}

impl Namespace {
    /// Makes one.
    ///
    /// # Errors
    /// Not root, or no `ip` program.
    pub fn new() -> Result<Self> {
        let made = std::thread::spawn(|| -> Result<File> {
            unshare(CloneFlags::CLONE_NEWNET)
                .context("a network namespace cannot be made: run this as root")?;
            File::open("/proc/thread-self/ns/net").context("the new namespace cannot be opened")
        });
        let handle = made
            .join()
            .map_err(|_panic| anyhow::anyhow!("namespace thread panicked"))??;
        let namespace = Self { handle };
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// Runs `inside` in the namespace. Processes that it starts live there too.
    ///
    /// # Errors
    /// The namespace cannot be entered, or what `inside` fails with.
    pub fn run<R: Send>(&self, inside: impl FnOnce() -> Result<R> + Send) -> Result<R> {
        std::thread::scope(|scope| {
            let entered = scope.spawn(|| {
                setns(&self.handle, CloneFlags::CLONE_NEWNET)
                    .context("the namespace cannot be entered: run this as root")?;
                inside()
            });
            entered
                .join()
                .map_err(|_panic| anyhow::anyhow!("namespace thread panicked"))?
        })
    }

    /// Runs `ip` with these words; returns what it prints.
    ///
    /// # Errors
    /// It exits with an error; its text is in ours.
    pub fn ip(&self, words: &str) -> Result<String> {
        self.output(Command::new("ip").args(words.split_whitespace()))
    }

    /// Runs a command to its end; returns its standard output.
    ///
    /// # Errors
    /// It cannot be started or exits with an error.
    pub fn output(&self, command: &mut Command) -> Result<String> {
        let output = self.run(|| {
            command
                .output()
                .with_context(|| format!("{command:?} cannot be started"))
        })?;
        if !output.status.success() {
            bail!(
                "{command:?}: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
