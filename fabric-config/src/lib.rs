//! The lab file: one TOML text that the I/O director and every host agent read until a controller
//! hands out profiles.
//!
//! Parsed, then validated into types that cannot hold a wrong value: whoever has a [`LabConfig`]
//! need not check again that ports exist, numbers are unique or rates fit together. What depends
//! on the machine (a missing LUN file, a busy TAP name, an unwritable folder) is for the process
//! that opens it. Reservations are admitted at the link, not by reading the file, so that one device
//! too many does not keep the others from starting; [`LabConfig::admit`] asks all hops at once.
//!
//! ```toml
//! insecure = false                   # default; true: tcp: may leave the machine
//! [tls]                              # absent: no tls: addresses
//! ca = "/etc/orimono/ca.pem"
//! cert = "/etc/orimono/{name}.pem"   # {name}: the host or director whose process reads this
//! key = "/etc/orimono/{name}.key"
//!
//! [director]
//! name = "director1"                 # and in its certificate
//! listen = ["tls:192.0.2.1:7471"]    # or tcp: on loopback, unix:/PATH or shm:/PATH
//! shared-luns = false                # default; true: LUN files are locked only while in use
//! backing-files = ["/srv/base.qcow2"]  # what qcow2 images may stand on; default: nothing
//! boot-dir = "/srv/boot"             # what guests boot from vNICs; default: nothing
//! busy-poll-us = 0                   # default; 50: look for frames this long before sleeping
//! discoverable = "239.255.77.71:7470"  # hosts that it knows find it there; default: they do not
//! discovery-interface = "192.0.2.1"  # its address; default: as routes to the group say
//! [[director.link]]                  # director to host; absent: as the host's own
//! host = "host1"
//! rate = "10G"                       # what the link is sold as
//! payload = "9.9G"                   # what it carries; default: the rate
//! reservable = "9.4G"                # default: 95 % of the payload
//! protected = "5G"                   # most of protected reservations; default: no limit of its own
//! oversubscribe = false              # default; true: reservations beyond reservable are taken
//!
//! [[qos-policy]]                     # beside the predefined ones (module `policy` of qos)
//! kind = "network"                   # for vNICs; or "san", for vHBAs
//! set = "gold"
//! name = "web"                       # referred to as gold/web
//! cir = "200M"                       # these five as in a device's own words
//! cbs-bytes = 0
//! pir = "500M"
//! pbs-bytes = 0
//! weight = 0
//!
//! [[ethernet-port]]
//! port = "10/1"
//! tap = "orimono0"                   # made for the port; or what is there already:
//! # interface = "eth1"               # a NIC, or an end of a veth pair, all of whose frames it takes
//! namespace = "lan"                  # of `ip netns`, where the interface is; default: the director's
//! bridge = "br0"                     # of Linux, which the TAP joins; default: none
//! state = "up"                       # default; down: no frame passes, and guests see no carrier
//! offloads = true                    # default; false: plain path, no checksum or segmentation
//! mtu = 1500                         # default
//! rate = "10G"                       # of each direction; default: the port is not scheduled
//! reservable = "9G"                  # default: 95 % of the rate
//! native-vlan = 1                    # of frames without a tag; default: one without a number
//! broadcast-limit = 10000            # default: frames a second from outside to all stations
//! multicast-limit = 100000           # default: the same to other groups
//! mirror-to = "vn01.vm2"             # a vNIC that gets copies of what is at the interface; default: none
//! [[ethernet-port]]
//! port = "10/2"
//! private = true                     # no interface: its vNICs reach each other only. Other keys:
//!                                    # state, mtu, native-vlan and mirror-to
//! [[ethernet-port]]
//! port = "11/1"                      # of a LAG: its own words are these, mtu, offloads and rate
//! tap = "lag0"
//! rate = "10G"
//! [[ethernet-port]]
//! port = "11/2"
//! interface = "eth2"
//! rate = "10G"
//!
//! [[lag]]                            # ports that are one; vNICs name it as theirs
//! lag = "11.1"                       # 1 to 5 of each module
//! ports = ["11/1", "11/2"]           # of its module, with the same mtu, offloads and rate
//! mode = "active-backup"             # default: the first that is up carries all; or hash: by flow
//! state = "up"                       # default; this and the rest: as of an Ethernet port
//! reservable = "9G"                  # of the ports' rate, with hash of the sum of their rates
//! native-vlan = 1
//! broadcast-limit = 10000
//! multicast-limit = 100000
//!
//! [[access-list]]                    # what vNICs may send or receive
//! name = "web"
//! default = "deny"                   # or allow: what no rule allows or denies
//! rules = [                          # tried in this order
//!   { action = "mark", dscp = 46, priority = 5, protocol = "udp", destination-port = "5000-5010" },
//!   { action = "allow", protocol = "tcp", destination = "10.0.0.0/8", destination-port = "80" },
//!   { action = "allow", protocol = "arp" },
//!   { action = "count", source-mac = "02:00:00:00:00:01", vlan = 100 },
//! ]
//!
//! [[san-port]]                       # default: the port is not scheduled
//! port = "12/1"
//! rate = "8G"                        # as for an Ethernet port
//! reservable = "7G"
//!
//! [[lun]]
//! name = "lun0"
//! port = "12/1"
//! file = "/var/lib/orimono/lun0.img" # or one of these:
//! # block-device = "/dev/vg0/lun0"
//! # qcow2 = "/var/lib/orimono/lun0.qcow2"
//! # ram = "64M"                      # empty at the start, gone at the end
//! # null = "1G"                      # reads zeroes, keeps nothing
//! # sg = "/dev/sg3"                  # passes commands to a SCSI disk of this machine
//! # iscsi = "iqn.2001-04.com.example:disk1"  # passes them to a unit of this target, with:
//! # portal = "192.0.2.9:3260"
//! # target-lun = 0                   # default; the number at the target
//! # initiator = "iqn.2001-04.com.example:director1"
//! # user = "director1"               # CHAP; default: none
//! # secret-file = "/etc/orimono/chap"  # mode 0600; the file is the secret
//! # digests = "preferred"            # default; or none, required
//! direct = false                     # default; true: past the host's page cache (O_DIRECT)
//! timeout = "30s"                    # default, 60s with sg and iscsi; what takes longer ends
//!                                    # NOT READY
//! block-bytes = 512                  # default, or 4096
//! read-only = false                  # default
//! serial = "lun0"                    # default: the name
//! delay-ms = 0                       # default; every command is answered this late
//!
//! [[host]]
//! name = "host1"
//! director = ["tls:192.0.2.1:7471"]  # or: embedded = true, or: discover
//! # discover = "239.255.77.71:7470"  # a director that is discoverable there
//! # discovery-interface = "192.0.2.2"  # as the director's
//! # director-name = "director1"      # only this one; default: the first that answers
//! run-dir = "/run/orimono/host1"
//! rate = "10G"                       # payload, reservable, protected, oversubscribe: as above
//! [[host.vm]]
//! name = "vm1"
//! qmp = "/run/orimono/host1/vm1.qmp"  # QEMU's monitor: devices come and go while the VM runs;
//!                                    # default: none, they do when it is started
//! ingress = { cir = "600M", pir = "2G", pbs-bytes = 0, weight = 0 }  # all devices; default: none
//! egress = { pir = "2G" }
//! [[host.vm.vnic]]
//! name = "vn01"                      # the object is vn01.vm1
//! id = 1
//! generation = 0                     # default
//! port = "10/1"
//! state = "up"                       # default; down: it carries no frame, and has no carrier
//! mac = "02:00:00:00:00:01"
//! mtu = 1500                         # default: the port's
//! queues = 1                         # default
//! pci-slot = 0                       # its root port in the guest, 0 to 31; default: none, then it
//!                                    # cannot come or go while the guest runs
//! vlan = 100                         # its VLAN, of which the guest sees no tag; or a trunk:
//! # vlans = ["10", "20-30"]          # what the guest may tag its frames with
//! # native-vlan = 10                 # of frames without a tag; default: they are dropped
//! isolated = false                   # default; true: it reaches only the uplink of its port
//! addresses = ["10.0.0.5", "fd00::/64"]  # all that it may send from; default: anything
//! access-in = "web"                  # what it may send; default: no list
//! access-out = "web"                 # what it may receive; default: no list
//! mirror-to = "vn01.vm2"             # a vNIC that gets copies of what it sends and receives; default:
//!                                    # none
//! trusted = false                    # default; true: it may be a DHCP server and a router
//! broadcast-limit = 10000            # default: frames a second that it may send to all stations
//! multicast-limit = 100000           # default: the same to other groups
//! ingress = { cir = "300M", cbs-bytes = 0, pir = "1G", pbs-bytes = 0, weight = 1 }
//! egress = { policy = "gold/web", enabled = true }    # default: best effort
//! addr-type = "static"               # the guest gets these by DHCP, from the director alone
//! ip-addr = "192.168.10.201/24"      # or without /24, beside netmask = "255.255.255.0"
//! gateway = "192.168.10.1"           # this and the rest: default none
//! dns = ["192.168.10.2", "2001:db8::2"]
//! ip6-addr = "2001:db8::201/64"      # with or without an ip-addr
//! domain = "example.com"
//! host-name = "web1"
//! server-addr = "192.168.10.254"     # who tells it: an address that nobody has; default: the
//!                                    # gateway's, else one outside of all networks
//! boot-file = "boot.ipxe"            # below boot-dir; or by the kind of client:
//! boot-files = { bios = "undionly.kpxe", efi-x64 = "ipxe.efi", efi-arm64 = "arm.efi", ipxe = "a.ipxe" }
//! [[host.vm.vhba]]
//! name = "vh01"
//! id = 11
//! port = "12/1"
//! wwpn = "50:01:39:71:00:00:00:0b"   # default: from the id
//! queues = 1                         # default
//! pci-slot = 1                       # as of a vNIC
//! luns = [ { lun = 0, name = "lun0" } ]
//! ingress = { cir = "100M", unprotected = true, iops = 2000, iops-burst = 20 }
//! egress = { policy = "default/125M_250M" }
//! [[host.vm]]
//! name = "vm2"                       # no words of its own: its devices stand for themselves
//! [[host.vm.vnic]]
//! name = "vn01"
//! id = 2
//! port = "10/1"
//! mac = "02:00:00:00:00:02"
//! addr-type = "dhcp"                 # default: the guest has its address from whom it likes
//! ingress = { cir = "50M", cbs-bytes = 3000, delay-us = 500 }
//!
//! [[edge-switch]]                    # carries the links of hosts to the director
//! name = "switch1"
//! listen = ["tcp:127.0.0.1:7481"]    # the director address of the hosts behind it
//! director = ["tcp:127.0.0.1:7471"]  # tried in turn
//! rate = "10G"                       # of its uplink, each way; payload, reservable, oversubscribe:
//!                                    # as above
//! hosts = ["host1"]                  # others are turned away
//! ports = 24                         # default and most: host links at a time
//! ```
//!
//! | word of a direction | unit | for | default |
//! | --- | --- | --- | --- |
//! | `cir`, `pir` | bit/s, like `300M` | all | none: best effort, no peak |
//! | `cbs-bytes`, `pbs-bytes` | byte | all | 0: automatic |
//! | `weight` | - | all | 0: automatic |
//! | `delay-us` | microsecond; with `cir` only, not in a VM that has words of its own | all | none |
//! | `iops`, `iops-burst` | operations per second, operations | vHBA | none; 0: automatic |
//! | `unprotected` | true: may be lost with one of two links | all | false |
//! | `policy`, `enabled` | a reference in place of all other words | all | none; true |
//!
//! An Ethernet port knows VLANs as soon as one of its vNICs names some. A vNIC that names none is then
//! in the port's native VLAN; without one, in a VLAN that has no number and no tag on the interface.
//! On a port where none does, tags of guests are nobody's business and pass.
//!
//! With `addresses` a vNIC sends IPv4, IPv6 and ARP from these only, and nothing else. What it needs
//! to get an address passes (DHCP from 0.0.0.0, ARP probes, duplicate address detection), and so do
//! RARP announcements of its own MAC address. If one of them is of IPv6, so is the link-local address
//! that comes from its MAC address (EUI-64); others are listed. A guest without `trusted` is no
//! DHCP server (nothing to UDP ports 68 and 546) and no router (no advertisements and redirects of
//! ICMPv6). What cannot be read as far as these checks go is dropped: a first fragment without
//! its ports, more than eight extension headers, IP in LLC/SNAP or behind more than two tags.
//!
//! A rule of an access list meets a frame of which all that it says is true: `source-mac`,
//! `destination-mac`, `vlan` (the frame's VLAN; on a port that knows none, its first tag), `protocol`
//! (arp, ipv4, ipv6, icmp, icmp6, tcp, udp, sctp, a number, or an EtherType: 0x88cc), `source`, `destination`, and with
//! tcp, udp and sctp `source-port` and `destination-port`. The first that says allow or deny decides;
//! mark and count go on. Lists keep no state, and deny as default is also for ARP. Where it cannot be
//! said whether a frame meets a rule that would decide, as of a later fragment, which has no
//! ports, it is dropped.
//!
//! Mirrored copies are charged to the vNIC that gets them and pass none of its checks; its guest has to
//! listen to all addresses. Copies are not mirrored again, and what the vNIC sent itself is not copied
//! to it.
//!
//! A limit lets a tenth of a second's frames, at least 64, pass at once.
//!
//! A VM's own `cir` holds its devices': they may not add up to more. A disabled policy stands for
//! best effort until it is enabled.
#![forbid(unsafe_code)]

