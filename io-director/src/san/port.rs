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
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
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
    vhbas: Mutex<BTreeMap<DeviceId, Named>>,
    thread: Option<JoinHandle<()>>,
}

/// What the monitor is told of a vHBA.
#[derive(Debug)]
struct Named {
    name: String,
    limits_operations: bool,
}

/// What the vHBAs of a port share.
#[derive(Debug)]
pub(super) struct SanPortShared {
    queue: PortScheduler<CommandQueue<HeldCommand>>,
    stop: EventFd,
    /// Sessions of vHBAs so far.
    sessions: AtomicU64,
}

/// A task in the task set of a nexus.
#[derive(Debug, Clone)]
pub(super) struct HeldCommand {
    pub(super) nexus: Weak<Nexus>,
    pub(super) key: TaskKey,
}

impl SanPort {
    /// Starts the port called `port`, which carries `budget` each way if it has a rate, without
    /// vHBAs.
    ///
    /// # Errors
    /// The kernel has no descriptors or threads left.
    pub fn start(port: PortName, budget: Option<&LinkBudget>) -> io::Result<Self> {
        let queue = CommandQueue::new(&format!("san-port {port}"), budget, []);
        let shared = Arc::new(SanPortShared {
            queue: PortScheduler::new(queue)?,
            stop: EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?,
            sessions: AtomicU64::new(0),
        });
        let served = shared.clone();
        let thread = std::thread::Builder::new()
            .name(format!("san {port}"))
            .spawn(move || served.serve())?;
        Ok(Self {
            shared,
            port,
            has_rate: budget.is_some(),
            vhbas: Mutex::default(),
            thread: Some(thread),
        })
    }

    /// Adds a vHBA of `vm`, which reserves with its first session.
    pub fn add(&self, vm: &VmConfig, vhba: &VhbaConfig) {
        let words = PortDevice {
            device: vhba.id,
            vm: PortVm::new(vm),
            ingress: vhba.ingress,
            egress: vhba.egress,
        };
        self.shared.queue.with(|queue, _| queue.insert(words));
        self.name(vhba);
    }

    /// Removes a vHBA and frees what it reserved.
    pub fn remove(&self, device: DeviceId) {
        self.shared.queue.with(|queue, _| queue.remove(device));
        self.vhbas().remove(&device);
    }

    /// Gives a VM other words, in force at once.
    ///
    /// # Errors
    /// They do not fit; nothing has changed.
    pub fn set_vm(&self, vm: &VmConfig) -> Result<(), AdmissionError> {
        let vm = PortVm::new(vm);
        self.shared
            .queue
            .with(|queue, now| queue.set_vm(now, &vm))?;
        // The timer stands at what the old words allowed.
        self.shared.run();
        Ok(())
    }

    /// Has hops from now on show what this vHBA is called, and that it has a limit.
    pub(crate) fn name(&self, vhba: &VhbaConfig) {
        let rates = [vhba.ingress, vhba.egress];
        let named = Named {
            name: vhba.name.clone(),
            limits_operations: rates.iter().any(|rate| rate.operations.is_some()),
        };
        self.vhbas().insert(vhba.id, named);
    }

    fn vhbas(&self) -> MutexGuard<'_, BTreeMap<DeviceId, Named>> {
        // Whole between any two statements: going on is safe.
        self.vhbas.lock().unwrap_or_else(PoisonError::into_inner)
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
        let vhbas = self.vhbas();
        let limits = limits.into_iter().filter(|(limit, _)| match limit {
            Limit::Operations => vhbas.values().any(|it| it.limits_operations),
            Limit::Bandwidth(_) => self.has_rate,
        });
        let names = || {
            let names = vhbas.iter().map(|(id, it)| (*id, it.name.clone()));
            names.collect()
        };
        let hops = limits.map(|(limit, name)| {
            let name = format!("san-port {} {name}", self.port);
            // Not kept alive by whoever watches it.
            let shared = Arc::downgrade(&self.shared);
            let hop = PortHop::new(name, names(), move |look| {
                let Some(shared) = shared.upgrade() else {
                    return;
                };
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
    /// A number for a session, unique among those of the port: a vHBA that is replaced must not be
    /// detached by the sessions of the one before.
    pub(super) fn session_number(&self) -> u64 {
        self.sessions.fetch_add(1, Ordering::Relaxed)
    }

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
