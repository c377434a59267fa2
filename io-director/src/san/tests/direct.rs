//! Commands that run on the caller's thread, without frames.

use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::sync::Barrier;

use fabric_bypass::{DataBuffers, DirectSession};
use fabric_config::MediumConfig;

use super::*;

/// A guest's buffers; the reader of `gate`, if there is one, is passed on the way.
#[derive(Default)]
struct Memory {
    bytes: Mutex<Vec<u8>>,
    gate: Option<Barrier>,
}

impl Memory {
    fn of(bytes: &[u8]) -> Self {
        Self {
            bytes: Mutex::new(bytes.to_vec()),
            gate: None,
        }
    }

    fn pass(&self) {
        if let Some(gate) = &self.gate {
            // Everything is as it is in the middle of a command, until the test goes on.
            gate.wait();
            gate.wait();
        }
    }
}

impl DataBuffers for Memory {
    fn read_at(&self, offset: usize, to: &mut [u8]) -> io::Result<()> {
        self.pass();
        let bytes = self.bytes.lock().unwrap();
        let from = bytes.get(offset..offset + to.len());
        to.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, offset: usize, from: &[u8]) -> io::Result<()> {
        self.pass();
        let mut bytes = self.bytes.lock().unwrap();
        let to = bytes.get_mut(offset..offset + from.len());
        to.ok_or(io::ErrorKind::UnexpectedEof)?
            .copy_from_slice(from);
        Ok(())
    }

    fn read_file(
        &self,
        file: BorrowedFd<'_>,
        position: u64,
        bytes: usize,
        _wait: bool,
    ) -> io::Result<usize> {
        let file = File::from(file.try_clone_to_owned()?);
        file.read_at(&mut self.bytes.lock().unwrap()[..bytes], position)
    }

    fn write_file(&self, _: BorrowedFd<'_>, _: u64, _: usize) -> io::Result<usize> {
        panic!("a write to a disk may wait for it");
    }
}

/// With memory in the place of the fast file, unless `change` says otherwise.
fn lab(change: impl FnOnce(&mut LabConfig)) -> Lab {
    Lab::with(|config| {
        config.luns[0].medium = MediumConfig::Ram { bytes: 4 << 20 };
        change(config);
    })
}

fn direct(lab: &Lab, device: DeviceId) -> Arc<dyn DirectSession> {
    let target = lab.director.direct_target(device);
    target.session(lab.lanes[&device].epoch()).unwrap()
}

/// READ(10) or WRITE(10) of `blocks` from block 8 on.
fn execute(
    session: &dyn DirectSession,
    (lun, opcode, flags): (u8, u8, u8),
    blocks: u8,
    memory: &Memory,
) -> Option<ServiceResponse> {
    let bytes = u32::try_from(memory.bytes.lock().unwrap().len()).unwrap();
    let writes = opcode == WRITE;
    let command = Command {
        tag: Tag(0),
        lun: [0x40, lun, 0, 0, 0, 0, 0, 0],
        attribute: 0,
        cdb: &[opcode, flags, 0, 0, 0, 8, 0, 0, blocks, 0],
        data_out_bytes: if writes { bytes } else { 0 },
        data_in_bytes: if writes { 0 } else { bytes },
    };
    session.execute(&command, memory)
}

/// The next thing that happens, which must be the end of a function.
fn management(lab: &Lab) -> (u64, TaskResponse) {
    match lab.next() {
        Seen::Management { tag, response } => (tag, response),
        other => panic!("{other:?}"),
    }
}

const READ: u8 = 0x28;
const WRITE: u8 = 0x2a;
const FUA: u8 = 8;
const DONE: Option<ServiceResponse> = Some(ServiceResponse::TaskComplete);

#[test]
fn what_is_written_without_frames_is_read_with_them_and_the_other_way() {
    let lab = lab(|_| {});
    let session = direct(&lab, MIXED);
    assert_eq!(
        execute(&*session, (0, WRITE, 0), 2, &Memory::of(&[7; 1024])),
        DONE
    );
    lab.send(MIXED, [read(1, 0, 8, 2)]);
    assert_eq!(lab.status(1).3, [7; 1024]);
    lab.send(MIXED, write(2, 0, 9, &[8; 512]));
    assert_eq!(lab.status(2).0, GOOD.0);
    let memory = Memory::of(&[0; 1024]);
    assert_eq!(execute(&*session, (0, READ, 0), 2, &memory), DONE);
    let expected = [[7; 512], [8; 512]].concat();
    assert_eq!(*memory.bytes.lock().unwrap(), expected);
    assert_eq!(lab.counter("data_out_bytes"), 1024 + 512);
    assert_eq!(lab.counter("data_in_bytes"), 1024 + 1024);
}

