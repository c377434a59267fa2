//! The thread that samples all hops and answers on the control socket.
//!
//! One thread does both: an answer that takes long (a large trace) makes the interval that is
//! running longer, and meters measure whatever its length was.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fabric_config::AccessRule;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use qos::report::main_causes;
use serde::Serialize;

use crate::apply::{Answers, ApplyJob, ask};
use crate::connection::{Connection, Incoming};
use crate::counters::{Counters, ObjectCounters};
use crate::devices_of_host::Devices;
use crate::frames::Capture;
use crate::hop::Hop;
use crate::link::LinkHop;
use crate::network::{FramesWanted, Network};
use crate::protocol::{
    Answer, CaptureFollows, HopState, LastDecisions, REQUEST_BYTES_MAX, Request, TraceFollows,
};
use crate::recording::Recording;
use crate::sampler::Sampler;
use crate::socket::ControlSocket;
use crate::storage::{CaptureWanted, Storage};

/// Clients of the control socket at a time. One more is told so and let go.
pub const CLIENTS_MAX: usize = 8;
/// Traces that are written at a time, at all hops together: each may grow to some 40 MB.
pub const TRACES_MAX: usize = 2;
/// Captures that run at a time, of all vHBAs, vNICs and ports together.
pub const CAPTURES_MAX: usize = 2;
/// How often devices are held against their promises.
pub const INTERVAL: Duration = Duration::from_millis(100);

/// Why a monitor cannot start.
#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    /// Somebody serves the path already.
    #[error("another process listens on {}: stop it, or give --control another path", path.display())]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// Something that is no socket has the name.
    #[error("{} exists and is not a socket: remove it, or give --control another path", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The file system, or the kernel's limit of 107 bytes for such a path.
    #[error("cannot {action} control socket {}", path.display())]
    Socket {
        /// What was tried.
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The kernel has no threads or descriptors left.
    #[error("cannot start the monitor's thread")]
    Thread(#[source] io::Error),
}

/// What a monitor answers for.
#[derive(Default)]
pub struct Watched {
    /// Its schedulers.
    pub hops: Vec<Arc<dyn Hop>>,
    /// Its logical units, if it serves any.
    pub storage: Option<Arc<dyn Storage>>,
    /// The devices of guests, if it has any.
    pub devices: Option<Arc<dyn Devices>>,
    /// Its vNICs and Ethernet ports, if it serves any.
    pub network: Option<Arc<dyn Network>>,
    /// Its parts that count.
    pub counters: Vec<Arc<dyn Counters>>,
    /// Who applies a changed lab file, if the process takes one.
    pub applies: Option<SyncSender<ApplyJob>>,
}

impl From<Vec<Arc<dyn Hop>>> for Watched {
    fn from(hops: Vec<Arc<dyn Hop>>) -> Self {
        Self {
            hops,
            ..Self::default()
        }
    }
}

impl std::fmt::Debug for Watched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watched")
            .field("hops", &self.hops.len())
            .field("storage", &self.storage.is_some())
            .field("counters", &self.counters.len())
            .finish_non_exhaustive()
    }
}

/// A running monitor; dropped, it ends, with its clients and the file of its socket.
#[derive(Debug)]
pub struct Monitor {
    stop: Arc<EventFd>,
    wake: Arc<EventFd>,
    next: Arc<Mutex<Option<Watched>>>,
    thread: Option<JoinHandle<()>>,
}

