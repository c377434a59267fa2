//! What a world is made of and what befalls it, drawn from its seed.

use std::collections::BTreeMap;
use std::time::Duration;

use fabric_transport::DeviceId;
use fabric_transport::control::Windows;
use fabric_transport::session::{Role, SessionConfig};
use qos::{BitRate, DeviceRate, MonotonicTime};

use super::bug::Bug;
use super::device::{Consumer, Plan, Side};
use super::director::Director;
use super::host::Host;
use super::wire::{Cable, Wires};

/// What befalls a world.
#[derive(Debug, Clone)]
pub(super) enum Event {
    /// The connections over a cable end, and new ones are refused for a while.
    Cut {
        cable: usize,
        keep_percent: usize,
        down: Duration,
    },
    /// Nothing passes for a while, and for ever on the present connections if they do not heal.
    Block {
        cable: usize,
        directions: [bool; 2],
        span: Duration,
        heals: bool,
    },
    Slow {
        cable: usize,
        span: Duration,
    },
    Flip {
        cable: usize,
        side: usize,
    },
    StopHost {
        host: usize,
        span: Duration,
    },
    StopDirector {
        director: usize,
        span: Duration,
    },
    RestartHost {
        host: usize,
        span: Duration,
    },
    RestartDirector {
        director: usize,
        span: Duration,
    },
    Want {
        host: usize,
        device: DeviceId,
        wanted: bool,
    },
    Switchover {
        host: usize,
        by: Role,
        choice: usize,
    },
}

/// A world before its first moment.
pub(super) struct Script {
    pub(super) wires: Wires,
    pub(super) hosts: Vec<Host>,
    pub(super) directors: Vec<Director>,
    pub(super) events: Vec<(MonotonicTime, Event)>,
    /// The reservations are checked between these.
    pub(super) promise: Option<(MonotonicTime, MonotonicTime)>,
    /// The last fault has healed.
    pub(super) calm_at: MonotonicTime,
}

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn at(millis: u64) -> MonotonicTime {
    MonotonicTime::from_nanos(millis * 1_000_000)
}

fn at_micros(micros: u64) -> MonotonicTime {
    MonotonicTime::from_nanos(micros * 1000)
}

