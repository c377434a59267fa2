//! `capture-scsi` and `capture-frames`: the commands of a vHBA, or the frames of a vNIC or a port, as a
//! file for Wireshark.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use qos_monitor::Client;
use qos_monitor::capture_file::CaptureFile;
use qos_monitor::frames::CaptureInterface;
use qos_monitor::network::FramesOf;
use qos_monitor::storage::CaptureWanted;
use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::print;

/// How often captured frames are fetched: well below what the director keeps.
const FETCH: Duration = Duration::from_millis(20);

/// What to capture, and where to. Ends by --for, by --frames, or by an interrupt.
///
/// A command, its data and its status become the Fibre Channel frames that would carry them
/// (FCP-4): S_ID stands for the vHBA, D_ID for the SAN port. Of a vHBA that does more than 40000
/// frames or 10 MB a second some exchanges are left out; the file says how many frames that were.
#[derive(Debug, clap::Args)]
pub(crate) struct CaptureScsi {
    /// The vHBA, as vhbas shows it
    #[arg(long, value_name = "NAME")]
    vhba: String,
    /// Only this LUN of it
    #[arg(long, value_name = "N")]
    lun: Option<u16>,
    /// Bytes to keep of each frame, its header and the first data among them
    #[arg(long, value_name = "BYTES", default_value_t = 256,
        value_parser = clap::value_parser!(u32).range(128..=66_000))]
    snap: u32,
    #[command(flatten)]
    output: CaptureOutput,
}

/// What to capture, and where to. Ends by --for, by --frames, or by an interrupt.
///
/// Directions are as the guest of a vNIC, or the interface of a port, sees them: inbound is what the
/// guest receives, or what the port gets from the LAN. Of a private network all that its vNICs send is
/// inbound. Comments say the vNIC, and why a frame was dropped. A super-frame is captured whole, with
/// its checksum finished.
///
/// A filter is what a rule of an access list says of a frame: source-mac, destination-mac, vlan (of the
/// tag that the frame has), protocol (arp, ipv4, ipv6, icmp, icmp6, tcp, udp, sctp, a number, or an
/// EtherType: 0x88cc), source, destination, source-port, destination-port. All of its words must be
/// true, and of several filters one.
#[derive(Debug, clap::Args)]
#[group(id = "of", required = true, multiple = false, args = ["vnic", "port"])]
pub(crate) struct CaptureFrames {
    /// The vNIC, like vn01.vm1
    #[arg(long, value_name = "NAME")]
    vnic: Option<String>,
    /// The Ethernet port or private network
    #[arg(long, value_name = "SLOT/PORT")]
    port: Option<String>,
    /// Only these, like "protocol=tcp destination-port=80"; may be given several times
    #[arg(long, value_name = "WORDS")]
    filter: Vec<String>,
    /// Bytes to keep of each frame
    #[arg(long, value_name = "BYTES", default_value_t = 66_000,
        value_parser = clap::value_parser!(u32).range(14..=66_000))]
    snap: u32,
    /// Frames a second at most; what is more is left out and counted, as is what is above 40 MB a
    /// second
    #[arg(long, value_name = "FRAMES", default_value_t = 20_000,
        value_parser = clap::value_parser!(u32).range(1..=40_000))]
    rate: u32,
    #[command(flatten)]
    output: CaptureOutput,
}

/// Where to, and how long.
#[derive(Debug, clap::Args)]
struct CaptureOutput {
    /// The file; - is standard output, as wireshark -k -i - and tcpdump -r - read it
    #[arg(short = 'w', long = "write", value_name = "FILE", default_value = "-")]
    write: PathBuf,
    /// Ends after this time, like 10s
    #[arg(long = "for", visible_alias = "duration", value_name = "TIME", value_parser = humantime::parse_duration)]
    time: Option<Duration>,
    /// Ends after so many frames
    #[arg(long, visible_alias = "count", value_name = "N")]
    frames: Option<u64>,
}

/// What became of it.
#[derive(Debug, Serialize)]
struct Summary {
    frames: u64,
    dropped: u64,
}

pub(crate) fn scsi(client: &mut Client, capture: &CaptureScsi, json: bool) -> Result<()> {
    let wanted = CaptureWanted {
        vhba: capture.vhba.clone(),
        lun: capture.lun,
        snap_bytes: capture.snap,
    };
    run(client, &capture.output, json, |client| {
        Ok(client.start_capture(&wanted)?)
    })
}

pub(crate) fn frames(client: &mut Client, capture: &CaptureFrames, json: bool) -> Result<()> {
    let of = match (&capture.vnic, &capture.port) {
        (Some(vnic), _) => FramesOf::Vnic(vnic.clone()),
        (None, port) => FramesOf::Port(port.clone().unwrap_or_default()),
    };
    run(client, &capture.output, json, |client| {
        let (filters, snap, rate) = (&capture.filter, capture.snap, capture.rate);
        Ok(client.start_frames(&of, filters, snap, rate)?)
    })
}

fn run(
    client: &mut Client,
    capture: &CaptureOutput,
    json: bool,
    start: impl FnOnce(&mut Client) -> Result<CaptureInterface>,
) -> Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, stop.clone()).context("signals cannot be taken")?;
    }
    let to_stdout = capture.write.as_os_str() == "-";
    ensure!(
        !(to_stdout && io::stdout().is_terminal()),
        "a capture is no text: give -w FILE, or pipe it into tcpdump -r -"
    );
    let interface = start(client)?;
    let out: Box<dyn Write> = if to_stdout {
        Box::new(io::stdout())
    } else {
        let file = File::create(&capture.write);
        Box::new(file.with_context(|| format!("{} cannot be made", capture.write.display()))?)
    };
    let unwritten = || format!("{} cannot be written", capture.write.display());
    let mut file = CaptureFile::new(BufWriter::new(out), &interface).with_context(unwritten)?;
    let end = capture.time.map(|time| Instant::now() + time);
    let mut summary = Summary {
        frames: 0,
        dropped: 0,
    };
    loop {
        // Looked at before the frames are fetched: what is there when it ends is in the file.
        let over = stop.load(Ordering::Relaxed) || end.is_some_and(|end| Instant::now() >= end);
        let mut captured = client.take_capture()?;
        if let Some(frames) = capture.frames {
            let left = frames.saturating_sub(summary.frames);
            captured
                .frames
                .truncate(usize::try_from(left).unwrap_or(usize::MAX));
        }
        summary.frames += u64::try_from(captured.frames.len()).unwrap_or(0);
        summary.dropped = captured.dropped;
        let written = file.add(&captured).and_then(|()| file.flush());
        if to_stdout && is_broken_pipe(&written) {
            // Who watched has seen enough.
            return Ok(());
        }
        written.with_context(unwritten)?;
        if over
            || capture
                .frames
                .is_some_and(|frames| summary.frames >= frames)
        {
            break;
        }
        std::thread::sleep(FETCH);
    }
    let finished = file.finish().and_then(|mut out| out.flush());
    if to_stdout && is_broken_pipe(&finished) {
        return Ok(());
    }
    finished.with_context(unwritten)?;
    let text = format!(
        "{}: {} frames, {} dropped\n",
        capture.write.display(),
        summary.frames,
        summary.dropped
    );
    if to_stdout {
        // With standard error closed there is nobody to tell.
        drop(io::stderr().write_all(text.as_bytes()));
        return Ok(());
    }
    print(json, &summary, || text)
}

fn is_broken_pipe(written: &io::Result<()>) -> bool {
    matches!(written, Err(error) if error.kind() == io::ErrorKind::BrokenPipe)
}
