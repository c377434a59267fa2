//! Frames a second of the whole stack beside vectored writes and bare links: F1, F2, F3, F5, F6, F11.

use std::io::{IoSlice, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fabric_transport::DeviceId;
use fabric_transport::frame::{FrameBuffer, FrameHeader, FrameKind, HEADER_BYTES, VirtualLane};
use fabric_transport::link::{Filled, SendQueue};
use nix::sys::resource::{UsageWho, getrusage};
use qos::{BitRate, DeviceRate, LinkBudget};
use serde_json::Value;

use super::super::Figure;
use super::super::lanes::{Lanes, LinkKind};

const SLICE: Duration = Duration::from_millis(400);
const ROUNDS: usize = 7;
const DEVICES: usize = 1_000;
const DEVICES_FEW: usize = 5;
/// As many as a session has.
const DEVICES_MANY: usize = 4_000;
/// Rounds with the record of decisions on and off, and the part of the rate that stays.
const RECORD_ROUNDS: usize = 12;
const RECORD_GOAL: f64 = 0.97;
/// Payload bytes, and the part of plain writes to hold without and with CRC32C (F1).
const SIZES: [(usize, f64, f64); 2] = [(1_500, 0.80, 0.70), (4_096, 0.85, 0.80)];
/// Frames that plain writes write, one after the other.
const PLAIN_FRAMES: usize = 2_048;
const TCP: LinkKind = LinkKind::Tcp { checksummed: true };
const TCP_UNCHECKED: LinkKind = LinkKind::Tcp { checksummed: false };

/// F1: next to plain writes of the same frames.
pub(in super::super) fn lanes() -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (payload_bytes, unchecked_goal, goal) in SIZES {
        let (mut unchecked, mut checked) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let plain = plain_writes(payload_bytes)?;
            unchecked.push((rate(TCP_UNCHECKED, DEVICES, payload_bytes, true)?, plain));
            checked.push((rate(TCP, DEVICES, payload_bytes, true)?, plain));
        }
        let case = |what| format!("F1 TCP{what}, {DEVICES} devices, {payload_bytes} B");
        let unchecked_case = case(", no CRC");
        figures.push(figure("fabric", unchecked_case, &unchecked, unchecked_goal));
        figures.push(figure("fabric", case(""), &checked, goal));
    }
    Ok(figures)
}

/// What the record of decisions costs where frames really leave: the same with it on and off.
pub(in super::super) fn record() -> Result<Vec<Figure>> {
    let (payload_bytes, ..) = SIZES[0];
    let mut pairs = Vec::new();
    for _ in 0..RECORD_ROUNDS {
        let off = rate(TCP, DEVICES_FEW, payload_bytes, false)?;
        pairs.push((rate(TCP, DEVICES_FEW, payload_bytes, true)?, off));
    }
    let case = "link at full rate, record on".to_owned();
    Ok(vec![figure("qos-link", case, &pairs, RECORD_GOAL)])
}

/// F2: next to iperf3 on the same loopback.
pub(in super::super) fn beside_iperf() -> Result<Vec<Figure>> {
    const CASES: [(&str, usize, &str, f64); 3] = [
        ("F2 1500 B frames, iperf3 -l 128K", 1_500, "128K", 0.9),
        ("F2 1500 B frames, iperf3 -l 1500", 1_500, "1500", 5.0),
        ("F2 64 KiB frames, iperf3 -l 128K", 64 * 1024, "128K", 1.1),
    ];
    let mut figures = Vec::new();
    for (case, payload_bytes, length, goal) in CASES {
        let mut pairs = Vec::new();
        for _ in 0..ROUNDS {
            let iperf = iperf(length)?;
            pairs.push((rate(TCP, DEVICES_FEW, payload_bytes, true)?, iperf));
        }
        figures.push(figure("fabric", case.to_owned(), &pairs, goal));
    }
    Ok(figures)
}

/// Gb/s of one iperf3 stream.
fn iperf(length: &str) -> Result<f64> {
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let port = port.to_string();
    let mut server = Command::new("iperf3")
        .args(["-s", "-B", "127.0.0.1", "-p", &port])
        .stdout(Stdio::null())
        .spawn()
        .context("cannot run iperf3: cargo xtask setup installs it")?;
    let end = Instant::now() + super::super::lanes::PATIENCE;
    let rate = loop {
        let output = Command::new("iperf3")
            .args([
                "-c",
                "127.0.0.1",
                "-p",
                &port,
                "-t",
                "1",
                "-l",
                length,
                "-J",
            ])
            .output()?;
        let report: Value = serde_json::from_slice(&output.stdout)?;
        let rate = report.pointer("/end/sum_received/bits_per_second");
        // Until the server listens, the report has an error in place of a rate.
        if let Some(rate) = rate.and_then(Value::as_f64) {
            break rate;
        }
        if Instant::now() > end {
            server.kill()?;
            anyhow::bail!("iperf3 has no rate: {report}");
        }
    };
    server.kill()?;
    server.wait()?;
    Ok(rate / 1e9)
}

