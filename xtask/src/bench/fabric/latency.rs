//! Round trips of 64 bytes through both whole stacks, beside the bare link: F3 and F4. And a small
//! reader beside a flood.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fabric_transport::endpoint::{DeviceGrant, Endpoint, NewPath};
use fabric_transport::session::{Established, Role, SessionConfig};
use fabric_transport::{
    DeviceId, Directory, EndpointConfig, FrameBuffer, LaneClient, LaneSet, Receipt, VirtualLane,
};
use qos::{BitRate, DeviceRate, LinkBudget};

use super::super::Figure;
use super::super::lanes::{LinkKind, PATIENCE};

const ROUNDS: usize = 5;
const ROUND_TRIPS: usize = 4_000;
const PAYLOAD_BYTES: usize = 32;
const BUSY_POLL: Duration = Duration::from_micros(50);
const TCP: LinkKind = LinkKind::Tcp { checksummed: true };

pub(in super::super) fn measure() -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let best = |measure: &dyn Fn() -> Result<f64>| -> Result<f64> {
        (0..ROUNDS).try_fold(f64::INFINITY, |best, _| Ok(f64::min(best, measure()?)))
    };
    figures.push(Figure {
        bench: "fabric",
        case: "F3 shared memory, round trip of 64 B, busy poll".to_owned(),
        value: best(&|| round_trip(LinkKind::SharedMemory, BUSY_POLL))?,
        unit: "us",
        reference: 1.5,
        goal: (0.0, 1.0),
    });
    let bare = best(&|| bare_tcp(true))?;
    figures.push(Figure {
        bench: "fabric",
        case: "F4 TCP, round trip of 64 B, busy poll".to_owned(),
        value: best(&|| round_trip(TCP, BUSY_POLL))?,
        unit: "us",
        reference: bare + 2.0,
        goal: (0.0, 1.0),
    });
    let bare = best(&|| bare_tcp(false))?;
    figures.push(Figure {
        bench: "fabric",
        case: "F4 TCP, round trip of 64 B, sleeping".to_owned(),
        value: best(&|| round_trip(TCP, Duration::ZERO))?,
        unit: "us",
        reference: bare,
        goal: (0.0, 1.1),
    });
    figures.push(reader_beside_a_flood()?);
    Ok(figures)
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().unwrap_or(f64::NAN)
}

fn percentile_99(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    let at = samples.len() * 99 / 100;
    samples.get(at).copied().unwrap_or(f64::NAN)
}

/// What a client does with a frame.
enum Part {
    /// Answers with so many bytes.
    Answer(usize),
    /// Asks with so many bytes, and again as soon as the answer has come, until it has timed
    /// [`ROUND_TRIPS`]. On the session's thread: another one that spins or sleeps beside it would
    /// be measured too.
    Ask(usize),
    /// Nothing.
    Take,
}

#[derive(Default)]
struct Game {
    lanes: Option<LaneSet>,
    asked: Option<Instant>,
    microseconds: Vec<f64>,
}

/// A device of either end.
struct Player {
    part: Part,
    game: Mutex<Game>,
    changed: Condvar,
}

