//! Addresses of vNICs.

use super::*;

const GOOD: &str = r#"
[director]
name = "director1"
boot-dir = "/srv/boot"
[[ethernet-port]]
port = "10/1"
tap = "orimono0"
[[ethernet-port]]
port = "10/2"
tap = "orimono1"
[[host]]
name = "host1"
embedded = true
run-dir = "/run/orimono/host1"
rate = "10G"
[[host.vm]]
name = "vm1"
[[host.vm.vnic]]
name = "vn01"
id = 1
port = "10/1"
mac = "02:00:00:00:00:01"
addr-type = "static"
ip-addr = "192.168.10.201/24"
gateway = "192.168.10.1"
dns = ["192.168.10.2", "2001:db8::2"]
ip6-addr = "2001:db8::201/64"
domain = "example.com"
host-name = "web1"
boot-file = "boot.ipxe"
boot-files = { bios = "pxe/undionly.kpxe", efi-x64 = "ipxe.efi" }
[[host.vm.vnic]]
name = "vn02"
id = 2
port = "10/1"
mac = "02:00:00:00:00:02"
addr-type = "static"
ip-addr = "10.0.0.7"
netmask = "255.255.255.128"
server-addr = "10.0.0.126"
[[host.vm.vnic]]
name = "vn03"
id = 3
port = "10/2"
mac = "02:00:00:00:00:03"
addr-type = "dhcp"
"#;

fn refused(from: &str, to: &str) -> String {
    refusal_of(GOOD, from, to)
}

#[test]
fn a_static_address_is_read() {
    let lab: LabConfig = GOOD.parse().unwrap();
    let vnics: Vec<_> = lab.hosts[0].vnics().collect();
    let first = vnics[0].static_address.as_deref().unwrap();
    assert_eq!(
        *first,
        StaticAddress {
            ipv4: Some(InterfaceAddress {
                address: [192, 168, 10, 201].into(),
                prefix_bits: 24,
            }),
            ipv6: Some(InterfaceAddress {
                address: "2001:db8::201".parse().unwrap(),
                prefix_bits: 64,
            }),
            gateway: Some([192, 168, 10, 1].into()),
            server: None,
            dns: vec![
                "192.168.10.2".parse().unwrap(),
                "2001:db8::2".parse().unwrap()
            ],
            domain: Some("example.com".to_owned()),
            host_name: Some("web1".to_owned()),
            boot: Some(BootFiles {
                folder: "/srv/boot".into(),
                other: Some("boot.ipxe".to_owned()),
                bios: Some("pxe/undionly.kpxe".to_owned()),
                efi_x64: Some("ipxe.efi".to_owned()),
                efi_arm64: None,
                ipxe: None,
            }),
        }
    );
    assert_eq!(first.ipv6.unwrap().network().to_string(), "2001:db8::");
    let second = vnics[1].static_address.as_deref().unwrap().ipv4.unwrap();
    assert_eq!(second.mask().to_string(), "255.255.255.128");
    assert_eq!(second.broadcast().to_string(), "10.0.0.127");
    assert!(second.contains([10, 0, 0, 126].into()) && !second.contains([10, 0, 0, 128].into()));
    assert_eq!(vnics[2].static_address, None);
}

