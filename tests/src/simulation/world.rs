//! The loop of a world: the script's events, the processes in turn, the clock; and what is checked
//! when all is quiet.

use std::time::Duration;

use fabric_transport::session::{Role, SessionState};
use qos::MonotonicTime;

use super::bug::Bug;
use super::device::Consumer;
use super::director::Director;
use super::host::Host;
use super::record::{Checker, Record};
use super::script::{self, Event, Script};
use super::wire::{NEVER, Wires};

/// Everything must be in order again so long after the last fault: a session may be found out to be
/// dead after 2 s, wait 5 s for a link, and begin anew.
const PATIENCE: Duration = Duration::from_secs(25);
/// A session may end so long after a fault that explains it.
const EXCUSE: Duration = Duration::from_secs(12);
/// A cable that is down no longer than that ends no session: it is tried again after 50, 100 and
/// 200 ms, and a session waits for a link for 1 s at least.
const SHORT: Duration = Duration::from_millis(150);
/// Between two looks at whether everything is in order.
const LOOK: Duration = Duration::from_millis(500);
/// Steps of the clock after which a world does not come to rest.
const STEPS_MAX: u64 = 400_000;

pub(super) struct World<'a> {
    record: &'a mut Record,
    wires: Wires,
    hosts: Vec<Host>,
    directors: Vec<Director>,
    /// When each of them wants to be run.
    due: Vec<MonotonicTime>,
}

impl<'a> World<'a> {
    pub(super) fn run(record: &'a mut Record, bug: Option<Bug>) {
        let Script {
            wires,
            hosts,
            directors,
            events,
            promise,
            calm_at,
        } = script::draw(&mut record.random, bug);
        let mut world = Self {
            record,
            wires,
            hosts,
            directors,
            due: Vec::new(),
        };
        world.describe();
        if let Some((from, to)) = promise {
            world.run_until(from);
            let before = world.received();
            world.run_until(to);
            world.check_promise(to.saturating_duration_since(from), &before);
        }
        for (time, event) in events {
            world.run_until(time);
            world.befall(event);
        }
        world.run_until(calm_at);
        world.calm();
        let deadline = calm_at.saturating_add(PATIENCE);
        loop {
            let look_at = world.record.now.saturating_add(LOOK);
            world.run_until(look_at);
            match world.unfinished() {
                _ if world.record.guilt.is_some() => break,
                None => break,
                Some((checker, what)) if look_at >= deadline => {
                    world.record.accuse(checker, || what);
                }
                Some(_) => {}
            }
        }
        for host in &world.hosts {
            if let Some(end) = &host.end {
                world.record.counters.ignored += end.session.ignored_frames();
            }
        }
    }

    fn describe(&mut self) {
        for host in &self.hosts {
            let spread = if host.config.spread {
                "spread"
            } else {
                "active-standby"
            };
            let (name, links) = (&host.config.name, host.cables().count());
            self.record
                .say(|| format!("{name} to d{}: {links} links, {spread}", host.director));
            for cable in host.cables() {
                let cable = self.wires.cables.get(cable);
                self.record.say(|| format!("  {cable:?}"));
            }
            for plan in host.plans.values() {
                self.record.say(|| format!("  {plan:?}"));
            }
        }
    }

    fn run_until(&mut self, end: MonotonicTime) {
        self.look();
        while self.record.now < end && self.record.guilt.is_none() {
            self.step();
            let next = self.look();
            // Whoever wants to go on at once does so a little later, as on a real machine.
            let soonest = self.record.now.saturating_add(Duration::from_micros(1));
            self.record.now = next.max(soonest).min(end);
        }
    }

    /// Finds out when each process wants to be run; returns when the first does.
    fn look(&mut self) -> MonotonicTime {
        let Self {
            record,
            wires,
            hosts,
            directors,
            due,
        } = self;
        due.clear();
        due.extend(hosts.iter().map(|host| host.due(wires, record)));
        due.extend(directors.iter().map(|director| director.due(wires, record)));
        due.iter().copied().min().unwrap_or(NEVER)
    }

