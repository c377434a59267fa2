//! A LUN map that changes while commands run.

use std::collections::BTreeMap;

use fabric_config::{ApplyRefused, LunMapping, MediumConfig, Outcome, Report};

use super::*;

/// Sense key, ASC and ASCQ.
type SenseCode = (u8, u8, u8);

const NOT_SUPPORTED: SenseCode = (5, 0x25, 0);

fn sense_of(sense: &[u8]) -> SenseCode {
    (sense[2] & 0xf, sense[12], sense[13])
}

fn address(lun: u8) -> [u8; 8] {
    [0, lun, 0, 0, 0, 0, 0, 0]
}

/// The LUN map of the first vHBA.
fn map(config: &mut LabConfig) -> &mut Vec<LunMapping> {
    &mut config.hosts[0].vms[0].vhbas[0].luns
}

impl Lab {
    /// Applies the lab file with some words changed; all of it is done.
    fn apply(&self, change: impl FnOnce(&mut LabConfig)) {
        let report = self.try_apply(change).unwrap();
        for object in &report.objects {
            assert_eq!(object.outcome, Outcome::Done, "{report:?}");
        }
    }

    fn try_apply(&self, change: impl FnOnce(&mut LabConfig)) -> Result<Report, ApplyRefused> {
        let mut config = self.config.clone();
        change(&mut config);
        self.director.apply(config)
    }

    fn event(&self) -> Event {
        match self.next() {
            Seen::Event(event) => event,
            other => panic!("{other:?} instead of an event"),
        }
    }

    /// So many ends of commands and so many events, which may overtake each other: sense by tag.
    fn gather(&self, ends: usize, events: usize) -> (BTreeMap<u64, SenseCode>, Vec<Event>) {
        let (mut ended, mut heard) = (BTreeMap::new(), Vec::new());
        while ended.len() < ends || heard.len() < events {
            match self.next() {
                Seen::Event(event) => heard.push(event),
                Seen::Status { tag, sense, .. } => {
                    assert_eq!(ended.insert(tag, sense_of(&sense)), None);
                }
                other => panic!("{other:?}"),
            }
        }
        (ended, heard)
    }
}

#[test]
fn a_lun_that_is_added_is_announced_and_serves() {
    let lab = Lab::new();
    let third = lab.folder.path().join("third.img");
    File::create(&third).unwrap().set_len(1 << 20).unwrap();
    lab.apply(|config| {
        let mut lun = config.luns[0].clone();
        lun.name = "third".into();
        lun.serial = "third".into();
        lun.medium = MediumConfig::File {
            path: third.clone(),
            direct: false,
        };
        config.luns.push(lun);
        let (lun, name) = (5, "third".into());
        map(config).push(LunMapping { lun, name });
    });
    assert_eq!(lab.event(), Event::LunAdded(address(5)));
    // REPORTED LUNS DATA HAS CHANGED, to a LUN that was there before.
    lab.send(MIXED, [command(1, 0, &[0; 6], 0, 0)]);
    assert_eq!(sense_of(&lab.status(1).2), (6, 0x3f, 0x0e));
    let report_luns = [0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0];
    lab.send(MIXED, [command(2, 0, &report_luns, 0, 64)]);
    let (.., luns) = lab.status(2);
    let luns: Vec<_> = luns[8..].chunks(8).map(|lun| lun[1]).collect();
    assert_eq!(luns, [0, 1, 5]);
    // 29/00 of a new nexus.
    lab.send(MIXED, [command(3, 5, &[0; 6], 0, 0)]);
    assert_eq!(sense_of(&lab.status(3).2), (6, 0x29, 0));
    lab.send(MIXED, write(4, 5, 3, &[7; 512]));
    let (response, status, ..) = lab.status(4);
    assert_eq!((response, status), GOOD);
    let mut on_disk = [0; 512];
    let file = File::open(&third).unwrap();
    file.read_exact_at(&mut on_disk, 3 * 512).unwrap();
    assert_eq!(on_disk, [7; 512]);
    // Gone again, its file is anybody's.
    lab.apply(|_| {});
    assert_eq!(lab.event(), Event::LunRemoved(address(5)));
    let began = Instant::now();
    while rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
        assert!(
            began.elapsed() < PATIENCE,
            "the file of a removed LUN is locked"
        );
        std::thread::yield_now();
    }
}