impl Monitor {
    /// Watches `watched` from now on, and answers on `control` if it is given.
    ///
    /// # Errors
    /// [`MonitorError`]; nothing is left behind.
    pub fn start(
        watched: impl Into<Watched>,
        control: Option<&Path>,
    ) -> Result<Self, MonitorError> {
        let Watched {
            hops,
            storage,
            devices,
            network,
            counters,
            applies,
        } = watched.into();
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let stop = EventFd::from_value_and_flags(0, flags);
        let stop = Arc::new(stop.map_err(|error| MonitorError::Thread(error.into()))?);
        let wake = EventFd::from_value_and_flags(0, flags);
        let wake = Arc::new(wake.map_err(|error| MonitorError::Thread(error.into()))?);
        let next = Arc::default();
        let watch = Watch {
            stop: stop.clone(),
            wake: wake.clone(),
            next: Arc::clone(&next),
            applies,
            answers: Answers::new(wake.clone()),
            socket: control.map(ControlSocket::bind).transpose()?,
            sampler: Sampler::new(hops),
            storage,
            devices,
            network,
            counters,
            captures: BTreeMap::new(),
            clients: Vec::new(),
            clients_total: 0,
            recorders: BTreeMap::new(),
            deaf_until: None,
            sample_at: Instant::now(),
        };
        let thread = std::thread::Builder::new()
            .name("qos-monitor".to_owned())
            .spawn(move || watch.run())
            .map_err(MonitorError::Thread)?;
        let thread = Some(thread);
        Ok(Self {
            stop,
            wake,
            next,
            thread,
        })
    }

    /// Watches this from now on, but for who applies lab files. What goes on at hops of the same names
    /// goes on.
    pub fn replace(&self, watched: Watched) {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        *next = Some(watched);
        drop(next);
        if let Err(error) = self.wake.write(1) {
            // A counter at its maximum is a wake-up that is pending already.
            tracing::debug!(%error, "monitor was woken before");
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        if let Err(error) = self.stop.write(1) {
            // A counter at its maximum is a stop that is pending already.
            tracing::debug!(%error, "monitor was told to stop before");
        }
        if let Some(thread) = self.thread.take() {
            // A panic there was reported by the thread itself.
            drop(thread.join());
        }
    }
}

/// What the thread has.
struct Watch {
    stop: Arc<EventFd>,
    wake: Arc<EventFd>,
    next: Arc<Mutex<Option<Watched>>>,
    applies: Option<SyncSender<ApplyJob>>,
    answers: Arc<Answers>,
    socket: Option<ControlSocket>,
    sampler: Sampler,
    storage: Option<Arc<dyn Storage>>,
    devices: Option<Arc<dyn Devices>>,
    network: Option<Arc<dyn Network>>,
    counters: Vec<Arc<dyn Counters>>,
    /// By number of the client.
    captures: BTreeMap<u64, Box<dyn Capture>>,
    clients: Vec<Connection>,
    clients_total: u64,
    /// Which client's trace is being written, by name of the hop.
    recorders: BTreeMap<String, u64>,
    /// Until then no client is accepted: the last one could not be.
    deaf_until: Option<Instant>,
    sample_at: Instant,
}

/// What there is to do.
struct Ready {
    stop: bool,
    woken: bool,
    accept: bool,
    /// In the order of the clients.
    clients: Vec<bool>,
}

impl Watch {
    fn run(mut self) {
        loop {
            let ready = match self.select() {
                Ok(ready) => ready,
                Err(error) => {
                    tracing::error!(%error, "monitor failed, restart the process to watch it again");
                    return;
                }
            };
            if ready.stop {
                return;
            }
            self.apply(&ready);
        }
    }

