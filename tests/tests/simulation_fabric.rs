//! Whole fabrics in virtual time: sessions, schedulers and a link with rate and delay. One seed is
//! one world; a failing test names its seed, and `ORIMONO_SEED` runs that world alone.
#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test")]
#![expect(
    clippy::indexing_slicing,
    reason = "an index out of range is a failed test"
)]

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use fabric_transport::control::Windows;
use fabric_transport::frame::{self, FrameBuffer, FrameHeader, HEADER_BYTES};
use fabric_transport::session::{Role, Session, SessionConfig, SessionEvent, SessionState};
use fabric_transport::{DeviceId, VirtualLane};
use qos::{BitRate, DeviceHandle, DeviceRate, LinkBudget, MonotonicTime, Scheduler};

const LANE: VirtualLane = VirtualLane::Network;
const WINDOW_BLOCKS: u32 = 16 * 1024;
const WINDOWS: Windows = [0, 0, 0, WINDOW_BLOCKS];
/// As `fabric_transport::endpoint` bounds what is underway on a fast link.
const UNACKNOWLEDGED_BYTES_MAX: usize = 4 << 20;
/// Bytes in a device's queue at which its source waits.
const QUEUE_BYTES_MAX: u64 = 256 * 1024;

/// A small generator with a printed seed (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn within(&mut self, range: std::ops::Range<u64>) -> u64 {
        range.start + self.next() % (range.end - range.start)
    }
}

/// What a device's receiver does with its frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Consumer {
    /// Frees them at once.
    Prompt,
    /// Frees them this late.
    Late(Duration),
    /// Never frees anything.
    Stalled,
}

struct Device {
    id: DeviceId,
    cir: BitRate,
    handle: DeviceHandle,
    consumer: Consumer,
    frame_bytes: std::ops::Range<u64>,
    sent: u64,
    received: u64,
    received_bytes: u64,
    held_blocks: u32,
    releases: VecDeque<(MonotonicTime, usize)>,
}

struct World {
    random: Random,
    now: MonotonicTime,
    host: Session,
    director: Session,
    scheduler: Scheduler<(usize, u32, FrameBuffer)>,
    devices: Vec<Device>,
    rate: BitRate,
    delay: Duration,
    /// When the wire is free again, and what is on it.
    free_at: MonotonicTime,
    to_director: BTreeMap<(MonotonicTime, u64), Vec<u8>>,
    to_host: BTreeMap<(MonotonicTime, u64), Vec<u8>>,
    order: u64,
}

