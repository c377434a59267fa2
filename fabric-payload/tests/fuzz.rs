//! What lanes bring, damaged: each parser answers, and what it takes it would write the same way.

use fabric_payload::ethernet::{
    FLAG_NEEDS_CSUM, HEADER_BYTES, Offloads, PAYLOAD_BYTES_MAX, VirtioNetHeader,
};
use fabric_payload::scsi::InformationUnit;
use orimono_fuzz::{fuzz, inputs};

#[test]
fn p01_damaged_network_frames_are_answered() {
    // No offload; a TCPv4 super-frame; a TCPv6 one with ECN; a UDP one.
    let headers: [[u8; HEADER_BYTES]; 4] = [
        [0; HEADER_BYTES],
        [1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0, 0, 0],
        [1, 0x84, 74, 0, 0xa0, 5, 54, 0, 16, 0, 0, 0],
        [3, 5, 42, 0, 0xc0, 5, 34, 0, 6, 0, 1, 0],
    ];
    let good = headers.map(|header| [&header[..], &[7; 100]].concat());
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus/ethernet");
    fuzz(folder, &good, inputs(200_000, 1_000_000), |bytes| {
        let Some((header, frame)) = VirtioNetHeader::split(bytes) else {
            assert!(bytes.len() < HEADER_BYTES);
            return;
        };
        assert_eq!(frame.len() + HEADER_BYTES, bytes.len());
        let none = header.check(frame.len(), Offloads::default()).is_ok();
        let all = header.check(frame.len(), Offloads::ALL).is_ok();
        assert!(all || !none, "who agreed to more refuses it");
        if all && header.flags & FLAG_NEEDS_CSUM != 0 {
            let at = usize::from(header.csum_start.get()) + usize::from(header.csum_offset.get());
            assert!(at + 2 <= frame.len());
        }
        let wire = header.wire_bytes(frame.len());
        assert!(wire >= frame.len());
        // Each segment has at least a byte of its own.
        assert!(wire <= frame.len() * (1 + usize::from(header.header_len.get())));
        assert!(!all || bytes.len() <= PAYLOAD_BYTES_MAX);
    });
}

#[test]
fn p01_damaged_information_units_are_answered() {
    let command = {
        let mut bytes = vec![1, 0, 10, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0];
        bytes.extend(5_u64.to_le_bytes());
        bytes.extend([0x40, 1, 0, 0, 0, 0, 0, 0, 0x28, 0, 0, 0, 0, 5, 0, 0, 8, 0]);
        bytes.resize(64, 0);
        bytes
    };
    let data = |kind| {
        let mut bytes = vec![kind, 0, 0, 0, 0, 2, 0, 0];
        bytes.extend(5_u64.to_le_bytes());
        bytes.extend([9; 40]);
        bytes
    };
    let status = {
        let mut bytes = vec![4, 2, 0, 18, 0, 0, 0, 0];
        bytes.extend(5_u64.to_le_bytes());
        bytes.extend([0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x24, 0, 0, 0, 0, 0]);
        bytes
    };
    let management = {
        let mut bytes = vec![5, 3, 0, 0, 0, 0, 0, 0];
        bytes.extend(6_u64.to_le_bytes());
        bytes.extend(5_u64.to_le_bytes());
        bytes.extend([0x40, 1, 0, 0, 0, 0, 0, 0]);
        bytes
    };
    let response = {
        let mut bytes = vec![6, 1, 0, 0, 0, 0, 0, 0];
        bytes.extend(6_u64.to_le_bytes());
        bytes
    };
    let event = {
        let mut bytes = vec![7, 0, 0, 0, 3, 0, 0, 0, 0x40, 1, 0, 0, 0, 0, 0, 0];
        bytes.extend([0x2a, 9, 0, 0]);
        bytes
    };
    let good = [
        command,
        data(2),
        data(3),
        status,
        management,
        response,
        event,
    ];
    for unit in &good {
        assert!(InformationUnit::parse(unit).is_ok(), "{unit:?}");
    }
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus/scsi");
    fuzz(folder, &good, inputs(200_000, 1_000_000), |bytes| {
        if let Ok(unit) = InformationUnit::parse(bytes) {
            let mut written = Vec::new();
            unit.encode(&mut written);
            assert_eq!(InformationUnit::parse(&written).as_ref(), Ok(&unit));
            assert_eq!(written.len(), bytes.len());
        }
    });
}