#[test]
fn commands_at_a_lun_that_is_removed_end_each_with_its_answer() {
    let lab = Lab::new();
    lab.send(MIXED, [command(1, 1, &[0; 6], 0, 0)]);
    assert_eq!(sense_of(&lab.status(1).2), (6, 0x29, 0));
    // One runs, one waits behind it, one waits for its data, one is another vHBA's.
    lab.send(MIXED, [read(10, 1, 0, 8)]);
    lab.wait_queued(MIXED, 10, 1);
    lab.send(MIXED, [read(11, 1, 0, 8)]);
    let mut late = write(12, 1, 0, &[9; 1024]);
    let data = late.pop().unwrap();
    lab.send(MIXED, late);
    lab.wait_queued(MIXED, 12, 1);
    lab.apply(|config| map(config).truncate(1));
    // The one that runs, in its delay, has not begun at its unit.
    let (ended, heard) = lab.gather(2, 1);
    let both = BTreeMap::from([(10, NOT_SUPPORTED), (11, NOT_SUPPORTED)]);
    assert_eq!(ended, both);
    assert_eq!(heard, [Event::LunRemoved(address(1))]);
    // Its tag is the host's again only once all its data has come.
    lab.send(MIXED, [data]);
    assert_eq!(sense_of(&lab.status(12).2), NOT_SUPPORTED);
    lab.send(MIXED, [read(13, 1, 0, 8)]);
    assert_eq!(sense_of(&lab.status(13).2), NOT_SUPPORTED);
    // Who sees it still is served.
    lab.send(SHARING, [command(20, 0, &[0x12, 0, 0, 0, 96, 0], 0, 96)]);
    let (response, status, ..) = lab.status(20);
    assert_eq!((response, status), GOOD);
}

#[test]
fn a_command_that_runs_when_its_lun_is_removed_ends_with_its_result() {
    let (lab, faults) = super::medium::patient();
    faults.stall(true);
    lab.send(MIXED, write(10, 0, 0, &[7; 4096]));
    faults.wait_stalled(1);
    lab.apply(|config| drop(map(config).remove(0)));
    assert_eq!(lab.event(), Event::LunRemoved(address(0)));
    faults.stall(false);
    let (response, status, ..) = lab.status(10);
    assert_eq!((response, status), GOOD);
    let mut on_disk = [0; 4096];
    let file = File::open(lab.folder.path().join("fast.img")).unwrap();
    file.read_exact_at(&mut on_disk, 0).unwrap();
    assert_eq!(on_disk, [7; 4096]);
}

#[test]
fn a_number_that_becomes_another_unit_takes_no_command_with_it() {
    let lab = Lab::new();
    lab.send(MIXED, [command(1, 1, &[0; 6], 0, 0)]);
    assert_eq!(sense_of(&lab.status(1).2), (6, 0x29, 0));
    // Writes for the slow unit: one in its delay, one that waits.
    lab.send(MIXED, write(10, 1, 0, &[0xaa; 512]));
    lab.send(MIXED, write(11, 1, 1, &[0xbb; 512]));
    lab.wait_queued(MIXED, 11, 1);
    lab.apply(|config| map(config)[1].name = "fast".into());
    let (ended, heard) = lab.gather(2, 2);
    let both = BTreeMap::from([(10, NOT_SUPPORTED), (11, NOT_SUPPORTED)]);
    assert_eq!(ended, both);
    let expected = [Event::LunRemoved(address(1)), Event::LunAdded(address(1))];
    assert_eq!(heard, expected);
    lab.send(MIXED, [command(12, 1, &[0; 6], 0, 0)]);
    assert_eq!(sense_of(&lab.status(12).2), (6, 0x29, 0));
    lab.send(MIXED, write(13, 1, 9, &[0xcc; 512]));
    let (response, status, ..) = lab.status(13);
    assert_eq!((response, status), GOOD);
    let mut on_disk = vec![0; 10 * 512];
    let file = File::open(lab.folder.path().join("fast.img")).unwrap();
    file.read_exact_at(&mut on_disk, 0).unwrap();
    assert!(on_disk[..9 * 512].iter().all(|byte| *byte == 0));
    assert!(on_disk[9 * 512..].iter().all(|byte| *byte == 0xcc));
}

#[test]
fn a_file_that_cannot_be_applied_changes_nothing() {
    let lab = Lab::new();
    let refused = lab.try_apply(|config| {
        map(config).truncate(1);
        let mut lun = config.luns[0].clone();
        lun.name = "missing".into();
        lun.medium = MediumConfig::File {
            path: lab.folder.path().join("missing"),
            direct: false,
        };
        config.luns.push(lun);
    });
    let text = refused.unwrap_err().to_string();
    assert!(text.starts_with("lun missing: cannot open"), "{text}");
    let refused = lab.try_apply(|config| {
        map(config).truncate(1);
        config.luns[0].read_only = true;
    });
    let text = refused.unwrap_err().to_string();
    assert!(
        text.starts_with("lun fast: read-only cannot change"),
        "{text}"
    );
    lab.send(MIXED, [command(1, 1, &[0x12, 0, 0, 0, 96, 0], 0, 96)]);
    let (response, status, ..) = lab.status(1);
    assert_eq!((response, status), GOOD);
}
