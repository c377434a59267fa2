//! Guests that have their addresses, and everything else, from the director.

use std::fs;
use std::time::Duration;

use orimono_qemu::cpio::Archive;
use orimono_qemu::{AcceleratorChoice, Firmware, GuestImage, Machine, Qemu, Vnic, image};
use orimono_tests::lab::{self, Lab};

/// Under TCG a start over the network takes 20 s on an idle machine. A guard, not a figure.
const START_WITHIN: Duration = Duration::from_secs(300);

const LAB: &str = r#"
[director]
name = "director1"
listen = ["tcp:127.0.0.1:7471"]
boot-dir = "@DIR@/boot"
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
name = "vn00"
id = 100
port = "10/1"
mac = "02:15:97:00:00:00"
mtu = 1400
addr-type = "static"
ip-addr = "192.168.10.201/24"
gateway = "192.168.10.1"
dns = ["192.168.10.2"]
ip6-addr = "2001:db8::201/64"
domain = "example.com"
host-name = "web1"
[[host.vm.vnic]]
name = "vn01"
id = 101
port = "10/1"
mac = "02:15:97:00:00:01"
addr-type = "static"
ip-addr = "192.168.10.202/24"
server-addr = "192.168.10.254"
boot-file = "pxe/start.ipxe"
"#;

/// Prints what it is told, and does it.
const SCRIPT: &str = r#"#!/bin/sh
[ "$1" = bound ] || exit 0
echo "ip=$ip mask=$mask router=$router dns=$dns mtu=$mtu domain=$domain hostname=$hostname lease=$lease serverid=$serverid"
ip addr add $ip/$mask dev $interface && ip link set $interface mtu $mtu
"#;

#[test]
fn a_stock_client_gets_the_address_of_the_lab_file() {
    let lab = Lab::start(LAB).unwrap();
    lab.namespace
        .ip("addr add 192.168.10.1/24 dev orimono0")
        .unwrap();
    let guest = lab.boot("vm1").unwrap();
    let script = format!("cat > /tmp/bound <<'END'\n{SCRIPT}END\nchmod +x /tmp/bound");
    lab::run(&guest, &script).unwrap();
    let told = lab::run(
        &guest,
        "ip link set eth0 up && busybox udhcpc -f -n -q -t 30 -T 1 -i eth0 -O mtu -s /tmp/bound",
    )
    .unwrap();
    let expected = "ip=192.168.10.201 mask=24 router=192.168.10.1 dns=192.168.10.2 mtu=1400 \
                    domain=example.com hostname=web1 lease=3600 serverid=192.168.10.1";
    assert!(told.contains(expected), "{told}");
    lab::run(&guest, "ping -c 2 -w 20 192.168.10.1").unwrap();
    // The router advertisement says which addresses are on the link.
    let routes = "for i in $(seq 100); do ip -6 route | grep '2001:db8::/64 dev eth0' && exit; \
                  sleep 0.1; done; exit 1";
    lab::run(&guest, routes).unwrap();
    // The other vNIC has no router: its server is the director's own station.
    let told = lab::run(
        &guest,
        "ip link set eth1 up && busybox udhcpc -f -n -q -t 30 -T 1 -i eth1 -O mtu -s /tmp/bound",
    )
    .unwrap();
    assert!(
        told.contains("ip=192.168.10.202") && told.contains("serverid=192.168.10.254"),
        "{told}"
    );
    let load = "busybox tftp -g -l /tmp/start -r pxe/start.ipxe 192.168.10.254";
    fs::create_dir_all(lab.folder().join("boot/pxe")).unwrap();
    fs::write(lab.folder().join("boot/pxe/start.ipxe"), "#!ipxe\n").unwrap();
    lab::run(
        &guest,
        &format!("ip route add 192.168.10.254 dev eth1 && {load}"),
    )
    .unwrap();
    assert_eq!(lab::run(&guest, "cat /tmp/start").unwrap(), "#!ipxe\n");
    guest.poweroff(lab::PATIENCE).unwrap();
}

/// Says the marker, and what the kernel was told, and powers off.
const INIT: &str = "#!/bin/busybox sh\n/bin/busybox mkdir /proc\n\
    /bin/busybox mount -t proc proc /proc\n\
    /bin/busybox echo \"started from the director: $(/bin/busybox cat /proc/cmdline)\"\n\
    /bin/busybox poweroff -f\n";

/// SeaBIOS, the iPXE of QEMU's option ROM, its script, a kernel and an initramfs: all that a diskless
/// guest has comes over its vNIC.
#[test]
fn d5_a_diskless_guest_starts_over_its_vnic() {
    if std::env::var_os("ORIMONO_TEST_FULL").is_none() {
        return;
    }
    let lab = Lab::start(LAB).unwrap();
    let cache = image::default_cache();
    let guest_image = GuestImage::ensure(&cache).unwrap();
    let qemu = Qemu::find().unwrap();
    let accelerator = AcceleratorChoice::Auto
        .resolve(&qemu, &guest_image, &cache)
        .unwrap();
    let boot = lab.folder().join("boot/pxe");
    fs::create_dir_all(&boot).unwrap();
    fs::copy(guest_image.kernel(), boot.join("kernel")).unwrap();
    let mut archive = Archive::new(Vec::new());
    for folder in ["bin", "dev"] {
        archive.directory(folder, 0o755).unwrap();
    }
    archive
        .character_device("dev/console", 0o600, 5, 1)
        .unwrap();
    let busybox = fs::read("/bin/busybox").unwrap();
    archive.file("bin/busybox", 0o755, &busybox).unwrap();
    archive.file("init", 0o755, INIT.as_bytes()).unwrap();
    fs::write(boot.join("initramfs"), archive.finish(512).unwrap()).unwrap();
    let script = "#!ipxe\nkernel kernel console=ttyS0 quiet panic=-1 address=${ip} next=${next-server}\n\
                  initrd initramfs\nboot\n";
    fs::write(boot.join("start.ipxe"), script).unwrap();

    let mac = "02:15:97:00:00:01".parse().unwrap();
    let vnic = Vnic {
        boot_index: Some(1),
        ..Vnic::new("vn01", lab.folder().join("host1/vn01.vm1.sock"), mac)
    };
    let console = Machine::new(qemu, guest_image, accelerator)
        .vnic(vnic)
        .run_from_disk(Firmware::SeaBios, START_WITHIN)
        .unwrap();
    let marker = "started from the director: ";
    let line = console.lines().find(|line| line.contains(marker));
    let line = line.unwrap_or_else(|| panic!("{console}"));
    assert!(
        line.contains("address=192.168.10.202 next=192.168.10.254"),
        "{line}"
    );
}