fn session(role: Role, name: &str, now: MonotonicTime) -> Session {
    let config = SessionConfig {
        name: name.to_owned(),
        instance: 1,
        heartbeat: Duration::from_millis(250),
        silence_max: Duration::from_secs(2),
        greeting_max: Duration::from_secs(5),
    };
    Session::new(role, config, now)
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let rate = BitRate::from_bits_per_second(random.within(100_000_000..10_000_000_000));
        let delay = Duration::from_nanos(random.within(5_000..500_000));
        let mut scheduler = Scheduler::new(LinkBudget::new("simulated link", rate));
        let now = MonotonicTime::ZERO;
        let count = random.within(2..12);
        let mut free = rate.bits_per_second() * 9 / 10;
        let devices = (0..count).map(|index| {
            let cir = BitRate::from_bits_per_second(random.within(0..free / 3 + 1));
            free -= cir.bits_per_second();
            let handle = scheduler
                .add_device(now, DeviceRate::new(cir, None).unwrap())
                .unwrap();
            let consumer = match random.within(0..4) {
                // The first always measures that the promise holds beside whatever the others do.
                _ if index == 0 => Consumer::Prompt,
                0 => Consumer::Stalled,
                1 => Consumer::Late(Duration::from_micros(random.within(1..100))),
                _ => Consumer::Prompt,
            };
            let largest = random.within(100..65_000);
            Device {
                id: DeviceId(u32::try_from(index).unwrap() + 1),
                cir,
                handle,
                consumer,
                frame_bytes: 64..largest,
                sent: 0,
                received: 0,
                received_bytes: 0,
                held_blocks: 0,
                releases: VecDeque::new(),
            }
        });
        let devices = devices.collect();
        let mut world = Self {
            now,
            host: session(Role::Host, "host", now),
            director: session(Role::Director, "director", now),
            scheduler,
            devices,
            rate,
            delay,
            free_at: now,
            to_director: BTreeMap::new(),
            to_host: BTreeMap::new(),
            order: 0,
            random,
        };
        world.connect(1);
        world
    }

    /// Greets and attaches every device, in no time.
    fn connect(&mut self, epoch: u16) {
        for _ in 0..4 {
            pump(self.now, &mut self.host, &mut self.director);
            while let Some(event) = self.director.poll_event() {
                match event {
                    SessionEvent::Greeted { .. } => self.director.welcome(epoch),
                    SessionEvent::AttachRequested { device, .. } => {
                        self.director.accept(device, WINDOWS)
                    }
                    _ => {}
                }
            }
            pump(self.now, &mut self.director, &mut self.host);
            while let Some(event) = self.host.poll_event() {
                if let SessionEvent::Active { .. } = event {
                    for device in &self.devices {
                        self.host.attach(device.id, 0, WINDOWS);
                    }
                }
            }
        }
        assert_eq!(self.host.epoch(), epoch);
    }

    /// Every source sends what fits: all are greedy.
    fn offer(&mut self) {
        for (index, device) in self.devices.iter_mut().enumerate() {
            while self.scheduler.queued_bytes(device.handle).unwrap() < QUEUE_BYTES_MAX {
                let payload_bytes =
                    usize::try_from(self.random.within(device.frame_bytes.clone())).unwrap();
                let blocks = frame::blocks(payload_bytes);
                if self.host.may_send(device.id, [0, 0, 0, blocks]).is_err() {
                    break;
                }
                let sequence = self.host.take_credit(device.id, LANE, payload_bytes);
                let mut buffer = FrameBuffer::zeroed(payload_bytes);
                buffer.payload_mut()[..8].copy_from_slice(&device.sent.to_le_bytes());
                device.sent += 1;
                let bytes = u32::try_from(buffer.frame_bytes()).unwrap();
                let item = (index, sequence, buffer);
                self.scheduler
                    .enqueue(self.now, device.handle, 0, bytes, item)
                    .unwrap();
            }
        }
    }

    /// Puts on the wire what the scheduler allows.
    fn transmit(&mut self) {
        while let Some((header, control)) = self.host.poll_transmit() {
            let mut buffer = FrameBuffer::with_capacity(0);
            buffer.append_with(|bytes| control.encode(bytes));
            self.put_on_wire(&header, buffer);
        }
        while self.host.unacknowledged_bytes() < UNACKNOWLEDGED_BYTES_MAX
            && let Some(grant) = self.scheduler.dequeue(self.now)
        {
            let (index, sequence, buffer) = grant.item;
            let id = self.devices[index].id;
            let header = self
                .host
                .transmit_data(id, LANE, sequence, buffer.payload_bytes());
            self.put_on_wire(&header, buffer);
        }
        while let Some((header, control)) = self.director.poll_transmit() {
            let mut buffer = FrameBuffer::with_capacity(0);
            buffer.append_with(|bytes| control.encode(bytes));
            buffer.seal(&header, true);
            self.order += 1;
            let arrival = self.now.saturating_add(self.delay);
            self.to_host
                .insert((arrival, self.order), buffer.frame().to_vec());
        }
    }

    fn put_on_wire(&mut self, header: &FrameHeader, mut buffer: FrameBuffer) {
        buffer.seal(header, true);
        let nanos = self.rate.transmission_nanos(buffer.frame_bytes() as u64);
        self.free_at = self
            .free_at
            .max(self.now)
            .saturating_add(Duration::from_nanos(nanos));
        self.order += 1;
        let arrival = self.free_at.saturating_add(self.delay);
        self.to_director
            .insert((arrival, self.order), buffer.frame().to_vec());
    }

    fn arrive(&mut self) {
        while let Some(entry) = self.to_director.first_entry()
            && entry.key().0 <= self.now
        {
            let frame = entry.remove();
            let (header, payload) = FrameHeader::parse(&frame, true).unwrap();
            if self
                .director
                .handle_frame(self.now, &header, payload)
                .unwrap()
            {
                let device = self
                    .devices
                    .iter_mut()
                    .find(|device| device.id == header.device)
                    .unwrap();
                let number = u64::from_le_bytes(payload[..8].try_into().unwrap());
                assert_eq!(
                    number, device.received,
                    "{} lost or reordered a frame",
                    device.id
                );
                device.received += 1;
                device.received_bytes += (HEADER_BYTES + payload.len()) as u64;
                device.held_blocks += frame::blocks(payload.len());
                assert!(
                    device.held_blocks <= WINDOW_BLOCKS,
                    "{} exceeds its window",
                    device.id
                );
                let release_at = match device.consumer {
                    Consumer::Prompt => self.now,
                    Consumer::Late(late) => self.now.saturating_add(late),
                    Consumer::Stalled => continue,
                };
                device.releases.push_back((release_at, payload.len()));
            }
        }
        for device in &mut self.devices {
            while let Some((at, payload_bytes)) = device.releases.front().copied()
                && at <= self.now
            {
                device.releases.pop_front();
                device.held_blocks -= frame::blocks(payload_bytes);
                self.director
                    .release(device.id, LANE, frame::blocks(payload_bytes));
            }
        }
        while let Some(entry) = self.to_host.first_entry()
            && entry.key().0 <= self.now
        {
            let frame = entry.remove();
            let (header, payload) = FrameHeader::parse(&frame, true).unwrap();
            self.host.handle_frame(self.now, &header, payload).unwrap();
        }
        while self.host.poll_event().is_some() {}
    }

    fn run_until(&mut self, end: MonotonicTime) {
        while self.now < end {
            self.arrive();
            self.offer();
            self.transmit();
            let next = [
                self.to_director.first_key_value().map(|(key, _)| key.0),
                self.to_host.first_key_value().map(|(key, _)| key.0),
                self.scheduler.next_wake(self.now),
                self.host.poll_timeout(),
                self.director.poll_timeout(),
                self.devices
                    .iter()
                    .filter_map(|device| Some(device.releases.front()?.0))
                    .min(),
            ];
            let next = next
                .into_iter()
                .flatten()
                .filter(|next| *next > self.now)
                .min();
            self.now = next.unwrap_or(end).min(end);
            self.host.handle_timeout(self.now);
            self.director.handle_timeout(self.now);
        }
        assert_eq!(self.host.state(), SessionState::Active);
        assert_eq!(self.director.state(), SessionState::Active);
    }
}

