//! A block device in memory that can fail on demand and remembers what it was asked for, and
//! a nexus with it at LUN 0.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::cdb::Cdb;
use crate::read_write::BlockRange;
use crate::{
    Allocation, BlockDevice, Completion, Extent, Identity, ItNexus, LogicalUnit, Lun, LunAddress,
    MediumError, MediumErrorKind, Provisioning, SenseFormat, Status, TaskAttribute, Transfer,
};

/// Blocks and which of them are mapped.
struct Medium {
    bytes: Vec<u8>,
    mapped: Vec<bool>,
}

pub(crate) struct RamDevice {
    block_bytes: u32,
    thin: bool,
    medium: Mutex<Medium>,
    /// What `block_count` says; may be made larger than the memory.
    pub(crate) blocks: AtomicU64,
    pub(crate) read_only: AtomicBool,
    /// Every call that touches this block fails so.
    pub(crate) failure: Mutex<Option<(u64, MediumErrorKind)>>,
    atomic_blocks: u32,
    on_write: Mutex<Option<Box<dyn Fn() + Send>>>,
    pub(crate) flushes: AtomicUsize,
    pub(crate) last_fua: AtomicBool,
}

impl RamDevice {
    pub(crate) fn new(block_bytes: u32, blocks: usize, thin: bool) -> Self {
        let bytes = vec![0; blocks * usize::try_from(block_bytes).unwrap()];
        Self {
            block_bytes,
            thin,
            medium: Mutex::new(Medium {
                bytes,
                mapped: vec![!thin; blocks],
            }),
            blocks: AtomicU64::new(u64::try_from(blocks).unwrap()),
            read_only: AtomicBool::new(false),
            failure: Mutex::new(None),
            atomic_blocks: 0,
            on_write: Mutex::new(None),
            flushes: AtomicUsize::new(0),
            last_fua: AtomicBool::new(false),
        }
    }

    pub(crate) fn with_atomic_blocks(mut self, blocks: u32) -> Self {
        self.atomic_blocks = blocks;
        self
    }

    /// Calls `note` in each write.
    pub(crate) fn on_write(&self, note: impl Fn() + Send + 'static) {
        *self.on_write.lock().unwrap() = Some(Box::new(note));
    }

    pub(crate) fn contents(&self) -> Vec<u8> {
        self.medium.lock().unwrap().bytes.clone()
    }

    pub(crate) fn fail_at(&self, failure: Option<(u64, MediumErrorKind)>) {
        *self.failure.lock().unwrap() = failure;
    }

    fn check(&self, lba: u64, blocks: u64) -> Result<(), MediumError> {
        // The core promises whole, checked ranges: anything else is its bug.
        assert_ne!(blocks, 0);
        assert!(lba.checked_add(blocks).unwrap() <= self.blocks.load(Ordering::SeqCst));
        match *self.failure.lock().unwrap() {
            Some((bad, kind)) if (lba..lba + blocks).contains(&bad) => Err(MediumError {
                kind,
                lba: Some(bad),
            }),
            _ => Ok(()),
        }
    }

    fn blocks_of(&self, bytes: &[u8]) -> u64 {
        let block_bytes = usize::try_from(self.block_bytes).unwrap();
        assert_eq!(bytes.len() % block_bytes, 0);
        u64::try_from(bytes.len() / block_bytes).unwrap()
    }

    fn place(&self, lba: u64) -> usize {
        usize::try_from(lba * u64::from(self.block_bytes)).unwrap()
    }

    fn set_mapped(&self, medium: &mut Medium, lba: u64, blocks: u64, mapped: bool) {
        let at = usize::try_from(lba).unwrap();
        medium.mapped[at..at + usize::try_from(blocks).unwrap()].fill(mapped || !self.thin);
    }
}

impl BlockDevice for RamDevice {
    fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    fn block_count(&self) -> u64 {
        self.blocks.load(Ordering::SeqCst)
    }

