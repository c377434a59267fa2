//! What sg3-utils make of our bytes: an oracle by another author. Without sg3-utils
//! (`cargo xtask setup` installs them) nothing is tested here.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a failed expectation is a failed test"
)]

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use scsi_target::{
    AccessState, BlockDevice, Identity, ItNexus, LogicalUnit, Lun, MediumError, PortGroup,
    Provisioning, Status, TargetPort, TaskAttribute,
};

/// 1024 blocks of 512 bytes, thin, with atomic writes.
struct Ram(Mutex<Vec<u8>>);

impl BlockDevice for Ram {
    fn block_bytes(&self) -> u32 {
        512
    }

    fn block_count(&self) -> u64 {
        1024
    }

    fn read_only(&self) -> bool {
        false
    }

    fn provisioning(&self) -> Provisioning {
        Provisioning::Thin
    }

    fn read(&self, lba: u64, buffer: &mut [u8]) -> Result<(), MediumError> {
        let at = usize::try_from(lba * 512).unwrap();
        buffer.copy_from_slice(&self.0.lock().unwrap()[at..at + buffer.len()]);
        Ok(())
    }

    fn write(&self, lba: u64, data: &[u8], _: bool) -> Result<(), MediumError> {
        let at = usize::try_from(lba * 512).unwrap();
        self.0.lock().unwrap()[at..at + data.len()].copy_from_slice(data);
        Ok(())
    }

    fn flush(&self) -> Result<(), MediumError> {
        Ok(())
    }

    fn unmap(&self, lba: u64, blocks: u64) -> Result<(), MediumError> {
        self.write_zeroes(lba, blocks, false)
    }

    fn atomic_write_blocks(&self) -> u32 {
        128
    }
}

/// A unit behind two target ports, seen through the first, with nothing pending.
fn nexus() -> ItNexus {
    let device = Arc::new(Ram(Mutex::new(vec![0; 1024 * 512])));
    let group = PortGroup {
        ports: vec![TargetPort {
            relative: 1,
            name: Some(0x5000_0000_0000_0101),
        }],
        preferred: true,
        ..PortGroup::of_port(1, 1)
    };
    let standby = PortGroup {
        state: AccessState::Standby,
        ..PortGroup::of_port(2, 2)
    };
    let unit = LogicalUnit::new(Identity::from_serial("lun-0001").unwrap(), device).unwrap();
    let unit = unit.with_port_groups(vec![group, standby], true).unwrap();
    let nexus = ItNexus::new(0x5000_0000_0000_0001);
    nexus.attach(Lun::ZERO, Arc::new(unit)).unwrap();
    assert_eq!(run(&nexus, &[0; 6], &[]).0, Status::CheckCondition);
    nexus
}

/// Status, then data-in or sense data.
fn run(nexus: &ItNexus, cdb: &[u8], data_out: &[u8]) -> (Status, Vec<u8>) {
    let mut data = Vec::new();
    let simple = TaskAttribute::Simple;
    let completion = nexus.execute([0; 8], cdb, simple, data_out, &mut data, 1 << 20);
    let sense = completion.sense_bytes();
    let bytes = if sense.is_empty() { data } else { sense };
    (completion.status, bytes)
}

fn good(nexus: &ItNexus, cdb: &[u8]) -> Vec<u8> {
    let (status, data) = run(nexus, cdb, &[]);
    assert_eq!(status, Status::Good, "{cdb:02x?}");
    data
}

/// What a tool says about bytes that it reads in hexadecimal; `None` if it is not there.
fn decode(tool: &str, arguments: &[&str], bytes: &[u8]) -> Option<String> {
    let mut command = Command::new(tool);
    command.args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let Ok(mut child) = command.stderr(Stdio::piped()).spawn() else {
        eprintln!("{tool} is not there: nothing is tested");
        return None;
    };
    let mut text = String::new();
    for line in bytes.chunks(16) {
        for byte in line {
            text += &format!("{byte:02x} ");
        }
        text += "\n";
    }
    child
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    let failed = !output.status.success() || !complaint.trim().is_empty();
    assert!(!failed, "{tool} {arguments:?}: {complaint}{said}");
    Some(said)
}

/// Each of `lines` must be in what `tool` says.
fn says(tool: &str, arguments: &[&str], bytes: &[u8], lines: &[&str]) {
    let Some(said) = decode(tool, arguments, bytes) else {
        return;
    };
    for line in lines {
        assert!(said.contains(line), "{line:?} is not in:\n{said}");
    }
}

#[test]
fn inquiry_data_claims_what_is_there() {
    let data = good(&nexus(), &[0x12, 0, 0, 0, 96, 0]);
    says(
        "sg_inq",
        &["-d", "--inhex=-"],
        &data,
        &[
            "PQual=0  PDT=0",
            "[SPC-4]",
            "NormACA=0  HiSUP=1  Resp_data_format=2",
            "TPGS=3  3PC=1  Protect=0",
            "MultiP=1",
            "CmdQue=1",
            "Vendor identification: ORIMONO",
            "SAM-5 (no version claimed)",
            "SPC-4 (no version claimed)",
            "SBC-3 (no version claimed)",
        ],
    );
}