    /// Waits; changes nothing.
    fn select(&self) -> nix::Result<Ready> {
        let deadlines = self.clients.iter().map(Connection::deadline);
        let until = deadlines.fold(self.sample_at, Instant::min);
        let wait = until.saturating_duration_since(Instant::now());
        // Whole milliseconds, up: not early.
        let wait = u16::try_from(wait.as_millis() + 1).unwrap_or(u16::MAX);
        // A connection that cannot be accepted would be announced again and again.
        let hears = self.deaf_until.is_none_or(|until| until <= Instant::now());
        let socket = self.socket.as_ref().filter(|_| hears);
        let listener = socket.map(|socket| socket.listener.as_fd());
        let interests = self.clients.iter().map(Connection::interest);
        let mut fds = vec![
            PollFd::new(self.stop.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.wake.as_fd(), PollFlags::POLLIN),
        ];
        fds.extend(interests.map(|(fd, flags)| PollFd::new(fd, flags)));
        fds.extend(listener.map(|listener| PollFd::new(listener, PollFlags::POLLIN)));
        match poll(&mut fds, PollTimeout::from(wait)) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error),
        }
        let rang = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| !events.is_empty());
        let mut rang = fds.iter().map(rang);
        let stop = rang.next().unwrap_or_default();
        let woken = rang.next().unwrap_or_default();
        Ok(Ready {
            stop,
            woken,
            clients: rang.by_ref().take(self.clients.len()).collect(),
            accept: rang.next().unwrap_or_default(),
        })
    }

    /// Does it; never waits.
    fn apply(&mut self, ready: &Ready) {
        let now = Instant::now();
        if ready.woken {
            self.wake_up(now);
        }
        if now >= self.sample_at {
            self.sampler.sample();
            self.sample_at = now + INTERVAL;
        }
        for (mut client, ready) in std::mem::take(&mut self.clients)
            .into_iter()
            .zip(&ready.clients)
        {
            let served = if *ready {
                self.serve(&mut client, now)
            } else {
                Ok(())
            };
            if served.is_ok() && client.deadline() > now {
                self.clients.push(client);
            } else {
                self.let_go(&client);
            }
        }
        if ready.accept {
            self.accept(now);
        }
    }

    /// Takes what others left: other things to watch, and results of lab files.
    fn wake_up(&mut self, now: Instant) {
        if let Err(error) = self.wake.read()
            && error != nix::Error::EAGAIN
        {
            tracing::error!(%error, "eventfd cannot be read");
        }
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let next = next.take();
        if let Some(next) = next {
            self.sampler.replace(next.hops);
            self.storage = next.storage;
            self.devices = next.devices;
            self.network = next.network;
            self.counters = next.counters;
            let hops = &self.sampler;
            self.recorders
                .retain(|name, _| hops.hops().any(|hop| hop.name() == name));
        }
        for (number, result) in self.answers.take() {
            // Its client may be gone.
            if let Some(client) = self.clients.iter_mut().find(|it| it.number == number) {
                let answer = result.map_or_else(error, |report| ok(&report));
                client.answer(answer, false, now);
            }
        }
    }

    /// Reads, answers and sends as far as it goes.
    ///
    /// # Errors
    /// The connection is over.
    fn serve(&mut self, client: &mut Connection, now: Instant) -> io::Result<()> {
        if client.is_waiting() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        if client.is_idle() {
            client.read(now)?;
        } else {
            client.write(now)?;
        }
        while client.is_idle() {
            match client.take() {
                Incoming::Nothing => break,
                Incoming::TooLong => {
                    let refusal = format!("a request has at most {REQUEST_BYTES_MAX} bytes");
                    client.answer(error(refusal), true, now);
                }
                Incoming::Request(line) => match self.answer(client, &line) {
                    Ok(Some(answer)) => client.answer(answer, false, now),
                    Ok(None) => client.wait(now),
                    Err(reason) => client.answer(error(reason), false, now),
                },
            }
            client.write(now)?;
        }
        Ok(())
    }

    fn accept(&mut self, now: Instant) {
        let Some(socket) = &self.socket else {
            return;
        };
        let number = self.clients_total;
        let accepted = socket.listener.accept();
        let accepted = accepted.and_then(|(stream, _)| Connection::new(stream, number, now));
        if accepted.is_ok() {
            self.clients_total += 1;
            self.deaf_until = None;
        }
        match accepted {
            Ok(client) if self.clients.len() < CLIENTS_MAX => self.clients.push(client),
            Ok(mut client) => {
                let refusal = format!("{CLIENTS_MAX} clients are served already; try again later");
                client.answer(error(refusal), true, now);
                // It fits into the buffer of a new socket; then the connection ends either way.
                drop(client.write(now));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                if self.deaf_until.replace(now + INTERVAL).is_none() {
                    tracing::warn!(%error, "control socket cannot accept, trying again");
                }
            }
        }
    }

    /// A client is gone: so are its traces and its capture.
    fn let_go(&mut self, client: &Connection) {
        self.captures.remove(&client.number);
        let hops = &self.sampler;
        self.recorders.retain(|name, recorder| {
            let its = *recorder == client.number;
            if its && let Some(hop) = hops.hops().find(|hop| hop.name() == name) {
                drop(hop.take_trace());
            }
            !its
        });
    }

    /// The bytes of the answer, `None` if it comes later, or why there is none.
    fn answer(&mut self, client: &Connection, line: &[u8]) -> Result<Option<Vec<u8>>, String> {
        let request = serde_json::from_slice(line)
            .map_err(|error| format!("this is no request: {error}; see qos-monitor's protocol"))?;
        if request == (Request::Apply {}) {
            ask(self.applies.as_ref(), client.number, &self.answers)?;
            return Ok(None);
        }
        self.answer_now(client, request).map(Some)
    }

    fn answer_now(&mut self, client: &Connection, request: Request) -> Result<Vec<u8>, String> {
        match request {
            Request::Apply {} => Err("this is answered later".to_owned()),
            Request::State {} => Ok(ok(&self.state())),
            Request::Sla {} => Ok(ok(&self.sampler.report())),
            Request::Decisions { hop } => {
                let hop = self.find(&hop)?;
                let decisions = hop.decisions();
                let hop = hop.snapshot().ok_or_else(|| not_there(hop.name()))?;
                Ok(ok(&LastDecisions { hop, decisions }))
            }
            Request::StartTrace { hop } => {
                let hop = self.find(&hop)?;
                let recorder = self.recorders.get(hop.name());
                if recorder.is_some_and(|recorder| *recorder != client.number) {
                    return Err(format!(
                        "{} is being recorded by another client; try again later",
                        hop.name()
                    ));
                }
                if recorder.is_none() && self.recorders.len() >= TRACES_MAX {
                    return Err(format!(
                        "{TRACES_MAX} hops are being recorded already; try again later"
                    ));
                }
                if !hop.start_trace() {
                    return Err(not_there(hop.name()));
                }
                let name = hop.name().to_owned();
                self.recorders.insert(name, client.number);
                Ok(ok(&()))
            }
            Request::TakeTrace { hop } => {
                let hop = self.find(&hop)?;
                if self.recorders.get(hop.name()) != Some(&client.number) {
                    return Err(no_trace(hop.name()));
                }
                let taken = take_trace(hop.as_ref());
                let name = hop.name().to_owned();
                self.recorders.remove(&name);
                taken
            }
            Request::Devices {} => {
                let devices = self.devices.as_ref();
                Ok(ok(&devices.map(|it| it.devices()).unwrap_or_default()))
            }
            Request::Counters {} => Ok(ok(&self.counters())),
            Request::Luns {} => Ok(ok(&self.storage()?.luns())),
            Request::Vhbas {} => Ok(ok(&self.storage()?.vhbas())),
            Request::StartCapture {
                vhba,
                lun,
                snap_bytes,
            } => {
                let wanted = CaptureWanted {
                    vhba,
                    lun,
                    snap_bytes,
                };
                self.start_capture(client, |watch| watch.storage()?.start_capture(&wanted))
            }
            Request::StartFrames {
                of,
                filters,
                snap_bytes,
                frames_per_second,
            } => {
                let filters = filters.iter().map(|text| AccessRule::of_filter(text));
                let wanted = FramesWanted {
                    of,
                    filters: filters.collect::<Result<_, _>>()?,
                    snap_bytes,
                    frames_per_second: frames_per_second.max(1),
                };
                self.start_capture(client, |watch| watch.network()?.start_capture(&wanted))
            }
            Request::TakeCapture {} => {
                let capture = self.captures.get(&client.number).ok_or_else(|| {
                    "this connection captures nothing: start-capture comes first".to_owned()
                })?;
                take_capture(capture.as_ref())
            }
            Request::Paths {} => Ok(ok(&self
                .links()
                .flat_map(LinkHop::paths)
                .collect::<Vec<_>>())),
            Request::PathChanges {} => {
                let changes = self.links().flat_map(LinkHop::path_changes);
                Ok(ok(&changes.collect::<Vec<_>>()))
            }
            Request::Switchover { hop, link } => {
                let found = self.links().find(|known| known.name() == hop);
                let found = found.ok_or_else(|| {
                    let known: Vec<_> = self.links().map(Hop::name).collect();
                    format!(
                        "no session is on a hop {hop:?}: those with sessions are {known:?}; a port \
                        has none"
                    )
                })?;
                found.switchover(link)?;
                tracing::info!(hop, link, "operator has frames go by this link");
                Ok(ok(&()))
            }
        }
    }

    fn counters(&self) -> Vec<ObjectCounters> {
        let parts = self.counters.iter();
        parts.flat_map(|part| part.counters()).collect()
    }

    fn storage(&self) -> Result<&dyn Storage, String> {
        self.storage.as_deref().ok_or_else(|| {
            "this process serves no logical units: ask the I/O director, or the host agent that \
             embeds it"
                .to_owned()
        })
    }

    fn network(&self) -> Result<&dyn Network, String> {
        self.network.as_deref().ok_or_else(|| {
            "this process has no Ethernet ports: ask the I/O director, or the host agent that \
             embeds it"
                .to_owned()
        })
    }

    fn start_capture(
        &mut self,
        client: &Connection,
        start: impl FnOnce(&Self) -> Result<Box<dyn Capture>, String>,
    ) -> Result<Vec<u8>, String> {
        self.captures.remove(&client.number);
        if self.captures.len() >= CAPTURES_MAX {
            return Err(format!(
                "{CAPTURES_MAX} captures are running already; end one or try again later"
            ));
        }
        let capture = start(self)?;
        let started = ok(&capture.interface());
        self.captures.insert(client.number, capture);
        Ok(started)
    }

    fn state(&self) -> Vec<HopState> {
        let states = self.sampler.hops().map(|hop| {
            let decisions = hop.decisions();
            let snapshot = hop.snapshot();
            let main_waits = snapshot.iter().flat_map(|snapshot| {
                let causes = main_causes(&decisions).into_iter();
                causes.filter_map(|(device, cause)| {
                    Some((snapshot.name_of(device)?.to_owned(), cause))
                })
            });
            HopState {
                name: hop.name().to_owned(),
                main_waits: main_waits.collect(),
                snapshot,
            }
        });
        states.collect()
    }

    fn links(&self) -> impl Iterator<Item = &LinkHop> {
        self.sampler.hops().filter_map(|hop| hop.link())
    }

    fn find(&self, name: &str) -> Result<&Arc<dyn Hop>, String> {
        let found = self.sampler.hops().find(|hop| hop.name() == name);
        found.ok_or_else(|| format!("no hop is named {name:?}; ask for state to see them"))
    }
}