mod access;
mod address;
mod admit;
mod difference;
mod error;
mod links;
mod pass_through;
mod ports;
mod rates;
mod raw;
mod static_address;
mod switching;
mod validate;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use fabric_transport::DeviceId;
use fabric_transport::discovery::Meeting;
use fabric_transport::link::LinkAddress;
use qos::{Attachment, DeviceRate, LinkBudget, PolicyCatalog, VmRate};

pub use access::{AccessAction, AccessListConfig, AccessProtocol, AccessRule};
pub use address::{AddressError, MacAddress, PortName, Wwpn};
pub use admit::{Admission, Direction, NotAdmitted, Refusal, require_admitted};
pub use difference::{
    ApplyRefused, CannotChange, Change, ChangeKind, Difference, Object, ObjectId, ObjectReport,
    Outcome, Place, Report, Settings, Side, require_admitted_anew,
};
pub use error::{ConfigError, Problem};
pub use ipnet::IpNet;
pub use links::{LinkSecurity, TlsPaths};
pub use ports::{EthernetPortConfig, InterfaceConfig, InterfaceKind, LAG_PORTS_MAX, LagMode};
pub use static_address::{
    BOOT_FILE_BYTES_MAX, BootFiles, InterfaceAddress, NAME_SERVERS_MAX, StaticAddress,
    StaticAddressProblem,
};
pub use switching::{StormLimits, VlanId, VlanMembership, VlanSet};

