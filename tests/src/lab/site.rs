//! A site that a controller manages: the controller, its directors and host agents, as separate
//! processes in a network namespace, and `fabricctl`, one shot at a time.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{Namespace, PATIENCE, Process, program};

/// A running site; everything in it ends when it is dropped.
#[derive(Debug)]
pub struct Site {
    /// Directors and host agents, by name. The controller's is `controller`.
    pub processes: BTreeMap<String, Process>,
    /// Where its processes live.
    pub namespace: Namespace,
    folder: tempfile::TempDir,
}

impl Site {
    /// Starts a controller that knows nothing.
    ///
    /// # Errors
    /// It does not get ready.
    pub fn start() -> Result<Self> {
        // A short path: a socket's name has 107 bytes.
        let folder = tempfile::Builder::new()
            .prefix("orimono-")
            .tempdir_in("/tmp")?;
        let mut site = Self {
            processes: BTreeMap::new(),
            namespace: Namespace::new()?,
            folder,
        };
        site.start_controller()?;
        Ok(site)
    }

    /// The site's folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What the controller keeps of a director or host, and where that finds its lab file.
    #[must_use]
    pub fn node(&self, name: &str) -> PathBuf {
        self.folder().join("nodes").join(name)
    }

    /// The folder of a host's sockets, if its `run-dir` is said to be this.
    #[must_use]
    pub fn run_dir(&self, host: &str) -> PathBuf {
        self.folder().join("run").join(host)
    }

    /// Starts the controller, which takes up what it knew.
    ///
    /// # Errors
    /// It does not get ready.
    pub fn start_controller(&mut self) -> Result<()> {
        let mut command = Command::new(program("controller")?);
        command
            .arg("--store")
            .arg(self.folder().join("store"))
            .arg("--socket")
            .arg(self.folder().join("controller.sock"))
            .arg("--nodes")
            .arg(self.folder().join("nodes"));
        let controller = Process::start("controller", &self.namespace, &mut command)?;
        controller.wait_line("controller ready", 1, PATIENCE)?;
        self.processes.insert("controller".to_owned(), controller);
        Ok(())
    }

    /// Starts a director, once the controller has written its lab file.
    ///
    /// # Errors
    /// It does not get ready.
    pub fn start_director(&mut self, name: &str) -> Result<()> {
        let mut command = Command::new(program("io-director")?);
        self.start_node(name, &mut command, "director listens")
    }

    /// Starts a host agent, once the controller has written its lab file.
    ///
    /// # Errors
    /// It does not get ready.
    pub fn start_host(&mut self, name: &str) -> Result<()> {
        let mut command = Command::new(program("host-agent")?);
        command.args(["--host", name]);
        self.start_node(name, &mut command, "host agent ready")
    }

    fn start_node(&mut self, name: &str, command: &mut Command, ready: &str) -> Result<()> {
        let file = self.node(name).join("lab.toml");
        until(&format!("the lab file of {name}"), || Ok(file.exists()))?;
        command.arg("--config").arg(&file);
        command
            .arg("--control")
            .arg(self.node(name).join("control.sock"));
        let process = Process::start(name, &self.namespace, command)?;
        process.wait_line(ready, 1, PATIENCE)?;
        self.processes.insert(name.to_owned(), process);
        Ok(())
    }

    /// What a host agent prints for QEMU, of a VM with so much memory under emulation.
    ///
    /// # Errors
    /// It has no such VM.
    pub fn qemu_args(&self, host: &str, vm: &str, memory: &str) -> Result<Vec<OsString>> {
        let mut command = Command::new(program("host-agent")?);
        command
            .arg("--config")
            .arg(self.node(host).join("lab.toml"));
        command.args([
            "--print-qemu-args",
            vm,
            "--memory",
            memory,
            "--accel",
            "tcg",
        ]);
        let printed = self.namespace.output(&mut command)?;
        let words = printed.split_whitespace();
        // An empty value is quoted for the shell.
        Ok(words
            .map(|word| OsString::from(word.trim_matches('\'')))
            .collect())
    }