#[test]
fn page_cache_of_a_disk_is_read_and_not_written() {
    let lab = Lab::new();
    let session = direct(&lab, MIXED);
    lab.send(MIXED, write(1, 0, 8, &[9; 512]));
    lab.status(1);
    let memory = Memory::of(&[0; 512]);
    assert_eq!(execute(&*session, (0, READ, 0), 1, &memory), DONE);
    assert_eq!(*memory.bytes.lock().unwrap(), [9; 512]);
    assert_eq!(execute(&*session, (0, WRITE, 0), 1, &memory), None);
}

#[test]
fn whatever_is_not_plain_goes_by_the_lanes() {
    let lab = lab(|_| {});
    let session = direct(&lab, MIXED);
    let memory = Memory::of(&[1; 512]);
    for (why, what, blocks) in [
        ("a delayed LUN", (1, READ, 0), 1),
        ("no such LUN", (5, READ, 0), 1),
        ("FUA", (0, WRITE, FUA), 1),
        ("longer than its data", (0, READ, 0), 2),
        ("shorter than its data", (0, READ, 0), 0),
        ("another command", (0, 0x2f, 0), 1),
    ] {
        assert_eq!(execute(&*session, what, blocks, &memory), None, "{why}");
    }
    // A unit attention that nobody has told yet.
    let sharing = direct(&lab, SHARING);
    assert_eq!(execute(&*sharing, (0, READ, 0), 1, &memory), None);
    // A session that is not the one that has the vHBA.
    let target = lab.director.direct_target(MIXED);
    let epoch = lab.lanes[&MIXED].epoch();
    assert!(target.session(epoch.wrapping_add(1)).is_none());
    assert!(
        lab.director
            .direct_target(DeviceId(99))
            .session(epoch)
            .is_none()
    );
    assert_eq!(execute(&*session, (0, READ, 0), 1, &memory), DONE);
}

#[test]
fn task_management_finds_it_and_ends_after_it() {
    let lab = lab(|_| {});
    let session = direct(&lab, MIXED);
    let memory = Memory {
        gate: Some(Barrier::new(2)),
        ..Memory::of(&[0; 512])
    };
    let gate = memory.gate.as_ref().unwrap();
    std::thread::scope(|scope| {
        let read = scope.spawn(|| execute(&*session, (0, READ, 0), 1, &memory));
        gate.wait();
        lab.send(MIXED, [manage(TaskFunction::QueryTaskSet, 50, 0, 0)]);
        assert_eq!(management(&lab), (50, TaskResponse::Succeeded));
        // An ORDERED task waits for it, and no other overtakes that one.
        lab.send(MIXED, [command_of(1, 3, (0, &[0; 6]), 0, 0)]);
        lab.wait_queued(MIXED, 3, 0);
        assert_eq!(
            execute(&*session, (0, READ, 0), 1, &Memory::of(&[0; 512])),
            None
        );
        lab.send(MIXED, [manage(TaskFunction::LogicalUnitReset, 51, 0, 0)]);
        let (response, ..) = lab.status(3);
        assert_eq!(response, ServiceResponse::Reset);
        lab.send(MIXED, [manage(TaskFunction::QueryTask, 52, 3, 0)]);
        assert_eq!(
            management(&lab),
            (52, TaskResponse::Complete),
            "51 is not over"
        );
        gate.wait();
        assert_eq!(read.join().unwrap(), Some(ServiceResponse::Reset));
        assert_eq!(management(&lab), (51, TaskResponse::Complete));
    });
    // 29/03 is told to the next command, which is therefore none for here.
    let memory = Memory::of(&[0; 512]);
    assert_eq!(execute(&*session, (0, READ, 0), 1, &memory), None);
}

#[test]
fn who_moves_more_than_its_peak_is_not_clear_until_it_has_paid() {
    let lab = lab(|config| {
        let vhba = &mut config.hosts[0].vms[0].vhbas[0];
        vhba.egress = DeviceRate::new("0".parse().unwrap(), Some("8M".parse().unwrap())).unwrap();
    });
    let session = direct(&lab, MIXED);
    assert!(session.is_clear());
    // 1 MiB/s: the first charge is within the burst or uses it up, and none of them is forgotten.
    let mut charges = 0;
    while session.is_clear() {
        session.charge(64 * 1024);
        charges += 1;
        assert!(charges < 16, "a peak rate that holds nobody");
    }
    while !session.is_clear() {
        std::thread::yield_now();
    }
}
