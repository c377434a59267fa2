//! One good file, and one wrong value at a time with the line it must give.

use super::*;

mod admit;
mod edge_switch;
mod ports;
mod rates;
mod static_address;
mod switching;

const LAB: &str = r#"
[director]
name = "director1"
listen = ["tcp:127.0.0.1:7471", "unix:/run/orimono/director1"]
[[director.link]]
host = "host1"
rate = "8G"
reservable = "7G"

[[ethernet-port]]
port = "10/1"
tap = "orimono0"
[[ethernet-port]]
port = "10/2"
tap = "orimono1"
offloads = false
mtu = 9000

[[lun]]
name = "lun0"
port = "12/1"
file = "/tmp/lun0.img"
[[lun]]
name = "lun1"
port = "12/2"
file = "/tmp/lun1.img"
block-bytes = 4096
read-only = true
serial = "ABC 1"
delay-ms = 5000

[[host]]
name = "host1"
director = ["tcp:127.0.0.1:7471"]
run-dir = "/run/orimono/host1"
rate = "10G"
[[host.vm]]
name = "vm1"
[[host.vm.vnic]]
name = "vn01"
id = 1
port = "10/1"
mac = "02:00:00:00:00:01"
queues = 2
ingress = { cir = "300M", pir = "1G", weight = 3 }
[[host.vm.vnic]]
name = "vn02"
id = 2
generation = 4
port = "10/2"
mac = "02:00:00:00:00:02"
mtu = 4000
[[host.vm.vhba]]
name = "vh01"
id = 11
port = "12/1"
luns = [ { lun = 0, name = "lun0" } ]
egress = { cir = "100M" }
[[host]]
name = "host2"
embedded = true
run-dir = "/run/orimono/host2"
rate = "1G"
"#;

/// Replaces the one place of `from` and gives the message of the error.
fn refusal(from: &str, to: &str) -> String {
    refusal_of(LAB, from, to)
}

fn refusal_of(lab: &str, from: &str, to: &str) -> String {
    assert_eq!(lab.matches(from).count(), 1, "{from}");
    let error = lab.replace(from, to).parse::<LabConfig>();
    let message = error.expect_err(to).to_string();
    assert!(!message.contains('\n'), "{message}");
    message
}

const DIRECTOR: &str = "\n[director]";

/// The lab with other words at its top level and another address of the director.
fn secured(words: &str, listen: &str) -> String {
    LAB.replace(DIRECTOR, &format!("{words}{DIRECTOR}"))
        .replace(
            "listen = [\"tcp:127.0.0.1:7471\"",
            &format!("listen = [\"{listen}\""),
        )
}

#[test]
fn links_that_leave_the_machine_are_secured_or_wanted_otherwise() {
    const TLS: &str = r#"[tls]
ca = "/etc/orimono/ca.pem"
cert = "/etc/orimono/{name}.pem"
key = "/etc/orimono/{name}.key"
"#;
    let refused = |words: &str, listen: &str| {
        let error = secured(words, listen).parse::<LabConfig>();
        error.expect_err(listen).to_string()
    };
    let text = refused("", "tcp:192.0.2.1:7471");
    assert_eq!(
        text,
        "line 4: director director1: tcp:192.0.2.1:7471 leaves this machine without encryption; \
         use tls:, or set insecure = true"
    );
    assert!(refused("insecure = false\n", "tcp:0.0.0.0:7471").starts_with("line 5: "));
    assert!(refused(TLS, "tcp:192.0.2.1:7471").contains("without encryption"));
    for words in ["", "insecure = true\n"] {
        assert!(refused(words, "tls:192.0.2.1:7471").contains("needs a certificate"));
    }
    let text = refused(&TLS.replace("/etc/orimono/{", "{"), "tls:192.0.2.1:7471");
    assert!(
        text.starts_with("line 3: tls: path \"{name}.pem\" is not absolute; "),
        "{text}"
    );
    assert!(refused("[tls]\nca = \"/a\"\nkey = \"/b\"", "unix:/a").contains("`cert`"));

    let lab: LabConfig = secured("insecure = true\n", "tcp:192.0.2.1:7471")
        .parse()
        .unwrap();
    let options = lab
        .links
        .options("director1", &lab.director.listen)
        .unwrap();
    assert!(options.insecure && options.tls.is_none());
    let lab: LabConfig = secured(TLS, "tls:192.0.2.1:7471").parse().unwrap();
    let paths = lab.links.tls.as_ref().unwrap();
    assert_eq!(paths.of("host1").cert, Path::new("/etc/orimono/host1.pem"));
    assert_eq!(paths.of("host1").key, Path::new("/etc/orimono/host1.key"));
    // Read only by whoever needs them.
    let error = lab
        .links
        .options("director1", &lab.director.listen)
        .unwrap_err();
    assert!(error.to_string().contains("/etc/orimono/ca.pem"), "{error}");
    let host = lab.host("host1").unwrap();
    let Uplink::Director(addresses) = &host.uplink else {
        panic!("not embedded")
    };
    assert!(lab.links.options("host1", addresses).unwrap().tls.is_none());
}