impl Player {
    fn new(part: Part) -> Arc<Self> {
        Arc::new(Self {
            part,
            game: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    fn game(&self) -> MutexGuard<'_, Game> {
        self.game.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self, ready: impl Fn(&Game) -> bool) -> Result<MutexGuard<'_, Game>> {
        let waited = self
            .changed
            .wait_timeout_while(self.game(), PATIENCE, |game| !ready(game));
        let (game, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        anyhow::ensure!(!timeout.timed_out(), "nothing came from the other end");
        Ok(game)
    }

    fn lanes(&self) -> Result<LaneSet> {
        let game = self.wait(|game| game.lanes.is_some())?;
        game.lanes.clone().context("device did not come up")
    }

    /// Microseconds of each round trip.
    fn round_trips(&self) -> Result<Vec<f64>> {
        let lanes = self.lanes()?;
        self.ask(&lanes);
        let mut game = self.wait(|game| game.microseconds.len() >= ROUND_TRIPS)?;
        Ok(std::mem::take(&mut game.microseconds))
    }

    fn ask(&self, lanes: &LaneSet) {
        if let Part::Ask(bytes) = self.part {
            self.game().asked = Some(Instant::now());
            send(lanes, bytes);
        }
    }
}

fn send(lanes: &LaneSet, payload_bytes: usize) {
    let mut frames = vec![(VirtualLane::Network, FrameBuffer::zeroed(payload_bytes))];
    // A lane without room is a flood's: it comes again.
    if lanes.try_send(&mut frames).is_err() {
        lanes.flush();
    }
}

impl LaneClient for Player {
    fn up(&self, lanes: LaneSet) {
        self.game().lanes = Some(lanes);
        self.changed.notify_all();
    }
    fn receive(&self, _: VirtualLane, _: &[u8]) -> Receipt {
        let mut game = self.game();
        if let Some(asked) = game.asked.take() {
            game.microseconds.push(asked.elapsed().as_secs_f64() * 1e6);
        }
        let over = game.microseconds.len() >= ROUND_TRIPS;
        let lanes = game.lanes.clone();
        drop(game);
        match (&self.part, lanes) {
            (Part::Answer(bytes), Some(lanes)) => send(&lanes, *bytes),
            (Part::Ask(_), Some(lanes)) if !over => self.ask(&lanes),
            (Part::Ask(_), _) => self.changed.notify_all(),
            _ => {}
        }
        Receipt::Consumed
    }
    fn writable(&self) {}
    fn down(&self, _: u16) {
        self.game().lanes = None;
    }
}

struct Players(Vec<(Arc<Player>, DeviceRate)>);

impl Players {
    fn grant(&self, index: usize) -> Option<DeviceGrant> {
        let (client, rate) = self.0.get(index)?;
        Some(DeviceGrant {
            rate: *rate,
            vm: None,
            windows: [0, 0, 0, 16 * 1024],
            client: client.clone(),
        })
    }
}

impl Directory for Players {
    fn active(&self, endpoint: &Arc<Endpoint>) {
        for index in 0..self.0.len() {
            let id = u32::try_from(index).unwrap_or(u32::MAX);
            if let Some(grant) = self.grant(index)
                && let Err(error) = endpoint.attach(DeviceId(id), 0, grant)
            {
                crate::say(&format!("device cannot be attached: {error}"));
            }
        }
    }
    fn attach(&self, _: &str, device: DeviceId, _: u32) -> Result<DeviceGrant, String> {
        let index = usize::try_from(device.0).unwrap_or(usize::MAX);
        self.grant(index).ok_or_else(|| "unknown".to_owned())
    }
}

/// Both ends of a session; they end when this is dropped.
struct Session([Arc<Endpoint>; 2]);

impl Session {
    fn start(
        kind: LinkKind,
        rate: BitRate,
        busy_poll: Duration,
        [host, director]: [Vec<(Arc<Player>, DeviceRate)>; 2],
    ) -> Result<Self> {
        let (near, far) = kind.pair()?;
        let start = |role, link, players| -> Result<Arc<Endpoint>> {
            let config = EndpointConfig {
                role,
                session: SessionConfig {
                    busy_poll,
                    ..SessionConfig::new("bench", 1)
                },
                budget: LinkBudget::new("bench link", rate),
            };
            let established = Established::without_handshake("bench", 1);
            let path = NewPath::only(link);
            let players = Arc::new(Players(players));
            let (endpoint, _detached) =
                Endpoint::start(config, established, path, players, "bench")?;
            Ok(endpoint)
        };
        let far = start(Role::Director, far, director)?;
        Ok(Self([start(Role::Host, near, host)?, far]))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        for end in &self.0 {
            end.close("bench is over");
        }
    }
}

/// Median microseconds of a round trip through both stacks.
fn round_trip(kind: LinkKind, busy_poll: Duration) -> Result<f64> {
    let (host, director) = (
        Player::new(Part::Ask(PAYLOAD_BYTES)),
        Player::new(Part::Answer(PAYLOAD_BYTES)),
    );
    let free = DeviceRate::best_effort();
    let ends = [vec![(host.clone(), free)], vec![(director, free)]];
    let rate = BitRate::from_bits_per_second(400_000_000_000);
    let _session = Session::start(kind, rate, busy_poll, ends)?;
    Ok(median(host.round_trips()?))
}

/// Median microseconds of 64 bytes there and back over plain TCP, both ends spinning or sleeping.
fn bare_tcp(spin: bool) -> Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut near = TcpStream::connect(listener.local_addr()?)?;
    let (mut far, _) = listener.accept()?;
    for stream in [&near, &far] {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(spin)?;
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stop_echo = &stop;
        scope.spawn(move || {
            let mut buffer = [0; 64];
            while !stop_echo.load(Ordering::Relaxed) {
                match far.read(&mut buffer) {
                    Ok(0) => return,
                    Ok(bytes) => drop(far.write_all(buffer.get(..bytes).unwrap_or_default())),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
                    Err(_) => return,
                }
            }
        });
        let mut trips = Vec::with_capacity(ROUND_TRIPS);
        let mut buffer = [0; 64];
        for _ in 0..ROUND_TRIPS {
            let started = Instant::now();
            near.write_all(&[1; 64])?;
            let mut missing = 64;
            while missing > 0 {
                match near.read(&mut buffer) {
                    Ok(0) => anyhow::bail!("echo ended"),
                    Ok(bytes) => missing -= bytes,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
                    Err(error) => return Err(error.into()),
                }
            }
            trips.push(started.elapsed().as_secs_f64() * 1e6);
        }
        stop.store(true, Ordering::Relaxed);
        drop(near);
        Ok(median(trips))
    })
}

/// 4 KiB reads of a device with a reservation on 1 Gb/s, alone and beside a device that floods the
/// same direction with frames of 64 KiB.
fn reader_beside_a_flood() -> Result<Figure> {
    let rate: BitRate = "1G".parse()?;
    let reserved = DeviceRate::new("100M".parse()?, None)?;
    let p99 = |flooded: bool| -> Result<f64> {
        let (reader, disk) = (Player::new(Part::Ask(64)), Player::new(Part::Answer(4096)));
        let (sink, flood) = (Player::new(Part::Take), Player::new(Part::Take));
        let free = DeviceRate::best_effort();
        let ends = [
            vec![(reader.clone(), reserved), (sink, free)],
            vec![(disk, reserved), (flood.clone(), free)],
        ];
        let _session = Session::start(TCP, rate, Duration::ZERO, ends)?;
        let flood_lanes = flood.lanes()?;
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let stop = &stop;
            if flooded {
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        send(&flood_lanes, 64 * 1024);
                        std::thread::sleep(Duration::from_micros(200));
                    }
                });
            }
            let reads = reader.round_trips();
            stop.store(true, Ordering::Relaxed);
            Ok(percentile_99(reads?))
        })
    };
    let mut best = (f64::INFINITY, f64::INFINITY);
    for _ in 0..ROUNDS {
        best = (best.0.min(p99(true)?), best.1.min(p99(false)?));
    }
    Ok(Figure {
        bench: "fabric",
        case: "4 KiB reads beside a 64 KiB flood, p99".to_owned(),
        value: best.0,
        unit: "us",
        reference: best.1,
        goal: (0.0, 2.0),
    })
}
