//! A director's process: what `fabric_transport::acceptor` does in threads, as a state machine.

use std::collections::BTreeMap;

use fabric_transport::DeviceId;
use fabric_transport::acceptor::epoch_is_later;
use fabric_transport::session::{Established, Greeting, Role, SessionConfig, greeting, welcome};
use qos::{BitRate, MonotonicTime};

use super::bug::Bug;
use super::device::Plan;
use super::end::End;
use super::host::{judge, take_first};
use super::record::{Checker, Record};
use super::wire::{NEVER, Read, Wires};

/// A connection that has not greeted.
#[derive(Debug)]
struct Silent {
    wire: usize,
    input: Vec<u8>,
    until: MonotonicTime,
}

/// The session of a host, and the last one's epoch once it is over.
#[derive(Debug)]
struct HostSession {
    instance: u64,
    session: u16,
    epoch: u16,
    path: u16,
    end: End,
    finished: bool,
}

/// A director.
#[derive(Debug)]
pub(super) struct Director {
    pub(super) config: SessionConfig,
    pub(super) plans: BTreeMap<DeviceId, Plan>,
    pub(super) stopped_until: MonotonicTime,
    /// By name of the host: the script explains the end of its session until then.
    pub(super) excused_until: BTreeMap<String, MonotonicTime>,
    rate: BitRate,
    bug: Option<Bug>,
    silent: Vec<Silent>,
    sessions: BTreeMap<String, HostSession>,
}

impl Director {
    pub(super) fn new(
        config: SessionConfig,
        plans: BTreeMap<DeviceId, Plan>,
        rate: BitRate,
        bug: Option<Bug>,
    ) -> Self {
        Self {
            config,
            plans,
            stopped_until: MonotonicTime::ZERO,
            excused_until: BTreeMap::new(),
            rate,
            bug,
            silent: Vec::new(),
            sessions: BTreeMap::new(),
        }
    }

    /// A host connects.
    pub(super) fn accept(&mut self, wire: usize, now: MonotonicTime) {
        self.silent.push(Silent {
            wire,
            input: Vec::new(),
            until: now.saturating_add(self.config.greeting_max),
        });
    }

    /// This end of the session of a host.
    pub(super) fn end(&mut self, host: &str) -> Option<&mut End> {
        let session = self.sessions.get_mut(host)?;
        (!session.finished).then_some(&mut session.end)
    }

    /// One round of the process.
    pub(super) fn run(&mut self, wires: &mut Wires, record: &mut Record) {
        for silent in std::mem::take(&mut self.silent) {
            self.greet(silent, wires, record);
        }
        for (host, session) in &mut self.sessions {
            if session.finished {
                continue;
            }
            session.end.run((wires, record), &self.plans);
            session.end.lost.clear();
            if session.end.is_over() {
                let excused_until = self.excused_until.get(host).copied().unwrap_or_default();
                finish(session, excused_until, wires, record);
            }
        }
    }

    fn greet(&mut self, mut silent: Silent, wires: &mut Wires, record: &mut Record) {
        let now = record.now;
        let mut ended = now >= silent.until;
        loop {
            match wires.read(now, (silent.wire, 1)) {
                Read::Some(bytes) => silent.input.extend_from_slice(&bytes),
                Read::Blocked => break,
                Read::End => {
                    ended = true;
                    break;
                }
            }
        }
        let greeting = take_first(&mut silent.input).map(|first| {
            first.and_then(|(header, payload)| {
                greeting(&header, &payload).map_err(|error| error.to_string())
            })
        });
        match greeting {
            None if !ended => self.silent.push(silent),
            Some(Ok(greeting)) => self.join(silent, &greeting, wires, record),
            None | Some(Err(_)) => {
                record.say(|| format!("{}: a link is turned away", self.config.name));
                wires.close(now, (silent.wire, 1), 100);
            }
        }
    }

