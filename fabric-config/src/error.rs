//! What is wrong with a lab file, in one line each.

use fabric_transport::session::PATHS_MAX;
use std::io;
use std::path::PathBuf;

use fabric_transport::discovery::GROUP_DEFAULT;
use fabric_transport::link::{LinkAddressError, LinkRefused};
use qos::{BitRate, InvalidBudget, InvalidRate, ParseBitRateError, PolicyError};

use crate::address::{AddressError, MacAddress, PortName, Wwpn};
use crate::admit::Direction;
use crate::static_address::{PortAddress, StaticAddressProblem};
use crate::switching::VlanId;
use crate::{
    EDGE_SWITCH_PORTS_MAX, INTERFACE_NAME_BYTES_MAX, LAG_PORTS_MAX, LUN_MAX, MTU_MAX, MTU_MIN,
    NAME_BYTES_MAX,
};

/// Why a lab file is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}; name a readable lab file", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Not TOML, or not with these keys.
    #[error("line {line}: {message}; correct this line")]
    Syntax {
        /// Line, from 1.
        line: usize,
        /// What the TOML parser says.
        message: String,
    },
    /// A value that cannot be, or does not fit to the others.
    #[error("line {line}: {object}: {problem}")]
    Invalid {
        /// Line, from 1.
        line: usize,
        /// The object it belongs to, as the operator knows it: `vnic vn01.vm1`.
        object: String,
        /// What is wrong, and the next step.
        problem: Problem,
    },
}