/// F3: the whole stack beside the bare ring.
pub(in super::super) fn shared_memory() -> Result<Vec<Figure>> {
    let mut pairs = Vec::new();
    for _ in 0..ROUNDS {
        let bare = bare_link(LinkKind::SharedMemory, 1_500)?;
        pairs.push((rate(LinkKind::SharedMemory, DEVICES, 1_500, true)?, bare));
    }
    let case = format!("F3 shared memory, {DEVICES} devices, 1500 B");
    Ok(vec![figure("fabric", case, &pairs, 0.6)])
}

/// F5: a session that is full beside one with a few devices.
pub(in super::super) fn many_devices() -> Result<Vec<Figure>> {
    let mut pairs = Vec::new();
    for _ in 0..ROUNDS {
        let few = rate(TCP, DEVICES_FEW, 1_500, true)?;
        pairs.push((rate(TCP, DEVICES_MANY, 1_500, true)?, few));
    }
    let case = format!("F5 {DEVICES_MANY} devices beside {DEVICES_FEW}, 1500 B");
    Ok(vec![figure("fabric", case, &pairs, 0.95)])
}

/// F6: TLS 1.3 beside plain TCP, which has no CRC32C then either.
pub(in super::super) fn tls() -> Result<Vec<Figure>> {
    let mut pairs = Vec::new();
    for _ in 0..ROUNDS {
        let plain = rate(TCP_UNCHECKED, DEVICES_FEW, 1_500, true)?;
        pairs.push((rate(LinkKind::Tls, DEVICES_FEW, 1_500, true)?, plain));
    }
    let case = "F6 TLS 1.3 beside TCP without CRC, 1500 B".to_owned();
    Ok(vec![figure("fabric", case, &pairs, 0.5)])
}

/// F11: processor time of both ends together for a frame of 1500 B with CRC32C.
pub(in super::super) fn cost_of_a_frame() -> Result<Vec<Figure>> {
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let run = run_lanes(TCP, DEVICES, 1_500, true)?;
        best = best.min(run.cpu_nanos / run.frames);
    }
    Ok(vec![Figure {
        bench: "fabric",
        case: "F11 processor time of a 1500 B frame, both ends".to_owned(),
        value: best,
        unit: "ns",
        reference: 1_250.0,
        goal: (0.0, 1.0),
    }])
}

fn cpu_nanos() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let nanos =
        |time: nix::sys::time::TimeVal| time.tv_sec() as f64 * 1e9 + time.tv_usec() as f64 * 1e3;
    Ok(nanos(usage.user_time()) + nanos(usage.system_time()))
}

/// Gb/s of sealed frames over a link alone.
fn bare_link(kind: LinkKind, payload_bytes: usize) -> Result<f64> {
    let (near, mut far) = kind.pair()?;
    let mut frame = FrameBuffer::zeroed(payload_bytes);
    let header = FrameHeader {
        version: 2,
        kind: FrameKind::Data,
        lane: Some(VirtualLane::Network),
        more: false,
        epoch: 1,
        device: DeviceId(1),
        payload_bytes: 0,
        attachment: 0,
        sequence: 0,
        credit_limit: 0,
        acknowledge: 0,
    };
    frame.seal(&header, false);
    let (stop, bytes) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| -> Result<f64> {
        let (stop_reading, bytes) = (&stop, &bytes);
        scope.spawn(move || {
            while let Ok(filled) = far.receiver.fill() {
                let frames = far.receiver.frames().map_or(0, |frames| frames.len());
                let read = frames * (HEADER_BYTES + payload_bytes);
                bytes.fetch_add(read as u64, Ordering::Relaxed);
                let ended = filled == Filled::End || stop_reading.load(Ordering::Relaxed);
                if ended {
                    return;
                }
            }
        });
        let stop_writing = &stop;
        scope.spawn(move || {
            let (mut sender, mut queue) = (near.sender, SendQueue::default());
            while !stop_writing.load(Ordering::Relaxed) {
                while queue.waiting() < 64 {
                    queue.push(frame.clone(), false);
                }
                if sender.send(&mut queue).is_err() {
                    return;
                }
            }
        });
        std::thread::sleep(SLICE / 4);
        let (before, started) = (bytes.load(Ordering::Relaxed), Instant::now());
        std::thread::sleep(SLICE);
        let rate = gigabits(bytes.load(Ordering::Relaxed) - before, started.elapsed());
        stop.store(true, Ordering::Relaxed);
        Ok(rate)
    })
}