/// Draws the world; `bug` is that of all ends of one role.
pub(super) fn draw(random: &mut fastrand::Rng, bug: Option<Bug>) -> Script {
    let promised = random.u32(0..4) == 0;
    let bug_of_hosts = bug.filter(|_| random.bool());
    let bug_of_directors = bug.filter(|_| bug_of_hosts.is_none());
    let rate = if promised {
        BitRate::from_bits_per_second(random.u64(50_000_000..400_000_000))
    } else {
        BitRate::from_bits_per_second(random.u64(2_000_000..100_000_000))
    };
    let config = |name: String, random: &mut fastrand::Rng| SessionConfig {
        hold_down: millis(random.u64(100..3000)),
        resume_max: millis(random.u64(1000..5000)),
        greeting_max: millis(random.u64(500..3000)),
        ..SessionConfig::new(&name, random.u64(..))
    };
    let director_count = random.usize(1..=3).min(random.usize(1..=3));
    let host_count = match random.u32(0..8) {
        0 => random.usize(director_count..=6),
        _ => director_count,
    };
    let mut directors: Vec<_> = (0..director_count)
        .map(|number| {
            let config = config(format!("d{number}"), random);
            Director::new(config, BTreeMap::new(), rate, bug_of_directors)
        })
        .collect();
    let mut wires = Wires::default();
    let mut next_device = 1;
    let mut hosts = Vec::new();
    for number in 0..host_count {
        let director = number % director_count;
        let mut config = config(format!("h{number}"), random);
        let cables = wires.cables.len()..wires.cables.len() + random.usize(1..=4);
        config.spread = cables.len() > 1 && random.bool();
        for _ in cables.clone() {
            wires.cables.push(cable(random, rate, promised));
        }
        let device_count = match random.u32(0..8) {
            0 => random.u32(1..=12),
            _ => random.u32(1..=3),
        };
        let mut free = rate.bits_per_second() * 9 / 10;
        let plans: BTreeMap<_, _> = (0..device_count)
            .map(|index| {
                let id = DeviceId(next_device);
                next_device += 1;
                (id, plan(random, id, index == 0, &mut free, promised))
            })
            .collect();
        if let Some(director) = directors.get_mut(director) {
            director.plans.extend(plans.clone());
        }
        let cables = cables.collect();
        hosts.push(Host::new(
            config,
            director,
            plans,
            cables,
            rate,
            bug_of_hosts,
        ));
    }
    let storm_at = if promised { 90 } else { random.u64(0..200) };
    let storm_millis = random.u64(200..4000);
    let count = random.u32(0..14);
    let mut events = Vec::new();
    for _ in 0..count {
        let micros = storm_at * 1000 + random.u64(0..storm_millis * 1000);
        let event = event(random, &hosts, wires.cables.len(), director_count);
        if let Event::Want { host, device, .. } = event {
            // Again soon: the old attachment's frames may still be underway.
            let again = micros + random.u64(0..20_000);
            events.push((
                at_micros(again),
                Event::Want {
                    host,
                    device,
                    wanted: true,
                },
            ));
            if random.bool() {
                // And a link may be lost that carries what is said of it.
                let cut_at = at_micros(again + random.u64(0..8_000));
                let cables = hosts
                    .get(host)
                    .map(|host| host.cables().collect::<Vec<_>>());
                let cables = cables.unwrap_or_default();
                let choice = random.usize(0..4) / 3 * random.usize(0..4);
                let cable = cables.get(choice).or(cables.first()).copied();
                let cable = cable.unwrap_or_default();
                let (keep_percent, down) = (random.usize(0..=100), Duration::ZERO);
                events.push((
                    cut_at,
                    Event::Cut {
                        cable,
                        keep_percent,
                        down,
                    },
                ));
            }
        }
        events.push((at_micros(micros), event));
    }
    events.sort_by_key(|(time, _)| *time);
    let last = events
        .iter()
        .map(|(time, event)| time.saturating_add(event.span()))
        .max();
    let calm_at = last.unwrap_or_default().max(at(storm_at + storm_millis));
    Script {
        wires,
        hosts,
        directors,
        events,
        promise: promised.then_some((at(30), at(90))),
        calm_at,
    }
}

fn cable(random: &mut fastrand::Rng, rate: BitRate, promised: bool) -> Cable {
    let (delay, jitter) = if promised {
        (random.u64(5_000..500_000), 20_000)
    } else {
        let delay_max = if random.u32(0..4) == 0 {
            40_000_000
        } else {
            5_000_000
        };
        (random.u64(5_000..delay_max), random.u64(0..2_000_000))
    };
    Cable {
        rate,
        delay: Duration::from_nanos(delay),
        jitter: Duration::from_nanos(jitter),
        // Less than what is underway at full rate would be the limit, not the scheduler.
        buffer_bytes: random.usize(if promised { 128 } else { 8 }..256) * 1024,
        blocked_until: [MonotonicTime::ZERO; 2],
        down_until: MonotonicTime::ZERO,
        slow_until: MonotonicTime::ZERO,
    }
}

