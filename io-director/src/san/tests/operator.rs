//! What the operator sees: counters, states, and a capture as another author's decoder reads it.

use std::process::Command as Program;

use qos_monitor::capture_file::CaptureFile;
use qos_monitor::storage::{
    CaptureWanted, CommandCounts, LunState, Storage, StorageState, VhbaState,
};

use super::*;

/// Waits until a command whose status is here is counted as answered.
fn settled(lab: &Lab, answered: u64) -> (Vec<LunState>, Vec<VhbaState>) {
    let view = lab.director.san_view();
    let end = Instant::now() + PATIENCE;
    loop {
        let (luns, vhbas) = (view.luns(), view.vhbas());
        let all =
            |counts: &CommandCounts| counts.reads.count + counts.writes.count + counts.others.count;
        if vhbas.iter().map(|vhba| all(&vhba.commands)).sum::<u64>() >= answered {
            return (luns, vhbas);
        }
        assert!(Instant::now() < end, "{vhbas:?}");
        std::thread::yield_now();
    }
}

#[test]
fn each_lun_and_vhba_tells_what_it_did() {
    let lab = Lab::new();
    let connected = settled(&lab, 1).1;
    assert_eq!(connected[0].state, StorageState::Ready);
    lab.send(MIXED, write(1, 0, 8, &[7; 4096]));
    lab.status(1);
    for tag in 2..5 {
        lab.send(MIXED, [read(tag, 0, 8, 8)]);
        lab.status(tag);
    }
    // LBA out of range, and a LUN that is not there.
    lab.send(
        MIXED,
        [command(
            5,
            0,
            &[0x28, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 1, 0],
            0,
            512,
        )],
    );
    lab.status(5);
    lab.send(MIXED, [command(6, 7, &[0; 6], 0, 0)]);
    lab.status(6);
    // One of the slow unit is aborted while it runs.
    lab.send(SHARING, [read(7, 0, 0, 1)]);
    lab.wait_queued(SHARING, 7, 0);
    let (luns, vhbas) = settled(&lab, 7);
    assert_eq!(luns[1].commands.in_flight, 1);
    assert_eq!(vhbas[1].commands.in_flight, 1);
    lab.send(SHARING, [manage(TaskFunction::AbortTask, 8, 7, 0)]);
    let ended = [lab.next(), lab.next()];
    assert!(
        ended
            .iter()
            .any(|seen| matches!(seen, Seen::Management { tag: 8, .. })),
        "{ended:?}"
    );
    let (luns, vhbas) = settled(&lab, 7);
    let [fast, slow] = luns.as_slice() else {
        panic!("{luns:?}");
    };
    assert_eq!(
        (fast.name.as_str(), fast.state, fast.bytes),
        ("fast", StorageState::Ready, 4 << 20)
    );
    assert_eq!(fast.seen_by, [("vh01.vm1".to_owned(), 0)].into());
    assert_eq!(
        slow.seen_by,
        [("vh01.vm1".to_owned(), 1), ("vh02.vm1".to_owned(), 0)].into()
    );
    let counts = &fast.commands;
    assert_eq!((counts.reads.count, counts.writes.count), (4, 1));
    assert_eq!(
        (counts.data_in_bytes, counts.data_out_bytes),
        (3 * 4096, 4096)
    );
    assert_eq!((counts.errors["illegal-request"], counts.in_flight), (1, 0));
    assert!(counts.reads.p50_nanos > 0 && counts.reads.max_nanos >= counts.reads.p99_nanos);
    assert_eq!((slow.commands.aborted, slow.commands.in_flight_max), (1, 1));
    assert_eq!(slow.commands.task_management["abort-task"], 1);
    let vhba = &vhbas[0];
    assert_eq!(
        (vhba.name.as_str(), vhba.wwpn.as_str()),
        ("vh01.vm1", "50:01:39:71:00:00:00:0b")
    );
    assert_eq!(
        vhba.luns,
        [(0, "fast".to_owned()), (1, "slow".to_owned())].into()
    );
    // That of the absent LUN belongs to the vHBA alone.
    assert_eq!(vhba.commands.errors["illegal-request"], 2);
    assert_eq!(vhba.commands.failed(), 2);
}

#[test]
fn states_are_told() {
    let lab = Lab::with(|config| config.luns[0].read_only = true);
    let (luns, vhbas) = settled(&lab, 1);
    assert_eq!(luns[0].state, StorageState::ReadOnly);
    // The other LUN of it may be written.
    assert_eq!(vhbas[0].state, StorageState::Ready);
    // Without a host, what is shared is another director's.
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    config.director.shared_luns = true;
    let director = Director::start(&config).unwrap();
    let view = director.san_view();
    let vhbas = view.vhbas();
    assert!(vhbas.iter().all(|vhba| vhba.state == StorageState::Standby));
    assert!(
        view.luns()
            .iter()
            .all(|lun| lun.state == StorageState::Standby)
    );
}

/// What tshark makes of some fields of each frame; `None` where it is not installed.
fn decode(file: &Path, fields: &[&str]) -> Option<Vec<Vec<String>>> {
    let mut tshark = Program::new("tshark");
    tshark
        .arg("-r")
        .arg(file)
        .args(["-T", "fields", "-E", "separator=|"]);
    for field in fields {
        tshark.args(["-e", field]);
    }
    let out = match tshark.output() {
        Ok(out) => out,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(error) => panic!("{error}"),
    };
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    let text = String::from_utf8(out.stdout).unwrap();
    let lines = text.lines();
    Some(
        lines
            .map(|line| line.split('|').map(str::to_owned).collect())
            .collect(),
    )
}