fn take_trace(hop: &dyn Hop) -> Result<Vec<u8>, String> {
    let gone = || no_trace(hop.name());
    let trace = hop.take_trace().ok_or_else(gone)?;
    let hop = hop.snapshot().ok_or_else(gone)?;
    let recording = Recording { hop, trace };
    let recording = recording.to_bytes();
    let recording = recording.map_err(|error| format!("trace cannot be written: {error}"))?;
    let bytes = u64::try_from(recording.len()).unwrap_or(u64::MAX);
    let mut answer = ok(&TraceFollows { bytes });
    answer.extend(recording);
    Ok(answer)
}

fn take_capture(capture: &dyn Capture) -> Result<Vec<u8>, String> {
    let captured = postcard::to_stdvec(&capture.take())
        .map_err(|error| format!("capture cannot be written: {error}"))?;
    let bytes = u64::try_from(captured.len()).unwrap_or(u64::MAX);
    let mut answer = ok(&CaptureFollows { bytes });
    answer.extend(captured);
    Ok(answer)
}

fn no_trace(hop: &str) -> String {
    format!("{hop} has no trace of yours: none was begun, or its session ended; record again")
}

pub(crate) fn not_there(hop: &str) -> String {
    format!("{hop} has no session now; try again when its host is connected")
}

fn ok(what: &impl Serialize) -> Vec<u8> {
    line(&Answer::Ok(what))
}

fn error(reason: String) -> Vec<u8> {
    line(&Answer::<()>::Error(reason))
}

fn line(answer: &impl Serialize) -> Vec<u8> {
    // Maps here have text for keys, and nothing else can fail: an empty line says it did.
    let mut line = serde_json::to_vec(answer).unwrap_or_default();
    line.push(b'\n');
    line
}

#[cfg(test)]
pub(crate) mod tests;