    /// kill -9 of a process.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&mut self, name: &str) -> Result<()> {
        let process = self.processes.remove(name);
        let process = process.with_context(|| format!("{name} does not run"))?;
        process.end(Signal::SIGKILL)?;
        Ok(())
    }

    /// The process called `name`.
    ///
    /// # Errors
    /// It does not run.
    pub fn process(&self, name: &str) -> Result<&Process> {
        let process = self.processes.get(name);
        process.with_context(|| format!("{name} does not run"))
    }

    fn fabricctl(&self) -> Result<Command> {
        let mut command = Command::new(program("fabricctl")?);
        command.env("ORIMONO_CONTROLLER", self.folder().join("controller.sock"));
        Ok(command)
    }

    /// Runs `fabricctl` with these words; returns what it prints.
    ///
    /// # Errors
    /// It is refused; the error has its words.
    pub fn ctl(&self, words: &str) -> Result<String> {
        self.ctl_with(words, &[])
    }

    /// As [`Self::ctl`], with arguments behind that have blanks.
    ///
    /// # Errors
    /// As [`Self::ctl`].
    pub fn ctl_with(&self, words: &str, more: &[&str]) -> Result<String> {
        let mut command = self.fabricctl()?;
        command.args(words.split_whitespace()).args(more);
        let output = command.output()?;
        ensure!(
            output.status.success(),
            "fabricctl {words}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs lines of the command language, one `fabricctl` each.
    ///
    /// # Errors
    /// One is refused.
    pub fn lines(&self, lines: &str) -> Result<()> {
        let lines = lines.lines().map(str::trim);
        for line in lines.filter(|line| !line.is_empty()) {
            self.ctl(line)?;
        }
        Ok(())
    }

    /// The objects of `show` as JSON.
    ///
    /// # Errors
    /// It is refused.
    pub fn show(&self, words: &str) -> Result<Vec<Value>> {
        let text = self.ctl(&format!("--json show {words}"))?;
        let parsed: Value = serde_json::from_str(&text)?;
        match parsed {
            Value::Array(objects) => Ok(objects),
            other => bail!("show {words} is no list: {other}"),
        }
    }

    /// The state of one object, like `up/up`, and why it is so.
    ///
    /// # Errors
    /// There is no such object.
    pub fn state(&self, words: &str) -> Result<(String, String)> {
        let objects = self.show(words)?;
        let [object] = objects.as_slice() else {
            bail!("show {words} names {} objects", objects.len());
        };
        let text = |path| {
            let text = object.pointer(path).and_then(Value::as_str);
            text.unwrap_or_default().to_owned()
        };
        Ok((text("/status/state"), text("/status/reason")))
    }

    /// Waits until an object is in `state`; returns why it is so.
    ///
    /// # Errors
    /// It does not get there; the error says what it is.
    pub fn wait_state(&self, words: &str, state: &str) -> Result<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (is, reason) = self.state(words)?;
            if is == state {
                return Ok(reason);
            }
            if Instant::now() > deadline {
                bail!(
                    "{words} is {is} ({reason}), not {state}\n{}",
                    self.ctl("show alarms")?
                );
            }
        }
    }

    /// What a process answers to a request at its control socket.
    ///
    /// # Errors
    /// It does not, or refuses.
    pub fn ask(&self, node: &str, request: &str) -> Result<Value> {
        use std::io::{BufRead, BufReader, Write};
        let path = self.node(node).join("control.sock");
        let mut stream = std::os::unix::net::UnixStream::connect(path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(format!("{{\"command\":\"{request}\"}}\n").as_bytes())?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        let answer: Value = serde_json::from_str(&line)?;
        let ok = answer.get("ok").cloned();
        ok.with_context(|| format!("{node} refuses {request}: {answer}"))
    }
}

/// Asks again and again until `is` says yes, for as long as [`PATIENCE`].
///
/// # Errors
/// It does not, or fails.
pub fn until(what: &str, mut is: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !is()? {
        ensure!(Instant::now() < deadline, "{what}: it did not come to this");
        // Not to take the processor from who is to do it.
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