#[test]
fn good_file_becomes_typed_values() {
    let lab: LabConfig = LAB.parse().unwrap();
    assert_eq!(lab.director.listen.len(), 2);
    let host = lab.host("host1").unwrap();
    assert_eq!(
        host.budget,
        LinkBudget::new("host1 uplink", "10G".parse().unwrap())
    );
    let downlink = ("8G".parse().unwrap(), "7G".parse().unwrap());
    let downlink = LinkBudget::with_reservable("host1 downlink", downlink.0, downlink.1);
    assert_eq!(Ok(&host.downlink), downlink.as_ref());
    let vnics: Vec<_> = host.vnics().collect();
    let [first, second] = vnics[..] else {
        panic!("two vNICs")
    };
    assert_eq!(
        (first.name.as_str(), first.id, first.mtu),
        ("vn01.vm1", DeviceId(1), 1500)
    );
    assert_eq!((first.queues, first.generation), (2, 0));
    let ingress = DeviceRate {
        cir: "300M".parse().unwrap(),
        pir: Some("1G".parse().unwrap()),
        weight: 3,
        ..DeviceRate::default()
    };
    assert_eq!(
        (first.ingress, first.egress),
        (ingress, DeviceRate::best_effort())
    );
    assert_eq!((second.mtu, second.generation), (4000, 4));
    let vhba = host.vhbas().next().unwrap();
    assert_eq!(vhba.wwpn.to_string(), "50:01:39:71:00:00:00:0b");
    assert_eq!(vhba.egress.cir, "100M".parse().unwrap());
    assert_eq!(
        vhba.luns,
        [LunMapping {
            lun: 0,
            name: "lun0".into()
        }]
    );
    let lun = lab.lun("lun1").unwrap();
    assert_eq!(
        (lun.block_bytes, lun.read_only, lun.serial.as_str()),
        (4096, true, "ABC 1")
    );
    assert_eq!(lun.delay, Duration::from_secs(5));
    assert_eq!(lab.lun("lun0").unwrap().serial, "lun0");
    assert!(lab.ethernet_port("10/1".parse().unwrap()).unwrap().offloads);
    let host2 = lab.host("host2").unwrap();
    assert_eq!(host2.uplink, Uplink::Embedded);
    assert_eq!(
        host2.downlink,
        LinkBudget::new("host2 downlink", "1G".parse().unwrap())
    );
}

