//! The QEMU arguments of one vNIC and of one vHBA.
//!
//! Free functions, so that the host agent can print them for guests that are not ours. The
//! guest's memory must be a shared file-descriptor object, see [`crate::machine`].

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
    str::FromStr,
};

use serde_json::{Value, json};
use thiserror::Error;

use crate::{accelerator::Accelerator, emulator::Version};

/// Ethernet address of one vNIC (IEEE 802, 48 bits).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct MacAddress([u8; 6]);

/// Text that is no unicast Ethernet address.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[error("`{text}` is not a unicast Ethernet address such as 02:15:97:00:00:01")]
pub struct MacAddressError {
    text: String,
}

impl MacAddress {
    /// The six bytes, first on the wire first.
    #[must_use]
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for MacAddress {
    type Err = MacAddressError;

    fn from_str(text: &str) -> Result<Self, MacAddressError> {
        let error = || MacAddressError {
            text: text.to_owned(),
        };
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts
                .next()
                .filter(|part| part.len() == 2)
                .ok_or_else(error)?;
            // The parser would take a sign.
            if !part.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(error());
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_not_hexadecimal| error())?;
        }
        let [first, ..] = octets;
        if parts.next().is_some() || first & 1 == 1 || octets == [0; 6] {
            return Err(error());
        }
        Ok(Self(octets))
    }
}

impl std::fmt::Display for MacAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// One vNIC of a guest: `virtio-net-pci` on a `vhost-user` back-end.
#[derive(Clone, Debug, PartialEq)]
pub struct Vnic {
    /// Name in QEMU's lists; the chardev and netdev are named after it. Letters, digits, `-`,
    /// `.` and `_`, a letter first (QEMU refuses others).
    pub id: String,
    /// Socket the back-end listens on.
    pub socket: PathBuf,
    /// Address of the guest's interface.
    pub mac: MacAddress,
    /// Queue pairs, 1 or more.
    pub queues: u16,
    /// MTU in bytes offered to the driver (`host_mtu`), or the driver's own default.
    pub mtu: Option<u16>,
    /// Whether QEMU connects again, once a second, when the back-end went away.
    pub reconnect: bool,
    /// PCI bus, or the root complex. Only devices behind a root port can be unplugged.
    pub bus: Option<String>,
    /// Place in the firmware's order of boot devices; `None`: nothing boots from the network.
    pub boot_index: Option<u16>,
}

impl Vnic {
    /// One queue pair, default MTU, connecting again, on the root complex.
    pub fn new(id: impl Into<String>, socket: impl Into<PathBuf>, mac: MacAddress) -> Self {
        Self {
            id: id.into(),
            socket: socket.into(),
            mac,
            queues: 1,
            mtu: None,
            reconnect: true,
            bus: None,
            boot_index: None,
        }
    }
}

/// One vHBA of a guest: `vhost-user-scsi-pci`.
#[derive(Clone, Debug, PartialEq)]
pub struct Vhba {
    /// Name in QEMU's lists, as [`Vnic::id`].
    pub id: String,
    /// Socket the back-end listens on.
    pub socket: PathBuf,
    /// Request queues, 1 or more, not more than the back-end has.
    pub queues: u16,
    /// Whether QEMU connects again, once a second, when the back-end went away; ignored where
    /// the version cannot ([`Version::vhost_user_scsi_reconnects`]).
    pub reconnect: bool,
    /// PCI bus, or the root complex.
    pub bus: Option<String>,
    /// Place in the firmware's order of boot devices, for LUN 0; `None` is behind all that have
    /// one.
    pub boot_index: Option<u16>,
}

impl Vhba {
    /// One request queue, connecting again where QEMU can, on the root complex.
    pub fn new(id: impl Into<String>, socket: impl Into<PathBuf>) -> Self {
        Self {
            id: id.into(),
            socket: socket.into(),
            queues: 1,
            reconnect: true,
            bus: None,
            boot_index: None,
        }
    }
}

