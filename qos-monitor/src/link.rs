//! A fabric link as a hop.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fabric_transport::DeviceId;
use fabric_transport::endpoint::{Endpoint, PATH_CHANGES_MAX, PathLog, now};
use fabric_transport::session::SwitchoverRefused;
use qos::{Decision, HopSnapshot, Trace};

use crate::hop::Hop;
use crate::monitor::not_there;
use crate::protocol::{LinkState, PathChanged, SessionPaths, SessionState};

type Present = Box<dyn Fn() -> Option<Arc<Endpoint>> + Send + Sync>;

/// Changes of path of a session, which may be over.
#[derive(Debug, Clone)]
struct Known {
    peer: String,
    log: PathLog,
}

/// What one end of a link sends, over all of its sessions.
pub struct LinkHop {
    name: String,
    devices: Mutex<HashMap<DeviceId, String>>,
    present: Present,
    standby: Present,
    /// The sessions that are up, and those before that had changes; the newest last.
    known: Mutex<Vec<Known>>,
}

impl LinkHop {
    /// The hop that the link's budget calls `name`. `present` gives the end of the session that is
    /// up, if one is.
    #[must_use]
    pub fn new(
        name: &str,
        devices: HashMap<DeviceId, String>,
        present: impl Fn() -> Option<Arc<Endpoint>> + Send + Sync + 'static,
    ) -> Self {
        Self {
            name: name.to_owned(),
            devices: Mutex::new(devices),
            present: Box::new(present),
            standby: Box::new(|| None),
            known: Mutex::default(),
        }
    }

    /// The same, with the end of a session that stands by without devices. It is only listed.
    #[must_use]
    pub fn with_standby(
        mut self,
        standby: impl Fn() -> Option<Arc<Endpoint>> + Send + Sync + 'static,
    ) -> Self {
        self.standby = Box::new(standby);
        self
    }

    /// Has its devices be called this from now on.
    pub fn set_devices(&self, devices: HashMap<DeviceId, String>) {
        *self.devices() = devices;
    }

    fn devices(&self) -> MutexGuard<'_, HashMap<DeviceId, String>> {
        // Whole between any two statements: going on is safe.
        self.devices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn endpoints(&self) -> impl Iterator<Item = Arc<Endpoint>> {
        (self.present)().into_iter().chain((self.standby)())
    }

    /// Writes down whose changes are to be kept.
    fn note(&self, endpoints: &[Arc<Endpoint>]) -> Vec<Known> {
        // Whole between any two statements: going on is safe.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let logs: Vec<_> = endpoints.iter().map(|it| it.path_changes()).collect();
        let is_up = |it: &Known| logs.iter().any(|log| log.is_same(&it.log));
        known.retain(|it| is_up(it) || !it.log.to_vec().is_empty());
        for (endpoint, log) in endpoints.iter().zip(&logs) {
            if !known.iter().any(|it| it.log.is_same(log)) {
                known.push(Known {
                    peer: endpoint.peer().to_owned(),
                    log: log.clone(),
                });
            }
        }
        // Each of those that are over has a change at least: of older ones none would be shown.
        let over = known.iter().filter(|it| !is_up(it)).count();
        let mut surplus = over.saturating_sub(PATH_CHANGES_MAX);
        known.retain(|it| {
            let drops = surplus > 0 && !is_up(it);
            surplus -= usize::from(drops);
            !drops
        });
        known.clone()
    }

    /// The sessions that are up, with their links, that with the devices first; one entry without a
    /// session if none is.
    pub(crate) fn paths(&self) -> Vec<SessionPaths> {
        let sessions = self.endpoints().map(|endpoint| {
            let established = endpoint.established();
            let links = endpoint.paths().into_iter().map(|path| LinkState {
                link: path.path,
                priority: path.priority,
                carries: path.carries,
                round_trip_nanos: path.round_trip.map(nanos),
                sent_bytes: path.sent_bytes,
                underway_bytes: u64::try_from(path.underway_bytes).unwrap_or(u64::MAX),
            });
            SessionState {
                peer: established.peer,
                epoch: established.epoch,
                version: established.version,
                links: links.collect(),
            }
        });
        let of = |session| SessionPaths {
            hop: self.name.clone(),
            session,
        };
        let mut paths: Vec<_> = sessions.map(|session| of(Some(session))).collect();
        if paths.is_empty() {
            paths.push(of(None));
        }
        paths
    }

    /// The last changes of path, also of sessions that are over, oldest first.
    pub(crate) fn path_changes(&self) -> Vec<PathChanged> {
        let known = self.note(&self.endpoints().collect::<Vec<_>>());
        let now = now();
        let changes = known.iter().flat_map(|it| {
            let changes = it.log.to_vec().into_iter();
            changes.map(|change| (it.peer.as_str(), change))
        });
        let mut changes: Vec<_> = changes.collect();
        changes.sort_by_key(|(_, change)| change.at);
        let surplus = changes.len().saturating_sub(PATH_CHANGES_MAX);
        let changes = changes.into_iter().skip(surplus);
        let changes = changes.map(|(peer, change)| PathChanged {
            hop: self.name.clone(),
            peer: peer.to_owned(),
            age_nanos: nanos(now.saturating_duration_since(change.at)),
            from: change.from,
            to: change.to,
            cause: change.cause.to_string(),
            gap_nanos: nanos(change.gap),
        });
        changes.collect()
    }

    /// Has the frames of both directions go by `link`.
    ///
    /// # Errors
    /// In one line: there is no session or no such link, or all of them carry frames.
    pub(crate) fn switchover(&self, link: u16) -> Result<(), String> {
        let endpoint = (self.present)();
        let endpoint = endpoint.ok_or_else(|| not_there(&self.name))?;
        endpoint.switchover(link).map_err(|refused| match refused {
            SwitchoverRefused::NoPath { path } => {
                let mut links: Vec<_> = endpoint.paths().iter().map(|it| it.path).collect();
                links.sort_unstable();
                let links: Vec<_> = links.iter().map(u16::to_string).collect();
                let links = links.join(", ");
                format!("{} has no link {path}: there are {links}", self.name)
            }
            SwitchoverRefused::Spread => {
                format!(
                    "{}: {refused}; take spread away from its host to choose",
                    self.name
                )
            }
        })
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl std::fmt::Debug for LinkHop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LinkHop")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Hop for LinkHop {
    fn name(&self) -> &str {
        &self.name
    }

    fn snapshot(&self) -> Option<HopSnapshot> {
        // The monitor looks again and again: so sessions are known before they are over.
        self.note(&self.endpoints().collect::<Vec<_>>());
        let devices = self.devices().clone();
        let name = |id| match devices.get(&id) {
            Some(name) => name.clone(),
            None => id.to_string(),
        };
        let mut snapshot = (self.present)()?.snapshot(name);
        snapshot
            .devices
            .sort_by(|one, other| one.name.cmp(&other.name));
        Some(snapshot)
    }

    fn decisions(&self) -> Vec<Decision> {
        (self.present)().map_or_else(Vec::new, |endpoint| endpoint.decisions())
    }

    fn start_trace(&self) -> bool {
        let endpoint = (self.present)();
        endpoint
            .inspect(|endpoint| endpoint.start_trace())
            .is_some()
    }

    fn take_trace(&self) -> Option<Trace> {
        (self.present)()?.take_trace()
    }

    fn link(&self) -> Option<&LinkHop> {
        Some(self)
    }
}
