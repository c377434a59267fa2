//! NICs that come into a running guest and leave it by what is said to the controller.
#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test")]
#![expect(
    clippy::indexing_slicing,
    reason = "a failed expectation is a failed test"
)]

use std::time::{Duration, Instant};

use orimono_qemu::{AcceleratorChoice, Guest, GuestImage, Machine, Qemu, image};
use orimono_tests::lab::{self, PATIENCE, Site};

const DECK: &str = include_str!("../../fabricctl/tests/deck-script.txt");
const SERVER: &str = "HP_DL360@ExtSw-b8cffff004401-Port16";
/// The promise to operators, on machines that run guests at full speed. Emulated ones get more.
const SEEN_WITHIN: Duration = Duration::from_secs(2);

/// What every Linux distribution does with a NIC that comes: it is set up and asks for an address.
const NETWORK_MANAGER: &str = r#"
cat > /tmp/bound <<'END'
#!/bin/sh
[ "$1" = bound ] && ip addr replace $ip/$mask dev $interface
exit 0
END
chmod +x /tmp/bound
cat > /tmp/manager <<'END'
while :; do
  for nic in /sys/class/net/eth*; do
    name=${nic##*/}
    [ -e $nic ] || continue
    [ "$(cat /tmp/known.$name 2>/dev/null)" = "$(cat $nic/address)" ] && continue
    cat $nic/address > /tmp/known.$name
    ip link set $name up
    busybox udhcpc -f -q -t 1000 -T 1 -i $name -s /tmp/bound >/dev/null 2>&1 &
  done
  sleep 0.1
done
END
sh /tmp/manager >/dev/null 2>&1 </dev/null &
"#;

/// A director and a host that embeds it, and the guest of server-profile `server1`, which has no
/// device yet. The profile is there before.
fn site(server: &str) -> (Site, Guest) {
    let mut site = Site::start().unwrap();
    let run_dir = site.run_dir("host1");
    site.lines(&format!(
        "add director director1
         add iocard 10 ethernet
         add host host1 -embedded=true -run-dir={}
         add physical-server {server} -host=host1
         add server-profile server1 {server}",
        run_dir.display()
    ))
    .unwrap();
    site.start_host("host1").unwrap();
    let printed = site.qemu_args("host1", "server1", "512M").unwrap();
    let cache = image::default_cache();
    let guest_image = GuestImage::ensure(&cache).unwrap();
    let qemu = Qemu::find().unwrap();
    let accelerator = AcceleratorChoice::Auto
        .resolve(&qemu, &guest_image, &cache)
        .unwrap();
    let guest = Machine::new(qemu, guest_image, accelerator)
        .args_of(printed)
        .boot()
        .unwrap();
    lab::run(&guest, NETWORK_MANAGER).unwrap();
    (site, guest)
}

/// Waits in the guest until `condition` of its shell holds; returns how long that took.
fn seen(guest: &Guest, condition: &str) -> Duration {
    let start = Instant::now();
    let wait = format!("until {condition}; do sleep 0.05; done");
    lab::run_within(guest, &wait, PATIENCE).unwrap();
    start.elapsed()
}

fn mac(site: &Site, vnic: &str) -> String {
    let shown = site.show(&format!("vnic {vnic}")).unwrap();
    shown[0]
        .pointer("/fields/mac")
        .unwrap()
        .as_str()
        .unwrap()
        .to_owned()
}

#[test]
fn p6_a_vnic_comes_into_a_running_guest_gets_its_address_and_leaves() {
    let (site, guest) = site("vm1@host1");
    let uptime = "cut -d. -f1 /proc/uptime";
    let before: u64 = lab::run(&guest, uptime).unwrap().trim().parse().unwrap();
    assert_eq!(
        lab::run(&guest, "ls -d /sys/class/net/eth* | wc -l")
            .unwrap()
            .trim(),
        "0"
    );

    site.ctl("add vnic vn01.server1 10/1").unwrap();
    site.wait_state("vnic vn01.server1", "up/up").unwrap();
    let mac = mac(&site, "vn01.server1");
    let took = seen(
        &guest,
        &format!("grep -q {mac} /sys/class/net/eth*/address 2>/dev/null"),
    );
    println!("a NIC is seen {} ms after its vNIC is up", took.as_millis());
    assert!(took < SEEN_WITHIN * 5, "{took:?}");
    let place = "basename $(readlink -f /sys/class/net/eth0/device/..)";
    let first = lab::run(&guest, place).unwrap();

    site.ctl(
        "set vnic vn01.server1 -addr-type=static -ip-addr=192.168.10.201 -netmask=255.255.255.0",
    )
    .unwrap();
    let took = seen(&guest, "ip addr show dev eth0 | grep -q 192.168.10.201/24");
    println!("the address is there after {} ms", took.as_millis());
    site.namespace
        .ip("addr add 192.168.10.1/24 dev orimono10p1")
        .unwrap();
    lab::run(&guest, "ping -c 2 -w 20 192.168.10.1").unwrap();

    // Another one comes and goes beside it, at a place of its own.
    site.ctl("add vnic vn02.server1 10/1").unwrap();
    seen(&guest, "[ -e /sys/class/net/eth1 ]");
    site.ctl("remove vnic vn01.server1 -noconfirm").unwrap();
    let took = seen(&guest, "[ ! -e /sys/class/net/eth0 ]");
    println!("it is gone after {} ms", took.as_millis());
    site.ctl("add vnic vn03.server1 10/1").unwrap();
    site.wait_state("vnic vn03.server1", "up/up").unwrap();
    seen(&guest, "[ -e /sys/class/net/eth0 ]");
    assert_eq!(
        lab::run(&guest, place).unwrap(),
        first,
        "the place that is free is taken"
    );

    // The agent dies: the guest keeps what it has, and the next one takes it up.
    let mut site = site;
    site.kill("host1").unwrap();
    site.start_host("host1").unwrap();
    for vnic in ["vn02.server1", "vn03.server1"] {
        site.wait_state(&format!("vnic {vnic}"), "up/up").unwrap();
    }
    site.ctl("remove vnic vn02.server1 -noconfirm").unwrap();
    seen(&guest, "[ ! -e /sys/class/net/eth1 ]");
    assert_eq!(
        lab::run(&guest, "ls -d /sys/class/net/eth* | wc -l")
            .unwrap()
            .trim(),
        "1"
    );
    let after: u64 = lab::run(&guest, uptime).unwrap().trim().parse().unwrap();
    assert!(after >= before);
    guest.poweroff(PATIENCE).unwrap();
}

/// The script of the original's slides, as it is, while the guest runs.
#[test]
fn p3_p4_d1_the_decks_script_gives_a_running_guest_ten_addresses() {
    let (site, guest) = site(SERVER);
    let script = site.folder().join("deck");
    std::fs::write(&script, DECK).unwrap();
    let start = Instant::now();
    site.ctl(&format!("--lenient -f {}", script.display()))
        .unwrap();
    let addresses: Vec<_> = (201..=210)
        .map(|last| format!("192.168.10.{last}"))
        .collect();
    for address in &addresses {
        seen(&guest, &format!("ip -4 addr | grep -q 'inet {address}/24'"));
    }
    println!("ten addresses after {} ms", start.elapsed().as_millis());
    for number in 1..=10 {
        let name = format!("vn{number:02}.server1");
        site.wait_state(&format!("vnic {name}"), "up/up").unwrap();
        let (mac, last) = (mac(&site, &name), 200 + number);
        let of_nic = format!(
            "ip -o link | grep {mac} | cut -d: -f2 | while read nic; do \
             ip -o -4 addr show dev $nic; done"
        );
        let shown = lab::run(&guest, &of_nic).unwrap();
        assert!(
            shown.contains(&format!("192.168.10.{last}/24")),
            "{name}: {shown}"
        );
    }
    site.namespace
        .ip("addr add 192.168.10.1/24 dev orimono10p1")
        .unwrap();
    for address in &addresses {
        lab::run(
            &guest,
            &format!("ping -c 1 -w 20 -I {address} 192.168.10.1"),
        )
        .unwrap();
    }
    guest.poweroff(PATIENCE).unwrap();
}
