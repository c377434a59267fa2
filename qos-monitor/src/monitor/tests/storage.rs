//! Logical units and captures through the socket.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::frames::{CaptureInterface, Captured, CapturedFrame, FrameKind};
use crate::storage::{CommandCounts, LunState, StorageState, VhbaState};

/// One logical unit, seen by one vHBA, and how many captures of it run.
#[derive(Default)]
pub(crate) struct Disks {
    running: Arc<AtomicUsize>,
}

struct Running(Arc<AtomicUsize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Capture for Running {
    fn interface(&self) -> CaptureInterface {
        CaptureInterface {
            name: "vh01.vm1".to_owned(),
            description: "01.00.0b".to_owned(),
            kind: FrameKind::FibreChannel,
            snap_bytes: 256,
        }
    }

    fn take(&self) -> Captured {
        let frame = CapturedFrame {
            at_nanos: 1_800_000_000_123_456_789,
            original_bytes: 300,
            dropped_before: 2,
            direction: None,
            comment: Some("QUERY TASK".to_owned()),
            bytes: vec![6; 256],
        };
        Captured {
            frames: vec![frame; 20],
            seen: 22,
            dropped: 2,
        }
    }
}

impl Storage for Disks {
    fn luns(&self) -> Vec<LunState> {
        vec![LunState {
            name: "data".to_owned(),
            state: StorageState::ReadOnly,
            bytes: 1 << 30,
            seen_by: [("vh01.vm1".to_owned(), 3)].into(),
            commands: CommandCounts::default(),
        }]
    }

    fn vhbas(&self) -> Vec<VhbaState> {
        vec![VhbaState {
            name: "vh01.vm1".to_owned(),
            wwpn: "50:01:39:71:00:00:00:0b".to_owned(),
            state: StorageState::Standby,
            luns: [(3, "data".to_owned())].into(),
            commands: CommandCounts::default(),
        }]
    }

    fn start_capture(&self, wanted: &CaptureWanted) -> Result<Box<dyn Capture>, String> {
        if wanted.vhba != "vh01.vm1" {
            return Err(format!("no vhba is named {:?}", wanted.vhba));
        }
        self.running.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(Running(self.running.clone())))
    }
}

#[test]
fn logical_units_are_told_and_a_capture_lives_as_long_as_its_client() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control");
    let disks = Arc::new(Disks::default());
    let running = disks.running.clone();
    let watched = Watched {
        storage: Some(disks),
        ..Watched::default()
    };
    let _monitor = Monitor::start(watched, Some(&path)).unwrap();
    let connect = || Client::connect(&path).unwrap();
    let mut client = connect();
    assert_eq!(client.luns().unwrap(), Disks::default().luns());
    assert_eq!(client.vhbas().unwrap(), Disks::default().vhbas());
    assert!(refusal(client.take_capture().unwrap_err()).contains("start-capture comes first"));
    let mut wanted = CaptureWanted {
        vhba: "vh02.vm1".to_owned(),
        lun: None,
        snap_bytes: 256,
    };
    assert!(refusal(client.start_capture(&wanted).unwrap_err()).contains("vh02.vm1"));
    wanted.vhba = "vh01.vm1".to_owned();
    assert_eq!(client.start_capture(&wanted).unwrap().snap_bytes, 256);
    // A second one takes the place of the first.
    client.start_capture(&wanted).unwrap();
    assert_eq!(running.load(Ordering::SeqCst), 1);
    let captured = client.take_capture().unwrap();
    assert_eq!(
        (captured.frames.len(), captured.seen, captured.dropped),
        (20, 22, 2)
    );
    assert_eq!(captured.frames[0].comment.as_deref(), Some("QUERY TASK"));
    // The connection is still in step after the bytes.
    assert_eq!(client.luns().unwrap().len(), 1);
    let mut second = connect();
    second.start_capture(&wanted).unwrap();
    let refused = connect().start_capture(&wanted).unwrap_err();
    assert!(refusal(refused).contains("2 captures are running"));
    drop((client, second));
    while running.load(Ordering::SeqCst) > 0 {
        std::thread::yield_now();
    }
}

#[test]
fn process_without_logical_units_says_where_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control");
    let _monitor = Monitor::start(Watched::default(), Some(&path)).unwrap();
    let refused = Client::connect(&path).unwrap().luns().unwrap_err();
    assert!(refusal(refused).contains("ask the I/O director"));
}
