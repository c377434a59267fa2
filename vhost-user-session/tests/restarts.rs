//! Nothing is left behind. Alone in its process, so that the counts are exact.

mod support;

use std::os::fd::AsRawFd;
use std::path::Path;

use orimono_tests::front_end::{PATIENCE, RawFrontEnd, request};
use support::{Lab, assert_echo, open_descriptors, resident_kib};
use vhost_user_session::SessionState;

#[test]
fn hundreds_of_connections_leave_no_descriptors_and_no_memory_behind() {
    let lab = Lab::new();
    let waiting = || assert!(lab.session.wait_for(SessionState::Waiting, PATIENCE));
    let cycle = |times: u64| {
        for round in 0..times {
            let mut guest = lab.guest();
            assert_echo(&mut guest, 0, b"hello");
            drop(guest);
            waiting();
            // A refused one, with as many descriptors as a message can have.
            let hostile = RawFrontEnd::connect(&lab.path).unwrap();
            let null = std::fs::File::open(Path::new("/dev/null")).unwrap();
            let descriptors = vec![null.as_raw_fd(); 253];
            let numbers = [
                request::SET_MEM_TABLE,
                request::GET_FEATURES,
                request::SET_VRING_CALL,
            ];
            let number = numbers[usize::try_from(round % 3).unwrap()];
            hostile.send(number, &[0; 8], &descriptors).unwrap();
            hostile.wait_closed().unwrap();
            waiting();
        }
    };
    cycle(10);
    let (descriptors, resident) = (open_descriptors(), resident_kib());
    cycle(100);
    assert_eq!(open_descriptors(), descriptors);
    assert!(
        resident_kib() < resident + 4096,
        "{} after {resident}",
        resident_kib()
    );
    assert_eq!(lab.session.connections(), 220);
    assert_eq!(lab.session.refusals(), 110);
}
