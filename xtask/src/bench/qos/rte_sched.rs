//! DPDK's `rte_sched` on the same mix, where Debian's libdpdk-dev is installed.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::check::root;
use crate::say;

/// A program in C that schedules as many packets as it is told to.
#[derive(Debug)]
pub(super) struct RteSched {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl RteSched {
    /// Compiles the program. `None`, and a line that says what to do, without DPDK.
    pub(super) fn compile() -> Result<Option<PathBuf>> {
        let flags = Command::new("pkg-config")
            .args(["--cflags", "--libs", "libdpdk"])
            .stderr(Stdio::null())
            .output();
        let Some(flags) = flags.ok().filter(|flags| flags.status.success()) else {
            say("Q6 beside rte_sched is left out: `apt install libdpdk-dev pkg-config gcc` first");
            return Ok(None);
        };
        let flags = String::from_utf8(flags.stdout).context("pkg-config does not write text")?;
        let root = root()?;
        let program = root.join("target/rte_sched");
        let status = Command::new("cc")
            .args(["-O3", "-march=native", "-DALLOW_EXPERIMENTAL_API", "-o"])
            .args([&program, &root.join("xtask/src/bench/qos/rte_sched.c")])
            // Nothing names the driver of memory pools, so it would be left out.
            .args(["-Wl,--no-as-needed", "-lrte_mempool_ring"])
            .args(flags.split_whitespace())
            .status()
            .context("cannot run cc")?;
        if !status.success() {
            bail!("cc does not compile xtask/src/bench/qos/rte_sched.c");
        }
        Ok(Some(program))
    }

    /// Starts it with `pipes` pipes that all have packets.
    pub(super) fn start(program: &Path, pipes: u32, packets: usize) -> Result<Self> {
        let mut process = Command::new(program)
            .args([pipes.to_string(), packets.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start rte_sched")?;
        let input = process.stdin.take().context("rte_sched has no input")?;
        let output = process.stdout.take().context("rte_sched has no output")?;
        Ok(Self {
            process,
            input,
            output: BufReader::new(output),
        })
    }

    /// Nanoseconds of CPU time for each of the next packets.
    pub(super) fn slice(&mut self) -> Result<f64> {
        self.input.write_all(b"\n").context("rte_sched has ended")?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        let nanos = line.trim().parse();
        nanos.with_context(|| format!("rte_sched wrote {line:?}"))
    }
}

impl Drop for RteSched {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}