#[test]
fn discovery_is_a_group_an_interface_and_a_name() {
    let text = LAB
        .replace(
            "name = \"director1\"\n",
            "name = \"director1\"\ndiscoverable = \"239.255.77.71:7470\"\n",
        )
        .replace(
            "embedded = true\n",
            "discover = \"239.1.2.3:4\"\ndiscovery-interface = \"192.0.2.2\"\n\
             director-name = \"director1\"\n",
        );
    let lab: LabConfig = text.parse().unwrap();
    let discoverable = Meeting {
        group: fabric_transport::discovery::GROUP_DEFAULT,
        interface: None,
    };
    assert_eq!(lab.director.discoverable, Some(discoverable));
    let uplink = Uplink::Discovered {
        meeting: Meeting {
            group: "239.1.2.3:4".parse().unwrap(),
            interface: Some([192, 0, 2, 2].into()),
        },
        director: Some("director1".to_owned()),
    };
    assert_eq!(lab.host("host2").unwrap().uplink, uplink);
}

/// Every refusal: what is changed, and the whole line that the operator reads.
#[test]
fn wrong_values_name_line_object_problem_and_next_step() {
    let cases = [
        (
            "name = \"director1\"",
            "name = \"d 1\"",
            "line 3: director: name \"d 1\" is not usable; use 1 to 63 letters, digits, '-' and '_'",
        ),
        (
            "\"unix:/run/orimono/director1\"",
            "\"unix:x\"",
            "line 4: director director1: \"unix:x\" is no link address; write tls:ADDRESS:PORT, tcp:ADDRESS:PORT, rdma:ADDRESS:PORT, unix:/PATH or shm:/PATH",
        ),
        (
            "host = \"host1\"",
            "host = \"host9\"",
            "line 6: director link to host9: there is no host \"host9\"; add a [[host]] with this name",
        ),
        (
            "rate = \"8G\"",
            "rate = \"8Q\"",
            "line 7: director link to host1: rate \"8Q\" is not a decimal number with an optional k, M, G or T (bits per second); write it like 300M or 2.5G",
        ),
        (
            "rate = \"8G\"",
            "rate = \"0\"",
            "line 7: director link to host1: rate is zero; write what the link carries, like 10G",
        ),
        (
            "reservable = \"7G\"",
            "reservable = \"9G\"",
            "line 8: director link to host1: host1 downlink: 9 Gb/s reservable is more than link rate 8 Gb/s; lower reservable",
        ),
        (
            "port = \"10/2\"\ntap",
            "port = \"10/1\"\ntap",
            "line 14: ethernet-port 10/1: port 10/1 is taken by ethernet-port 10/1; choose another",
        ),
        (
            "port = \"10/2\"\ntap",
            "port = \"16/1\"\ntap",
            "line 14: ethernet-port: \"16/1\" is no port (slot 1 to 15, port 1 to 255); write it like 10/1",
        ),
        (
            "tap = \"orimono1\"",
            "tap = \"orimono0\"",
            "line 15: ethernet-port 10/2: name orimono0 is taken by ethernet-port 10/1; choose another",
        ),
        (
            "tap = \"orimono1\"",
            "tap = \"sixteen-bytes-xx\"",
            "line 15: ethernet-port 10/2: interface name \"sixteen-bytes-xx\" is not usable; use 1 to 15 letters, digits, '-', '_' and '.'",
        ),
        (
            "mtu = 9000",
            "mtu = 67",
            "line 17: ethernet-port 10/2: mtu 67 is out of range; use 68 to 65521",
        ),
        (
            "name = \"lun1\"",
            "name = \"lun0\"",
            "line 24: lun lun0: name lun0 is taken by lun lun0; choose another",
        ),
        (
            "port = \"12/2\"",
            "port = \"10/1\"",
            "line 25: lun lun1: there is no SAN port 10/1; it is an Ethernet port, choose another",
        ),
        (
            "block-bytes = 4096",
            "block-bytes = 520",
            "line 27: lun lun1: block-bytes 520 is not served; use 512 or 4096",
        ),
        (
            "serial = \"ABC 1\"",
            "serial = \"\"",
            "line 29: lun lun1: serial \"\" is not usable; use 1 to 64 printable ASCII characters",
        ),
        (
            "delay-ms = 5000",
            "delay-ms = 600001",
            "line 30: lun lun1: delay-ms 600001 is out of range; use 0 to 600000",
        ),
        (
            "director = [\"tcp:127.0.0.1:7471\"]\n",
            "",
            "line 33: host host1: way to the director is not clear; write one of director = [...], discover = \"GROUP:PORT\" and embedded = true",
        ),
        (
            "embedded = true\n",
            "embedded = true\ndirector = [\"tcp:127.0.0.1:1\"]\n",
            "line 60: host host2: way to the director is not clear; write one of director = [...], discover = \"GROUP:PORT\" and embedded = true",
        ),
        (
            "embedded = true\n",
            "embedded = true\ndiscover = \"239.255.77.71:7470\"\n",
            "line 60: host host2: way to the director is not clear; write one of director = [...], discover = \"GROUP:PORT\" and embedded = true",
        ),
        (
            "embedded = true\n",
            "discover = \"192.0.2.1:7470\"\n",
            "line 61: host host2: \"192.0.2.1:7470\" is no multicast group; write a group of IPv4 and its port, like 239.255.77.71:7470",
        ),
        (
            "embedded = true\n",
            "discover = \"239.255.77.71:7470\"\ndiscovery-interface = \"eth0\"\n",
            "line 62: host host2: discovery-interface \"eth0\" is no IPv4 address; write the one the interface has",
        ),
        (
            "embedded = true\n",
            "embedded = true\ndirector-name = \"director1\"\n",
            "line 62: host host2: has director-name but no discover; take it away, or write discover = \"239.255.77.71:7470\"",
        ),
        (
            "name = \"director1\"\n",
            "name = \"director1\"\ndiscovery-interface = \"192.0.2.1\"\n",
            "line 4: director director1: has discovery-interface but no discoverable; take it away, or write discoverable = \"239.255.77.71:7470\"",
        ),
        (
            "listen = [\"tcp:127.0.0.1:7471\", ",
            "discoverable = \"239.255.77.71:7470\"\nlisten = [",
            "line 4: director director1: is discoverable but has nothing to offer; add a tcp address to listen",
        ),
        (
            "id = 1\n",
            "id = 0\n",
            "line 41: vnic vn01.vm1: id 0 belongs to the fabric session; use 1 or above",
        ),
        (
            "id = 11\n",
            "id = 2\n",
            "line 55: vhba vh01.vm1: id dev-00000002 is taken by vnic vn02.vm1; choose another",
        ),
        (
            "name = \"vn02\"",
            "name = \"vn01\"",
            "line 47: vnic vn01.vm1: name vn01.vm1 is taken by vnic vn01.vm1; choose another",
        ),
        (
            "port = \"10/1\"\nmac",
            "port = \"10/9\"\nmac",
            "line 42: vnic vn01.vm1: there is no Ethernet port 10/9; add an [[ethernet-port]]",
        ),
        (
            "port = \"10/1\"\nmac",
            "port = \"12/1\"\nmac",
            "line 42: vnic vn01.vm1: there is no Ethernet port 12/1; it is a SAN port, choose another",
        ),
        (
            "02:00:00:00:00:02",
            "03:00:00:00:00:02",
            "line 51: vnic vn02.vm1: MAC address 03:00:00:00:00:02 is not unicast; use one like 02:00:00:00:00:01",
        ),
        (
            "02:00:00:00:00:02",
            "02:00:00:00:00:01",
            "line 51: vnic vn02.vm1: MAC address 02:00:00:00:00:01 is taken by vnic vn01.vm1; choose another",
        ),
        (
            "02:00:00:00:00:02",
            "02-00",
            "line 51: vnic vn02.vm1: \"02-00\" is no MAC address; write it like 02:00:00:00:00:01",
        ),
        (
            "mtu = 4000",
            "mtu = 9001",
            "line 52: vnic vn02.vm1: mtu 9001 is above the 9000 of port 10/2; lower it or raise the port's",
        ),
        (
            "queues = 2",
            "queues = 32",
            "line 44: vnic vn01.vm1: 32 queues are out of range; use 1 to 8",
        ),
        (
            "pir = \"1G\"",
            "pir = \"200M\"",
            "line 45: vnic vn01.vm1: ingress: peak rate 200 Mb/s is below committed rate 300 Mb/s; raise pir, lower cir, or leave pir out",
        ),
        (
            "port = \"12/1\"\nluns",
            "port = \"12/9\"\nluns",
            "line 56: vhba vh01.vm1: there is no SAN port 12/9; add a [[lun]] behind it",
        ),
        (
            "port = \"12/1\"\nluns",
            "port = \"10/1\"\nluns",
            "line 56: vhba vh01.vm1: there is no SAN port 10/1; it is an Ethernet port, choose another",
        ),
        (
            "{ lun = 0,",
            "{ lun = 16384,",
            "line 57: vhba vh01.vm1: lun 16384 is out of range; use 0 to 16383",
        ),
        (
            "{ lun = 0, name = \"lun0\" }",
            "{ lun = 0, name = \"lun9\" }",
            "line 57: vhba vh01.vm1: there is no lun \"lun9\"; add a [[lun]] with this name",
        ),
        (
            "{ lun = 0, name = \"lun0\" }",
            "{ lun = 0, name = \"lun1\" }",
            "line 57: vhba vh01.vm1: lun \"lun1\" stands behind port 12/2, not 12/1; correct one of the ports",
        ),
        (
            "{ lun = 0, name = \"lun0\" }",
            "{ lun = 0, name = \"lun0\" }, { lun = 0, name = \"lun0\" }",
            "line 57: vhba vh01.vm1: LUN 0 is taken by lun lun0; choose another",
        ),
        (
            "name = \"host2\"",
            "name = \"host1\"",
            "line 60: host host1: name host1 is taken by host host1; choose another",
        ),
        (
            "rate = \"1G\"\n",
            "rate = \"1G\"\n[[host.vm]]\nname = \"vm1\"\n",
            "line 65: vm vm1: name vm1 is taken by vm vm1; choose another",
        ),
    ];
    for (from, to, message) in cases {
        assert_eq!(refusal(from, to), message);
    }
}

