//! A program under test: its log, and the certainty that it ends with us.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Namespace;

/// Lines of the log that are kept.
const LOG_LINES_MAX: usize = 20_000;

#[derive(Debug, Default)]
struct Log {
    lines: Vec<String>,
    ended: bool,
}

/// A running program.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: Arc<(Mutex<Log>, Condvar)>,
}

/// The path of a program of this workspace, beside the one that runs now.
///
/// # Errors
/// It was not built.
pub fn program(name: &str) -> Result<PathBuf> {
    let this = std::env::current_exe().context("own path is unknown")?;
    // target/PROFILE/xtask, or target/PROFILE/deps/test-hash.
    let found = this
        .ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file());
    found.with_context(|| {
        format!("{name} is not built: run cargo build --workspace, or cargo xtask test")
    })
}

impl Process {
    /// Starts `command` in `namespace`; its standard error becomes the log.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(name: &str, namespace: &Namespace, command: &mut Command) -> Result<Self> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = namespace.run(|| {
            command
                .spawn()
                .with_context(|| format!("{command:?} cannot be started"))
        })?;
        let log = Arc::new((Mutex::new(Log::default()), Condvar::new()));
        let (errors, writer) = (child.stderr.take(), log.clone());
        std::thread::spawn(move || {
            let lines = errors
                .into_iter()
                .flat_map(|errors| BufReader::new(errors).lines());
            for line in lines.map_while(Result::ok) {
                let mut log = writer.0.lock().unwrap_or_else(PoisonError::into_inner);
                if log.lines.len() < LOG_LINES_MAX {
                    log.lines.push(line);
                }
                writer.1.notify_all();
            }
            writer
                .0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .ended = true;
            writer.1.notify_all();
        });
        Ok(Self {
            name: name.to_owned(),
            child,
            log,
        })
    }

    /// Waits for the `count`-th log line that contains `text`.
    ///
    /// # Errors
    /// The program ends or the time is over before; the error shows the end of the log.
    pub fn wait_line(&self, text: &str, count: usize, patience: Duration) -> Result<String> {
        let deadline = Instant::now() + patience;
        let mut log = self.log.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let found = log
                .lines
                .iter()
                .filter(|line| line.contains(text))
                .nth(count.saturating_sub(1));
            if let Some(line) = found {
                return Ok(line.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if log.ended || left.is_zero() {
                let tail = log
                    .lines
                    .iter()
                    .rev()
                    .take(8)
                    .rev()
                    .cloned()
                    .collect::<Vec<_>>()
                    .join("\n  ");
                bail!(
                    "{} did not say {text:?}; it said last:\n  {tail}",
                    self.name
                );
            }
            let waited = self.log.1.wait_timeout(log, left);
            log = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Number of log lines so far that contain `text`.
    #[must_use]
    pub fn count_lines(&self, text: &str) -> usize {
        let log = self.log.0.lock().unwrap_or_else(PoisonError::into_inner);
        log.lines.iter().filter(|line| line.contains(text)).count()
    }

    /// Its process number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends `signal` and waits for the end.
    ///
    /// # Errors
    /// It is not there any more.
    pub fn end(mut self, signal: Signal) -> Result<ExitStatus> {
        self.signal(signal)?;
        self.child
            .wait()
            .context("end of a child cannot be awaited")
    }

    /// Sends `signal`.
    ///
    /// # Errors
    /// It is not there any more.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).context("process number")?);
        kill(pid, signal).with_context(|| format!("{} cannot be signalled", self.name))
    }

    /// Open descriptors and resident KiB, from /proc.
    ///
    /// # Errors
    /// It is not there any more.
    pub fn resources(&self) -> Result<(usize, u64)> {
        let proc = Path::new("/proc").join(self.child.id().to_string());
        let descriptors = std::fs::read_dir(proc.join("fd"))?.count();
        let status = std::fs::read_to_string(proc.join("status"))?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = resident.and_then(|text| text.split_whitespace().next()?.parse().ok());
        Ok((descriptors, kib.context("VmRSS")?))
    }

    /// Processor time of the threads that it has now.
    ///
    /// # Errors
    /// It is not there any more.
    pub fn cpu_time(&self) -> Result<Duration> {
        let tasks = Path::new("/proc").join(self.child.id().to_string());
        let mut nanos = 0;
        for task in std::fs::read_dir(tasks.join("task"))? {
            // One that has ended meanwhile counts no more.
            let times = std::fs::read_to_string(task?.path().join("schedstat"));
            let times = times.unwrap_or_default();
            let time = times.split_whitespace().next();
            nanos += time.and_then(|time| time.parse::<u64>().ok()).unwrap_or(0);
        }
        Ok(Duration::from_nanos(nanos))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SIGTERM first: a clean end removes sockets and TAPs. Whoever ignores it is killed.
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        drop(self.signal(Signal::SIGTERM));
        if self.wait_line("\0", 1, Duration::from_secs(2)).is_err() {
            drop(self.child.kill());
        }
        drop(self.child.wait());
    }
}