#[test]
fn capture_says_to_wireshark_what_the_commands_were() {
    let lab = Lab::new();
    let view = lab.director.san_view();
    let mut wanted = CaptureWanted {
        vhba: "vh03.vm1".to_owned(),
        lun: None,
        snap_bytes: 256,
    };
    let refused = view.start_capture(&wanted).map(drop).unwrap_err();
    assert!(refused.contains("vh01.vm1"), "{refused}");
    wanted.vhba = "vh01.vm1".to_owned();
    wanted.lun = Some(9);
    let refused = view.start_capture(&wanted).map(drop).unwrap_err();
    assert!(refused.contains("has no LUN 9"), "{refused}");
    wanted.lun = None;
    let capture = view.start_capture(&wanted).unwrap();
    lab.send(MIXED, [command(1, 0, &[0x12, 0, 0, 0, 96, 0], 0, 96)]);
    lab.status(1);
    lab.send(MIXED, write(2, 0, 0x21, &[7; 4096]));
    lab.status(2);
    lab.send(MIXED, [read(3, 0, 0x42, 2)]);
    lab.status(3);
    lab.send(
        MIXED,
        [command(
            4,
            0,
            &[0x28, 0, 0xff, 0xff, 0xff, 0xf0, 0, 0, 1, 0],
            0,
            512,
        )],
    );
    lab.status(4);
    let synchronize = [0x91, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0];
    lab.send(MIXED, [command(5, 0, &synchronize, 0, 0)]);
    lab.status(5);
    lab.send(MIXED, [manage(TaskFunction::LogicalUnitReset, 6, 0, 0)]);
    assert!(matches!(lab.next(), Seen::Management { tag: 6, .. }));
    lab.send(MIXED, [read(7, 1, 0, 1)]);
    lab.wait_queued(MIXED, 7, 1);
    lab.send(MIXED, [manage(TaskFunction::AbortTask, 8, 7, 1)]);
    for _ in 0..2 {
        lab.next();
    }
    let captured = capture.take();
    let path = lab.folder.path().join("capture.pcapng");
    let mut file = CaptureFile::new(File::create(&path).unwrap(), &capture.interface()).unwrap();
    file.add(&captured).unwrap();
    file.finish().unwrap();
    let fields = [
        "fc.ox_id",
        "fc.s_id",
        "_ws.col.Info",
        "fcp.status",
        "scsi.sns.key",
        "scsi.sns.ascascq",
        "fcp.rspcode",
        "fcp.resid",
        "frame.len",
        "frame.cap_len",
        "frame.comment",
    ];
    let Some(frames) = decode(&path, &fields) else {
        println!("tshark is not installed: install it to have the capture decoded");
        return;
    };
    assert_eq!(frames.len(), captured.frames.len());
    let text: Vec<_> = frames.iter().map(|frame| frame.join("|")).collect();
    let text = text.join("\n");
    // Exchange, sender, what it is, and then as far as it has that: status, sense key, ASC and ASCQ,
    // response code, residual, bytes and captured bytes.
    let expected = [
        "0x0000|01.00.0b|SCSI: Inquiry LUN: 0x00 ||||||56|56|",
        "0x0000|02.0c.01|SCSI: Data In",
        "0x0000|02.0c.01|SCSI: Response LUN: 0xffff (CDB:0xffff) (Good)|0x00||||",
        "0x0001|01.00.0b|SCSI: Write(10) LUN: 0x00 (LBA: 0x00000021, Len: 8)||||||56|56|",
        "0x0001|01.00.0b|SCSI: Data In LUN: 0xffff (0xff Response Data) ||||||4120|256|",
        "0x0001|02.0c.01|SCSI: Response LUN: 0xffff (CDB:0xffff) (Good)|0x00|||||48|48|",
        "0x0002|01.00.0b|SCSI: Read(10) LUN: 0x00 (LBA: 0x00000042, Len: 2)||||||56|56|",
        "0x0002|02.0c.01|SCSI: Data In LUN: 0xffff (0xff Response Data) ||||||1048|256|",
        "0x0002|02.0c.01|SCSI: Response LUN: 0xffff (CDB:0xffff) (Good)|0x00|||||48|48|",
        "0x0003|01.00.0b|SCSI: Read(10) LUN: 0x00 (LBA: 0xfffffff0, Len: 1)||||||56|56|",
        "0x0003|02.0c.01|SCSI: Response LUN: 0xffff (CDB:0xffff) (Check Condition) LUN:0xffff \
         |0x02|0x05|0x2100||512|",
        "0x0004|01.00.0b|SCSI: Synchronize Cache(16) LUN: 0x00 ",
        "0x0004|02.0c.01|SCSI: Response LUN: 0xffff (CDB:0xffff) (Good)|0x00|||||48|48|",
        "0x0005|01.00.0b|[FCP LU_RESET]",
        "0x0005|02.0c.01|SCSI: Response LUN: 0xffff (CDB:0xffff) (Good)|0x00|||0x00||56|56|",
        "0x0006|01.00.0b|SCSI: Read(10) LUN: 0x01 (LBA: 0x00000000, Len: 1)||||||56|56|",
        "0x0007|01.00.0b|SCSI: Test Unit Ready LUN: 0x01 ||||||56|56|QUERY TASK",
    ];
    for (line, expected) in text.lines().zip(expected) {
        assert!(
            line.starts_with(expected),
            "{line} is not {expected} in\n{text}"
        );
    }
    // It has the name of the exchange that it ended.
    let (abts, ba_acc) = ("0x0006|01.00.0b|ABTS|", "0x0006|02.0c.01|BA_ACC|");
    assert!(text.lines().any(|line| line.starts_with(abts)), "{text}");
    assert!(text.lines().any(|line| line.starts_with(ba_acc)), "{text}");
}
