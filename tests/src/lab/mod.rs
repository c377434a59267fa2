//! A lab: one director, host agents and guests, as separate processes in a network namespace that
//! nobody else sees. Used by the suites and by `cargo xtask demo`.

mod namespace;
mod process;
mod site;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use fabric_config::{LabConfig, MediumConfig, Uplink};
use nix::sys::signal::Signal;
use orimono_qemu::{
    Accelerator, AcceleratorChoice, Guest, GuestImage, Machine, Output, Qemu, Vhba, Vnic, image,
};

pub use namespace::Namespace;
pub use process::{Process, program};
pub use site::{Site, until};

/// How long a program may take to start, or to notice something. A guard, not a figure.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of a LUN whose file the lab makes.
pub const LUN_BYTES: u64 = 32 << 20;

/// A running lab; everything in it ends when it is dropped.
#[derive(Debug)]
pub struct Lab {
    /// Where its processes live.
    pub namespace: Namespace,
    /// The parsed lab file.
    pub config: LabConfig,
    /// The director's process; `None` while it is down, or embedded.
    pub director: Option<Process>,
    /// The host agents' processes, by the order of the lab file.
    pub agents: Vec<Option<Process>>,
    /// The edge switches' processes, by the order of the lab file.
    pub switches: Vec<Option<Process>>,
    file: PathBuf,
    /// Of the director; `None` for its own.
    log: Option<String>,
    accelerator: AcceleratorChoice,
    folder: tempfile::TempDir,
}

impl Lab {
    /// Starts what `text` describes, a lab file in which `@DIR@` stands for the lab's folder. LUN
    /// files that are not there are made, sparse, of [`LUN_BYTES`].
    ///
    /// # Errors
    /// Something does not start; the error shows what it said last.
    pub fn start(text: &str) -> Result<Self> {
        Self::start_in(Namespace::new()?, text)
    }