fn pump(now: MonotonicTime, from: &mut Session, to: &mut Session) {
    while let Some((header, control)) = from.poll_transmit() {
        let mut buffer = FrameBuffer::with_capacity(0);
        buffer.append_with(|bytes| control.encode(bytes));
        buffer.seal(&header, true);
        let (header, payload) = FrameHeader::parse(buffer.frame(), true).unwrap();
        to.handle_frame(now, &header, payload).unwrap();
    }
}

fn seeds() -> Vec<u64> {
    let one = std::env::var("ORIMONO_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let count = if std::env::var_os("ORIMONO_TEST_FULL").is_some() {
        2000
    } else {
        40
    };
    one.map_or_else(|| (0..count).collect(), |seed| vec![seed])
}

#[test]
fn frames_arrive_once_in_order_and_the_promise_holds_beside_stalled_devices() {
    for seed in seeds() {
        println!("ORIMONO_SEED={seed}");
        let mut world = World::new(seed);
        let start = MonotonicTime::from_nanos(20_000_000);
        world.run_until(start);
        let before: Vec<_> = world
            .devices
            .iter()
            .map(|device| device.received_bytes)
            .collect();
        let span = Duration::from_millis(200);
        world.run_until(start.saturating_add(span));
        for (device, before) in world.devices.iter().zip(before) {
            match device.consumer {
                // What it was sent is bounded by its window, which every arrival asserts.
                Consumer::Stalled => {}
                Consumer::Prompt => {
                    // Greedy all the time: the reserved rate, less one frame at either end.
                    let bytes = device.received_bytes - before;
                    let promised =
                        u128::from(device.cir.bits_per_second()) * span.as_nanos() / 8_000_000_000;
                    assert!(
                        u128::from(bytes) + 2 * 65_032 >= promised,
                        "{} got {bytes} of {promised} bytes",
                        device.id
                    );
                }
                Consumer::Late(_) => assert!(device.received > 0),
            }
        }
    }
}

#[test]
fn p07_frames_of_a_session_that_died_are_never_taken_for_those_of_the_next() {
    for seed in seeds() {
        println!("ORIMONO_SEED={seed}");
        let mut world = World::new(seed);
        world.run_until(MonotonicTime::from_nanos(5_000_000));
        let late = std::mem::take(&mut world.to_director);
        assert!(!late.is_empty());
        world.to_host.clear();
        world.host = session(Role::Host, "host", world.now);
        world.director = session(Role::Director, "director", world.now);
        world.connect(2);
        for frame in late.values() {
            let (header, payload) = FrameHeader::parse(frame, true).unwrap();
            // The first closes the session, which then takes nothing more.
            assert_ne!(
                world.director.handle_frame(world.now, &header, payload),
                Ok(true)
            );
        }
    }
}