fn plan(
    random: &mut fastrand::Rng,
    id: DeviceId,
    first: bool,
    free: &mut u64,
    promised: bool,
) -> Plan {
    let storage = !(first && promised) && random.bool();
    let cir = random.u64(0..*free / 3 + 1);
    *free -= cir;
    let cir = BitRate::from_bits_per_second(cir);
    let rate = DeviceRate {
        cir,
        ..DeviceRate::best_effort()
    };
    let largest = random.usize(100..8000);
    let mut side = |prompt: bool| {
        let consumer = match random.u32(0..6) {
            _ if prompt => Consumer::Prompt,
            0 => Consumer::Stalled,
            1 | 2 => Consumer::Late(Duration::from_micros(random.u64(1..20_000))),
            _ => Consumer::Prompt,
        };
        let window = if promised {
            16 * 1024
        } else {
            random.u32(500..4000)
        };
        let windows: Windows = if storage {
            [0, 8, window, 0]
        } else {
            [0, 0, 0, window]
        };
        Side {
            rate,
            windows,
            consumer,
            interval: Duration::from_micros(match random.u32(0..3) {
                0 => random.u64(50..2_000),
                _ => random.u64(500..30_000),
            }),
            greedy_until: if promised {
                at(90)
            } else {
                MonotonicTime::ZERO
            },
            payloads: random.u32(20..500),
        }
    };
    // The first always measures that the promise holds beside whatever the others do.
    let (host, director) = (side(first), side(first));
    Plan {
        id,
        storage,
        foreign: !first && random.u32(0..20) == 0,
        payload_bytes: 64..largest.max(65),
        host,
        director: Side {
            greedy_until: MonotonicTime::ZERO,
            ..director
        },
    }
}

fn event(random: &mut fastrand::Rng, hosts: &[Host], cables: usize, directors: usize) -> Event {
    let span = match random.u32(0..3) {
        0 => millis(random.u64(1..100)),
        1 => millis(random.u64(1..1000)),
        _ => millis(random.u64(1..4000)),
    };
    let stop = span.min(millis(3000));
    let cable = random.usize(0..cables);
    let host = random.usize(0..hosts.len());
    let director = random.usize(0..directors);
    let plans = hosts.get(host).map(|host| &host.plans);
    let count = plans.map_or(1, BTreeMap::len);
    let device = plans.and_then(|plans| plans.keys().nth(random.usize(0..count)).copied());
    let device = device.unwrap_or(DeviceId(0));
    let by = if random.bool() {
        Role::Host
    } else {
        Role::Director
    };
    match random.u32(0..24) {
        0..=3 => Event::Cut {
            cable,
            keep_percent: random.usize(0..=100),
            down: span,
        },
        4..=6 => {
            let heals = random.bool();
            Event::Block {
                cable,
                directions: [true; 2],
                span,
                heals,
            }
        }
        7 => {
            let towards_host = random.bool();
            let (directions, heals) = ([!towards_host, towards_host], random.bool());
            Event::Block {
                cable,
                directions,
                span,
                heals,
            }
        }
        8 => Event::Slow { cable, span },
        9 | 10 => Event::Flip {
            cable,
            side: random.usize(0..2),
        },
        11 | 12 => Event::StopHost { host, span: stop },
        13 => Event::StopDirector {
            director,
            span: stop,
        },
        14 => Event::RestartHost { host, span: stop },
        15 => Event::RestartDirector {
            director,
            span: stop,
        },
        16..=20 => Event::Want {
            host,
            device,
            wanted: false,
        },
        _ => Event::Switchover {
            host,
            by,
            choice: random.usize(0..4),
        },
    }
}

impl Event {
    /// How long it lasts.
    pub(super) fn span(&self) -> Duration {
        match self {
            Self::Cut { down: span, .. }
            | Self::Block { span, .. }
            | Self::Slow { span, .. }
            | Self::StopHost { span, .. }
            | Self::StopDirector { span, .. }
            | Self::RestartHost { span, .. }
            | Self::RestartDirector { span, .. } => *span,
            Self::Flip { .. } | Self::Want { .. } | Self::Switchover { .. } => Duration::ZERO,
        }
    }

    /// Whether sessions may suffer from it.
    pub(super) fn is_fault(&self) -> bool {
        !matches!(self, Self::Want { .. } | Self::Switchover { .. })
    }
}
