//! A million frames of random devices and VMs: every decision is held against the plain model.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a failed expectation is a failed test"
)]

mod common;
mod model;

use common::{Random, at, budget};
use model::Model;
use qos::{
    BitRate, DeviceHandle, DeviceRate, Grant, MonotonicTime, Scheduler, Trace, VmHandle, VmRate,
};

struct World {
    scheduler: Scheduler<()>,
    model: Model,
    devices: Vec<Device>,
    vms: Vec<Vm>,
    now: u64,
    departures: u64,
}

struct Device {
    handle: DeviceHandle,
    cir: BitRate,
    bytes_max: u32,
    vm: Option<usize>,
    pattern: Pattern,
    backlog: Backlog,
}

/// A VM as its promises are about it.
struct Vm {
    /// Its own committed rate, or the sum of its devices'.
    cir: BitRate,
    bytes_max: u32,
    /// It has a peak, during which its devices' time stands still.
    peaks: bool,
    /// One of its devices has a peak: the VM may be without a frame that may leave.
    devices_peak: bool,
    backlog: Backlog,
}

/// What a device has queued, and what left since it had nothing queued.
#[derive(Default)]
struct Backlog {
    since: u64,
    frames: u64,
    bytes: u64,
}

/// How frames arrive.
#[derive(Clone, Copy)]
enum Pattern {
    Greedy,
    OnOff,
    Poisson,
    Rare,
}

const STEPS: u64 = 80;

impl Backlog {
    fn enqueued(&mut self, now: u64) {
        if self.frames == 0 {
            *self = Self {
                since: now,
                ..Self::default()
            };
        }
        self.frames += 1;
    }

    fn departed(&mut self, bytes: u32) {
        self.frames -= 1;
        self.bytes += u64::from(bytes);
    }
}

impl Device {
    /// How many frames arrive in a step.
    fn frames(&self, random: &mut Random) -> u64 {
        match self.pattern {
            Pattern::Greedy => 4_u64.saturating_sub(self.backlog.frames),
            Pattern::OnOff if random.below(8) == 0 => random.below(16),
            Pattern::Poisson => u64::from(random.below(3) == 0),
            Pattern::Rare => u64::from(random.below(40) == 0),
            Pattern::OnOff => 0,
        }
    }
}

fn bits(rate: u64) -> BitRate {
    BitRate::from_bits_per_second(rate)
}

/// A peak of one to three times the committed rate, or none.
fn peak(random: &mut Random, cir: u64, link: u64) -> Option<BitRate> {
    let base = if cir == 0 { link / 8 } else { cir };
    (random.below(3) == 0).then(|| bits(base + base / 4 * random.below(9)))
}