    /// Every process that is due has its turn.
    fn step(&mut self) {
        let Self {
            record,
            wires,
            hosts,
            directors,
            due,
        } = self;
        record.counters.steps += 1;
        if record.counters.steps > STEPS_MAX {
            record.accuse(Checker::Liveness, || {
                "the world does not come to rest".to_owned()
            });
        }
        let mut due = due
            .iter()
            .map(|due| *due <= record.now)
            .collect::<Vec<_>>()
            .into_iter();
        for host in hosts {
            if due.next() != Some(true) {
                continue;
            }
            for wire in host.run(wires, record) {
                if let Some(director) = directors.get_mut(host.director) {
                    director.accept(wire, record.now);
                }
            }
        }
        for director in directors {
            if due.next() == Some(true) {
                director.run(wires, record);
            }
        }
    }

    /// The script explains the end of the sessions of these hosts for a while.
    fn excuse(&mut self, hosts: impl Fn(usize, &Host) -> bool, span: Duration) {
        let until = self.record.now.saturating_add(span + EXCUSE);
        for (number, host) in self.hosts.iter_mut().enumerate() {
            if hosts(number, host) {
                host.excused_until = host.excused_until.max(until);
                if let Some(director) = self.directors.get_mut(host.director) {
                    let excused = director.excused_until.entry(host.config.name.clone());
                    let excused = excused.or_default();
                    *excused = (*excused).max(until);
                }
            }
        }
    }

    fn befall(&mut self, event: Event) {
        self.record.say(|| format!("* {event:?}"));
        let span = event.span();
        if event.is_fault() {
            self.record.counters.faults += 1;
        }
        let now = self.record.now;
        let until = now.saturating_add(span);
        match event {
            Event::Cut {
                cable,
                keep_percent,
                ..
            } => {
                self.wires.cut(now, cable, keep_percent);
                if let Some(cable) = self.wires.cables.get_mut(cable) {
                    cable.down_until = cable.down_until.max(until);
                }
                if span > SHORT {
                    self.excuse(|_, host| host.cables().any(|own| own == cable), span);
                }
            }
            Event::Block {
                cable,
                directions,
                heals,
                ..
            } => {
                self.wires
                    .block(cable, directions, if heals { until } else { NEVER });
                if let Some(cable) = self.wires.cables.get_mut(cable) {
                    for (blocked_until, blocked) in cable.blocked_until.iter_mut().zip(directions) {
                        if blocked {
                            *blocked_until = (*blocked_until).max(until);
                        }
                    }
                }
                self.excuse(|_, host| host.cables().any(|own| own == cable), span);
            }
            Event::Slow { cable, .. } => {
                if let Some(cable) = self.wires.cables.get_mut(cable) {
                    cable.slow_until = cable.slow_until.max(until);
                }
                self.excuse(|_, host| host.cables().any(|own| own == cable), span);
            }
            // One new link is made in time.
            Event::Flip { cable, side } => {
                self.wires.flip(cable, side, &mut self.record.random);
            }
            Event::StopHost { host, .. } => {
                self.excuse(|number, _| number == host, span);
                if let Some(host) = self.hosts.get_mut(host) {
                    host.stopped_until = host.stopped_until.max(until);
                }
            }
            Event::StopDirector { director, .. } => {
                self.excuse(|_, host| host.director == director, span);
                if let Some(director) = self.directors.get_mut(director) {
                    director.stopped_until = director.stopped_until.max(until);
                }
            }
            Event::RestartHost { host, .. } => {
                self.excuse(|number, _| number == host, span);
                if let Some(host) = self.hosts.get_mut(host) {
                    host.restart(&mut self.wires, self.record);
                    host.stopped_until = host.stopped_until.max(until);
                }
            }
            Event::RestartDirector {
                director: number, ..
            } => {
                self.excuse(|_, host| host.director == number, span);
                for host in self.hosts.iter().filter(|host| host.director == number) {
                    for cable in host.cables() {
                        if let Some(cable) = self.wires.cables.get_mut(cable) {
                            cable.down_until = cable.down_until.max(until);
                        }
                    }
                }
                if let Some(director) = self.directors.get_mut(number) {
                    director.restart(&mut self.wires, self.record);
                    director.stopped_until = director.stopped_until.max(until);
                }
            }
            Event::Want {
                host,
                device,
                wanted,
            } => {
                if let Some(host) = self.hosts.get_mut(host)
                    && host.stopped_until <= now
                {
                    host.want(device, wanted, self.record);
                }
            }
            Event::Switchover { host, by, choice } => self.switchover(host, by, choice),
        }
    }