    /// The same in a namespace that is there already.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_in(namespace: Namespace, text: &str) -> Result<Self> {
        Self::start_all(namespace, text, None)
    }

    /// As [`Self::start`], with a filter for what the director logs.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_logging(text: &str, filter: &str) -> Result<Self> {
        Self::start_all(Namespace::new()?, text, Some(filter.to_owned()))
    }

    fn start_all(namespace: Namespace, text: &str, log: Option<String>) -> Result<Self> {
        // A short path: a socket's name has 107 bytes.
        let folder = tempfile::Builder::new()
            .prefix("orimono-")
            .tempdir_in("/tmp")?;
        let file = folder.path().join("lab.toml");
        let config = write_lab_file(folder.path(), &file, text)?;
        let agents = config.hosts.iter().map(|_| None).collect();
        let switches = config.edge_switches.iter().map(|_| None).collect();
        let accelerator = AcceleratorChoice::Auto;
        let mut lab = Self {
            namespace,
            config,
            director: None,
            agents,
            switches,
            file,
            log,
            accelerator,
            folder,
        };
        lab.start_director()?;
        for index in 0..lab.switches.len() {
            lab.start_switch(index)?;
        }
        for index in 0..lab.agents.len() {
            lab.start_agent(index)?;
        }
        lab.wait_sessions(1)?;
        Ok(lab)
    }

    /// The lab's folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The control socket of a host agent, an edge switch, or the `director`.
    #[must_use]
    pub fn control(&self, name: &str) -> PathBuf {
        self.folder().join(format!("{name}.control"))
    }

    /// Keeps the folder when the lab is dropped.
    pub fn keep_folder(&mut self) {
        self.folder.disable_cleanup(true);
    }

    /// Chooses what guests run on; `Auto` unless set.
    pub fn set_accelerator(&mut self, choice: AcceleratorChoice) {
        self.accelerator = choice;
    }

    /// Has the lab file say `text`, as for [`Self::start`]. Nobody is told.
    ///
    /// # Errors
    /// It is no lab file.
    pub fn rewrite(&mut self, text: &str) -> Result<()> {
        self.config = write_lab_file(self.folder.path(), &self.file, text)?;
        Ok(())
    }

    /// Has the director or a host agent, which is called `name`, apply the lab file again; returns what
    /// it says of each object.
    ///
    /// # Errors
    /// It refuses, or a change is not in force.
    pub fn apply(&self, name: &str) -> Result<Vec<serde_json::Value>> {
        let mut socket = UnixStream::connect(self.control(name))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.write_all(b"{\"command\":\"apply\"}\n")?;
        let mut answer = String::new();
        BufReader::new(socket).read_line(&mut answer)?;
        let answer: serde_json::Value = serde_json::from_str(&answer)?;
        if let Some(reason) = answer.pointer("/ok/refused").and_then(|it| it.as_str()) {
            anyhow::bail!("{name} refuses: {reason}");
        }
        let objects = answer.pointer("/ok/objects").and_then(|it| it.as_array());
        let objects = objects.with_context(|| format!("{name} refuses: {answer}"))?;
        for object in objects {
            let done = object.get("outcome").is_some_and(|it| it == "done");
            anyhow::ensure!(done, "{name}: {object}");
        }
        Ok(objects.clone())
    }

    /// Starts the director, unless every host embeds one.
    ///
    /// # Errors
    /// It does not get ready.
    pub fn start_director(&mut self) -> Result<()> {
        if self
            .config
            .hosts
            .iter()
            .all(|host| host.uplink == Uplink::Embedded)
        {
            return Ok(());
        }
        let mut command = Command::new(program("io-director")?);
        command.arg("--config").arg(&self.file);
        command.arg("--control").arg(self.control("director"));
        if let Some(log) = &self.log {
            command.args(["--log", log]);
        }
        let director = Process::start("io-director", &self.namespace, &mut command)?;
        director.wait_line("director listens", 1, PATIENCE)?;
        self.director = Some(director);
        Ok(())
    }

    /// Starts another director, which has the lab's file with some words replaced.
    ///
    /// # Errors
    /// It does not get ready.
    pub fn start_other_director(&self, words: &[(&str, &str)]) -> Result<Process> {
        let mut text = fs::read_to_string(&self.file)?;
        for (word, other) in words {
            text = text.replace(word, other);
        }
        let file = self.folder().join("other.toml");
        fs::write(&file, text)?;
        let mut command = Command::new(program("io-director")?);
        command.arg("--config").arg(&file);
        let director = Process::start("io-director", &self.namespace, &mut command)?;
        director.wait_line("director listens", 1, PATIENCE)?;
        Ok(director)
    }

    /// Starts a host agent.
    ///
    /// # Errors
    /// It does not get ready.
    pub fn start_agent(&mut self, index: usize) -> Result<()> {
        let host = self.config.hosts.get(index).context("no such host")?;
        let mut command = Command::new(program("host-agent")?);
        command
            .arg("--config")
            .arg(&self.file)
            .args(["--host", &host.name])
            .arg("--control")
            .arg(self.control(&host.name));
        let agent = Process::start(&host.name, &self.namespace, &mut command)?;
        agent.wait_line("host agent ready", 1, PATIENCE)?;
        *self.agents.get_mut(index).context("no such host")? = Some(agent);
        Ok(())
    }

    /// Starts an edge switch.
    ///
    /// # Errors
    /// It does not get ready.
    pub fn start_switch(&mut self, index: usize) -> Result<()> {
        let switch = self.config.edge_switches.get(index);
        let name = &switch.context("no such edge switch")?.name;
        let mut command = Command::new(program("edge-switch")?);
        command
            .arg("--config")
            .arg(&self.file)
            .args(["--name", name])
            .arg("--control")
            .arg(self.control(name));
        let switch = Process::start(name, &self.namespace, &mut command)?;
        switch.wait_line("edge switch listens", 1, PATIENCE)?;
        let slot = self.switches.get_mut(index);
        *slot.context("no such edge switch")? = Some(switch);
        Ok(())
    }

    /// Waits until every running agent has seen its `count`-th session become active.
    ///
    /// # Errors
    /// It does not happen.
    pub fn wait_sessions(&self, count: usize) -> Result<()> {
        for agent in self.agents.iter().flatten() {
            agent.wait_line("session became active", count, PATIENCE)?;
        }
        Ok(())
    }

    /// kill -9 of the director.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill_director(&mut self) -> Result<()> {
        self.director
            .take()
            .context("no director runs")?
            .end(Signal::SIGKILL)?;
        Ok(())
    }

    /// kill -9 of an edge switch.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill_switch(&mut self, index: usize) -> Result<()> {
        let switch = self
            .switches
            .get_mut(index)
            .and_then(Option::take)
            .context("no edge switch runs")?;
        switch.end(Signal::SIGKILL)?;
        Ok(())
    }

    /// kill -9 of a host agent.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill_agent(&mut self, index: usize) -> Result<()> {
        let agent = self
            .agents
            .get_mut(index)
            .and_then(Option::take)
            .context("no agent runs")?;
        agent.end(Signal::SIGKILL)?;
        Ok(())
    }

    /// A machine with the devices of `vm`, in the order of the lab file.
    ///
    /// # Errors
    /// No such VM, or QEMU or the guest's image are missing.
    pub fn machine(&self, vm: &str) -> Result<Machine> {
        let (qemu, guest_image, accelerator) = self.means()?;
        self.machine_of(vm, qemu, guest_image, accelerator)
    }

    /// As [`Self::machine`], of a VM that moves: with its devices at the host that it moves to.
    ///
    /// # Errors
    /// As [`Self::machine`], or the VM does not move.
    pub fn machine_elsewhere(&self, vm: &str) -> Result<Machine> {
        let mut elsewhere = self.config.clone();
        let vms = elsewhere.hosts.iter().flat_map(|host| &host.vms);
        let moves_to = vms
            .filter(|known| known.name == vm)
            .find_map(|it| it.moves_to.clone());
        let moves_to = moves_to.with_context(|| format!("VM {vm} does not move"))?;
        let host = self.config.serving_host(&moves_to);
        let host = host.with_context(|| format!("the lab has no host {moves_to}"))?;
        elsewhere.hosts = vec![host];
        let (qemu, guest_image, accelerator) = self.means()?;
        machine_in(&elsewhere, vm, qemu, guest_image, accelerator)
    }

    /// What every guest of the lab runs on.
    fn means(&self) -> Result<(Qemu, GuestImage, Accelerator)> {
        let cache = image::default_cache();
        let guest_image = GuestImage::ensure(&cache)?;
        let qemu = Qemu::find()?;
        let accelerator = self.accelerator.resolve(&qemu, &guest_image, &cache)?;
        Ok((qemu, guest_image, accelerator))
    }

    /// As [`Self::machine`], for a chosen QEMU.
    ///
    /// # Errors
    /// No such VM.
    pub fn machine_of(
        &self,
        vm: &str,
        qemu: Qemu,
        guest_image: GuestImage,
        accelerator: Accelerator,
    ) -> Result<Machine> {
        machine_in(&self.config, vm, qemu, guest_image, accelerator)
    }

    /// Boots `vm`.
    ///
    /// # Errors
    /// As [`Self::machine`], or it does not get ready.
    pub fn boot(&self, vm: &str) -> Result<Guest> {
        Ok(self.machine(vm)?.boot()?)
    }

    /// Starts a program in the lab's namespace that runs until the returned value is dropped, once
    /// its log says `ready`.
    ///
    /// # Errors
    /// It does not start.
    pub fn serve(&self, name: &str, arguments: &[&str]) -> Result<Process> {
        Process::start(name, &self.namespace, Command::new(name).args(arguments))
    }
}

