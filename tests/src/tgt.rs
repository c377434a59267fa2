//! An iSCSI target by other authors: Debian's `tgt`, on loopback.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Name of its target.
pub const TARGET: &str = "iqn.2026-01.org.orimono:disk1";
/// Bytes of its LUN 1.
pub const DISK_BYTES: u64 = 64 << 20;
/// How long it may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// `tgtd` with one target and one file as its LUN 1; it ends when dropped.
#[derive(Debug)]
pub struct Tgt {
    child: Child,
    port: u16,
    folder: tempfile::TempDir,
}

impl Tgt {
    /// Starts it on a free port and waits until it is set up.
    ///
    /// # Errors
    /// It is not installed (`cargo xtask setup`), or does not start.
    pub fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        File::create(folder.path().join("disk"))?.set_len(DISK_BYTES)?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut tgt = Self {
            child: spawn(port, folder.path())?,
            port,
            folder,
        };
        tgt.set_up()?;
        Ok(tgt)
    }

    fn set_up(&mut self) -> Result<()> {
        let start = Instant::now();
        // It is ready when it answers.
        while self.admin("--mode sys --op show").is_err() {
            ensure!(self.child.try_wait()?.is_none(), "tgtd ended");
            ensure!(start.elapsed() < PATIENCE, "tgtd does not answer");
        }
        self.admin(&format!(
            "--mode target --op new --tid 1 --targetname {TARGET}"
        ))?;
        let disk = self.disk();
        self.admin(&format!(
            "--mode logicalunit --op new --tid 1 --lun 1 --backing-store {}",
            disk.display()
        ))?;
        self.admin("--mode target --op bind --tid 1 --initiator-address ALL")
    }

    /// Runs `tgtadm` with these arguments.
    ///
    /// # Errors
    /// It refuses them.
    pub fn admin(&self, arguments: &str) -> Result<()> {
        let mut tgtadm = command("tgtadm", self.folder.path());
        tgtadm.args(["--lld", "iscsi"]).args(arguments.split(' '));
        let ended = tgtadm.output().context("tgtadm is not installed")?;
        ensure!(ended.status.success(), "tgtadm {arguments}");
        Ok(())
    }

    /// As an operator's `kill -9`.
    ///
    /// # Errors
    /// The kernel does not let it.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Starts it again after [`Self::kill`], with the same disk.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn restart(&mut self) -> Result<()> {
        self.child = spawn(self.port, self.folder.path())?;
        self.set_up()
    }

    /// Has it do nothing until [`Self::resume`]; its connections stay.
    ///
    /// # Errors
    /// The kernel does not let it.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// As [`Self::pause`].
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        kill(pid, signal).context("tgtd cannot be signalled")
    }

    /// The file that is its LUN 1.
    #[must_use]
    pub fn disk(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    /// Where it listens.
    #[must_use]
    pub fn portal(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }
}

impl Drop for Tgt {
    fn drop(&mut self) {
        // The test may have killed it before.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn spawn(port: u16, folder: &Path) -> Result<Child> {
    let mut tgtd = command("tgtd", folder);
    tgtd.args(["-f", "--iscsi"]);
    tgtd.arg(format!("portal=127.0.0.1:{port}"));
    tgtd.stdout(Stdio::null()).stderr(Stdio::null());
    tgtd.spawn()
        .context("tgtd is not installed: cargo xtask setup")
}

/// A program of `tgt`, with the control socket in our folder.
fn command(program: &str, folder: &Path) -> Command {
    let mut command = Command::new(program);
    command.env("TGT_IPC_SOCKET", folder.join("control"));
    command.args(["-C", "1"]);
    command
}
