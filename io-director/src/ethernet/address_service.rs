//! What a vNIC with a static address has at its port: its responder, and a thread for boot files.
//!
//! Questions are answered on the thread that brings them. Boot files are read by one thread for each
//! port that has any, so that a disk which does not answer holds up only who boots from it. What finds
//! that thread busy with [`WAITING_MAX`] others is dropped and counted: the client asks again.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use fabric_config::VnicConfig;
use fabric_payload::ethernet::HEADER_BYTES;
use fabric_transport::DeviceId;
use fabric_transport::endpoint::now;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};

use super::delivery::Delivery;
use super::port::{PortShared, Vnic};
use super::responder::tftp::{BootFile, BootFolder, IDLE, NoFile, Tftp};
use super::responder::{Event, Responder, Verdict, may_concern};
use super::rewrite::Outgoing;
use crate::counters::{Counter, ResponderCounters, Snapshot};

/// Frames of TFTP that wait for the thread of boot files.
const WAITING_MAX: usize = 64;

type Waiting = (DeviceId, Vec<u8>);

/// The responder of one vNIC and its counters.
#[derive(Debug)]
pub(super) struct AddressService {
    /// The vNIC with the words it has now.
    config: VnicConfig,
    responder: Mutex<Responder>,
    counters: ResponderCounters,
    /// If it has boot files.
    boot: Option<SyncSender<Waiting>>,
}

impl AddressService {
    /// Of `vnic`; `None` if it has no static address. `boot` gives the thread of boot files.
    pub(super) fn new(
        vnic: &VnicConfig,
        boot: impl FnOnce() -> Option<SyncSender<Waiting>>,
    ) -> Option<Self> {
        let boots = vnic.static_address.as_ref()?.boot.is_some();
        Some(Self {
            config: vnic.clone(),
            responder: Mutex::new(Responder::new(vnic)?),
            counters: ResponderCounters::default(),
            boot: boots.then(boot).flatten(),
        })
    }

    fn count(&self, event: Event) {
        let counters = &self.counters;
        let counter: &Counter = match event {
            Event::Offered => &counters.offers,
            Event::Acknowledged => &counters.acknowledgements,
            Event::Refused => &counters.refusals,
            Event::Released => &counters.releases,
            Event::Declined => &counters.declines,
            Event::Answered6 => &counters.dhcp6_answers,
            Event::Neighbour => &counters.neighbour_answers,
            Event::BootFile => &counters.boot_files,
            Event::BootBlocks => &counters.boot_blocks,
            Event::BootDone => &counters.boot_ends,
            Event::BootRefused => &counters.boot_refusals,
            Event::Malformed => &counters.dropped_malformed,
            Event::Foreign => &counters.dropped_foreign,
            Event::TooLong => &counters.dropped_too_long,
            Event::TooMany => &counters.dropped_too_many,
            Event::Tagged => &counters.dropped_tagged,
            Event::NotServed => &counters.dropped_not_served,
        };
        counter.add(1);
        if event == Event::Declined && counter.count() == 1 {
            let device = self.config.id;
            tracing::warn!(%device, "guest declined its static address, another station has it");
        }
    }

    /// Takes a header and frame from the guest of `vnic` if it is for the director, and answers it.
    pub(super) fn takes(&self, vnic: &Arc<Vnic>, payload: &[u8]) -> bool {
        let frame = payload.get(HEADER_BYTES..).unwrap_or_default();
        if !may_concern(frame) {
            return false;
        }
        let mut responder = self
            .responder
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let verdict = responder.receive(now(), frame);
        drop(responder);
        if !matches!(verdict, Verdict::PassesOn | Verdict::Both(..)) {
            // Else it is shown when it was switched.
            vnic.outbound(payload, None);
        }
        let (event, answer, taken) = match verdict {
            Verdict::PassesOn => return false,
            Verdict::Both(event, answer) => (event, Some(answer), false),
            Verdict::Taken(event, answer) => (event, answer, true),
            Verdict::Tftp => {
                let job = (self.config.id, frame.to_vec());
                let boot = self.boot.as_ref();
                let queued = boot.is_some_and(|boot| boot.try_send(job).is_ok());
                if !queued {
                    self.count(Event::TooMany);
                }
                return true;
            }
        };
        self.count(event);
        answer_guest(vnic, answer);
        taken
    }

    /// Drops `frame`, which is on its way to the guest, if it is another's word about its address.
    pub(super) fn refuses(&self, frame: &[u8]) -> bool {
        if !may_concern(frame) {
            return false;
        }
        let responder = self
            .responder
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let refused = responder.refuses(frame);
        if refused {
            self.counters.dropped_foreign_answers.add(1);
        }
        refused
    }

