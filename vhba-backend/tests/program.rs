//! The program `orimono-vhba` against QEMU's conventions for back ends.
#![expect(unreachable_pub, reason = "shared with the other back-end program")]
#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

#[path = "../../vnic-backend/tests/conventions/mod.rs"]
mod conventions;

use conventions::Program;

const PROGRAM: Program = Program {
    path: env!("CARGO_BIN_EXE_orimono-vhba"),
    options: &[],
};

#[test]
fn prints_capabilities_whatever_else_is_asked() {
    PROGRAM.prints_capabilities("{\"type\":\"scsi\",\"features\":[]}\n");
}

#[test]
fn refuses_what_it_cannot_do() {
    PROGRAM.refuses_what_it_cannot_do();
}

#[test]
fn ends_cleanly_when_told_to() {
    PROGRAM.ends_cleanly();
}

#[test]
fn ends_with_its_only_connection() {
    PROGRAM.ends_with_its_only_connection();
}
