//! Start and stop of a switch.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use fabric_config::{
    ApplyRefused, ChangeKind, Difference, Direction, EdgeSwitchConfig, LabConfig, ObjectReport,
    Outcome, Report, Side, require_admitted_anew,
};
use fabric_transport::endpoint::now;
use fabric_transport::link::{Link, LinkAddress, LinkOptions, Listener, TlsError};
use lab_program::Live;
use nix::sys::eventfd::{EfdFlags, EventFd};
use qos::{AdmissionError, VmRate};
use qos_monitor::{Hop, Watched};

use crate::event_loop::EventLoop;
use crate::hop::RelayHop;
use crate::port::{DOWN, UP, lock};
use crate::relay::Relay;

/// Why a switch cannot start.
#[derive(Debug, thiserror::Error)]
pub enum EdgeSwitchError {
    /// Its certificate.
    #[error("certificate of edge switch {name} cannot be used")]
    Certificate {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: TlsError,
    },
    /// The lab file has none of this name.
    #[error("there is no edge switch {name:?}; add an [[edge-switch]] with this name")]
    NoSuchSwitch {
        /// The name.
        name: String,
    },
    /// What a host reserves does not fit on the uplink.
    #[error("host {host}; ask for less, raise reservable, or oversubscribe the hop")]
    Admission {
        /// The host.
        host: String,
        /// The hop, what was asked and what is missing.
        #[source]
        source: AdmissionError,
    },
    /// An address.
    #[error("edge switch cannot listen on {address}; stop what uses it or correct listen")]
    Listen {
        /// The address.
        address: LinkAddress,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel has no descriptors or threads left.
    #[error("edge switch cannot start its thread")]
    Thread(#[source] io::Error),
}

/// The outcome of an attempt to reach the director: its ticket, and the link or why there is none.
pub(crate) type Connected = (u64, Result<Link, String>);

/// What the switch's thread shares with others.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: EdgeSwitchConfig,
    /// From hosts to director, and back.
    pub(crate) relays: [Mutex<Relay>; 2],
    pub(crate) links: LinkOptions,
    pub(crate) connected: Mutex<Vec<Connected>>,
    pub(crate) stop: AtomicBool,
    pub(crate) wake: EventFd,
}

impl Shared {
    /// Wakes the switch's thread.
    pub(crate) fn ring(&self) {
        // A full counter is a wake-up that is pending already.
        if let Err(error) = self.wake.write(1)
            && error != nix::Error::EAGAIN
        {
            tracing::error!(%error, "eventfd cannot be written");
        }
    }
}

/// A running switch. Dropped, it closes all links: to hosts and director they are lost.
#[derive(Debug)]
pub struct EdgeSwitch {
    shared: Arc<Shared>,
    addresses: Vec<LinkAddress>,
    thread: Option<JoinHandle<()>>,
    /// The lab file in force; locked while another is applied.
    lab: Mutex<LabConfig>,
}

impl EdgeSwitch {
    /// Listens for the hosts of the edge switch called `name`. The director need not be there.
    ///
    /// # Errors
    /// [`EdgeSwitchError`]; what was opened is closed again.
    pub fn start(config: &LabConfig, name: &str) -> Result<Self, EdgeSwitchError> {
        let no_such_switch = || EdgeSwitchError::NoSuchSwitch {
            name: name.to_owned(),
        };
        let switch = config.edge_switch(name).ok_or_else(no_such_switch)?;
        let relays = [
            Mutex::new(relay(config, switch, Direction::Ingress)?),
            Mutex::new(relay(config, switch, Direction::Egress)?),
        ];
        let links = [switch.listen.as_slice(), &switch.director].concat();
        let links = config.links.options(name, &links);
        let links = links.map_err(|source| EdgeSwitchError::Certificate {
            name: name.to_owned(),
            source,
        })?;
        let mut listeners = Vec::new();
        let mut addresses = Vec::new();
        for address in &switch.listen {
            let failed = |source| EdgeSwitchError::Listen {
                address: address.clone(),
                source,
            };
            let listener = Listener::bind(address, &links).map_err(failed)?;
            let address = listener.address().map_err(failed)?;
            tracing::info!(%address, switch = name, "edge switch listens");
            addresses.push(address);
            listeners.push(listener);
        }
        let failed = |error: nix::Error| EdgeSwitchError::Thread(error.into());
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let shared = Arc::new(Shared {
            config: switch.clone(),
            relays,
            links,
            connected: Mutex::default(),
            stop: AtomicBool::new(false),
            wake: EventFd::from_value_and_flags(0, flags).map_err(failed)?,
        });
        let event_loop = EventLoop::new(shared.clone(), listeners).map_err(failed)?;
        let thread = std::thread::Builder::new()
            .name("edge-switch".to_owned())
            .spawn(move || event_loop.run())
            .map_err(EdgeSwitchError::Thread)?;
        Ok(Self {
            shared,
            addresses,
            thread: Some(thread),
            lab: Mutex::new(config.clone()),
        })
    }