impl World {
    fn new(random: &mut Random, vms: u64) -> Self {
        let link = [100_000_000, 1_000_000_000, 10_000_000_000, 100_000_000_000]
            [usize::try_from(random.below(4)).unwrap()];
        let mut world = Self {
            scheduler: Scheduler::new(budget(bits(link))),
            model: Model::new(bits(link)),
            devices: Vec::new(),
            vms: Vec::new(),
            now: 0,
            departures: 0,
        };
        let parts = 2 + random.below(8);
        let mut left = link / 100 * (50 + random.below(49));
        let handles: Vec<VmHandle> = (0..vms)
            .map(|number| {
                let cir = if random.below(3) == 0 {
                    0
                } else {
                    left / parts
                };
                left -= cir;
                let rate = VmRate {
                    cir: bits(cir),
                    pir: peak(random, cir.max(link / 4), link),
                    pbs_bytes: 131_072,
                    weight: 1 + u32::try_from(random.below(500)).unwrap(),
                };
                world.model.add_vm(&rate);
                world.vms.push(Vm {
                    cir: rate.cir,
                    bytes_max: 0,
                    peaks: rate.pir.is_some(),
                    devices_peak: false,
                    backlog: Backlog::default(),
                });
                let name = format!("vm{number}");
                world.scheduler.add_vm(at(0), &name, rate).unwrap()
            })
            .collect();
        let mut reserved = vec![0; handles.len()];
        for _ in 0..2 + random.below(31) {
            let place = usize::try_from(random.below(vms + 1)).unwrap();
            let vm = handles.get(place).copied();
            let room = match vm {
                None => left,
                Some(vm) => match world.scheduler.vm_rate(vm).unwrap().cir.bits_per_second() {
                    0 => left.min(link / 8 - reserved[place]),
                    cir => cir - reserved[place],
                },
            };
            let cir = if random.below(4) == 0 {
                0
            } else {
                room / (1 + random.below(parts))
            };
            let rate = DeviceRate {
                cir: bits(cir),
                pir: peak(random, cir, link),
                pbs_bytes: 131_072,
                weight: 1 + u32::try_from(random.below(500)).unwrap(),
                ..DeviceRate::default()
            };
            let own_part = vm.is_none_or(|vm| world.scheduler.vm_rate(vm).unwrap().cir.is_zero());
            let added = match vm {
                None => world.scheduler.add_device(at(0), rate),
                Some(vm) => world.scheduler.add_device_to(at(0), vm, rate),
            };
            if own_part {
                left -= cir;
            }
            if let Some(sum) = reserved.get_mut(place) {
                *sum += cir;
            }
            world.model.add_device(&rate, vm.map(|_| place));
            let bytes_max = [64, 1_500, 9_000, 65_536][usize::try_from(random.below(4)).unwrap()];
            if let Some(vm) = world.vms.get_mut(place) {
                vm.bytes_max = vm.bytes_max.max(bytes_max);
                vm.devices_peak |= rate.pir.is_some();
                if own_part {
                    vm.cir = vm.cir.saturating_add(rate.cir);
                }
            }
            world.devices.push(Device {
                handle: added.unwrap(),
                cir: rate.cir,
                bytes_max,
                vm: vm.map(|_| place),
                pattern: [
                    Pattern::Greedy,
                    Pattern::OnOff,
                    Pattern::Poisson,
                    Pattern::Rare,
                ][usize::try_from(random.below(4)).unwrap()],
                backlog: Backlog::default(),
            });
        }
        world
    }

    fn enqueue(&mut self, device: usize, bytes: u32) {
        let handle = self.devices[device].handle;
        self.devices[device].backlog.enqueued(self.now);
        if let Some(vm) = self.devices[device].vm {
            self.vms[vm].backlog.enqueued(self.now);
        }
        self.scheduler
            .enqueue(at(self.now), handle, 0, bytes, ())
            .unwrap();
        self.model.enqueue(self.now, device, bytes);
    }

    /// Dequeues at every wake until `until`.
    fn run_until(&mut self, until: u64) {
        loop {
            while let Some(grant) = self.scheduler.dequeue(at(self.now)) {
                self.departed(&grant);
            }
            let wake = self.scheduler.next_wake(at(self.now));
            let wake = wake.map(MonotonicTime::as_nanos);
            self.model.idle(self.now, wake);
            match wake.filter(|wake| *wake <= until) {
                Some(wake) => self.now = wake,
                None => break,
            }
        }
        self.now = self.now.max(until);
    }

    fn departed(&mut self, grant: &Grant<()>) {
        let mut devices = self.devices.iter();
        let device = devices.position(|device| device.handle == grant.device);
        let at = device.unwrap();
        self.model.granted(self.now, at, grant.bytes, grant.reason);
        self.departures += 1;
        let link = self.scheduler.link_rate();
        let bytes_max = self.devices.iter().map(|device| device.bytes_max).max();
        let departed = self.now + link.transmission_nanos(grant.bytes.into());
        let slack = link.transmission_nanos(bytes_max.unwrap().into()) + 2_000;
        let bound = |backlog: &Backlog, cir: BitRate, bytes: u64| {
            backlog.since + cir.transmission_nanos(backlog.bytes + bytes) + slack
        };
        let device = &mut self.devices[at];
        device.backlog.departed(grant.bytes);
        let vm = device.vm.map(|vm| &mut self.vms[vm]);
        if !device.cir.is_zero() && vm.as_ref().is_none_or(|vm| !vm.peaks) {
            let inside = vm.as_ref().map_or(0, |vm| {
                2 * vm.cir.transmission_nanos(vm.bytes_max.into()) + 2_000
            });
            let bound = bound(&device.backlog, device.cir, device.bytes_max.into()) + inside;
            assert!(departed <= bound, "device {} ns late", departed - bound);
        }
        let Some(vm) = vm else { return };
        vm.backlog.departed(grant.bytes);
        if !vm.cir.is_zero() && !vm.peaks && !vm.devices_peak {
            let bound = bound(&vm.backlog, vm.cir, 2 * u64::from(vm.bytes_max));
            assert!(departed <= bound, "VM {} ns late", departed - bound);
        }
    }

