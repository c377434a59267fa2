//! What the programs `orimono-vnic` and `orimono-vhba` have in common: QEMU's conventions for
//! back-end programs (docs/interop/vhost-user.rst, "Backend program conventions").
//!
//! One device, one socket, one director. The program stays in the foreground and ends with exit
//! code 0 after SIGTERM or SIGINT (or with the only connection of `--fd`), 1 if it cannot start, 2
//! for wrong usage.

use std::io::{IsTerminal, Write};
use std::num::ParseIntError;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Args, Parser};
use fabric_transport::LaneClient;
use fabric_transport::control::Windows;
use fabric_transport::endpoint::{DeviceGrant, session_config};
use fabric_transport::frame::DeviceId;
use fabric_transport::link::{LinkAddress, LinkOptions, TlsConfig, TlsFiles};
use fabric_transport::uplink::{Uplink, UplinkConfig, UplinkDevice, connectors};
use qos::{BitRate, DeviceRate, LinkBudget};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing_subscriber::EnvFilter;
use vhost_user_session::{Session, SessionConfig, SessionState, SocketSource, VirtioDevice};

/// Between looks at whether the only connection has ended; its end also wakes the wait.
const CONNECTION_LOOK: Duration = Duration::from_secs(3600);

/// Options of every back-end program.
#[derive(Debug, Args)]
pub struct Common {
    /// Listen for QEMU on this socket
    #[arg(
        long,
        value_name = "PATH",
        required_unless_present = "fd",
        conflicts_with = "fd"
    )]
    socket_path: Option<PathBuf>,
    /// Serve the one connection that is this inherited descriptor
    #[arg(long, value_name = "FDNUM", value_parser = clap::value_parser!(RawFd).range(3..))]
    fd: Option<RawFd>,
    /// Print what this program can do as JSON, and stop; every other option is ignored
    #[arg(long)]
    print_capabilities: bool,
    /// Access mode of the socket, octal
    #[arg(long, value_name = "MODE", default_value = "660", value_parser = octal)]
    socket_mode: u32,
    /// Where the director listens; each address is a link of its own, the first that is up is used
    #[arg(
        long,
        value_name = "tls:ADDR:PORT|tcp:ADDR:PORT|unix:PATH|shm:PATH",
        required = true
    )]
    director: Vec<LinkAddress>,
    /// Name that the director's certificate must carry; default: any that its CA has signed
    #[arg(long, value_name = "NAME")]
    director_name: Option<String>,
    /// Certificates of the CA that the director's is of, for tls:
    #[arg(long, value_name = "FILE", requires_all = ["tls_cert", "tls_key"])]
    tls_ca: Option<PathBuf>,
    /// Certificate of this host, for tls:
    #[arg(long, value_name = "FILE", requires = "tls_ca")]
    tls_cert: Option<PathBuf>,
    /// Its private key
    #[arg(long, value_name = "FILE", requires = "tls_ca")]
    tls_key: Option<PathBuf>,
    /// Let tcp: leave this machine, where anybody on the way can read and change it
    #[arg(long)]
    insecure: bool,
    /// Name of this host at the director
    #[arg(long, value_name = "NAME")]
    host: String,
    /// Number of the device on the fabric
    #[arg(long, value_name = "NUMBER")]
    device: u32,
    /// Generation of the device
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    generation: u32,
    /// Committed rate of what the guest sends, as in 300M; 0 is best effort
    #[arg(long, value_name = "RATE", default_value = "0")]
    cir: BitRate,
    /// Peak rate of what the guest sends; without one, the link's rate
    #[arg(long, value_name = "RATE")]
    pir: Option<BitRate>,
    /// Rate of the link to the director
    #[arg(long, value_name = "RATE", default_value = "10G")]
    link_rate: BitRate,
    /// Serve a guest whose memory could be truncated under us (QEMU without seal=on): it can end
    /// this process
    #[arg(long)]
    allow_unsealed_memory: bool,
    /// What to log: error, warn, info, debug, trace, or a filter as of RUST_LOG
    #[arg(long, value_name = "FILTER", env = "RUST_LOG", default_value = "warn")]
    log: String,
}

impl Common {
    /// Number of the device on the fabric.
    #[must_use]
    pub const fn device(&self) -> DeviceId {
        DeviceId(self.device)
    }

    /// How to make links to the director; all its addresses are allowed.
    fn links(&self) -> Result<LinkOptions> {
        let files = match (&self.tls_ca, &self.tls_cert, &self.tls_key) {
            (Some(ca), Some(cert), Some(key)) => Some(TlsFiles {
                ca: ca.clone(),
                cert: cert.clone(),
                key: key.clone(),
            }),
            _ => None,
        };
        let tls = files.map(TlsConfig::load).transpose();
        let tls = tls.context("--tls-ca, --tls-cert and --tls-key cannot be used")?;
        let options = LinkOptions {
            tls: tls.map(Arc::new),
            director: self.director_name.clone(),
            insecure: self.insecure,
        };
        for address in &self.director {
            options
                .check(address)
                .context("--director cannot be used (see --tls-ca and --insecure)")?;
        }
        Ok(options)
    }
}

