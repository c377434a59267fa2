//! F-15 of the adversarial cases. Alone in its process, whose limit of open files it changes.

mod support;

use std::os::fd::AsRawFd;
use std::path::Path;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use orimono_tests::front_end::{RawFrontEnd, request};
use support::{Lab, open_descriptors};

/// F-15: at the limit of open files the connection is refused, and served when there is room.
#[test]
fn f15_no_descriptors_left_refuses_and_recovers() {
    let lab = Lab::new();
    let hostile = RawFrontEnd::connect(&lab.path).unwrap();
    hostile.ask(request::GET_FEATURES, &[], &[]).unwrap();
    // The kernel cannot install the descriptors of the next message.
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let null = std::fs::File::open(Path::new("/dev/null")).unwrap();
    let descriptors = vec![null.as_raw_fd(); 100];
    let low = u64::try_from(open_descriptors() + 20).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, low, hard).unwrap();
    hostile
        .send(request::SET_MEM_TABLE, &[0; 8], &descriptors)
        .unwrap();
    hostile.wait_closed().unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    assert!(lab.refusal().contains("LimitNOFILE"), "{}", lab.refusal());
    lab.assert_serves();
}