    fn join(
        &mut self,
        silent: Silent,
        greeting: &Greeting,
        wires: &mut Wires,
        record: &mut Record,
    ) {
        let host = &greeting.host;
        let excused_until = self.excused_until.get(host).copied().unwrap_or_default();
        let first = |epoch, path| Some(welcome(&self.config, greeting, epoch, path, true));
        let wire = (silent.wire, 1);
        let mut last = 0;
        if let Some(known) = self.sessions.get_mut(host) {
            let same = (known.instance, known.session) == (greeting.instance, greeting.session);
            if same && !known.end.is_over() {
                known.path = known.path.wrapping_add(1);
                let path = (known.path, greeting.priority);
                let first = first(known.epoch, known.path);
                known.end.add_path(
                    path,
                    wire,
                    silent.input,
                    first,
                    (wires, record),
                    &self.plans,
                );
                return;
            }
            last = known.epoch;
            if !known.end.is_over() {
                known
                    .end
                    .session
                    .close("replaced by a newer session of this host");
                finish(known, excused_until, wires, record);
            }
        }
        let epoch = match self.bug {
            Some(Bug::EpochGoesBack) if last > 1 => last - 1,
            _ => next_epoch(last, record.now),
        };
        if last != 0 && !epoch_is_later(epoch, last) {
            record.accuse(Checker::Epoch, || {
                format!("{host}: epoch {epoch} after {last}")
            });
        }
        let established = Established {
            version: greeting.version,
            epoch,
            features: greeting.features,
            peer: host.clone(),
            peer_instance: greeting.instance,
        };
        let mut end = End::new(
            format!("{}/{host}", self.config.name),
            Role::Director,
            self.config.clone(),
            established,
            self.rate,
            self.bug,
            record.now,
        );
        if let Some(old) = self.sessions.get_mut(host) {
            end.hoard(old.end.take_hoard());
        }
        let (path, input) = ((1, greeting.priority), silent.input);
        end.add_path(
            path,
            wire,
            input,
            first(epoch, 1),
            (wires, record),
            &self.plans,
        );
        let session = HostSession {
            instance: greeting.instance,
            session: greeting.session,
            epoch,
            path: 1,
            end,
            finished: false,
        };
        self.sessions.insert(host.clone(), session);
    }

    /// The process is gone and begins anew.
    pub(super) fn restart(&mut self, wires: &mut Wires, record: &mut Record) {
        for (_, mut session) in std::mem::take(&mut self.sessions) {
            session.end.vanish(wires, record);
        }
        for silent in std::mem::take(&mut self.silent) {
            wires.close(record.now, (silent.wire, 1), 0);
        }
        self.config.instance = record.random.u64(..);
    }

    /// When it wants to be run.
    pub(super) fn due(&self, wires: &Wires, record: &Record) -> MonotonicTime {
        let ends = self.sessions.values().filter(|session| !session.finished);
        let ends = ends.map(|session| session.end.due(wires, record));
        let silent = self
            .silent
            .iter()
            .map(|silent| wires.readable_at((silent.wire, 1)).min(silent.until));
        ends.chain(silent)
            .min()
            .unwrap_or(NEVER)
            .max(self.stopped_until)
    }
}

fn finish(
    session: &mut HostSession,
    excused_until: MonotonicTime,
    wires: &mut Wires,
    record: &mut Record,
) {
    session.finished = true;
    let reason = session.end.finish(wires, record);
    record.say(|| format!("{}: session over: {reason}", session.end.name));
    judge(&session.end.name, &reason, excused_until, record);
}

/// As the acceptor counts epochs. Its clock goes faster than virtual time, so that a host never
/// begins more than one session in one of its seconds.
fn next_epoch(last: u16, now: MonotonicTime) -> u16 {
    let next = last.wrapping_add(1).max(1);
    let seconds = 60_000 + now.as_nanos() / 20_000_000;
    let clock = u16::try_from(seconds & 0xffff).unwrap_or(0).max(1);
    let ahead = epoch_is_later(clock, next) && epoch_is_later(clock, last);
    if last == 0 || ahead { clock } else { next }
}