    /// Its counters now.
    pub(super) fn snapshot(&self, vnic: &str) -> Snapshot {
        self.counters.snapshot(format!("addresses of vnic {vnic}"))
    }
}

fn answer_guest(vnic: &Arc<Vnic>, frames: impl IntoIterator<Item = Vec<u8>>) {
    // Checksums are complete and nothing is to be cut.
    let payload = |frame: Vec<u8>| [&[0; HEADER_BYTES][..], &frame].concat();
    let payloads: Vec<_> = frames.into_iter().map(payload).collect();
    let mut delivery = Delivery::new(vnic.clone());
    for payload in &payloads {
        delivery.deliver(Outgoing::unchanged(payload));
    }
}

/// The thread of boot files of a port: there is none before a vNIC needs it. It ends after the port.
#[derive(Debug, Default)]
pub(super) struct BootThread(Mutex<Option<SyncSender<Waiting>>>);

impl BootThread {
    /// What takes questions for it; `None` if there can be no thread.
    pub(super) fn start(&self, shared: &Arc<PortShared>) -> Option<SyncSender<Waiting>> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.is_none() {
            let (sender, jobs) = sync_channel(WAITING_MAX);
            let port = Arc::downgrade(shared);
            let thread = std::thread::Builder::new().name("boot-files".to_owned());
            match thread.spawn(move || serve(&port, &jobs)) {
                Ok(_detached) => *known = Some(sender),
                Err(error) => tracing::error!(%error, "no thread reads boot files"),
            }
        }
        known.clone()
    }
}

fn serve(port: &Weak<PortShared>, jobs: &Receiver<Waiting>) {
    let mut servers: BTreeMap<DeviceId, (Arc<AddressService>, Tftp<Folder>)> = BTreeMap::new();
    loop {
        match jobs.recv_timeout(IDLE) {
            Ok((device, frame)) => {
                let Some(port) = port.upgrade() else { return };
                let Some(vnic) = port.read_vnics().get(&device).cloned() else {
                    servers.remove(&device);
                    continue;
                };
                let Some(service) = vnic.addresses() else {
                    servers.remove(&device);
                    continue;
                };
                // What it was told before may be another folder.
                let known = servers.remove(&device);
                let known = known.filter(|(of, _)| Arc::ptr_eq(of, &service));
                let server = match known {
                    Some((_, server)) => Some(server),
                    None => {
                        Folder::of(&service.config).and_then(|it| Tftp::new(&service.config, it))
                    }
                };
                let Some(mut server) = server else { continue };
                let (event, frames) = server.receive(now(), &frame);
                service.count(event);
                answer_guest(&vnic, frames);
                servers.insert(device, (service, server));
            }
            Err(RecvTimeoutError::Timeout) => {
                let now = now();
                servers
                    .values_mut()
                    .for_each(|(_, server)| server.expire(now));
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// The folder of boot files.
#[derive(Debug)]
struct Folder(PathBuf);

impl Folder {
    fn of(vnic: &VnicConfig) -> Option<Self> {
        let boot = vnic.static_address.as_ref()?.boot.as_ref()?;
        Some(Self(boot.folder.clone()))
    }
}

#[derive(Debug)]
struct OpenFile {
    file: File,
    bytes: u64,
}

/// Opens a file below `folder`. Symbolic links are followed as long as they stay below it; a pipe is
/// not waited for.
fn open_below(folder: &Path, name: &str) -> io::Result<OpenFile> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // Each time, so that the folder may be replaced.
    let folder = openat(CWD, folder, flags, Mode::empty())?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let file = File::from(openat2(folder, name, flags, Mode::empty(), resolve)?);
    let data = file.metadata()?;
    if !data.is_file() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let bytes = data.len();
    Ok(OpenFile { file, bytes })
}

impl BootFolder for Folder {
    type File = OpenFile;

    fn open(&self, name: &str) -> Result<OpenFile, NoFile> {
        open_below(&self.0, name).map_err(|error| {
            let folder = self.0.display();
            tracing::debug!(%folder, name, %error, "boot file refused");
            match error.kind() {
                io::ErrorKind::NotFound => NoFile::Missing,
                _ => NoFile::Refused,
            }
        })
    }
}

impl BootFile for OpenFile {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read(&self, offset: u64, bytes: usize) -> Option<Vec<u8>> {
        let left = self.bytes.saturating_sub(offset);
        let bytes = bytes.min(usize::try_from(left).unwrap_or(usize::MAX));
        let mut data = vec![0; bytes];
        // A file that became shorter ends the transfer.
        self.file.read_exact_at(&mut data, offset).ok()?;
        Some(data)
    }
}

#[cfg(test)]
mod tests;
