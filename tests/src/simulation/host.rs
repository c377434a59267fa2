//! A host's process: what `fabric_transport::uplink` does in threads, as a state machine.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::time::Duration;

use fabric_transport::DeviceId;
use fabric_transport::acceptor::epoch_is_later;
use fabric_transport::frame::{FrameBuffer, FrameHeader};
use fabric_transport::link::SendQueue;
use fabric_transport::session::{
    CloseReason, Established, Role, SessionConfig, SessionState, hello, welcomed,
};
use qos::{BitRate, MonotonicTime};

use super::bug::Bug;
use super::device::Plan;
use super::end::End;
use super::record::{Checker, Record};
use super::wire::{NEVER, Read, Wires};

const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(1);
const CONNECT_MAX: Duration = Duration::from_secs(2);

#[derive(Debug)]
enum LinkState {
    Idle,
    Waiting(MonotonicTime),
    Connecting {
        at: MonotonicTime,
        works: bool,
    },
    Greeting {
        wire: usize,
        queue: SendQueue,
        input: Vec<u8>,
        until: MonotonicTime,
        session: u16,
    },
    Joined(u16),
}

#[derive(Debug)]
struct HostLink {
    cable: usize,
    state: LinkState,
    pause: Duration,
    /// It would begin the session, and the others wait for that.
    begins: bool,
}

/// A host.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) config: SessionConfig,
    pub(super) director: usize,
    pub(super) plans: BTreeMap<DeviceId, Plan>,
    /// Generations of the devices that it wants served.
    pub(super) wanted: BTreeMap<DeviceId, u32>,
    pub(super) end: Option<End>,
    pub(super) stopped_until: MonotonicTime,
    /// The script explains the end of a session until then.
    pub(super) excused_until: MonotonicTime,
    rate: BitRate,
    bug: Option<Bug>,
    session: u16,
    last_epoch: u16,
    generations: u32,
    links: Vec<HostLink>,
    hoard: Vec<FrameBuffer>,
}

impl Host {
    pub(super) fn new(
        config: SessionConfig,
        director: usize,
        plans: BTreeMap<DeviceId, Plan>,
        cables: Vec<usize>,
        rate: BitRate,
        bug: Option<Bug>,
    ) -> Self {
        let wanted = plans.keys().map(|id| (*id, 1)).collect();
        let links = cables.into_iter().map(|cable| HostLink {
            cable,
            state: LinkState::Idle,
            pause: RETRY_MIN,
            begins: false,
        });
        Self {
            config,
            director,
            plans,
            wanted,
            end: None,
            stopped_until: MonotonicTime::ZERO,
            excused_until: MonotonicTime::ZERO,
            rate,
            bug,
            session: 0,
            last_epoch: 0,
            generations: 1,
            links: links.collect(),
            hoard: Vec::new(),
        }
    }

    pub(super) fn cables(&self) -> impl Iterator<Item = usize> {
        self.links.iter().map(|link| link.cable)
    }

    /// One round of the process. Returns the connections that it made.
    pub(super) fn run(&mut self, wires: &mut Wires, record: &mut Record) -> Vec<usize> {
        let mut made = Vec::new();
        for at in 0..self.links.len() {
            made.extend(self.run_link(at, wires, record));
        }
        self.run_end(wires, record);
        made
    }

    fn run_end(&mut self, wires: &mut Wires, record: &mut Record) {
        let Some(end) = &mut self.end else {
            return;
        };
        end.run((wires, record), &self.plans);
        for lost in std::mem::take(&mut end.lost) {
            self.forget_link(lost, record.now);
        }
        let Some(end) = &mut self.end else {
            return;
        };
        for refused in std::mem::take(&mut end.refused) {
            if self.plans.get(&refused).is_none_or(|plan| !plan.foreign) {
                let name = &self.config.name;
                record.accuse(Checker::Liveness, || {
                    format!("{name}: {refused} was refused")
                });
            }
        }
        if end.is_over() {
            self.end_session(wires, record);
        }
    }

    fn forget_link(&mut self, lost: u16, now: MonotonicTime) {
        for link in &mut self.links {
            if matches!(link.state, LinkState::Joined(path) if path == lost) {
                // No link is made again at once.
                link.state = LinkState::Waiting(now.saturating_add(RETRY_MIN));
                link.pause = 2 * RETRY_MIN;
            }
        }
    }

    fn end_session(&mut self, wires: &mut Wires, record: &mut Record) {
        let Some(mut end) = self.end.take() else {
            return;
        };
        let reason = end.finish(wires, record);
        record.say(|| format!("{}: session over: {reason}", self.config.name));
        judge(&self.config.name, &reason, self.excused_until, record);
        self.hoard = end.take_hoard();
        self.session = self.session.wrapping_add(1);
        for link in &mut self.links {
            if matches!(link.state, LinkState::Joined(_)) {
                link.state = LinkState::Waiting(record.now.saturating_add(RETRY_MIN));
                link.pause = 2 * RETRY_MIN;
            }
        }
    }