/// Bytes of the name of a host, director, VM, LUN or device at most.
pub const NAME_BYTES_MAX: usize = 63;
/// Bytes of a network interface's name at most (`IFNAMSIZ` less the NUL).
pub const INTERFACE_NAME_BYTES_MAX: usize = 15;
/// Smallest MTU of an Ethernet port or vNIC (RFC 791), bytes.
pub const MTU_MIN: u16 = 68;
/// Largest MTU of an Ethernet port or vNIC, bytes: a TAP device takes no more.
pub const MTU_MAX: u16 = 65_521;
/// Largest LUN (flat space addressing, SAM-5 section 4.7.7.3).
pub const LUN_MAX: u16 = 16_383;
/// Bytes of a RAM disk at most: 64 GiB.
pub const RAM_BYTES_MAX: u64 = 64 << 30;
/// Queue pairs of a vNIC at most.
pub const VNIC_QUEUES_MAX: u16 = 8;
/// Request queues of a vHBA at most, beside its control and event queue.
pub const VHBA_QUEUES_MAX: u16 = 16;

/// Root ports that are reserved in a guest for devices of the fabric; a device's `pci-slot` is the
/// number of one.
pub const PCI_SLOTS: u8 = 32;

/// Ports of an edge switch at most, as the original's IS24 had.
pub const EDGE_SWITCH_PORTS_MAX: usize = 24;