#[test]
fn medium_is_what_the_lab_file_says() {
    let lun0 = |words: &str| {
        let text = LAB.replacen("file = \"/tmp/lun0.img\"", words, 1);
        let lab: LabConfig = text.parse().unwrap();
        let lun = lab.lun("lun0").unwrap();
        (lun.medium.clone(), lun.timeout)
    };
    let path = PathBuf::from("/tmp/lun0.img");
    let file = |direct| MediumConfig::File {
        path: "/tmp/lun0.img".into(),
        direct,
    };
    let standard = Duration::from_secs(30);
    assert_eq!(lun0("file = \"/tmp/lun0.img\""), (file(false), standard));
    assert_eq!(
        lun0("file = \"/tmp/lun0.img\"\ndirect = true\ntimeout = \"1500ms\""),
        (file(true), Duration::from_millis(1500))
    );
    let device = MediumConfig::BlockDevice {
        path: path.clone(),
        direct: false,
    };
    assert_eq!(
        lun0("block-device = \"/tmp/lun0.img\"\ntimeout = \"2m\""),
        (device, Duration::from_secs(120))
    );
    let qcow2 = MediumConfig::Qcow2 { path };
    assert_eq!(lun0("qcow2 = \"/tmp/lun0.img\"").0, qcow2);
    assert_eq!(
        lun0("ram = \"64M\"").0,
        MediumConfig::Ram { bytes: 64 << 20 }
    );
    assert_eq!(
        lun0("null = \"2T\"").0,
        MediumConfig::Null { bytes: 2 << 40 }
    );
    let text = LAB.replacen(
        "name = \"director1\"",
        "name = \"director1\"\nbacking-files = [\"/srv/base.qcow2\"]",
        1,
    );
    let lab: LabConfig = text.parse().unwrap();
    assert_eq!(lab.director.backing_files, [Path::new("/srv/base.qcow2")]);
}