/// What is wrong with a value, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// A name with other characters, empty or too long.
    #[error("name {name:?} is not usable; use 1 to {NAME_BYTES_MAX} letters, digits, '-' and '_'")]
    Name {
        /// The name.
        name: String,
    },
    /// An interface name that the kernel does not take.
    #[error(
        "interface name {name:?} is not usable; use 1 to {INTERFACE_NAME_BYTES_MAX} letters, \
         digits, '-', '_' and '.'"
    )]
    InterfaceName {
        /// The name.
        name: String,
    },
    /// A name, number or address is used twice.
    #[error("{what} {value} is taken by {owner}; choose another")]
    Taken {
        /// What must be unique.
        what: &'static str,
        /// The value.
        value: String,
        /// Who has it.
        owner: String,
    },
    /// A malformed address.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// A malformed link address.
    #[error(transparent)]
    LinkAddress(#[from] LinkAddressError),
    /// A link that would not be made.
    #[error(transparent)]
    Link(#[from] LinkRefused),
    /// A path whose meaning depends on where the process was started.
    #[error("path {path:?} is not absolute; write it from the root, like /etc/orimono/ca.pem")]
    RelativePath {
        /// The path.
        path: String,
    },
    /// A malformed rate.
    #[error("{0}; write it like 300M or 2.5G")]
    Rate(ParseBitRateError),
    /// A link without bandwidth.
    #[error("rate is zero; write what the link carries, like 10G")]
    LinkRateIsZero,
    /// More reservable than there is.
    #[error("{0}; lower reservable")]
    Budget(InvalidBudget),
    /// CIR and PIR do not fit together.
    #[error("{direction}: {source}; raise pir, lower cir, or leave pir out")]
    DeviceRate {
        /// Ingress or egress.
        direction: Direction,
        /// Why.
        source: InvalidRate,
    },
    /// More protected than there is to reserve.
    #[error(
        "{} protected is more than the {} reservable; lower protected",
        protected.with_unit(),
        reservable.with_unit()
    )]
    Protected {
        /// What was to be protected.
        protected: BitRate,
        /// What is reservable.
        reservable: BitRate,
    },
    /// A link that carries more than it is sold as.
    #[error(
        "payload {} is more than rate {}; lower payload",
        payload.with_unit(),
        rate.with_unit()
    )]
    Payload {
        /// What it was to carry.
        payload: BitRate,
        /// The rate it is sold as.
        rate: BitRate,
    },
    /// A part of nothing.
    #[error("reservable is a part of rate; add rate = \"...\" or leave reservable out")]
    ReservableWithoutRate,
    /// A delay bound without a reservation.
    #[error("{direction}: delay-us bounds what is reserved; add cir or leave delay-us out")]
    DelayWithoutCir {
        /// Ingress or egress.
        direction: Direction,
    },
    /// A bound that nothing meets.
    #[error("{direction}: delay-us is zero; use 1 or above, or leave it out")]
    DelayIsZero {
        /// Ingress or egress.
        direction: Direction,
    },
    /// A limit of operations on a device that has none.
    #[error("{direction}: iops is for vHBAs; limit a vNIC with pir")]
    OperationsOfVnic {
        /// Ingress or egress.
        direction: Direction,
    },
    /// The device could never send.
    #[error("{direction}: iops is zero; use 1 or above, or leave it out")]
    OperationsAreZero {
        /// Ingress or egress.
        direction: Direction,
    },
    /// A burst of no limit.
    #[error("{direction}: iops-burst belongs to iops; add iops or leave it out")]
    OperationBurstAlone {
        /// Ingress or egress.
        direction: Direction,
    },
    /// A VM whose rate its devices exceed.
    #[error(
        "{direction}: {word} {} is below {}, the sum of its devices' cir; raise it or lower theirs",
        rate.with_unit(),
        devices.with_unit()
    )]
    VmBelowDevices {
        /// Ingress or egress.
        direction: Direction,
        /// `cir` or `pir`.
        word: &'static str,
        /// The VM's.
        rate: BitRate,
        /// The sum of its devices' committed rates.
        devices: BitRate,
    },
    /// A policy of another kind.
    #[error("kind {kind:?} is no kind of policy; write network or san")]
    PolicyKind {
        /// The kind.
        kind: String,
    },
    /// The rate words of a policy do not fit together.
    #[error("{0}; raise pir, lower cir, or leave pir out")]
    PolicyRate(InvalidRate),
    /// A policy that is not there, or cannot be added.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// A policy beside words of the device.
    #[error("{direction}: words of its own stand beside policy {policy}; leave one of them out")]
    PolicyAndWords {
        /// Ingress or egress.
        direction: Direction,
        /// The reference.
        policy: String,
    },
    /// Nothing that could be enabled.
    #[error("{direction}: enabled belongs to a policy; add policy = \"set/name\" or leave it out")]
    EnabledWithoutPolicy {
        /// Ingress or egress.
        direction: Direction,
    },
    /// Not the address of one station.
    #[error("MAC address {mac} is not unicast; use one like 02:00:00:00:00:01")]
    NotUnicast {
        /// The address.
        mac: MacAddress,
    },
    /// An MTU that no Ethernet port has.
    #[error("mtu {mtu} is out of range; use {MTU_MIN} to {MTU_MAX}")]
    Mtu {
        /// The MTU.
        mtu: u16,
    },
    /// A vNIC's MTU above that of its port.
    #[error("mtu {mtu} is above the {port_mtu} of port {port}; lower it or raise the port's")]
    MtuAbovePort {
        /// The vNIC's.
        mtu: u16,
        /// The port.
        port: PortName,
        /// The port's.
        port_mtu: u16,
    },
    /// No VLAN has this number.
    #[error("{key} {number} is no VLAN; use 1 to {}", VlanId::MAX)]
    Vlan {
        /// The key.
        key: &'static str,
        /// The number.
        number: u16,
    },
    /// Neither a VLAN nor a range of them.
    #[error(
        "{text:?} is no VLAN; write one of 1 to {}, or a range like 20-30",
        VlanId::MAX
    )]
    VlanRange {
        /// What was given.
        text: String,
    },
    /// A trunk that carries nothing.
    #[error("vlans is empty; name at least one VLAN, or leave it out")]
    NoVlans,
    /// A native VLAN of something that is no trunk.
    #[error("native-vlan belongs to a trunk; add vlans = [...], or write vlan = NUMBER")]
    NativeWithoutTrunk,
    /// Access and trunk at once.
    #[error("vlan stands beside vlans or native-vlan; leave vlan out for a trunk")]
    AccessAndTrunk,
    /// Neither an interface nor none.
    #[error(
        "has no way out; write tap = \"NAME\", interface = \"NAME\" for one that is there, or private \
         = true for vNICs among themselves"
    )]
    NoTap,
    /// Two interfaces.
    #[error("has a tap; leave it or interface out, or join two ports in a [[lag]]")]
    TapAndInterface,
    /// A bridge for an interface that is not made by us.
    #[error("bridge is for a tap; leave it out, or join the interface to the bridge yourself")]
    BridgeOfPresent,
    /// A name that no namespace has.
    #[error("namespace {name:?} is not usable; use a name that ip netns shows")]
    NamespaceName {
        /// The name.
        name: String,
    },
    /// Neither up nor down.
    #[error("state {text:?} is unknown; use up or down")]
    State {
        /// What was given.
        text: String,
    },
    /// A LAG where a port is meant.
    #[error("{port} is the name of a LAG; name the port like 10/1, or write a [[lag]]")]
    LagAsPort {
        /// The name.
        port: PortName,
    },
    /// A port where a LAG is meant.
    #[error("{port} is the name of a port; name the LAG like 10.1")]
    PortAsLag {
        /// The name.
        port: PortName,
    },
    /// A mode that there is not.
    #[error("mode {text:?} is unknown; use active-backup or hash")]
    LagMode {
        /// What was given.
        text: String,
    },
    /// No port, or too many.
    #[error("has {count} ports; use 1 to {LAG_PORTS_MAX}")]
    LagPorts {
        /// How many.
        count: usize,
    },
    /// A port of another module.
    #[error("port {port} is not of the module of {lag}; choose ports of one slot")]
    LagModule {
        /// The port.
        port: PortName,
        /// The LAG.
        lag: PortName,
    },
    /// A port that is not there, or is taken.
    #[error(
        "port {port} is not there or in a LAG already; add an [[ethernet-port]], or choose another"
    )]
    LagMember {
        /// The port.
        port: PortName,
    },
    /// A port that differs from the others.
    #[error("port {port} has another mtu, offloads or rate than those before it; make them equal")]
    LagSpeeds {
        /// The port.
        port: PortName,
    },
    /// A word of the LAG on one of its ports.
    #[error("{key} is not for a port of {lag}; write it at the [[lag]], or leave it out")]
    MemberWith {
        /// The key.
        key: &'static str,
        /// The LAG.
        lag: PortName,
    },
    /// A word of a TAP on a port that has none.
    #[error(
        "a private port has no {key}; leave it out, or write tap = \"NAME\" in place of private"
    )]
    PrivateWith {
        /// The key.
        key: &'static str,
    },
    /// A vNIC that would reach nobody.
    #[error("isolated leaves nobody to reach on private port {port}; leave it out")]
    IsolatedOnPrivate {
        /// The port.
        port: PortName,
    },
    /// Neither an address nor a prefix.
    #[error("{text:?} is no address; write it like 10.0.0.5, 10.0.0.0/24 or fd00::/64")]
    IpPrefix {
        /// What was given.
        text: String,
    },
    /// A limit that nothing passes.
    #[error("{key} is zero; write frames a second, 1 or above, or leave it out")]
    LimitIsZero {
        /// The key.
        key: &'static str,
    },
    /// An access list that does not say what becomes of the rest.
    #[error("default of an access list is allow or deny; write one of them")]
    AccessDefault,
    /// An action that there is not.
    #[error("action of a rule is allow, deny, mark or count; write one of them")]
    AccessAction,
    /// A mark without a value, or a value without a mark.
    #[error(
        "dscp and priority belong to action mark; write at least one there, and none elsewhere"
    )]
    AccessMarkWords,
    /// A value that does not fit into its header.
    #[error("{key} is out of range; use 0 to {value_max}")]
    AccessMark {
        /// The key.
        key: &'static str,
        /// The most.
        value_max: u8,
    },
    /// A protocol that is not known.
    #[error(
        "protocol {text:?} is not known; write arp, ipv4, ipv6, icmp, icmp6, tcp, udp, sctp, a \
        number of IP, or an EtherType like 0x88cc"
    )]
    AccessProtocol {
        /// What was given.
        text: String,
    },
    /// Ports of what has none.
    #[error("ports belong to tcp, udp or sctp; add protocol, or leave the port out")]
    PortsWithoutProtocol,
    /// Neither a port nor a range of them.
    #[error("{text:?} is no port; write one of 0 to 65535, or a range like 22-80")]
    AccessPort {
        /// What was given.
        text: String,
    },
    /// A rule that no frame meets.
    #[error("source, destination and protocol are of different IP versions; write a rule for each")]
    AccessNever,
    /// A mirror to a vNIC that is not there.
    #[error("no vnic is named {name:?}; write the name of one of this file, like vn01.vm1")]
    NoSuchVnic {
        /// The name.
        name: String,
    },
    /// A mirror to the vNIC itself.
    #[error("mirror-to names the vnic itself; name another one")]
    MirrorToItself,
    /// An access list that is not there.
    #[error("there is no access-list {name:?}; add an [[access-list]] with this name")]
    NoSuchAccessList {
        /// The name.
        name: String,
    },
    /// A queue count that the device does not have.
    #[error("{queues} queues are out of range; use 1 to {queues_max}")]
    Queues {
        /// The count.
        queues: u16,
        /// The most.
        queues_max: u16,
    },
    /// A root port that no guest has.
    #[error("pci-slot {slot} is out of range; use 0 to {}", crate::PCI_SLOTS - 1)]
    PciSlot {
        /// The number.
        slot: u8,
    },
    /// A device id of the session itself.
    #[error("id 0 belongs to the fabric session; use 1 or above")]
    DeviceIdIsZero,
    /// A port that is not there.
    #[error("there is no {kind} port {port}; {next_step}")]
    NoSuchPort {
        /// Ethernet or SAN.
        kind: &'static str,
        /// The port.
        port: PortName,
        /// What to add, or what the port is.
        next_step: &'static str,
    },
    /// A block size that no disk has.
    #[error("block-bytes {block_bytes} is not served; use 512 or 4096")]
    BlockBytes {
        /// The size.
        block_bytes: u32,
    },
    /// A serial number that does not fit into the VPD page.
    #[error("serial {serial:?} is not usable; use 1 to 64 printable ASCII characters")]
    Serial {
        /// The serial number.
        serial: String,
    },
    /// A LUN that cannot be addressed.
    #[error("lun {lun} is out of range; use 0 to {LUN_MAX}")]
    Lun {
        /// The number.
        lun: u16,
    },
    /// A LUN map names a unit that is not there.
    #[error("there is no lun {name:?}; add a [[lun]] with this name")]
    NoSuchLun {
        /// The name.
        name: String,
    },
    /// A LUN map names a unit behind another port.
    #[error("lun {name:?} stands behind port {lun_port}, not {port}; correct one of the ports")]
    LunBehindOtherPort {
        /// The name.
        name: String,
        /// Where it is.
        lun_port: PortName,
        /// Where it is looked for.
        port: PortName,
    },
    /// None or several of `director`, `discover` and `embedded`.
    #[error(
        "way to the director is not clear; write one of director = [...], discover = \"GROUP:PORT\" \
        and embedded = true"
    )]
    Uplink,
    /// No multicast group.
    #[error(
        "{text:?} is no multicast group; write a group of IPv4 and its port, like \
        {GROUP_DEFAULT}"
    )]
    Group {
        /// What was given.
        text: String,
    },
    /// No IPv4 address.
    #[error("discovery-interface {text:?} is no IPv4 address; write the one the interface has")]
    Interface {
        /// What was given.
        text: String,
    },
    /// `discovery-interface` or `director-name` without discovery.
    #[error("has {key} but no {needs}; take it away, or write {needs} = \"{GROUP_DEFAULT}\"")]
    NotDiscovered {
        /// The key.
        key: &'static str,
        /// What it belongs to.
        needs: &'static str,
    },
    /// A director that hosts would find, and could not connect to.
    #[error("is discoverable but has nothing to offer; add a tcp address to listen")]
    NothingToOffer,
    /// More links than a session has.
    #[error(
        "has more than {PATHS_MAX} addresses of one director; a session has at most so many links"
    )]
    Links,
    /// A standby beside an embedded director.
    #[error("has a standby-director beside embedded = true; name the first with director = [...]")]
    StandbyOfEmbedded,
    /// A time out of range.
    #[error("path-silence-ms is out of range; choose 10 to 2000")]
    PathSilence,
    /// `[[director.link]]` for a host that is not there.
    #[error("there is no host {host:?}; add a [[host]] with this name")]
    NoSuchHost {
        /// The host.
        host: String,
    },
    /// `moves-to` is the host that the VM is on.
    #[error("moves-to is the VM's own host; name another, or leave it out")]
    MovesNowhere,
    /// `moves-to` of a VM with a vHBA.
    #[error("a VM with a vHBA cannot move while it runs; leave moves-to out and stop the VM first")]
    MovesWithVhba,
    /// A host behind an edge switch that makes no links.
    #[error("host {host} is embedded and has no link; give it director = [...] or leave it out")]
    EmbeddedHost {
        /// The host.
        host: String,
    },
    /// An edge switch that nobody can reach, or that reaches nobody.
    #[error("{key} is empty; write at least one {key} address")]
    NoAddress {
        /// `listen` or `director`.
        key: &'static str,
    },
    /// A port count that no edge switch has.
    #[error("{ports} ports are out of range; use 1 to {EDGE_SWITCH_PORTS_MAX}")]
    Ports {
        /// The count.
        ports: usize,
    },
    /// None or several of the media.
    #[error(
        "medium is not clear; write one of file = \"PATH\", block-device = \"PATH\", \
        qcow2 = \"PATH\", ram = \"64M\", null = \"1G\", iscsi = \"TARGET\" and sg = \"PATH\""
    )]
    Medium,
    /// A word of iSCSI that is missing.
    #[error("iscsi needs {word}; write it")]
    IscsiNeeds {
        /// The word.
        word: &'static str,
    },
    /// A word that the medium has no use for.
    #[error("{word} means nothing for this medium; leave it out")]
    NotOfMedium {
        /// The word.
        word: &'static str,
    },
    /// Neither address nor port.
    #[error("portal {portal:?} is not usable; write an address and a port, like 192.0.2.9:3260")]
    Portal {
        /// What was given.
        portal: String,
    },
    /// None of the three.
    #[error("digests {digests:?} is not known; write none, preferred or required")]
    Digests {
        /// What was given.
        digests: String,
    },
    /// Two directors would throw each other out of the target.
    #[error(
        "iscsi and sg do not go with shared-luns; give the standby director other luns, or use \
        a file"
    )]
    SharedPassThrough,
    /// A size that is none, or not of whole blocks.
    #[error("size {text:?} is not usable; write at least one block, like 64M, 1G or 2T")]
    Size {
        /// What was given.
        text: String,
    },
    /// More memory than a LUN may have.
    #[error("ram of {text} is above 64G; choose less, or a file")]
    RamTooLarge {
        /// What was given.
        text: String,
    },
    /// A disk that only one of two directors has.
    #[error("ram is empty at the other director; choose a file, or take shared-luns away")]
    SharedRam,
    /// A page cache where there is none to go past.
    #[error("direct is for file and block-device; leave it out")]
    DirectWithoutFile,
    /// A limit that cannot be.
    #[error("timeout {text:?} is not usable; write 100ms to 60m, like 30s")]
    Timeout {
        /// What was given.
        text: String,
    },
    /// Addresses of a vNIC.
    #[error(transparent)]
    StaticAddress(#[from] StaticAddressProblem),
    /// A delay that no test needs.
    #[error("delay-ms {delay_ms} is out of range; use 0 to {delay_ms_max}")]
    Delay {
        /// The delay.
        delay_ms: u64,
        /// The most.
        delay_ms_max: u64,
    },
}

/// Values that [`Problem::Taken`] shows.
pub(crate) trait Unique: Ord + Clone + std::fmt::Display {
    const WHAT: &'static str;
}

macro_rules! unique {
    ($($kind:ty => $what:literal,)*) => {
        $(impl Unique for $kind { const WHAT: &'static str = $what; })*
    };
}

unique! {
    String => "name",
    PortName => "port",
    MacAddress => "MAC address",
    Wwpn => "WWPN",
    fabric_transport::DeviceId => "id",
    u8 => "pci-slot",
    u16 => "LUN",
    PortAddress => "address",
}

impl From<ParseBitRateError> for Problem {
    fn from(error: ParseBitRateError) -> Self {
        Self::Rate(error)
    }
}