    fn run_link(&mut self, at: usize, wires: &mut Wires, record: &mut Record) -> Option<usize> {
        let now = record.now;
        let greeted = self.links.iter().any(|link| link.begins);
        let no_session = self.end.is_none();
        let link = self.links.get_mut(at)?;
        match &mut link.state {
            LinkState::Waiting(until) if now >= *until => link.state = LinkState::Idle,
            _ => {}
        }
        let mut failed = None;
        let mut made = None;
        match &mut link.state {
            LinkState::Idle if !no_session || !greeted => {
                link.begins = no_session;
                let cable = wires.cables.get(link.cable)?;
                let blocked = cable.blocked_until.iter().any(|until| now < *until);
                let patience = if blocked {
                    CONNECT_MAX
                } else {
                    2 * cable.delay
                };
                link.state = LinkState::Connecting {
                    at: now.saturating_add(patience),
                    works: !blocked && now >= cable.down_until,
                };
            }
            LinkState::Connecting {
                at: answer_at,
                works,
            } if now >= *answer_at => {
                if *works {
                    let wire = wires.connect(link.cable);
                    made = Some(wire);
                    let mut queue = SendQueue::default();
                    let rank = u8::try_from(at).unwrap_or(u8::MAX);
                    queue.push(hello(&self.config, self.session, rank, true), false);
                    let link = self.links.get_mut(at)?;
                    link.state = LinkState::Greeting {
                        wire,
                        queue,
                        input: Vec::new(),
                        until: now.saturating_add(self.config.greeting_max),
                        session: self.session,
                    };
                } else {
                    failed = Some("cannot connect".to_owned());
                }
            }
            LinkState::Greeting {
                wire,
                queue,
                input,
                until,
                session,
            } => {
                let (wire, session) = (*wire, *session);
                write(queue, wire, wires, record);
                let mut ended = now >= *until;
                loop {
                    match wires.read(now, (wire, 0)) {
                        Read::Some(bytes) => input.extend_from_slice(&bytes),
                        Read::Blocked => break,
                        Read::End => {
                            ended = true;
                            break;
                        }
                    }
                }
                let first = take_first(input);
                let answer = match first {
                    Some(Ok((header, payload))) => {
                        Some(welcomed(&self.config, &header, &payload).map_err(|it| it.to_string()))
                    }
                    Some(Err(error)) => Some(Err(error)),
                    None if ended => Some(Err("no answer to the greeting".to_owned())),
                    None => None,
                };
                let rest = std::mem::take(input);
                match answer {
                    None => {
                        if let LinkState::Greeting { input, .. } = &mut link.state {
                            *input = rest;
                        }
                    }
                    Some(answer) => {
                        let joined = answer.and_then(|(established, path)| {
                            self.join(
                                (at, wire),
                                (established, path),
                                session,
                                rest,
                                (wires, record),
                            )
                        });
                        if let Err(error) = joined {
                            wires.close(now, (wire, 0), 100);
                            failed = Some(error);
                        } else if let Some(link) = self.links.get_mut(at) {
                            link.begins = false;
                        }
                    }
                }
            }
            _ => {}
        }
        if let Some(error) = failed {
            let name = &self.config.name;
            record.say(|| format!("{name}: link of cable {at} failed: {error}"));
            if let Some(link) = self.links.get_mut(at) {
                link.begins = false;
                link.state = LinkState::Waiting(now.saturating_add(link.pause));
                link.pause = (2 * link.pause).min(RETRY_MAX);
            }
        }
        made
    }

    /// Brings a link into the session that it was welcomed in, which may begin with it.
    fn join(
        &mut self,
        (at, wire): (usize, usize),
        (established, path): (Established, u16),
        session: u16,
        input: Vec<u8>,
        (wires, record): (&mut Wires, &mut Record),
    ) -> Result<(), String> {
        if self.session != session {
            return Err("the session ended meanwhile".to_owned());
        }
        if let Some(end) = &mut self.end
            && *end.session.established() != established
        {
            if end.session.state() == SessionState::Active {
                return Err("the address is another director's than that of the session".to_owned());
            }
            end.session.close("the director began a new session");
            self.end_session(wires, record);
            self.session = session;
        }
        let begins = self.end.is_none();
        if begins {
            let epoch = established.epoch;
            let (last, name) = (self.last_epoch, self.config.name.clone());
            record.say(|| format!("{name}: session {session} begins, epoch {epoch}"));
            if last != 0 && !epoch_is_later(epoch, last) {
                record.accuse(Checker::Epoch, || {
                    format!("{name}: epoch {epoch} after {last}")
                });
            }
            self.last_epoch = epoch;
            record.counters.sessions += 1;
            let config = self.config.clone();
            let mut end = End::new(
                name,
                Role::Host,
                config,
                established,
                self.rate,
                self.bug,
                record.now,
            );
            end.hoard(std::mem::take(&mut self.hoard));
            self.end = Some(end);
        }
        if let Some(link) = self.links.get_mut(at) {
            link.state = LinkState::Joined(path);
            link.pause = RETRY_MIN;
        }
        let Some(end) = &mut self.end else {
            return Ok(());
        };
        let priority = u8::try_from(at).unwrap_or(u8::MAX);
        end.add_path(
            (path, priority),
            (wire, 0),
            input,
            None,
            (wires, record),
            &self.plans,
        );
        if begins {
            for (id, generation) in &self.wanted {
                if let Some(plan) = self.plans.get(id) {
                    attach(end, plan, *generation, record);
                }
            }
        }
        Ok(())
    }