#[test]
fn medium_that_cannot_be_is_refused_with_the_next_step() {
    const UNCLEAR: &str = "line 20: lun lun0: medium is not clear; write one of file = \"PATH\", \
        block-device = \"PATH\", qcow2 = \"PATH\", ram = \"64M\", null = \"1G\", \
        iscsi = \"TARGET\" and sg = \"PATH\"";
    let size = |text: &str| {
        format!(
            "line 22: lun lun0: size {text:?} is not usable; write at least one block, like 64M, \
            1G or 2T"
        )
    };
    let timeout = |text: &str| {
        format!("line 23: lun lun0: timeout {text:?} is not usable; write 100ms to 60m, like 30s")
    };
    let file = "file = \"/tmp/lun0.img\"";
    for (words, message) in [
        (String::new(), UNCLEAR.to_owned()),
        (format!("{file}\nram = \"1M\""), UNCLEAR.to_owned()),
        (
            "null = \"1G\"\nqcow2 = \"/x\"".to_owned(),
            UNCLEAR.to_owned(),
        ),
        ("ram = \"64\"".to_owned(), size("64")),
        ("ram = \"0M\"".to_owned(), size("0M")),
        ("null = \"1K\"".to_owned(), size("1K")),
        ("null = \"+1M\"".to_owned(), size("+1M")),
        ("null = \"\"".to_owned(), size("")),
        ("null = \"99999999999T\"".to_owned(), size("99999999999T")),
        (
            "ram = \"65G\"".to_owned(),
            "line 22: lun lun0: ram of 65G is above 64G; choose less, or a file".to_owned(),
        ),
        (
            "ram = \"1M\"\ndirect = true".to_owned(),
            "line 23: lun lun0: direct is for file and block-device; leave it out".to_owned(),
        ),
        (format!("{file}\ntimeout = \"30\""), timeout("30")),
        (format!("{file}\ntimeout = \"99ms\""), timeout("99ms")),
        (format!("{file}\ntimeout = \"61m\""), timeout("61m")),
        (format!("{file}\ntimeout = \"s\""), timeout("s")),
    ] {
        assert_eq!(refusal(file, &words), message, "{words}");
    }
    let shared = LAB.replacen(
        "name = \"director1\"",
        "name = \"director1\"\nshared-luns = true",
        1,
    );
    assert_eq!(
        refusal_of(&shared, file, "ram = \"1M\""),
        "line 23: lun lun0: ram is empty at the other director; choose a file, or take shared-luns away"
    );
    assert_eq!(
        refusal(
            "name = \"director1\"",
            "name = \"director1\"\nbacking-files = [\"base.qcow2\"]"
        ),
        "line 4: director director1: path \"base.qcow2\" is not absolute; write it from the root, \
         like /etc/orimono/ca.pem"
    );
}