    fn switchover(&mut self, host: usize, by: Role, choice: usize) {
        let now = self.record.now;
        let Some(host) = self.hosts.get_mut(host) else {
            return;
        };
        let director = self.directors.get_mut(host.director);
        let stopped_until = match by {
            Role::Host => host.stopped_until,
            Role::Director => director
                .as_ref()
                .map_or(now, |director| director.stopped_until),
        };
        let end = match by {
            Role::Host => host.end.as_mut(),
            Role::Director => director.and_then(|director| director.end(&host.config.name)),
        };
        if let Some(end) = end
            && stopped_until <= now
        {
            let paths: Vec<_> = end.session.paths().map(|path| path.path).collect();
            if let Some(path) = paths.get(choice % paths.len().max(1)) {
                let result = end.session.switchover(now, *path);
                let name = &end.name;
                self.record
                    .say(|| format!("{name}: switchover to {path}: {result:?}"));
                end.drain(&mut self.wires, self.record);
            }
        }
    }

    /// All faults are over; everybody gives back what it holds, and wants all of its devices.
    fn calm(&mut self) {
        self.record.say(|| "* calm".to_owned());
        self.record.draining = true;
        let now = self.record.now;
        for cable in &mut self.wires.cables {
            cable.blocked_until = [now; 2];
            cable.down_until = now;
            cable.slow_until = now;
        }
    }

    /// What is not yet in order.
    fn unfinished(&mut self) -> Option<(Checker, String)> {
        for host in &self.hosts {
            let name = &host.config.name;
            let late = |what: &str| Some((Checker::Liveness, format!("{name}: {what}")));
            let Some(end) = &host.end else {
                return late("has no session");
            };
            if end.session.state() != SessionState::Active {
                return late("has no link");
            }
            let director = self.directors.get_mut(host.director);
            let Some(peer) = director.and_then(|director| director.end(name)) else {
                return late("its director has no session");
            };
            if end.session.epoch() != peer.session.epoch() {
                return late("its director has another session");
            }
            for (id, generation) in &host.wanted {
                if host.plans.get(id).is_some_and(|plan| plan.foreign) {
                    continue;
                }
                let (own, other) = (end.devices.get(id), peer.devices.get(id));
                let (Some(own), Some(other)) = (own, other) else {
                    return late(&format!("{id} is not attached"));
                };
                let served = own.attached && other.attached;
                if !served || (own.generation, other.generation) != (*generation, *generation) {
                    return late(&format!("{id} is not attached on both sides"));
                }
                if !own.requests.is_empty() || !own.is_idle() || !other.is_idle() {
                    let waiting = own.requests.len();
                    return late(&format!("{id} still has to do: {waiting} requests"));
                }
                if own.sent != other.received || other.sent != own.received {
                    let what = format!(
                        "{id}: host sent {:?} got {:?}, director sent {:?} got {:?}",
                        own.sent, own.received, other.sent, other.received
                    );
                    return Some((Checker::Order, what));
                }
            }
            if let Some(missing) = end
                .credit_missing(peer)
                .or_else(|| peer.credit_missing(end))
            {
                return Some((Checker::Credit, missing));
            }
            if peer.devices.len() > host.wanted.len() {
                return late("its director serves devices that it let go");
            }
        }
        None
    }

    /// Bytes that each network device of a host has received at its director.
    fn received(&mut self) -> Vec<u64> {
        let mut received = Vec::new();
        for host in &self.hosts {
            let director = self.directors.get_mut(host.director);
            let peer = director.and_then(|director| director.end(&host.config.name));
            for id in host.plans.keys() {
                let device = peer.as_ref().and_then(|peer| peer.devices.get(id));
                received.push(device.map_or(0, |device| device.received_bytes));
            }
        }
        received
    }

    fn check_promise(&mut self, span: Duration, before: &[u64]) {
        let after = self.received();
        let plans = self.hosts.iter().flat_map(|host| host.plans.values());
        for ((plan, before), after) in plans.zip(before).zip(after) {
            let prompt = plan.director.consumer == Consumer::Prompt;
            if plan.storage || plan.foreign || !prompt {
                continue;
            }
            self.record.counters.promises += 1;
            let cir = u128::from(plan.host.rate.cir.bits_per_second());
            // Greedy all the time: the reserved rate, less what others' frames take at either end.
            let promised = cir * (span.as_nanos() - 4_000_000) / 8_000_000_000;
            let got = after - before;
            if u128::from(got) + 4 * 8_032 < promised {
                let id = plan.id;
                self.record.accuse(Checker::Promise, || {
                    format!("{id} got {got} of {promised} bytes that are reserved for it")
                });
            }
        }
    }
}