#[test]
fn wrong_addresses_are_refused_with_the_next_step() {
    let first = "ip-addr = \"192.168.10.201/24\"";
    for (from, to, words) in [
        (
            "\"dhcp\"",
            "\"dhpc\"",
            "line 46: vnic vn03.vm1: addr-type \"dhpc\" is not known; write static or dhcp",
        ),
        (
            "\"dhcp\"",
            "\"dhcp\"\ndns = [\"1.1.1.1\"]",
            "dns belongs to addr-type = \"static\"; write that too",
        ),
        (
            "addr-type = \"dhcp\"",
            "boot-files = { ipxe = \"a\" }",
            "boot-files belongs to addr-type",
        ),
        (
            "addr-type = \"dhcp\"",
            "addr-type = \"static\"",
            "needs an address; write ip-addr",
        ),
        (
            first,
            "ip-addr = \"192.168.10.201\"",
            "the network of ip-addr is not clear; write",
        ),
        (
            "ip-addr = \"10.0.0.7\"",
            "ip-addr = \"10.0.0.7/25\"",
            "the network of ip-addr is not clear",
        ),
        (
            first,
            "ip-addr = \"192.168.10.255/24\"",
            "is no address of a host; write one like 192.168.10.201/24",
        ),
        (
            first,
            "ip-addr = \"192.168.10.0/24\"",
            "is no address of a host",
        ),
        (
            first,
            "ip-addr = \"224.0.0.1/24\"",
            "is no address of a host",
        ),
        (
            first,
            "ip-addr = \"127.0.0.1/24\"",
            "is no address of a host",
        ),
        (
            first,
            "ip-addr = \"192.168.10.201/33\"",
            "is no address of a host",
        ),
        (
            first,
            "ip-addr = \"192.168.10.201/0\"",
            "is no address of a host",
        ),
        (
            first,
            "ip-addr = \"192.168.10.201/+24\"",
            "is no address of a host",
        ),
        (
            "255.255.255.128",
            "255.255.0.255",
            "netmask \"255.255.0.255\" is no address",
        ),
        (
            "255.255.255.128",
            "0.0.0.0",
            "netmask \"0.0.0.0\" is no address",
        ),
        (
            "192.168.10.1\"",
            "192.168.11.1\"",
            "gateway 192.168.11.1 is not another station of the vNIC's network; choose one in 192.168.10.201/24",
        ),
        (
            "192.168.10.1\"",
            "192.168.10.201\"",
            "gateway 192.168.10.201 is not another station",
        ),
        (
            "192.168.10.1\"",
            "192.168.10.255\"",
            "gateway 192.168.10.255 is not another station",
        ),
        (
            "10.0.0.126",
            "10.0.0.200",
            "server-addr 10.0.0.200 is not another station",
        ),
        (
            "server-addr",
            "gateway = \"10.0.0.126\"\nserver-addr",
            "server-addr is the gateway; choose",
        ),
        (
            "2001:db8::201/64",
            "fe80::1/64",
            "ip6-addr \"fe80::1/64\" is no address of a host; write one like 2001:db8::201/64",
        ),
        ("2001:db8::201/64", "ff02::1/64", "is no address of a host"),
        (
            "2001:db8::201/64",
            "2001:db8::201/129",
            "is no address of a host",
        ),
        (
            "\"192.168.10.2\", ",
            "\"192.168.10\", ",
            "dns \"192.168.10\" is no address",
        ),
        (
            "\"192.168.10.2\", ",
            &"\"1.1.1.1\",".repeat(8),
            "more than 8 name servers",
        ),
        (
            "example.com",
            "example..com",
            "domain \"example..com\" is not usable",
        ),
        ("web1", "web 1", "host-name \"web 1\" is not usable"),
        (
            "\"boot.ipxe",
            "\"../boot.ipxe",
            "boot file \"../boot.ipxe\" is not usable; write a path below boot-dir",
        ),
        (
            "\"boot.ipxe",
            "\"/boot.ipxe",
            "boot file \"/boot.ipxe\" is not usable",
        ),
        ("pxe/undionly.kpxe", "pxe/../undionly.kpxe", "is not usable"),
        (
            "boot-dir = \"/srv/boot\"",
            "",
            "the director no folder for it; write boot-dir in [director]",
        ),
        ("\"/srv/boot\"", "\"boot\"", "path \"boot\" is not absolute"),
        (
            "gateway = \"192.168.10.1\"\n",
            "",
            "cannot reach; write server-addr",
        ),
        (
            "mac = \"02:00:00:00:00:01\"",
            "mac = \"02:00:00:00:00:01\"\nmtu = 1279",
            "mtu 1279 is too small for ip6-addr; use 1280 or above",
        ),
    ] {
        let message = refused(from, to);
        assert!(message.contains(words), "{to}: {message}");
    }
}

#[test]
fn an_address_is_on_a_port_once() {
    let message = refused(
        "ip-addr = \"10.0.0.7\"\nnetmask = \"255.255.255.128\"\nserver-addr = \"10.0.0.126\"",
        "ip-addr = \"192.168.10.201/16\"",
    );
    assert_eq!(
        message,
        "line 38: vnic vn02.vm1: address 192.168.10.201 on port 10/1 is taken by vnic vn01.vm1; \
         choose another"
    );
    // Another port is another network.
    let other = GOOD.replace(
        "addr-type = \"dhcp\"",
        "addr-type = \"static\"\nip-addr = \"192.168.10.201/24\"",
    );
    other.parse::<LabConfig>().unwrap();
}