/// A whole, valid lab file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabConfig {
    /// How its links are secured.
    pub links: LinkSecurity,
    /// The I/O director.
    pub director: DirectorConfig,
    /// The predefined policies and those of the file.
    pub policies: PolicyCatalog,
    /// Its Ethernet ports: those of a LAG are in it.
    pub ethernet_ports: Vec<EthernetPortConfig>,
    /// Its SAN ports that have an entry of their own; LUNs stand behind others too.
    pub san_ports: Vec<SanPortConfig>,
    /// The logical units behind its SAN ports.
    pub luns: Vec<LunConfig>,
    /// The hosts and their VMs.
    pub hosts: Vec<HostConfig>,
    /// What stands between hosts and the director.
    pub edge_switches: Vec<EdgeSwitchConfig>,
}

/// The I/O director.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectorConfig {
    /// Its name.
    pub name: String,
    /// Where it listens for hosts; may be empty when it is embedded.
    pub listen: Vec<LinkAddress>,
    /// Whether it locks the files of its LUNs only while a vHBA is attached, so that a standby
    /// director may serve the same files when this one is gone.
    pub shared_luns: bool,
    /// Files that qcow2 images may have as backing files; absolute paths.
    pub backing_files: Vec<PathBuf>,
    /// How long the threads of sessions look for frames before they sleep.
    pub busy_poll: Duration,
    /// Where hosts find it by asking; `None`: they must know its addresses.
    pub discoverable: Option<Meeting>,
}

