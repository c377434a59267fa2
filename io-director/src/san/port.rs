//! A SAN port: what drives the queue of its commands.
//!
//! ```text
//! link thread:    command ─> task set of its nexus, and CommandQueue ─> run
//! port's thread:  timer rings                                       ─> run
//! run:            granted ─> Nexus::grant ─> the nexus' thread executes it
//! ```
//!
//! A vHBA that nothing limits never comes here, and of a port that limits nobody the thread only
//! sleeps.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use fabric_config::{PortName, VhbaConfig, VmConfig};
use fabric_transport::DeviceId;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use qos::{AdmissionError, DeviceRate, LinkBudget};
use qos_monitor::Hop;

use super::command_queue::{Charged, CommandQueue, Direction, Held, Limit};
use super::nexus::Nexus;
use super::task_set::TaskKey;
use crate::port_direction::{PortDevice, PortVm};
use crate::port_hop::PortHop;
use crate::port_scheduler::PortScheduler;

/// A SAN port with its thread.
#[derive(Debug)]
pub struct SanPort {
    shared: Arc<SanPortShared>,
    port: PortName,
    has_rate: bool,
    /// A vHBA has a limit of operations.
    limits_operations: bool,
    vhbas: BTreeMap<DeviceId, String>,
    thread: Option<JoinHandle<()>>,
}

/// What the vHBAs of a port share.
#[derive(Debug)]
pub(super) struct SanPortShared {
    queue: PortScheduler<CommandQueue<HeldCommand>>,
    stop: EventFd,
}

/// A task in the task set of a nexus.
#[derive(Debug, Clone)]
pub(super) struct HeldCommand {
    pub(super) nexus: Weak<Nexus>,
    pub(super) key: TaskKey,
}

impl SanPort {
    /// Starts the port called `port`, which carries `budget` each way if it has a rate. `vhbas` are
    /// those of the port.
    ///
    /// # Errors
    /// The kernel has no descriptors or threads left.
    pub fn start<'a>(
        port: PortName,
        budget: Option<&LinkBudget>,
        vhbas: impl Iterator<Item = (&'a VmConfig, &'a VhbaConfig)>,
    ) -> io::Result<Self> {
        let mut names = BTreeMap::new();
        let mut limits_operations = false;
        let vhbas = vhbas.map(|(vm, vhba)| {
            limits_operations |= [vhba.ingress, vhba.egress]
                .iter()
                .any(|rate| rate.operations.is_some());
            names.insert(vhba.id, vhba.name.clone());
            PortDevice {
                device: vhba.id,
                vm: PortVm::new(vm),
                ingress: vhba.ingress,
                egress: vhba.egress,
            }
        });
        let queue = CommandQueue::new(&format!("san-port {port}"), budget, vhbas);
        let shared = Arc::new(SanPortShared {
            queue: PortScheduler::new(queue)?,
            stop: EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?,
        });
        let served = shared.clone();
        let thread = std::thread::Builder::new()
            .name(format!("san {port}"))
            .spawn(move || served.serve())?;
        Ok(Self {
            shared,
            port,
            has_rate: budget.is_some(),
            limits_operations,
            vhbas: names,
            thread: Some(thread),
        })
    }

    /// Its schedulers: of operations where one is limited, each charged with 512 bytes, and of a
    /// port with a rate each way.
    #[must_use]
    pub fn hops(&self) -> Vec<Arc<dyn Hop>> {
        let limits = [
            (Limit::Operations, "operations"),
            (Limit::Bandwidth(Direction::Ingress), "ingress"),
            (Limit::Bandwidth(Direction::Egress), "egress"),
        ];
        let limits = limits.into_iter().filter(|(limit, _)| match limit {
            Limit::Operations => self.limits_operations,
            Limit::Bandwidth(_) => self.has_rate,
        });
        let hops = limits.map(|(limit, name)| {
            let name = format!("san-port {} {name}", self.port);
            let shared = self.shared.clone();
            let hop = PortHop::new(name, self.vhbas.clone(), move |look| {
                shared.queue.with(|queue, now| {
                    if let Some(watch) = queue.watch(limit) {
                        look(watch, now);
                    }
                });
            });
            Arc::new(hop) as Arc<dyn Hop>
        });
        hops.collect()
    }

    pub(super) fn shared(&self) -> Arc<SanPortShared> {
        self.shared.clone()
    }
}

impl Drop for SanPort {
    fn drop(&mut self) {
        if let Err(error) = self.shared.stop.write(1) {
            // A counter at its maximum is a stop that is pending already.
            tracing::debug!(%error, "port's thread was told to stop before");
        }
        if let Some(thread) = self.thread.take() {
            // A panic there was reported by the thread itself.
            drop(thread.join());
        }
    }
}

impl SanPortShared {
    pub(super) fn attach(&self, device: DeviceId, session: u64) -> Result<(), AdmissionError> {
        self.queue
            .with(|queue, now| queue.attach(now, device, session))
    }

    pub(super) fn detach(&self, device: DeviceId, session: u64) {
        self.queue.with(|queue, _| queue.detach(device, session));
    }

    pub(super) fn is_limited(&self, device: DeviceId) -> bool {
        self.queue.with(|queue, _| queue.is_limited(device))
    }

    /// Queues a command; [`Self::run`] grants it when it is its turn.
    pub(super) fn submit(&self, device: DeviceId, command: Charged<HeldCommand>) {
        self.queue
            .with(|queue, now| queue.submit(now, device, command));
    }

    /// A command was taken away before it began.
    pub(super) fn withdraw(&self, device: DeviceId, key: TaskKey) {
        self.queue
            .with(|queue, _| queue.withdraw(device, |held| held.key == key));
    }

    pub(super) fn set_rates(
        &self,
        device: DeviceId,
        ingress: DeviceRate,
        egress: DeviceRate,
    ) -> Result<(), AdmissionError> {
        self.queue
            .with(|queue, now| queue.set_rates(now, device, ingress, egress))
    }

    pub(super) fn held(&self, device: DeviceId) -> Held {
        self.queue.with(|queue, _| queue.held(device))
    }

    /// Grants what may be executed now, unless another thread is at it.
    pub(super) fn run(&self) {
        self.queue.run(|granted| {
            for command in granted {
                if let Some(nexus) = command.nexus.upgrade() {
                    nexus.grant(command.key);
                }
            }
        });
    }

    fn serve(&self) {
        loop {
            let mut fds = [
                PollFd::new(self.queue.timer(), PollFlags::POLLIN),
                PollFd::new(self.stop.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(error) => {
                    tracing::error!(%error, "san port failed, restart the director");
                    return;
                }
            }
            let [_, stop] = fds;
            if stop.revents().is_some_and(|events| !events.is_empty()) {
                return;
            }
            self.queue.acknowledge_timer();
            self.run();
        }
    }
}
