//! A guest with memory and running rings, set up by the stock front end of the `vhost` crate.

use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result};
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VringConfigData};

use super::{DriverQueue, GuestRam, RamOptions, RawFrontEnd};

const EVENT_IDX: u64 = 1 << 29;

/// How a guest is set up.
#[derive(Debug, Clone)]
pub struct GuestOptions {
    /// Number of rings.
    pub queues: usize,
    /// Entries of each ring.
    pub queue_size: u16,
    /// Feature bits not to acknowledge, of those the device offers.
    pub without_features: u64,
    /// Guest memory.
    pub ram: RamOptions,
}

impl Default for GuestOptions {
    /// One ring of 64 entries, all features but VHOST_F_LOG_ALL, 4 MiB.
    fn default() -> Self {
        Self {
            queues: 1,
            queue_size: 64,
            without_features: 1 << 26,
            ram: RamOptions::default(),
        }
    }
}

/// A guest whose driver is running.
pub struct Guest {
    /// The stock front end.
    pub control: Frontend,
    /// The same connection, for messages that the stock front end would not send.
    pub raw: RawFrontEnd,
    /// Guest memory.
    pub ram: GuestRam,
    /// The driver's rings.
    pub queues: Vec<DriverQueue>,
    /// The features acknowledged.
    pub features: u64,
}

impl std::fmt::Debug for Guest {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Guest")
            .field("queues", &self.queues.len())
            .finish_non_exhaustive()
    }
}

impl Guest {
    /// Connects, negotiates and starts all rings, every step acknowledged by the back end.
    ///
    /// # Errors
    /// If the back end refuses anything.
    pub fn connect(path: &Path, options: &GuestOptions) -> Result<Self> {
        let mut guest = Self::negotiate(path, options)?;
        for index in 0..guest.queues.len() {
            guest.start_queue(index, 0)?;
        }
        Ok(guest)
    }

    /// Connects and negotiates up to the memory table, without starting rings.
    ///
    /// # Errors
    /// If the back end refuses anything.
    pub fn negotiate(path: &Path, options: &GuestOptions) -> Result<Self> {
        let stream = UnixStream::connect(path).context("connecting")?;
        let raw = RawFrontEnd::new(stream.try_clone()?);
        let mut control = Frontend::from_stream(stream, u64::try_from(options.queues)?);
        let offered = control.get_features()?;
        let features = offered & !options.without_features;
        let protocol = control.get_protocol_features()?;
        control.set_protocol_features(protocol & Self::known_protocol_features())?;
        control.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        control.set_owner()?;
        control.set_features(features)?;
        let mut ram = GuestRam::new(&options.ram)?;
        control.set_mem_table(&ram.table())?;
        let event_idx = features & EVENT_IDX != 0;
        let queues = (0..options.queues)
            .map(|_index| DriverQueue::new(&mut ram, options.queue_size, event_idx))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            control,
            raw,
            ram,
            queues,
            features,
        })
    }

    /// Connects and makes memory, but sends nothing and has no rings: for tests that do it all.
    ///
    /// # Errors
    /// If nobody listens.
    pub fn negotiate_nothing(path: &Path, options: &GuestOptions) -> Result<Self> {
        let stream = UnixStream::connect(path).context("connecting")?;
        let raw = RawFrontEnd::new(stream.try_clone()?);
        let control = Frontend::from_stream(stream, u64::try_from(options.queues)?);
        let ram = GuestRam::new(&options.ram)?;
        Ok(Self {
            control,
            raw,
            ram,
            queues: Vec::new(),
            features: 0,
        })
    }

    /// Starts ring `index` at `base` and enables it.
    ///
    /// # Errors
    /// If the back end refuses anything.
    pub fn start_queue(&mut self, index: usize, base: u16) -> Result<()> {
        let queue = self.queues.get(index).context("no such queue")?;
        let [descriptors, available, used] = queue.addresses().map(GuestRam::front_end_address);
        self.control.set_vring_num(index, queue.size())?;
        self.control.set_vring_base(index, base)?;
        self.control.set_vring_addr(
            index,
            &VringConfigData {
                queue_max_size: queue.size(),
                queue_size: queue.size(),
                flags: 0,
                desc_table_addr: descriptors,
                used_ring_addr: used,
                avail_ring_addr: available,
                log_addr: None,
            },
        )?;
        self.control.set_vring_err(index, &queue.error)?;
        self.control.set_vring_kick(index, &queue.kick)?;
        self.control.set_vring_call(index, &queue.call)?;
        self.control.set_vring_enable(index, true)?;
        Ok(())
    }

    /// Stops ring `index`; returns where it would go on.
    ///
    /// # Errors
    /// If the back end does not answer.
    pub fn stop_queue(&mut self, index: usize) -> Result<u16> {
        Ok(u16::try_from(self.control.get_vring_base(index)?)?)
    }

    /// Ring `index`.
    ///
    /// # Errors
    /// If the guest has no such ring.
    pub fn queue(&mut self, index: usize) -> Result<&mut DriverQueue> {
        self.queues.get_mut(index).context("no such queue")
    }

    fn known_protocol_features() -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::LOG_SHMFD
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::MTU
            | VhostUserProtocolFeatures::RARP
            | VhostUserProtocolFeatures::RESET_DEVICE
    }
}