    /// Makes `after` the lab file in force: the shares of the hosts change, and their links go on.
    ///
    /// # Errors
    /// [`ApplyRefused`]; nothing has changed.
    pub fn apply(&self, after: LabConfig) -> Result<Report, ApplyRefused> {
        let mut before = lock(&self.lab);
        let difference = Difference::between(&before, &after);
        let name = &self.shared.config.name;
        let refusals = difference.cannot_change(Side::EdgeSwitch(name));
        if !refusals.is_empty() {
            return Err(ApplyRefused::CannotChange(refusals));
        }
        require_admitted_anew(&before, &after)?;
        let mut report = Report::default();
        let mut rising = Vec::new();
        for host in &self.shared.config.hosts {
            let (Some(was), Some(is)) = (before.host(host), after.host(host)) else {
                // A switch names no host that is not in the file.
                continue;
            };
            for (way, direction) in [(UP, Direction::Ingress), (DOWN, Direction::Egress)] {
                let (was, is) = (was.share(direction), is.share(direction));
                if is.cir > was.cir {
                    rising.push((host, way, direction, is));
                } else if is != was {
                    report
                        .objects
                        .push(self.set_share(host, way, direction, is));
                }
            }
        }
        // When what others give up is free.
        let rising = rising.into_iter();
        let risen =
            rising.map(|(host, way, direction, is)| self.set_share(host, way, direction, is));
        report.objects.extend(risen);
        *before = after;
        Ok(report)
    }

    fn set_share(
        &self,
        host: &str,
        way: usize,
        direction: Direction,
        share: VmRate,
    ) -> ObjectReport {
        let relay = self.shared.relays.get(way);
        let set = relay.map_or(Ok(()), |relay| lock(relay).set_share(now(), host, share));
        // The timer stands at what the old shares allowed.
        self.shared.ring();
        ObjectReport {
            object: format!("host {host}"),
            change: ChangeKind::Changed,
            fields: vec![direction.to_string()],
            outcome: set.map_or_else(
                |error| Outcome::Failed(error.with_source()),
                |()| Outcome::Done,
            ),
        }
    }

    /// Does what [`Self::start`] does, and stops again.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn check(config: &LabConfig, name: &str) -> Result<(), EdgeSwitchError> {
        Self::start(config, name).map(drop)
    }

    /// Where it listens, with the ports that the kernel chose for port 0.
    pub fn addresses(&self) -> impl Iterator<Item = &LinkAddress> {
        self.addresses.iter()
    }

    /// Host links that are joined to the director now.
    #[must_use]
    pub fn links(&self) -> usize {
        let [up, _] = &self.shared.relays;
        lock(up).ports().len()
    }

    /// Both schedulers of the switch, for the monitor.
    #[must_use]
    pub fn hops(&self) -> Vec<Arc<dyn Hop>> {
        [UP, DOWN]
            .map(|way| Arc::new(RelayHop::new(&self.shared, way)) as Arc<dyn Hop>)
            .into()
    }
}

impl Live for EdgeSwitch {
    fn apply(&self, lab: LabConfig) -> Result<Report, ApplyRefused> {
        Self::apply(self, lab)
    }

    fn refused(&self, lab: &LabConfig, why: &ApplyRefused) -> Report {
        let before = lock(&self.lab);
        Difference::between(&before, lab).refused(Side::EdgeSwitch(&self.shared.config.name), why)
    }

    fn watched(&self) -> Watched {
        self.hops().into()
    }
}

impl Drop for EdgeSwitch {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.ring();
        if let Some(thread) = self.thread.take() {
            // A panic there was reported by the thread itself.
            drop(thread.join());
        }
    }
}

fn relay(
    config: &LabConfig,
    switch: &EdgeSwitchConfig,
    direction: Direction,
) -> Result<Relay, EdgeSwitchError> {
    let hop = format!("{} {direction}", switch.budget.hop());
    let hosts = switch.hosts.iter().filter_map(|host| config.host(host));
    let shares = hosts.map(|host| (host.name.as_str(), host.share(direction)));
    Relay::new(switch.budget.clone().named(hop), shares)
        .map_err(|(host, source)| EdgeSwitchError::Admission { host, source })
}