/// A SAN port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SanPortConfig {
    /// Its name.
    pub port: PortName,
    /// What the port carries, the same in each direction; `None`: it is not scheduled.
    pub budget: Option<LinkBudget>,
}

/// What a logical unit keeps its blocks on. The operator says so; nobody looks into a file to
/// find out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MediumConfig {
    /// A raw file, or a block device by its path; must exist.
    File {
        /// Where it is.
        path: PathBuf,
        /// Past the host's page cache.
        direct: bool,
    },
    /// A block device; must exist.
    BlockDevice {
        /// Where it is.
        path: PathBuf,
        /// Past the host's page cache.
        direct: bool,
    },
    /// A qcow2 image; must exist.
    Qcow2 {
        /// Where it is.
        path: PathBuf,
    },
    /// Memory of the director, taken as blocks are written.
    Ram {
        /// Its size, at most [`RAM_BYTES_MAX`].
        bytes: u64,
    },
    /// Reads zeroes and keeps nothing.
    Null {
        /// Its size.
        bytes: u64,
    },
    /// A logical unit of an iSCSI target, which gets the commands as they are.
    Iscsi(Box<IscsiConfig>),
    /// A SCSI disk of this machine, which gets the commands as they are.
    Sg {
        /// Its SCSI generic device, like `/dev/sg3`.
        path: PathBuf,
    },
}

/// How a logical unit of an iSCSI target is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IscsiConfig {
    /// Name of the target; whether it is one is for who logs in.
    pub target: String,
    /// Where it listens.
    pub portal: SocketAddr,
    /// The unit's number at the target, 0 to [`LUN_MAX`].
    pub target_lun: u16,
    /// Our name; as the target's.
    pub initiator: String,
    /// CHAP; `None`: we prove nothing.
    pub chap: Option<ChapConfig>,
    /// CRC32C of headers and data.
    pub digests: Digests,
}

/// What an initiator proves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChapConfig {
    /// Name of the account.
    pub user: String,
    /// The file that is its secret; absolute.
    pub secret_file: PathBuf,
}

/// Whether PDUs carry checksums.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Digests {
    /// They do not.
    None,
    /// If the target can.
    #[default]
    Preferred,
    /// A target that cannot is not used.
    Required,
}

impl MediumConfig {
    /// The file of a medium that has one.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::File { path, .. } | Self::BlockDevice { path, .. } | Self::Qcow2 { path } => {
                Some(path)
            }
            Self::Ram { .. } | Self::Null { .. } | Self::Iscsi(_) | Self::Sg { .. } => None,
        }
    }

    /// Whether commands are passed on, so that identity and blocks are those of another unit.
    #[must_use]
    pub const fn passes_through(&self) -> bool {
        matches!(self, Self::Iscsi(_) | Self::Sg { .. })
    }
}

/// A logical unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LunConfig {
    /// Its name.
    pub name: String,
    /// The SAN port it stands behind.
    pub port: PortName,
    /// What it keeps its blocks on.
    pub medium: MediumConfig,
    /// Bytes of a logical block: 512 or 4096.
    pub block_bytes: u32,
    /// Whether initiators may only read.
    pub read_only: bool,
    /// Unit serial number.
    pub serial: String,
    /// How late every command is answered, for tests of slow consumers.
    pub delay: Duration,
    /// How long the medium may be at a command before it ends NOT READY and the unit counts as
    /// unreachable; 100 ms to 1 h.
    pub timeout: Duration,
}

/// How a host reaches its director.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Uplink {
    /// The host agent runs the director in its own process.
    Embedded,
    /// Over a link to each of these addresses, 1 to 4; the first that is up carries the frames.
    Director(Vec<LinkAddress>),
    /// Over a link to each address that a director offers, at most 4.
    Discovered {
        /// Where to ask.
        meeting: Meeting,
        /// The only director that is wanted; `None`: the first that answers.
        director: Option<String>,
    },
}

