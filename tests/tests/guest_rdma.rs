//! The suites of links and sessions over RDMA, in a guest that has soft-RoCE on a dummy interface:
//! both ends of each link are in it. No figures: the guest runs under TCG, and its adapter is software.
//!
//! `ORIMONO_RDMA_TESTS` names the test program of fabric-transport, built with the feature `rdma`;
//! `cargo xtask test guest --full` builds it. Without it nothing is tried.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test's helper fails as a test does")]

use std::time::Duration;

use orimono_qemu::image::soft_roce;
use orimono_qemu::{Accelerator, Guest, GuestImage, Machine, Qemu};

const SOON: Duration = Duration::from_secs(60);
/// What is run, and a test of each that only a device can pass or that must have been there.
const SUITES: [(&str, &str); 2] = [
    (
        "link::rdma",
        "link::rdma::tests::rdma_link_keeps_frames_whole_and_in_order",
    ),
    (
        "endpoint::tests",
        "endpoint::tests::frames_survive_100_cuts_of_links_that_share_them",
    ),
];
/// TCG on a machine that does other things too.
const SUITE_WITHIN: Duration = Duration::from_secs(600);

fn text(guest: &Guest, command: &str, within: Duration) -> String {
    let output = guest.run(command, within).unwrap();
    assert!(
        output.status.success(),
        "{command}: {}\n{}{}{}",
        output.status,
        output.stdout_text(),
        output.stderr_text(),
        guest.log_tail()
    );
    output.stdout_text()
}

#[test]
fn links_and_sessions_pass_their_suites_over_rdma() {
    let Some(program) = std::env::var_os("ORIMONO_RDMA_TESTS") else {
        return;
    };
    let recipe = soft_roce::recipe([program.clone().into()]).unwrap();
    let image =
        GuestImage::ensure_recipe(&soft_roce::default_cache(), &recipe, &mut |_line| {}).unwrap();
    let guest = Machine::new(Qemu::find().unwrap(), image, Accelerator::Tcg)
        .memory_mib(2048)
        .cpus(2)
        .boot()
        .unwrap();
    assert_eq!(guest.boot_notes(), "");
    let set_up = "ip addr add 192.0.2.1/24 dev dummy0 && ip link set dummy0 up \
                  && rdma link add rxe0 type rxe netdev dummy0 && rdma link show";
    let links = text(&guest, set_up, SOON);
    assert!(links.contains("state ACTIVE"), "{links}");
    let program = program.to_string_lossy();
    for (suite, proof) in SUITES {
        // One at a time: frames that wait in a test's logs are memory.
        let command = format!(
            "ulimit -l unlimited; \
             ORIMONO_TEST_RDMA=192.0.2.1 {program} --test-threads=1 {suite} 2>&1"
        );
        let results = text(&guest, &command, SUITE_WITHIN);
        println!("{results}");
        assert!(results.contains(&format!("{proof} ... ok")), "{results}");
    }
    assert_eq!(
        text(&guest, "rdma resource show qp | grep -vc GSI || true", SOON),
        "0\n"
    );
}
