//! What lanes, credits, the scheduler, acknowledgements and CRC32C cost: the same frames through
//! two endpoints and by plain vectored writes, on the same loopback TCP, in turns.

use std::io::{IoSlice, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use qos::{BitRate, DeviceRate, LinkBudget};

use super::Figure;
use super::lanes::{Lanes, Sender};

const SLICE: Duration = Duration::from_millis(400);
const ROUNDS: usize = 7;
const DEVICES: usize = 10;
/// Rounds with the record of decisions on and off, and the part of the rate that stays.
const RECORD_ROUNDS: usize = 12;
const RECORD_GOAL: f64 = 0.97;
/// Payload bytes, and the part of plain writes to hold with CRC32C on (figure F1).
const SIZES: [(usize, f64); 2] = [(1_526, 0.70), (4_096 + 16, 0.80)];

pub(super) fn measure() -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (payload_bytes, goal) in SIZES {
        let mut pairs = Vec::new();
        for _ in 0..ROUNDS {
            let plain = plain_writes(payload_bytes)?;
            pairs.push((lanes(payload_bytes, true)?, plain));
        }
        let case = format!("TCP, {DEVICES} devices, {payload_bytes} B");
        figures.push(figure("fabric", case, &pairs, goal));
    }
    Ok(figures)
}

/// What the record of decisions costs where frames really leave: the same with it on and off.
pub(super) fn record() -> Result<Vec<Figure>> {
    let (payload_bytes, _) = SIZES[0];
    let mut pairs = Vec::new();
    for _ in 0..RECORD_ROUNDS {
        let off = lanes(payload_bytes, false)?;
        pairs.push((lanes(payload_bytes, true)?, off));
    }
    let case = "link at full rate, record on".to_owned();
    Ok(vec![figure("qos-link", case, &pairs, RECORD_GOAL)])
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

/// Gb/s of frame bytes through two endpoints, with the record of decisions on or off.
fn lanes(payload_bytes: usize, record: bool) -> Result<f64> {
    let budget = LinkBudget::new("bench link", BitRate::from_bits_per_second(400_000_000_000));
    let lanes = Lanes::start(&budget, &[DeviceRate::best_effort(); DEVICES])?;
    lanes.set_recording(record);
    let stop = AtomicBool::new(false);
    let rate = std::thread::scope(|scope| -> Result<f64> {
        // One thread feeds all, as one ring's thread would: two cores are for the two ends.
        let (senders, feeding) = (lanes.senders(), &stop);
        let feed = std::thread::Builder::new().name("bench-feed".to_owned());
        feed.spawn_scoped(scope, move || {
            while !feeding.load(Ordering::Relaxed) {
                let room = Sender::rooms(senders);
                let mut queued = None;
                for sender in senders {
                    queued = sender.queue_batch(payload_bytes).or(queued);
                }
                // All share one link: whoever flushes, flushes for all.
                match queued {
                    Some(lanes) => lanes.flush(),
                    // As a ring's thread does: it sleeps until a lane has room again.
                    None => Sender::wait_room(senders, room),
                }
            }
        })?;
        std::thread::sleep(SLICE / 4);
        let (before, started) = (lanes.bytes().iter().sum::<u64>(), Instant::now());
        std::thread::sleep(SLICE);
        let bytes = lanes.bytes().iter().sum::<u64>() - before;
        let rate = gigabits(bytes, started.elapsed());
        stop.store(true, Ordering::Relaxed);
        Ok(rate)
    })?;
    Ok(rate)
}

/// Gb/s of vectored writes of up to 64 frames of the same size, read by one thread.
fn plain_writes(payload_bytes: usize) -> Result<f64> {
    let frame = vec![0; fabric_transport::frame::HEADER_BYTES + payload_bytes];
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
            let batch = [IoSlice::new(&frame); 64];
            while !stop.load(Ordering::Relaxed) && near.write_vectored(&batch).is_ok() {}
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
