//! `xtask guest`: one guest with chosen devices, for a command or for a person.

use std::{
    io::{self, IsTerminal, Read},
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use orimono_qemu::{
    AcceleratorChoice, CommandId, ExitStatus, GuestError, GuestImage, MacAddress, Machine, Qemu,
    Vhba, Vnic, guest::TerminalSize, image,
};

use crate::{say, setup};

/// A person's shell has no deadline; this is how often it is asked after.
const WAIT_STEP: Duration = Duration::from_secs(3_600);
const POWER_OFF_WITHIN: Duration = Duration::from_secs(10);

#[derive(Args, Debug)]
pub(crate) struct Guest {
    /// What runs the guest's instructions: auto, kvm or tcg
    #[arg(long, default_value = "auto")]
    accel: AcceleratorChoice,

    /// Adds a vNIC: socket of its back-end
    #[arg(long, value_name = "SOCKET[,mac=ADDRESS][,queues=PAIRS][,mtu=BYTES]")]
    vnic: Vec<VnicOption>,

    /// Adds a vHBA: socket of its back-end
    #[arg(long, value_name = "SOCKET[,queues=COUNT]")]
    vhba: Vec<VhbaOption>,

    /// Memory in MiB
    #[arg(long, default_value_t = 512)]
    memory: u32,

    /// CPUs
    #[arg(long, default_value_t = 1)]
    cpus: u16,

    /// Runs this under `sh -c` in the guest and passes its exit status on; without it you get a
    /// shell, and leaving the shell powers the guest off
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
struct VnicOption {
    socket: PathBuf,
    mac: Option<MacAddress>,
    queues: u16,
    mtu: Option<u16>,
}

impl FromStr for VnicOption {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (socket, options) = socket_and_options(text)?;
        let mut option = Self {
            socket,
            mac: None,
            queues: 1,
            mtu: None,
        };
        for (key, value) in options {
            match key {
                "mac" => option.mac = Some(value.parse()?),
                "queues" => option.queues = count(key, value)?,
                "mtu" => option.mtu = Some(count(key, value)?),
                _ => bail!("`{key}` is no option of a vNIC: mac, queues, mtu"),
            }
        }
        Ok(option)
    }
}

#[derive(Clone, Debug, Eq, PartialEq)]
struct VhbaOption {
    socket: PathBuf,
    queues: u16,
}

impl FromStr for VhbaOption {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (socket, options) = socket_and_options(text)?;
        let mut option = Self { socket, queues: 1 };
        for (key, value) in options {
            match key {
                "queues" => option.queues = count(key, value)?,
                _ => bail!("`{key}` is no option of a vHBA: queues"),
            }
        }
        Ok(option)
    }
}

fn socket_and_options(text: &str) -> Result<(PathBuf, Vec<(&str, &str)>)> {
    let mut parts = text.split(',');
    let socket = parts
        .next()
        .filter(|socket| !socket.is_empty())
        .context("no socket is named")?;
    let options = parts
        .map(|part| {
            part.split_once('=')
                .with_context(|| format!("`{part}` is not KEY=VALUE"))
        })
        .collect::<Result<_>>()?;
    Ok((PathBuf::from(socket), options))
}

fn count(key: &str, value: &str) -> Result<u16> {
    value
        .parse()
        .ok()
        .filter(|count| *count > 0)
        .with_context(|| format!("`{key}={value}` is not a number from 1 to 65535"))
}

pub(crate) fn run(task: &Guest) -> Result<ExitCode> {
    setup::ensure_packages()?;
    let machine = machine(task)?;
    let guest = Arc::new(machine.boot().context("cannot boot a guest")?);
    say(&format!(
        "guest is ready after {} ms",
        guest.boot_time().as_millis()
    ));
    for note in guest.boot_notes().lines() {
        say(&format!("guest: {note}"));
    }
    let status = if !task.command.is_empty() {
        stream(&guest, &task.command.join(" "))?
    } else if io::stdin().is_terminal() {
        shell(&guest)?
    } else {
        stream_with_input(&guest)?
    };
    if !matches!(status, ExitStatus::Exited(_)) {
        say(&format!("command: {status}"));
    }
    // The thread that reads our input may hold the guest for ever; it is killed with us then.
    if let Some(guest) = Arc::into_inner(guest) {
        guest
            .poweroff(POWER_OFF_WITHIN)
            .context("cannot power the guest off")?;
    }
    Ok(ExitCode::from(status.shell_code()))
}