    fn read_only(&self) -> bool {
        self.read_only.load(Ordering::SeqCst)
    }

    fn provisioning(&self) -> Provisioning {
        if self.thin {
            Provisioning::Thin
        } else {
            Provisioning::Full
        }
    }

    fn read(&self, lba: u64, buffer: &mut [u8]) -> Result<(), MediumError> {
        self.check(lba, self.blocks_of(buffer))?;
        let at = self.place(lba);
        let end = at + buffer.len();
        buffer.copy_from_slice(&self.medium.lock().unwrap().bytes[at..end]);
        // Lets another thread come between the read and the write of a command.
        std::thread::yield_now();
        Ok(())
    }

    fn atomic_write_blocks(&self) -> u32 {
        self.atomic_blocks
    }

    fn write(&self, lba: u64, data: &[u8], fua: bool) -> Result<(), MediumError> {
        let blocks = self.blocks_of(data);
        if let Some(note) = &*self.on_write.lock().unwrap() {
            note();
        }
        self.check(lba, blocks)?;
        let at = self.place(lba);
        let mut medium = self.medium.lock().unwrap();
        medium.bytes[at..at + data.len()].copy_from_slice(data);
        self.set_mapped(&mut medium, lba, blocks, true);
        self.last_fua.store(fua, Ordering::SeqCst);
        Ok(())
    }

    fn flush(&self) -> Result<(), MediumError> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        match *self.failure.lock().unwrap() {
            Some((_, kind)) => Err(MediumError { kind, lba: None }),
            None => Ok(()),
        }
    }

    fn unmap(&self, lba: u64, blocks: u64) -> Result<(), MediumError> {
        assert!(self.thin, "a full device is never asked to unmap");
        self.check(lba, blocks)?;
        let mut medium = self.medium.lock().unwrap();
        let at = self.place(lba);
        let end = self.place(lba + blocks);
        medium.bytes[at..end].fill(0);
        self.set_mapped(&mut medium, lba, blocks, false);
        Ok(())
    }

    fn extent(&self, lba: u64) -> Result<Extent, MediumError> {
        let medium = self.medium.lock().unwrap();
        let rest = medium
            .mapped
            .get(usize::try_from(lba).unwrap()..)
            .unwrap_or_default();
        let Some(&mapped) = rest.first() else {
            // Beyond the memory: cannot tell.
            return Ok(Extent {
                blocks: 0,
                allocation: Allocation::Deallocated,
            });
        };
        let run = rest.iter().take_while(|&&each| each == mapped).count();
        let allocation = if mapped {
            Allocation::MappedOrUnknown
        } else {
            Allocation::Deallocated
        };
        Ok(Extent {
            blocks: u64::try_from(run).unwrap(),
            allocation,
        })
    }
}

pub(crate) const LUN_0: [u8; 8] = [0; 8];

/// A unit at LUN 0 of a nexus.
pub(crate) struct Fixture {
    pub(crate) device: Arc<RamDevice>,
    pub(crate) unit: Arc<LogicalUnit>,
    pub(crate) nexus: ItNexus,
}

impl Fixture {
    /// A thin unit of 512-byte blocks with nothing pending.
    pub(crate) fn new(blocks: usize) -> Self {
        Self::with_device(RamDevice::new(512, blocks, true))
    }

    pub(crate) fn with_device(device: RamDevice) -> Self {
        let device = Arc::new(device);
        let identity = Identity::from_serial("lun-0001").unwrap();
        let unit = Arc::new(LogicalUnit::new(identity, device.clone()).unwrap());
        let nexus = second_nexus(&unit, 1);
        let fixture = Self {
            device,
            unit,
            nexus,
        };
        assert_eq!(fixture.sense(&[0; 6], &[]), (6, 0x29, 0x00));
        fixture
    }