    fn queued(&self) -> u64 {
        let devices = self.devices.iter();
        devices.map(|device| device.backlog.frames).sum()
    }
}

/// Says which world it was that went wrong.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("in world {}", self.0);
        }
    }
}

/// Plays a world of one seed; returns how many frames left.
fn play(seed: u64) -> u64 {
    let mut random = Random::new(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let mut world = World::new(&mut random, seed % 4);
    let patience = world.scheduler.link_rate().transmission_nanos(20_000);
    let traced_from = random.below(STEPS);
    let mut arrived = 0;
    let mut departed_before = 0;
    for step in 0..STEPS {
        if step == traced_from {
            world.scheduler.start_trace(at(world.now));
            departed_before = world.departures;
        }
        for device in 0..world.devices.len() {
            let bytes_max = u64::from(world.devices[device].bytes_max);
            let frames = world.devices[device].frames(&mut random);
            for _ in 0..frames {
                let bytes = match random.below(3) {
                    0 => bytes_max,
                    _ => 64 + random.below(bytes_max - 63),
                };
                world.enqueue(device, u32::try_from(bytes).unwrap());
                arrived += 1;
            }
        }
        let pause = match random.below(40) {
            // Time stands still, or jumps.
            0 => 0,
            1 => 3_600_000_000_000,
            2..8 => patience * 30,
            _ => random.below(patience * 3),
        };
        world.run_until(world.now + pause);
    }
    world.run_until(world.now + 3_600_000_000_000);
    assert_eq!(
        world.departures + world.queued(),
        arrived,
        "frames were lost"
    );
    assert_eq!(world.queued(), 0);
    replay(&mut world, departed_before, &mut random);
    world.departures
}

/// The second part of the run, written down, read back and done again.
fn replay(world: &mut World, departed_before: u64, random: &mut Random) {
    let trace = world.scheduler.take_trace().unwrap();
    let text = serde_json::to_string(&trace).unwrap();
    let trace: Trace = serde_json::from_str(&text).unwrap();
    let summary = trace.replay().unwrap();
    assert_eq!(summary.departures, world.departures - departed_before);
    // A file that somebody changed is found out, or decides the same; it never panics.
    let digits: Vec<usize> = text
        .char_indices()
        .filter(|(_, letter)| letter.is_ascii_digit())
        .map(|(at, _)| at)
        .collect();
    let mut changed = text.into_bytes();
    for _ in 0..3 {
        let at = digits[usize::try_from(random.below(digits.len() as u64)).unwrap()];
        changed[at] = b'0' + u8::try_from(random.below(10)).unwrap();
    }
    if let Ok(trace) = serde_json::from_slice::<Trace>(&changed) {
        let _outcome = trace.replay();
    }
}

/// Every decision is one that the model allows, every reservation is kept to 2 us, no frame is
/// lost, and what was written down is done again as it was.
#[test]
fn a_million_departures_are_as_the_model_allows() {
    let wanted = match std::env::var_os("ORIMONO_TEST_FULL") {
        Some(_) => 10_000_000,
        None => 1_000_000,
    };
    let mut departures = 0;
    for seed in 1.. {
        let _named = Named(seed);
        departures += play(seed);
        if departures >= wanted {
            break;
        }
    }
}