fn machine(task: &Guest) -> Result<Machine> {
    let cache = image::default_cache();
    let image =
        GuestImage::ensure_telling(&cache, &mut say).context("cannot make the guest's image")?;
    let qemu = Qemu::find()?;
    let accelerator = task
        .accel
        .resolve(&qemu, &image, &cache)
        .context("cannot find out whether KVM works")?;
    say(&format!(
        "booting Linux {} on QEMU {} with {}",
        image.kernel_version(),
        qemu.version(),
        accelerator.qemu_name()
    ));
    let mut machine = Machine::new(qemu, image, accelerator)
        .memory_mib(task.memory)
        .cpus(task.cpus);
    for (number, option) in (1_u8..).zip(&task.vnic) {
        let mac = match option.mac {
            Some(mac) => mac,
            // Locally administered; the last byte keeps the vNICs of this guest apart.
            None => format!("02:15:97:00:00:{number:02x}").parse()?,
        };
        let vnic = Vnic::new(format!("vnic{number}"), &option.socket, mac);
        machine = machine.vnic(Vnic {
            queues: option.queues,
            mtu: option.mtu,
            ..vnic
        });
    }
    for (number, option) in (1_u8..).zip(&task.vhba) {
        let vhba = Vhba::new(format!("vhba{number}"), &option.socket);
        machine = machine.vhba(Vhba {
            queues: option.queues,
            ..vhba
        });
    }
    Ok(machine)
}

fn stream(guest: &orimono_qemu::Guest, command: &str) -> Result<ExitStatus> {
    let id = guest.spawn_streaming(command, Box::new(io::stdout()), Box::new(io::stderr()))?;
    guest.close_stdin(id)?;
    wait(guest, id)
}

/// A shell that reads what is piped into us.
fn stream_with_input(guest: &Arc<orimono_qemu::Guest>) -> Result<ExitStatus> {
    let id = guest.spawn_streaming("sh", Box::new(io::stdout()), Box::new(io::stderr()))?;
    forward_stdin(guest, id);
    wait(guest, id)
}

/// A shell on a terminal of its own.
fn shell(guest: &Arc<orimono_qemu::Guest>) -> Result<ExitStatus> {
    say("leave the shell (exit or ^D) to power the guest off");
    let size = terminal_size();
    let raw = RawTerminal::enter().context("cannot set up the terminal")?;
    let id = guest.spawn_on_terminal("cd; exec bash -l", size, Box::new(io::stdout()))?;
    forward_stdin(guest, id);
    let status = wait(guest, id);
    drop(raw);
    status
}

fn wait(guest: &orimono_qemu::Guest, id: CommandId) -> Result<ExitStatus> {
    loop {
        match guest.wait(id, WAIT_STEP) {
            Ok(output) => return Ok(output.status),
            Err(GuestError::DeadlinePassed { .. }) => {}
            Err(error) => return Err(anyhow!(error)),
        }
    }
}

fn forward_stdin(guest: &Arc<orimono_qemu::Guest>, id: CommandId) {
    let guest = Arc::downgrade(guest);
    // Reading our input cannot be interrupted, so nobody waits for this thread.
    std::thread::spawn(move || {
        let mut bytes = [0; 4_096];
        loop {
            // An error of our input is its end, as far as the guest is concerned.
            let count = io::stdin().read(&mut bytes).unwrap_or(0);
            let Some(guest) = guest.upgrade() else { return };
            let sent = match bytes.get(..count) {
                Some(bytes) if count > 0 => guest.write_stdin(id, bytes),
                _ => guest.close_stdin(id),
            };
            if sent.is_err() || count == 0 {
                return;
            }
        }
    });
}

/// The size of our terminal as stty(1) says it, else the size terminals once had.
fn terminal_size() -> TerminalSize {
    let ask = Command::new("stty")
        .arg("size")
        .stdin(Stdio::inherit())
        .output();
    let text = ask.map(|output| output.stdout).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let mut numbers = text
        .split_whitespace()
        .map(|number| number.parse::<u16>().unwrap_or(0));
    match (numbers.next(), numbers.next()) {
        (Some(rows), Some(columns)) if rows > 0 && columns > 0 => TerminalSize { rows, columns },
        _ => TerminalSize {
            rows: 24,
            columns: 80,
        },
    }
}

/// Our terminal, passing every key on; as it was when dropped.
struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    fn enter() -> nix::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(io::stdin(), SetArg::TCSANOW, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // The terminal went away with its person, or it takes what it gave.
        tcsetattr(io::stdin(), SetArg::TCSANOW, &self.before).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_a_socket_and_options() {
        let vnic: VnicOption = "/run/a.sock,mac=02:15:97:00:00:07,mtu=9000"
            .parse()
            .unwrap();
        assert_eq!(vnic.socket, PathBuf::from("/run/a.sock"));
        assert_eq!(vnic.mac.unwrap().to_string(), "02:15:97:00:00:07");
        assert_eq!((vnic.queues, vnic.mtu), (1, Some(9000)));
        let vhba: VhbaOption = "/run/b.sock,queues=4".parse().unwrap();
        assert_eq!(
            vhba,
            VhbaOption {
                socket: "/run/b.sock".into(),
                queues: 4
            }
        );
    }

    #[test]
    fn what_is_wrong_with_a_device_is_said() {
        let error = |text: &str| text.parse::<VnicOption>().unwrap_err().to_string();
        assert_eq!(error(""), "no socket is named");
        assert_eq!(error("/s,fast"), "`fast` is not KEY=VALUE");
        assert_eq!(
            error("/s,speed=1"),
            "`speed` is no option of a vNIC: mac, queues, mtu"
        );
        assert_eq!(
            error("/s,queues=0"),
            "`queues=0` is not a number from 1 to 65535"
        );
        assert!(error("/s,mac=x").contains("unicast Ethernet address"));
    }
}