    pub(crate) fn run(&self, cdb: &[u8], data_out: &[u8]) -> (Completion, Vec<u8>) {
        run_at(&self.nexus, LUN_0, cdb, data_out)
    }

    /// Runs what must succeed, and returns its data.
    pub(crate) fn good(&self, cdb: &[u8], data_out: &[u8]) -> Vec<u8> {
        let (completion, data) = self.run(cdb, data_out);
        assert_eq!(
            completion.status,
            Status::Good,
            "{cdb:02x?}: {:?}",
            completion.sense
        );
        data
    }

    /// Runs what must fail, and returns its sense key, ASC and ASCQ.
    pub(crate) fn sense(&self, cdb: &[u8], data_out: &[u8]) -> (u8, u8, u8) {
        sense_of(&self.nexus, LUN_0, cdb, data_out)
    }
}

/// Another initiator with the same unit at LUN 0; 29/00 is pending.
pub(crate) fn second_nexus(unit: &Arc<LogicalUnit>, initiator_port: u64) -> ItNexus {
    let nexus = ItNexus::new(initiator_port);
    nexus.attach(Lun::ZERO, Arc::clone(unit)).unwrap();
    nexus
}

/// Runs a READ or WRITE at an odd block with the caller moving the data, if it is one for that:
/// both ways have to agree with whatever a test expects.
fn transfer_at(
    nexus: &ItNexus,
    lun: [u8; 8],
    cdb: &[u8],
    data_out: &[u8],
) -> Option<(Completion, Vec<u8>)> {
    let LunAddress::Unit(number) = LunAddress::parse(lun) else {
        return None;
    };
    let unit = nexus.unit(number)?;
    let range = BlockRange::parse(&Cdb::new(cdb));
    if range.lba.is_multiple_of(2) {
        return None;
    }
    let mut data_in = Vec::new();
    let data_bytes = match data_out.len() {
        0 => usize::try_from(range.blocks * u64::from(unit.block_bytes())).unwrap(),
        bytes => bytes,
    };
    let moved = nexus.transfer(&unit, (lun, cdb), data_bytes, |transfer| match transfer {
        Transfer::Read { lba, bytes } => {
            data_in.resize(bytes, 0);
            unit.device().read(lba, &mut data_in).is_ok()
        }
        Transfer::Write { lba, bytes } => {
            let data = data_out.get(..bytes);
            data.is_some_and(|data| unit.device().write(lba, data, false).is_ok())
        }
    });
    let completion = Completion {
        status: Status::Good,
        sense: None,
        sense_format: SenseFormat::Fixed,
        data_in_offered_bytes: data_in.len(),
        data_out_used_bytes: data_out.len(),
        preempted_ports: Vec::new(),
    };
    moved.then_some((completion, data_in))
}

pub(crate) fn run_at(
    nexus: &ItNexus,
    lun: [u8; 8],
    cdb: &[u8],
    data_out: &[u8],
) -> (Completion, Vec<u8>) {
    if let Some(moved) = transfer_at(nexus, lun, cdb, data_out) {
        return moved;
    }
    // What was left over from an earlier command must never be seen.
    let mut data_in = vec![0xEE; 16];
    let completion = nexus.execute(
        lun,
        cdb,
        TaskAttribute::Simple,
        data_out,
        &mut data_in,
        4 << 20,
    );
    assert_eq!(
        completion.sense.is_some(),
        completion.status == Status::CheckCondition
    );
    (completion, data_in)
}

pub(crate) fn sense_of(nexus: &ItNexus, lun: [u8; 8], cdb: &[u8], data_out: &[u8]) -> (u8, u8, u8) {
    let (completion, data) = run_at(nexus, lun, cdb, data_out);
    let sense = completion
        .sense
        .unwrap_or_else(|| panic!("{cdb:02x?} succeeded"));
    assert!(data.is_empty());
    (
        sense.key.code(),
        sense.additional.asc,
        sense.additional.ascq,
    )
}