/// A hypervisor machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostConfig {
    /// Its name.
    pub name: String,
    /// Its way to the director.
    pub uplink: Uplink,
    /// Addresses of the director that takes over when the first cannot be reached; may be empty.
    pub standby_director: Vec<LinkAddress>,
    /// Whether frames are spread over all links, in place of using the first that is up.
    pub spread: bool,
    /// After how long a silent link beside another is given up; `None` is the usual time.
    pub path_silence: Option<Duration>,
    /// How long a better link must have been there before frames go back to it; `None` is the usual
    /// time.
    pub hold_down: Option<Duration>,
    /// How long the session's thread looks for frames before it sleeps, and a vHBA's for commands
    /// where they follow each other that fast.
    pub busy_poll: Duration,
    /// Folder of its device sockets.
    pub run_dir: PathBuf,
    /// What the host may send to the director (ingress of its devices).
    pub budget: LinkBudget,
    /// What the director may send to the host (egress of its devices).
    pub downlink: LinkBudget,
    /// Its VMs.
    pub vms: Vec<VmConfig>,
}

/// An edge switch: a relay that carries the links of many hosts over one uplink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EdgeSwitchConfig {
    /// Its name.
    pub name: String,
    /// Where it listens for hosts; never empty.
    pub listen: Vec<LinkAddress>,
    /// Where the director listens, in order of preference; never empty.
    pub director: Vec<LinkAddress>,
    /// What its uplink carries, the same in each direction.
    pub budget: LinkBudget,
    /// The hosts behind it; each is in the file and not embedded.
    pub hosts: Vec<String>,
    /// Host links at a time: 1 to [`EDGE_SWITCH_PORTS_MAX`].
    pub ports: usize,
}

/// A VM and its devices: a physical server with its server profile, in the original's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmConfig {
    /// Its name, unique in the file.
    pub name: String,
    /// Where its QEMU serves a monitor for the host agent; `None`: nowhere.
    pub qmp: Option<PathBuf>,
    /// Another host, which serves it too while it migrates there; `None`: it stays.
    pub moves_to: Option<String>,
    /// Its network interfaces.
    pub vnics: Vec<VnicConfig>,
    /// Its host bus adapters.
    pub vhbas: Vec<VhbaConfig>,
    /// What all its devices together send; at least their committed rates, if it has one.
    pub ingress: VmRate,
    /// What all its devices together receive; at least their committed rates, if it has one.
    pub egress: VmRate,
}

/// A virtual NIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VnicConfig {
    /// Object name: `device.vm`.
    pub name: String,
    /// Its name on the fabric, unique in the file.
    pub id: DeviceId,
    /// Counts the lives of the id.
    pub generation: u32,
    /// Its Ethernet port.
    pub port: PortName,
    /// Whether it is up, as far as the operator is concerned.
    pub up: bool,
    /// Its address: unicast, not zero, unique in the file.
    pub mac: MacAddress,
    /// Its MTU, at most the port's.
    pub mtu: u16,
    /// Queue pairs.
    pub queues: u16,
    /// Its root port in the guest, below [`PCI_SLOTS`] and unique in the VM; `None`: it is on the
    /// root complex.
    pub pci_slot: Option<u8>,
    /// Its VLANs.
    pub vlans: VlanMembership,
    /// Whether it reaches only the uplink of its port, and no vNIC of the port reaches it.
    pub isolated: bool,
    /// The only addresses that it may use; empty: any.
    pub addresses: Vec<IpNet>,
    /// Whether it may answer as a DHCP server and advertise itself as a router.
    pub trusted: bool,
    /// Judges what the guest sends.
    pub access_in: Option<Arc<AccessListConfig>>,
    /// Judges what the guest is to receive.
    pub access_out: Option<Arc<AccessListConfig>>,
    /// What passes from it.
    pub storm: StormLimits,
    /// Name of the vNIC, another one, that gets copies of what it sends and receives.
    pub mirror_to: Option<String>,
    /// What the guest sends: the words in force.
    pub ingress: DeviceRate,
    /// The policy they are of, if any.
    pub ingress_policy: Attachment,
    /// What the guest receives: the words in force.
    pub egress: DeviceRate,
    /// The policy they are of, if any.
    pub egress_policy: Attachment,
    /// What the director tells the guest about its addresses; `None`: it asks others, or nobody.
    pub static_address: Option<Box<StaticAddress>>,
}