    /// Wants a device served, or no more.
    pub(super) fn want(&mut self, device: DeviceId, wanted: bool, record: &mut Record) {
        if self.wanted.contains_key(&device) == wanted {
            return;
        }
        let Some(plan) = self.plans.get(&device) else {
            return;
        };
        if wanted {
            self.generations += 1;
            self.wanted.insert(device, self.generations);
            if let Some(end) = &mut self.end {
                attach(end, plan, self.generations, record);
            }
        } else {
            self.wanted.remove(&device);
            if let Some(end) = &mut self.end {
                end.detach(device, record);
            }
        }
    }

    /// The process is gone and begins anew.
    pub(super) fn restart(&mut self, wires: &mut Wires, record: &mut Record) {
        if let Some(mut end) = self.end.take() {
            end.vanish(wires, record);
        }
        self.config.instance = record.random.u64(..);
        self.session = 0;
        for link in &mut self.links {
            if let LinkState::Greeting { wire, .. } = link.state {
                wires.close(record.now, (wire, 0), 0);
            }
            link.state = LinkState::Idle;
            link.pause = RETRY_MIN;
            link.begins = false;
        }
        for generation in self.wanted.values_mut() {
            self.generations += 1;
            *generation = self.generations;
        }
    }

    /// When it wants to be run.
    pub(super) fn due(&self, wires: &Wires, record: &Record) -> MonotonicTime {
        let greeted = self.links.iter().any(|link| link.begins);
        let mut due = self
            .end
            .as_ref()
            .map_or(NEVER, |end| end.due(wires, record));
        for link in &self.links {
            due = due.min(match &link.state {
                LinkState::Idle if self.end.is_some() || !greeted => record.now,
                LinkState::Idle | LinkState::Joined(_) => NEVER,
                LinkState::Waiting(until) => *until,
                LinkState::Connecting { at, .. } => *at,
                LinkState::Greeting {
                    wire, queue, until, ..
                } => {
                    if !queue.is_sent() && wires.has_room((*wire, 0)) {
                        record.now
                    } else {
                        wires.readable_at((*wire, 0)).min(*until)
                    }
                }
            });
        }
        due.max(self.stopped_until)
    }
}

fn attach(end: &mut End, plan: &Plan, generation: u32, record: &mut Record) {
    if !end.attach(plan, generation, record) {
        record.accuse(Checker::Liveness, || {
            format!("{} does not fit its link", plan.id)
        });
    }
}

/// Whether the script explains why a session ended.
pub(super) fn judge(
    name: &str,
    reason: &CloseReason,
    excused_until: MonotonicTime,
    record: &mut Record,
) {
    let text = reason.to_string();
    // The peer's reason names what it found.
    let innocent = !matches!(reason, CloseReason::Protocol(_))
        && !text.contains("broke the protocol")
        && record.now <= excused_until;
    if !innocent {
        record.accuse(Checker::SessionEnd, || {
            format!("{name}: session ended: {text}")
        });
    }
}

/// Writes what is queued, as far as the connection takes it.
fn write(queue: &mut SendQueue, wire: usize, wires: &mut Wires, record: &mut Record) {
    while !queue.is_sent() {
        let mut slices = [IoSlice::new(&[]); 1];
        queue.gather(&mut slices);
        let bytes = slices.first().map_or_else(Vec::new, |slice| slice.to_vec());
        let sent = wires.send(record.now, (wire, 0), &bytes, &mut record.random);
        if sent == 0 {
            return;
        }
        queue.advance(sent);
    }
}

/// Takes the first whole frame, if it is there.
pub(super) fn take_first(input: &mut Vec<u8>) -> Option<Result<(FrameHeader, Vec<u8>), String>> {
    let bytes = match FrameHeader::frame_bytes(input) {
        Ok(Some(bytes)) if bytes <= input.len() => bytes,
        Ok(_) => return None,
        Err(error) => return Some(Err(error.to_string())),
    };
    let frame: Vec<u8> = input.drain(..bytes).collect();
    let parsed = FrameHeader::parse(&frame, true);
    Some(
        parsed
            .map(|(header, payload)| (header, payload.to_vec()))
            .map_err(|it| it.to_string()),
    )
}