/// What came to its end.
#[derive(Debug)]
enum End {
    /// SIGTERM or SIGINT asked for it.
    Signal,
    /// The connection of `--fd`.
    Connection,
}

/// Both faces of a device.
pub struct Device {
    /// Towards QEMU.
    pub virtio: Arc<dyn VirtioDevice>,
    /// Towards the fabric.
    pub lanes: Arc<dyn LaneClient>,
    /// What it can receive from there.
    pub windows: Windows,
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = self.virtio.name();
        f.debug_struct("Device")
            .field("name", &name)
            .field("windows", &self.windows)
            .finish_non_exhaustive()
    }
}

/// Runs a program of QEMU's back-end type `kind`.
pub fn main<Arguments: Parser>(
    kind: &str,
    common: impl Fn(&Arguments) -> &Common,
    device: impl FnOnce(&Arguments) -> Result<Device>,
) -> ExitCode {
    // Before parsing: whatever else is on the line does not matter.
    let outcome = if std::env::args_os().any(|argument| argument == "--print-capabilities") {
        writeln!(std::io::stdout(), r#"{{"type":"{kind}","features":[]}}"#).map_err(Into::into)
    } else {
        let arguments = Arguments::parse();
        device(&arguments).and_then(|device| serve(common(&arguments), device))
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // With standard error closed there is nobody to tell.
            drop(writeln!(std::io::stderr(), "{}: {error:#}", program_name()));
            ExitCode::FAILURE
        }
    }
}

fn program_name() -> String {
    let path = std::env::args_os()
        .next()
        .map(PathBuf::from)
        .unwrap_or_default();
    path.file_name().map_or_else(
        || "backend".to_owned(),
        |name| name.to_string_lossy().into_owned(),
    )
}

fn serve(common: &Common, device: Device) -> Result<()> {
    let filter = EnvFilter::try_new(&common.log)
        .with_context(|| format!("--log {} is no filter: try info", common.log))?;
    // First of all that opens a descriptor: the number must still be the inherited one.
    let socket = match (&common.socket_path, common.fd) {
        (_, Some(fd)) => SocketSource::Connected(inherited(fd)?),
        (path, None) => SocketSource::Path {
            path: path.clone().unwrap_or_default(),
            mode: common.socket_mode,
            owner: None,
            group: None,
        },
    };
    let only_connection = matches!(socket, SocketSource::Connected(_));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    // Before any thread starts, so that an early signal is not lost.
    let mut signals = Signals::new([SIGTERM, SIGINT]).context("signals cannot be taken")?;

    let links = common.links()?;
    let rate = DeviceRate::new(common.cir, common.pir).context("--cir and --pir do not fit")?;
    let budget = LinkBudget::new(format!("{} uplink", common.host), common.link_rate);
    let mut config = SessionConfig::new(socket);
    config.allow_unsealed_memory = common.allow_unsealed_memory;
    let session = Arc::new(Session::start(device.virtio, config)?);
    let grant = DeviceGrant {
        vm: None,
        rate,
        windows: device.windows,
        client: device.lanes,
    };
    let attached = UplinkDevice {
        id: common.device(),
        generation: common.generation,
        grant,
    };
    let uplink = Uplink::start(
        UplinkConfig {
            session: session_config(&common.host),
            budget,
        },
        connectors(&common.director, &links),
        vec![attached],
    )
    .context("uplink cannot be started")?;

    let (ended, end) = mpsc::channel();
    let signalled = ended.clone();
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            signals.forever().next();
            // The other cause was faster: the program ends already.
            drop(signalled.send(End::Signal));
        })
        .context("cannot start a thread for signals")?;
    if only_connection {
        let session = session.clone();
        std::thread::Builder::new()
            .name("connection".to_owned())
            .spawn(move || {
                while !session.wait_for(SessionState::Stopped, CONNECTION_LOOK) {}
                drop(ended.send(End::Connection));
            })
            .context("cannot start a thread for the connection")?;
    }
    let cause = end.recv().context("nothing is left to wait for")?;
    tracing::info!(?cause, "back end stops");
    session.stop();
    drop(uplink);
    Ok(())
}

/// Takes over descriptor `fd`, which must be a socket.
fn inherited(fd: RawFd) -> Result<OwnedFd> {
    let found = std::fs::metadata(format!("/proc/self/fd/{fd}"))
        .with_context(|| format!("--fd {fd} is no open descriptor"))?;
    ensure!(found.file_type().is_socket(), "--fd {fd} is not a socket");
    // SAFETY: `from_raw_fd` wants an open descriptor that nobody else owns. It is open: the kernel
    // has just described it. It is ours alone: this program has opened nothing that it keeps yet,
    // and descriptors 0 to 2, which the standard library uses, are refused by the option's range.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn octal(text: &str) -> Result<u32, ParseIntError> {
    u32::from_str_radix(text, 8)
}