/// A machine with the devices of `vm`, where `lab` has them.
fn machine_in(
    lab: &LabConfig,
    vm: &str,
    qemu: Qemu,
    guest_image: GuestImage,
    accelerator: Accelerator,
) -> Result<Machine> {
    let hosts = lab.hosts.iter();
    let (host, vm) = hosts
        .flat_map(|host| host.vms.iter().map(move |vm| (host, vm)))
        .find(|(_, known)| known.name == vm)
        .with_context(|| format!("the lab has no VM {vm}"))?;
    let mut machine = Machine::new(qemu, guest_image, accelerator);
    for config in &vm.vnics {
        let mac = config.mac.to_string().parse()?;
        let mut vnic = Vnic::new(
            &config.name,
            host.run_dir.join(format!("{}.sock", config.name)),
            mac,
        );
        vnic.queues = config.queues;
        vnic.mtu = Some(config.mtu);
        machine = machine.vnic(vnic);
    }
    for config in &vm.vhbas {
        let mut vhba = Vhba::new(
            &config.name,
            host.run_dir.join(format!("{}.sock", config.name)),
        );
        vhba.queues = config.queues;
        machine = machine.vhba(vhba);
    }
    Ok(machine)
}

/// Writes a lab file and makes the files of its LUNs.
fn write_lab_file(folder: &Path, file: &Path, text: &str) -> Result<LabConfig> {
    let text = text.replace("@DIR@", &folder.display().to_string());
    let config: LabConfig = text.parse()?;
    fs::write(file, text)?;
    for lun in &config.luns {
        if let MediumConfig::File { path, .. } = &lun.medium
            && !path.exists()
        {
            fs::File::create(path)?.set_len(LUN_BYTES)?;
        }
    }
    Ok(config)
}

/// Runs a command in a guest and expects success.
///
/// # Errors
/// It fails or is not done in time; the error shows what it printed.
pub fn run(guest: &Guest, command: &str) -> Result<String> {
    run_within(guest, command, PATIENCE)
}

/// As [`run`], with a time limit.
///
/// # Errors
/// As [`run`].
pub fn run_within(guest: &Guest, command: &str, within: Duration) -> Result<String> {
    succeeded(command, &guest.run(command, within)?)
}

/// What a command printed, if it succeeded.
///
/// # Errors
/// It did not; the error shows what it printed.
pub fn succeeded(command: &str, output: &Output) -> Result<String> {
    anyhow::ensure!(
        output.status.success(),
        "{command}: {:?}\n{}{}",
        output.status,
        output.stdout_text(),
        output.stderr_text()
    );
    Ok(output.stdout_text())
}

/// The guest's disk (`sda`, ...) whose unit serial number is `serial`.
///
/// # Errors
/// No disk has it; the error lists those there are.
pub fn disk(guest: &Guest, serial: &str) -> Result<String> {
    let script = "for d in /sys/block/sd*; do [ -e $d ] && \
        echo ${d##*/} $(tail -c +5 $d/device/vpd_pg80); done";
    let listed = run(guest, script)?;
    let mut disks = listed.lines().filter_map(|line| line.split_once(' '));
    let found = disks.find(|(_, known)| known.trim() == serial);
    found
        .map(|(disk, _)| disk.to_owned())
        .with_context(|| format!("no disk has the serial number {serial}; there are:\n{listed}"))
}

/// Gives the guest's interface `eth<index>` the address `10.<subnet>.0.<host>/24` and brings it up.
///
/// # Errors
/// There is no such interface.
pub fn address(guest: &Guest, index: usize, address: &str) -> Result<()> {
    run(
        guest,
        &format!("ip addr add {address} dev eth{index} && ip link set eth{index} up"),
    )?;
    Ok(())
}