impl VnicConfig {
    /// Whether the port watches both alike: state, VLANs, isolation, addresses, lists and limits.
    #[must_use]
    pub fn has_policy_of(&self, other: &Self) -> bool {
        let words = |vnic: &Self| (vnic.up, vnic.isolated, vnic.trusted, vnic.storm);
        words(self) == words(other)
            && self.vlans == other.vlans
            && self.addresses == other.addresses
            && self.access_in == other.access_in
            && self.access_out == other.access_out
    }
}

/// A virtual HBA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VhbaConfig {
    /// Object name: `device.vm`.
    pub name: String,
    /// Its name on the fabric, unique in the file.
    pub id: DeviceId,
    /// Counts the lives of the id.
    pub generation: u32,
    /// Its SAN port.
    pub port: PortName,
    /// World wide port name, unique in the file.
    pub wwpn: Wwpn,
    /// Request queues.
    pub queues: u16,
    /// As [`VnicConfig::pci_slot`].
    pub pci_slot: Option<u8>,
    /// What the guest sees; the numbers are unique.
    pub luns: Vec<LunMapping>,
    /// What the guest sends: the words in force.
    pub ingress: DeviceRate,
    /// The policy they are of, if any.
    pub ingress_policy: Attachment,
    /// What the guest receives: the words in force.
    pub egress: DeviceRate,
    /// The policy they are of, if any.
    pub egress_policy: Attachment,
}

/// One line of a vHBA's LUN map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LunMapping {
    /// Number in the guest, 0 to [`LUN_MAX`].
    pub lun: u16,
    /// Name of the [`LunConfig`].
    pub name: String,
}

impl LabConfig {
    /// Reads and validates the file at `path`.
    ///
    /// # Errors
    /// [`ConfigError`] in one line: place, object, problem and next step.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        text.parse()
    }

    /// The host called `name`.
    #[must_use]
    pub fn host(&self, name: &str) -> Option<&HostConfig> {
        self.hosts.iter().find(|host| host.name == name)
    }

    /// The edge switch called `name`.
    #[must_use]
    pub fn edge_switch(&self, name: &str) -> Option<&EdgeSwitchConfig> {
        self.edge_switches.iter().find(|switch| switch.name == name)
    }

    /// The Ethernet port called `port`.
    #[must_use]
    pub fn ethernet_port(&self, port: PortName) -> Option<&EthernetPortConfig> {
        self.ethernet_ports
            .iter()
            .find(|config| config.port == port)
    }

    /// The entry of the SAN port called `port`, if it has one.
    #[must_use]
    pub fn san_port(&self, port: PortName) -> Option<&SanPortConfig> {
        self.san_ports.iter().find(|config| config.port == port)
    }

    /// The logical unit called `name`.
    #[must_use]
    pub fn lun(&self, name: &str) -> Option<&LunConfig> {
        self.luns.iter().find(|lun| lun.name == name)
    }
}

impl LabConfig {
    /// The VMs that the agent of `host` serves: its own, then those that move to it.
    pub fn vms_at<'a>(&'a self, host: &str) -> impl Iterator<Item = &'a VmConfig> {
        let (own, others): (Vec<_>, Vec<_>) = self.hosts.iter().partition(|it| it.name == host);
        let arriving: Vec<_> = others
            .into_iter()
            .flat_map(|it| &it.vms)
            .filter(|vm| vm.moves_to.as_deref() == Some(host))
            .collect();
        own.into_iter().flat_map(|it| &it.vms).chain(arriving)
    }

    /// The host called `name` with all VMs that its agent serves: [`Self::vms_at`].
    #[must_use]
    pub fn serving_host(&self, name: &str) -> Option<HostConfig> {
        let mut host = self.host(name)?.clone();
        host.vms = self.vms_at(name).cloned().collect();
        Some(host)
    }
}

impl HostConfig {
    /// All vNICs of the host, by VM.
    pub fn vnics(&self) -> impl Iterator<Item = &VnicConfig> {
        self.vms.iter().flat_map(|vm| &vm.vnics)
    }

    /// All vHBAs of the host, by VM.
    pub fn vhbas(&self) -> impl Iterator<Item = &VhbaConfig> {
        self.vms.iter().flat_map(|vm| &vm.vhbas)
    }
}

impl FromStr for LabConfig {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let raw = raw::parse(text)?;
        validate::validate(text, raw)
    }
}

#[cfg(test)]
mod tests;