#[test]
fn malformed_toml_and_unknown_keys_name_their_line() {
    let message = refusal("offloads = false", "offload = false");
    assert!(
        message.starts_with("line 16: unknown field `offload`"),
        "{message}"
    );
    let message = refusal("mtu = 9000", "mtu = 70000");
    assert!(message.starts_with("line 17: "), "{message}");
    let message = refusal("name = \"director1\"", "name = ");
    assert!(message.starts_with("line 3: "), "{message}");
    let message = refusal("run-dir = \"/run/orimono/host2\"\n", "");
    assert!(message.contains("missing field `run-dir`"), "{message}");
    assert!(
        "".parse::<LabConfig>()
            .unwrap_err()
            .to_string()
            .contains("missing field `director`")
    );
}

#[test]
fn unreadable_file_is_named() {
    let error = LabConfig::read(Path::new("/nonexistent/lab.toml")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot read /nonexistent/lab.toml; name a readable lab file"
    );
}

const ISCSI: &str = "iscsi = \"iqn.a:t\"\nportal = \"192.0.2.9:3260\"\ninitiator = \"iqn.a:i\"";

fn with_lun0(words: &str) -> Result<LabConfig, String> {
    let text = LAB.replacen("file = \"/tmp/lun0.img\"", words, 1);
    text.parse::<LabConfig>().map_err(|error| error.to_string())
}