#[test]
fn every_vpd_page_is_understood() {
    let nexus = nexus();
    let list = good(&nexus, &[0x12, 1, 0, 1, 0, 0]);
    let pages: [(u8, &[&str]); 10] = [
        (0x00, &["0x88  SCSI ports", "0x8f  Third party copy"]),
        (0x80, &["Unit serial number: lun-0001"]),
        (
            0x83,
            &[
                "NAA 3, Locally assigned",
                "vendor specific: FABRIC LUN      lun-0001",
                "transport: Fibre Channel",
                "[0x5000000000000101]",
                "Relative target port: 0x1",
                "Target port group: 0x1",
            ],
        ),
        (
            0x86,
            &[
                "HEADSUP=1",
                "ORDSUP=1",
                "SIMPSUP=1",
                "V_SUP=1",
                "LUICLR=1",
                "Maximum supported sense data length=28",
            ],
        ),
        (0x87, &["applies to all modes pages", "Policy: shared"]),
        (
            0x88,
            &["Relative port=1", "Relative port=2", "[0x5000000000000101]"],
        ),
        (
            0x8F,
            &[
                "Extended copy(LID1)",
                "Receive copy status(LID1)",
                "Receive copy operating parameters",
                "Maximum CSCD descriptor count: 16",
                "Maximum descriptor list length: 960",
                "block -> block [0x2]",
                "Identification Descriptor [0xe4]",
                "Maximum segment length: 16777216",
                "Held data limit: 0",
            ],
        ),
        (
            0xB0,
            &[
                "Write same non-zero (WSNZ): 1",
                "Maximum compare and write length: 255",
                "Maximum transfer length: 2048",
                "Maximum unmap LBA count: 1048576",
                "Unmap granularity alignment valid: true",
                "Maximum write same length: 0x10000",
                "Maximum atomic transfer length: 128",
            ],
        ),
        (0xB1, &["Non-rotating medium", "WABEREQ=1"]),
        (
            0xB2,
            &[
                "(LBPU): 1",
                "(LBPWS): 1",
                "(LBPWS10): 1",
                "(LBPRZ): 1",
                "2 (thin provisioned)",
            ],
        ),
    ];
    assert_eq!(list[4..], pages.map(|(code, _)| code));
    for (code, lines) in pages {
        let page = good(&nexus, &[0x12, 1, code, 1, 0, 0]);
        says("sg_vpd", &["-l", "--inhex=-"], &page, lines);
    }
}

#[test]
fn every_log_page_is_understood() {
    let nexus = nexus();
    for (page, subpage, line) in [
        (0x00, 0x00, "0x2f        Informational exceptions [ie]"),
        (0x00, 0xFF, "0x00,0xff   Supported log pages and subpages"),
        (0x0D, 0x00, "Reference temperature = <not available>"),
        (0x2F, 0x00, "IE asc = 0x0, ascq = 0x0"),
    ] {
        let cdb = [0x4D, 0, 0x40 | page, subpage, 0, 0, 0, 4, 0, 0];
        says("sg_logs", &["--in=-"], &good(&nexus, &cdb), &[line]);
    }
}

#[test]
fn lba_status_is_understood() {
    let cdb = [0x9E, 0x12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0];
    let line = "blocks:       1024  mapped (or unknown)";
    says(
        "sg_get_lba_status",
        &["--inhex=-"],
        &good(&nexus(), &cdb),
        &[line],
    );
}

#[test]
fn sense_data_is_understood_in_both_formats() {
    let nexus = nexus();
    let descriptor_sense = [0, 0, 0, 0, 0x0A, 0x0A, 0x26, 0x10, 0, 0, 0, 0, 0, 0, 0, 0];
    for format in ["Fixed format", "Descriptor format"] {
        let cases: [(&[u8], &[u8], &[&str]); 6] = [
            (
                &[0x88, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 1, 0, 0],
                &[],
                &["Illegal Request", "Logical block address out of range"],
            ),
            (&[0xFF; 16], &[], &["Invalid command operation code"]),
            (
                &[0x28, 0x20, 0, 0, 0, 0, 0, 0, 1, 0],
                &[],
                &["Invalid field in cdb", "Error in Command: byte 1 bit 5"],
            ),
            (
                &[0x2F, 0x02, 0, 0, 0, 5, 0, 0, 1, 0],
                &[1; 512],
                &["Miscompare", "Miscompare during verify operation", "5"],
            ),
            (
                &[0x5F, 0, 0, 0, 0, 0, 0, 0, 24, 0],
                &[
                    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 8, 0, 0, 0,
                ],
                &[
                    "Invalid field in parameter list",
                    "Error in Data parameters: byte 20 bit 3",
                ],
            ),
            (
                &[0x1D, 0x04, 0, 0, 9, 0],
                &[],
                &["Invalid field in cdb", "Error in Command: byte 3"],
            ),
        ];
        for (cdb, data_out, lines) in cases {
            let (status, sense) = run(&nexus, cdb, data_out);
            assert_eq!(status, Status::CheckCondition, "{cdb:02x?}");
            let lines = [&[format], lines].concat();
            says("sg_decode_sense", &["--file=-"], &sense, &lines);
        }
        let (status, _) = run(&nexus, &[0x15, 0x10, 0, 0, 16, 0], &descriptor_sense);
        assert_eq!(status, Status::Good);
    }
}
