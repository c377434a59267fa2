//! A guest sees the carrier of its vNIC's port.

use std::time::Instant;

use orimono_tests::lab::{self, Lab, PATIENCE};

const LAB: &str = r#"
[director]
name = "director1"
listen = ["tcp:127.0.0.1:7471"]
[[ethernet-port]]
port = "10/1"
tap = "orimono0"
[[host]]
name = "host1"
director = ["tcp:127.0.0.1:7471"]
run-dir = "@DIR@/host1"
rate = "10G"
[[host.vm]]
name = "vm1"
[[host.vm.vnic]]
name = "vn01"
id = 1
port = "10/1"
mac = "02:15:97:00:00:01"
"#;

#[test]
fn a_guest_loses_and_gets_its_carrier_with_the_port() {
    let mut lab = Lab::start(LAB).unwrap();
    lab.namespace
        .ip("addr add 10.0.0.1/24 dev orimono0")
        .unwrap();
    let monitor = lab.folder().join("host1/vm1.link.qmp");
    let monitor = format!("unix:{},server=on,wait=off", monitor.display());
    let machine = lab.machine("vm1").unwrap().arg("-qmp").arg(monitor);
    let guest = machine.boot().unwrap();
    lab::address(&guest, 0, "10.0.0.2/24").unwrap();
    let wait = |state: &str| {
        let end = Instant::now() + PATIENCE;
        while lab::run(&guest, "cat /sys/class/net/eth0/carrier")
            .unwrap()
            .trim()
            != state
        {
            assert!(Instant::now() < end, "carrier is not {state}");
        }
    };
    let ping = || lab::run(&guest, "ping -c 1 -w 20 10.0.0.1").unwrap();
    wait("1");
    ping();
    for _ in 0..2 {
        lab.namespace.ip("link set orimono0 down").unwrap();
        wait("0");
        lab.namespace.ip("link set orimono0 up").unwrap();
        wait("1");
        ping();
    }
    lab.kill_director().unwrap();
    wait("0");
    lab.start_director().unwrap();
    lab.namespace
        .ip("addr add 10.0.0.1/24 dev orimono0")
        .unwrap();
    wait("1");
    ping();
    guest.poweroff(PATIENCE).unwrap();
}