#[test]
fn units_of_others_are_named_with_what_reaches_them() {
    let lun0 = |words: &str| with_lun0(words).unwrap().lun("lun0").unwrap().clone();
    let plain = lun0(ISCSI);
    let mut iscsi = IscsiConfig {
        target: "iqn.a:t".into(),
        portal: "192.0.2.9:3260".parse().unwrap(),
        target_lun: 0,
        initiator: "iqn.a:i".into(),
        chap: None,
        digests: Digests::Preferred,
    };
    assert_eq!(plain.medium, MediumConfig::Iscsi(Box::new(iscsi.clone())));
    assert_eq!(plain.timeout, Duration::from_secs(60));
    let more =
        "target-lun = 7\nuser = \"u\"\nsecret-file = \"/s\"\ndigests = \"none\"\ntimeout = \"5s\"";
    let full = lun0(&format!("{ISCSI}\n{more}"));
    iscsi.target_lun = 7;
    iscsi.chap = Some(ChapConfig {
        user: "u".into(),
        secret_file: "/s".into(),
    });
    iscsi.digests = Digests::None;
    assert_eq!(full.medium, MediumConfig::Iscsi(Box::new(iscsi)));
    assert_eq!(full.timeout, Duration::from_secs(5));
    let path = "/dev/sg3".into();
    assert_eq!(lun0("sg = \"/dev/sg3\"").medium, MediumConfig::Sg { path });
}

#[test]
fn units_of_others_that_cannot_be_reached_are_refused() {
    for (words, problem) in [
        (
            "iscsi = \"iqn.a:t\"",
            "iscsi needs portal; write it".to_owned(),
        ),
        (
            "iscsi = \"iqn.a:t\"\nportal = \"[::1]:1\"",
            "iscsi needs initiator; write it".to_owned(),
        ),
        (
            &format!("{ISCSI}\nuser = \"u\""),
            "iscsi needs secret-file; write it".to_owned(),
        ),
        (
            &format!("{ISCSI}\nsecret-file = \"/s\""),
            "iscsi needs user; write it".to_owned(),
        ),
        (
            &format!("{ISCSI}\nuser = \"u\"\nsecret-file = \"s\""),
            "path \"s\" is not absolute; write it from the root, like /etc/orimono/ca.pem"
                .to_owned(),
        ),
        (
            &format!("{ISCSI}\ndigests = \"some\""),
            "digests \"some\" is not known; write none, preferred or required".to_owned(),
        ),
        (
            &format!("{ISCSI}\ntarget-lun = 16384"),
            "lun 16384 is out of range; use 0 to 16383".to_owned(),
        ),
        (
            &format!("{ISCSI}\nserial = \"s\""),
            "serial means nothing for this medium; leave it out".to_owned(),
        ),
        (
            "ram = \"1M\"\ntarget-lun = 1",
            "target-lun means nothing for this medium; leave it out".to_owned(),
        ),
        (
            &ISCSI.replace("192.0.2.9:3260", "nowhere"),
            "portal \"nowhere\" is not usable; write an address and a port, like 192.0.2.9:3260"
                .to_owned(),
        ),
    ] {
        let error = with_lun0(words).unwrap_err();
        assert!(error.ends_with(&format!("lun lun0: {problem}")), "{error}");
    }
    let twice = with_lun0(&format!("{ISCSI}\nsg = \"/dev/sg3\"")).unwrap_err();
    assert!(twice.contains("medium is not clear"), "{twice}");
    let shared = LAB.replacen("file = \"/tmp/lun0.img\"", ISCSI, 1).replacen(
        "[director]",
        "[director]\nshared-luns = true",
        1,
    );
    let error = shared.parse::<LabConfig>().unwrap_err().to_string();
    assert!(error.contains("do not go with shared-luns"), "{error}");
}