/// A device as QEMU's monitor takes it, and as its command line does.
#[derive(Clone, Debug, PartialEq)]
pub struct Plug {
    /// Name of the chardev.
    chardev: String,
    socket: PathBuf,
    /// Option and value of connecting again.
    reconnect: Option<(&'static str, u32)>,
    /// Arguments of `netdev_add`; a vHBA has none.
    netdev: Option<Words>,
    /// Arguments of `device_add`; the first is the driver.
    device: Words,
}

/// Options and their values; the first is the one that a command line does not name.
type Words = Vec<(&'static str, Value)>;

impl Plug {
    /// A vNIC for that QEMU.
    ///
    /// Under TCG, QEMU 7 dies on MSI-X of a vhost-user network device, so it gets `vectors=0` there.
    /// Without a place in the boot order the option ROM (iPXE) is left out: loading it costs time.
    #[must_use]
    pub fn vnic(vnic: &Vnic, version: Version, accelerator: Accelerator) -> Self {
        let (chardev, net) = (format!("{}-socket", vnic.id), format!("{}-net", vnic.id));
        let mut netdev: Words = vec![
            ("type", "vhost-user".into()),
            ("id", net.clone().into()),
            ("chardev", chardev.clone().into()),
        ];
        let mut device: Words = vec![
            ("driver", "virtio-net-pci".into()),
            ("id", vnic.id.clone().into()),
            ("netdev", net.into()),
            ("mac", vnic.mac.to_string().into()),
        ];
        let mut set = |key, value: Value| device.push((key, value));
        if vnic.queues > 1 {
            netdev.push(("queues", vnic.queues.into()));
            set("mq", true.into());
        }
        if let Some(mtu) = vnic.mtu {
            set("host_mtu", mtu.into());
        }
        if accelerator == Accelerator::Tcg && !version.vhost_user_net_has_msix_under_tcg() {
            set("vectors", 0.into());
        } else if vnic.queues > 1 {
            // One for each direction of each pair, one for configuration, one for control.
            set("vectors", (u32::from(vnic.queues) * 2 + 2).into());
        }
        match vnic.boot_index {
            Some(index) => set("bootindex", index.into()),
            None => set("romfile", "".into()),
        };
        if let Some(bus) = &vnic.bus {
            set("bus", bus.clone().into());
        }
        Self {
            chardev,
            socket: vnic.socket.clone(),
            reconnect: vnic.reconnect.then(|| version.reconnect()),
            netdev: Some(netdev),
            device,
        }
    }

    /// A vHBA for that QEMU.
    #[must_use]
    pub fn vhba(vhba: &Vhba, version: Version) -> Self {
        let chardev = format!("{}-socket", vhba.id);
        let mut device: Words = vec![
            ("driver", "vhost-user-scsi-pci".into()),
            ("id", vhba.id.clone().into()),
            ("chardev", chardev.clone().into()),
            ("num_queues", vhba.queues.into()),
        ];
        let mut set = |key, value: Value| device.push((key, value));
        if let Some(index) = vhba.boot_index {
            set("bootindex", index.into());
        }
        if let Some(bus) = &vhba.bus {
            set("bus", bus.clone().into());
        }
        let reconnects = vhba.reconnect && version.vhost_user_scsi_reconnects();
        Self {
            chardev,
            socket: vhba.socket.clone(),
            reconnect: reconnects.then(|| version.reconnect()),
            netdev: None,
            device,
        }
    }

    /// The words of QEMU's command line.
    #[must_use]
    pub fn args(&self) -> Vec<OsString> {
        let mut chardev = Options::new("socket");
        chardev
            .set("id", &self.chardev)
            .set_path("path", &self.socket);
        if let Some((option, value)) = self.reconnect {
            chardev.set(option, value.to_string());
        }
        let mut args = vec!["-chardev".into(), chardev.finish()];
        if let Some(netdev) = &self.netdev {
            args.extend(["-netdev".into(), option_list(netdev)]);
        }
        args.extend(["-device".into(), option_list(&self.device)]);
        args
    }

    /// The commands of QEMU's monitor, in their order.
    #[must_use]
    pub fn commands(&self) -> Vec<Value> {
        let mut data = json!({
            "addr": {"type": "unix", "data": {"path": self.socket.to_string_lossy()}},
            "server": false,
        });
        if let (Some((option, value)), Some(data)) = (self.reconnect, data.as_object_mut()) {
            data.insert(option.to_owned(), value.into());
        }
        let backend = json!({"type": "socket", "data": data});
        let chardev = json!({"id": self.chardev, "backend": backend});
        let mut commands = vec![json!({"execute": "chardev-add", "arguments": chardev})];
        if let Some(netdev) = &self.netdev {
            commands.push(json!({"execute": "netdev_add", "arguments": object(netdev)}));
        }
        commands.push(json!({"execute": "device_add", "arguments": object(&self.device)}));
        commands
    }

    /// The commands that take away what a device called `id` stood on, once it is gone. Where that went
    /// along with the device, QEMU refuses them.
    #[must_use]
    pub fn leftovers(id: &str) -> [Value; 2] {
        [
            json!({"execute": "netdev_del", "arguments": {"id": format!("{id}-net")}}),
            json!({"execute": "chardev-remove", "arguments": {"id": format!("{id}-socket")}}),
        ]
    }
}

fn object(words: &Words) -> Value {
    let words = words.iter();
    Value::Object(
        words
            .map(|(key, value)| ((*key).to_owned(), value.clone()))
            .collect(),
    )
}

/// An option list; the name of its first word is left out.
fn option_list(words: &Words) -> OsString {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Bool(true) => "on".to_owned(),
        Value::Bool(false) => "off".to_owned(),
        other => other.to_string(),
    };
    let mut words = words.iter();
    let first = words.next().map(|(_, value)| text(value));
    let mut options = Options::new(&first.unwrap_or_default());
    for (key, value) in words {
        options.set(key, text(value));
    }
    options.finish()
}

/// The arguments of a vNIC for that QEMU ([`Plug::vnic`]).
#[must_use]
pub fn vnic_args(vnic: &Vnic, version: Version, accelerator: Accelerator) -> Vec<OsString> {
    Plug::vnic(vnic, version, accelerator).args()
}

/// The arguments of a vHBA for that QEMU.
#[must_use]
pub fn vhba_args(vhba: &Vhba, version: Version) -> Vec<OsString> {
    Plug::vhba(vhba, version).args()
}

/// The bus of a device that has the root port `slot` of [`root_port_args`].
#[must_use]
pub fn root_port(slot: u8) -> String {
    format!("orimono-rp{slot}")
}

/// Reserves that many PCIe root ports, at most 64, for devices that come and go. The places of all are
/// fixed, so a device keeps its PCI address as long as it keeps its port.
///
/// Eight share a slot of the root complex, from 0x14 on, where QEMU and libvirt put nothing by
/// themselves. None reserves I/O space, of which there is little and which virtio 1 does not use.
#[must_use]
pub fn root_port_args(count: u8) -> Vec<OsString> {
    let ports = (0..count.min(64)).flat_map(|slot| {
        let mut port = Options::new("pcie-root-port");
        let place = format!("0x{:x}.0x{:x}", 0x14 + slot / 8, slot % 8);
        port.set("id", root_port(slot))
            .set("bus", "pcie.0")
            .set("addr", place)
            .set("multifunction", "on")
            .set("chassis", (u16::from(slot) + 100).to_string())
            .set("io-reserve", "0");
        ["-device".into(), port.finish()]
    });
    ports.collect()
}

/// A monitor at `socket` for one client, called `id` in QEMU.
#[must_use]
pub fn monitor_args(id: &str, socket: &Path) -> Vec<OsString> {
    let mut chardev = Options::new("socket");
    chardev
        .set("id", id)
        .set_path("path", socket)
        .set("server", "on")
        .set("wait", "off");
    vec![
        "-chardev".into(),
        chardev.finish(),
        "-mon".into(),
        format!("chardev={id},mode=control").into(),
    ]
}

/// A comma-separated list of QEMU options. A comma inside a value is doubled.
pub(crate) struct Options(Vec<u8>);

impl Options {
    pub(crate) fn new(kind: &str) -> Self {
        Self(kind.as_bytes().to_vec())
    }