/// The best of several interleaved slices: the machine's noise only ever takes away.
fn figure(bench: &'static str, case: String, pairs: &[(f64, f64)], goal: f64) -> Figure {
    let best = |values: &mut dyn Iterator<Item = f64>| values.fold(0.0, f64::max);
    Figure {
        bench,
        case,
        value: best(&mut pairs.iter().map(|(value, _)| *value)),
        unit: "Gb/s",
        reference: best(&mut pairs.iter().map(|(_, reference)| *reference)),
        goal: (goal, f64::INFINITY),
    }
}

/// What a run of two endpoints came to once it had settled.
struct Run {
    frames: f64,
    /// Gb/s of frame bytes.
    rate: f64,
    /// Of the whole process.
    cpu_nanos: f64,
}

/// Gb/s of frame bytes through two endpoints, with the record of decisions on or off.
fn rate(kind: LinkKind, devices: usize, payload_bytes: usize, record: bool) -> Result<f64> {
    run_lanes(kind, devices, payload_bytes, record).map(|run| run.rate)
}

fn run_lanes(kind: LinkKind, devices: usize, payload_bytes: usize, record: bool) -> Result<Run> {
    let budget = LinkBudget::new("bench link", BitRate::from_bits_per_second(400_000_000_000));
    let rates = vec![DeviceRate::best_effort(); devices];
    let lanes = Lanes::start(kind, &budget, &rates)?;
    lanes.set_recording(record);
    for sender in lanes.senders() {
        sender.feed(Some(payload_bytes));
    }
    std::thread::sleep(SLICE / 4);
    let started = Instant::now();
    let before = (lanes.bytes_total(), cpu_nanos()?);
    std::thread::sleep(SLICE);
    let bytes = lanes.bytes_total() - before.0;
    let run = Run {
        frames: bytes as f64 / (HEADER_BYTES + payload_bytes) as f64,
        rate: gigabits(bytes, started.elapsed()),
        cpu_nanos: cpu_nanos()? - before.1,
    };
    for sender in lanes.senders() {
        sender.feed(None);
    }
    Ok(run)
}

/// Gb/s of vectored writes of up to 64 frames of the same size, read by one thread. Each frame has
/// memory of its own, as many as a socket's buffer holds: frames are not written twice.
fn plain_writes(payload_bytes: usize) -> Result<f64> {
    let frame_bytes = HEADER_BYTES + payload_bytes;
    let frames = vec![0; frame_bytes * PLAIN_FRAMES];
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut near = TcpStream::connect(listener.local_addr()?)?;
    near.set_nodelay(true)?;
    let (mut far, _) = listener.accept()?;
    let (stop, bytes) = (AtomicBool::new(false), AtomicU64::new(0));
    let rate = std::thread::scope(|scope| -> Result<f64> {
        let bytes = &bytes;
        scope.spawn(move || {
            let mut buffer = vec![0; 512 * 1024];
            while let Ok(read @ 1..) = far.read(&mut buffer) {
                bytes.fetch_add(read as u64, Ordering::Relaxed);
            }
        });
        let stop = &stop;
        scope.spawn(move || {
            let frames: Vec<_> = frames.chunks(frame_bytes).map(IoSlice::new).collect();
            let mut batches = frames.chunks(64).cycle();
            while !stop.load(Ordering::Relaxed)
                && let Some(batch) = batches.next()
                && near.write_vectored(batch).is_ok()
            {}
        });
        std::thread::sleep(SLICE / 4);
        let (before, started) = (bytes.load(Ordering::Relaxed), Instant::now());
        std::thread::sleep(SLICE);
        let rate = gigabits(bytes.load(Ordering::Relaxed) - before, started.elapsed());
        stop.store(true, Ordering::Relaxed);
        Ok(rate)
    })?;
    Ok(rate)
}

fn gigabits(bytes: u64, elapsed: Duration) -> f64 {
    bytes as f64 * 8.0 / 1e9 / elapsed.as_secs_f64()
}
