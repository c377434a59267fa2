//! The programs `orimono-vnic` and `orimono-vhba` against QEMU's conventions for back ends.
#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

mod conventions;

use conventions::Program;
use orimono_tests::lab::program;

/// Both, with the options that they cannot do without, and their type in QEMU's words.
fn programs() -> [(Program, &'static str); 2] {
    let vnic = Program {
        path: program("orimono-vnic").unwrap(),
        options: &["--mac", "02:00:00:00:00:01"],
    };
    let vhba = Program {
        path: program("orimono-vhba").unwrap(),
        options: &[],
    };
    [(vnic, "net"), (vhba, "scsi")]
}

#[test]
fn prints_capabilities_whatever_else_is_asked() {
    for (program, kind) in programs() {
        program.prints_capabilities(&format!("{{\"type\":\"{kind}\",\"features\":[]}}\n"));
    }
}

#[test]
fn refuses_what_it_cannot_do() {
    for (program, _) in programs() {
        program.refuses_what_it_cannot_do();
    }
}

#[test]
fn ends_cleanly_when_told_to() {
    for (program, _) in programs() {
        program.ends_cleanly();
    }
}

#[test]
fn ends_with_its_only_connection() {
    for (program, _) in programs() {
        program.ends_with_its_only_connection();
    }
}