    pub(crate) fn word(&mut self, word: &str) -> &mut Self {
        self.0.push(b',');
        self.0.extend_from_slice(word.as_bytes());
        self
    }

    pub(crate) fn set(&mut self, key: &str, value: impl AsRef<OsStr>) -> &mut Self {
        self.word(key).0.push(b'=');
        for byte in value.as_ref().as_bytes() {
            if *byte == b',' {
                self.0.push(b',');
            }
            self.0.push(*byte);
        }
        self
    }

    pub(crate) fn set_path(&mut self, key: &str, value: &Path) -> &mut Self {
        self.set(key, value)
    }

    pub(crate) fn finish(self) -> OsString {
        OsString::from_vec(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vnic() -> Vnic {
        Vnic::new(
            "vn01",
            "/run/x/vn01.sock",
            "02:15:97:00:00:01".parse().unwrap(),
        )
    }

    #[test]
    fn a_vnic_of_qemu_7_2_under_tcg_has_no_msix() {
        let args = vnic_args(&vnic(), Version::new(7, 2), Accelerator::Tcg);
        assert_eq!(
            args,
            [
                "-chardev",
                "socket,id=vn01-socket,path=/run/x/vn01.sock,reconnect=1",
                "-netdev",
                "vhost-user,id=vn01-net,chardev=vn01-socket",
                "-device",
                "virtio-net-pci,id=vn01,netdev=vn01-net,mac=02:15:97:00:00:01,vectors=0,romfile=",
            ]
        );
        let kvm = vnic_args(&vnic(), Version::new(7, 2), Accelerator::Kvm);
        assert!(!kvm[5].to_string_lossy().contains("vectors"), "{kvm:?}");
    }

    #[test]
    fn a_vnic_of_qemu_10_takes_queues_mtu_and_bus() {
        let vnic = Vnic {
            queues: 2,
            mtu: Some(9000),
            bus: Some("rp0".to_owned()),
            ..vnic()
        };
        let args = vnic_args(&vnic, Version::new(10, 0), Accelerator::Tcg);
        assert_eq!(
            args,
            [
                "-chardev",
                "socket,id=vn01-socket,path=/run/x/vn01.sock,reconnect-ms=1000",
                "-netdev",
                "vhost-user,id=vn01-net,chardev=vn01-socket,queues=2",
                "-device",
                "virtio-net-pci,id=vn01,netdev=vn01-net,mac=02:15:97:00:00:01,mq=on,\
                 host_mtu=9000,vectors=6,romfile=,bus=rp0",
            ]
        );
    }

    #[test]
    fn a_device_that_is_plugged_in_has_the_words_of_the_command_line() {
        let vnic = Vnic {
            bus: Some(root_port(3)),
            ..vnic()
        };
        let plug = Plug::vnic(&vnic, Version::new(7, 2), Accelerator::Tcg);
        let data = json!({
            "addr": {"type": "unix", "data": {"path": "/run/x/vn01.sock"}},
            "server": false, "reconnect": 1,
        });
        let expected = [
            json!({"execute": "chardev-add", "arguments":
                {"id": "vn01-socket", "backend": {"type": "socket", "data": data}}}),
            json!({"execute": "netdev_add", "arguments":
                {"type": "vhost-user", "id": "vn01-net", "chardev": "vn01-socket"}}),
            json!({"execute": "device_add", "arguments": {
                "driver": "virtio-net-pci", "id": "vn01", "netdev": "vn01-net",
                "mac": "02:15:97:00:00:01", "vectors": 0, "romfile": "", "bus": "orimono-rp3"}}),
        ];
        assert_eq!(plug.commands(), expected);
    }

    #[test]
    fn root_ports_have_places_of_their_own() {
        let args = root_port_args(64);
        let devices: Vec<_> = args.iter().skip(1).step_by(2).collect();
        assert_eq!(devices.len(), 64);
        assert_eq!(
            *devices[9],
            "pcie-root-port,id=orimono-rp9,bus=pcie.0,addr=0x15.0x1,multifunction=on,\
             chassis=109,io-reserve=0"
        );
        // 0x1f is the south bridge of q35.
        assert!(devices[63].to_string_lossy().contains("addr=0x1b.0x7"));
    }

    #[test]
    fn a_vnic_that_boots_has_its_rom() {
        let vnic = Vnic {
            boot_index: Some(1),
            ..vnic()
        };
        let args = vnic_args(&vnic, Version::new(10, 0), Accelerator::Kvm);
        assert_eq!(
            args[5],
            "virtio-net-pci,id=vn01,netdev=vn01-net,mac=02:15:97:00:00:01,bootindex=1"
        );
    }

    #[test]
    fn a_vhba_reconnects_only_where_qemu_can() {
        let vhba = Vhba {
            queues: 2,
            ..Vhba::new("vh01", "/run/x/vh01.sock")
        };
        assert_eq!(
            vhba_args(&vhba, Version::new(7, 2)),
            [
                "-chardev",
                "socket,id=vh01-socket,path=/run/x/vh01.sock",
                "-device",
                "vhost-user-scsi-pci,id=vh01,chardev=vh01-socket,num_queues=2",
            ]
        );
        let new = vhba_args(&vhba, Version::new(10, 0));
        assert_eq!(
            new[1],
            "socket,id=vh01-socket,path=/run/x/vh01.sock,reconnect-ms=1000"
        );
    }

    #[test]
    fn a_comma_in_a_path_does_not_end_the_option() {
        let vhba = Vhba::new("vh01", "/run/a,b/vh01.sock");
        assert_eq!(
            vhba_args(&vhba, Version::new(7, 2))[1],
            "socket,id=vh01-socket,path=/run/a,,b/vh01.sock"
        );
    }

    #[test]
    fn only_unicast_addresses_are_addresses() {
        let mac: MacAddress = "02:15:97:00:0A:ff".parse().unwrap();
        assert_eq!(mac.to_string(), "02:15:97:00:0a:ff");
        for text in [
            "",
            "02:15:97:00:00",
            "02:15:97:00:00:01:02",
            "01:00:5e:00:00:01",
            "00:00:00:00:00:00",
            "+2:15:97:00:00:01",
            "2:15:97:0:0:1",
            "zz:15:97:00:00:01",
        ] {
            assert!(text.parse::<MacAddress>().is_err(), "{text}");
        }
    }
}
