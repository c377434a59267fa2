//! Virtual NICs.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Attachment;
use crate::AdminState;

/// Where the guest's address comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AddrType {
    /// The guest's own business.
    #[default]
    Default,
    /// What `ip-addr` and `netmask` say.
    Static,
    /// A DHCP server in the network.
    Dhcp,
}

/// Which frames the guest sends and takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum VnicMode {
    /// Untagged ones.
    #[default]
    Access,
    /// Tagged ones of the allowed VLANs.
    Trunk,
}

object! {
    /// A virtual NIC, called `device.profile`.
    Vnic {
        /// The port, LAG or network; empty or `none`: it ends nowhere yet.
        #[serde(rename = "if")]
        pub termination: String,
        /// Its number on the fabric; kept by the controller.
        pub id: u32,
        /// Its address; default: from the pool `default`.
        pub mac: String,
        /// Where the guest's address comes from.
        pub addr_type: AddrType,
        /// The guest's address.
        pub ip_addr: String,
        /// The guest's mask; default 255.255.255.0.
        pub netmask: String,
        /// Access or trunk.
        pub mode: VnicMode,
        /// The VLAN of untagged frames; default: none.
        pub access_vlan: Option<u16>,
        /// The VLANs of a trunk, like `1-100,200`; default `1-4094`.
        pub allowed_vlans: String,
        /// Its MTU; default: the port's.
        pub mtu: Option<u16>,
        /// Queue pairs; default 1.
        pub queues: Option<u16>,
        /// Whether other private vNICs of the port cannot be reached.
        pub private: bool,
        /// The other port of an HA vNIC.
        pub ha: String,
        /// Whether it returns to the first port of the two when that recovers.
        pub auto_switchover: bool,
        /// Whether it is at its other port; set by `switchover`.
        pub switched: bool,
        /// Whether it is used.
        pub admin: AdminState,
        /// Its place in the server.
        pub local_id: Option<u32>,
        /// Its root port in the guest, 0 to 31; kept by the controller. Absent: all were taken when it came,
        /// so it comes and goes with its VM only.
        pub pci_slot: Option<u8>,
        /// What the guest sends.
        pub ingress_qos: Attachment,
        /// What the guest receives.
        pub egress_qos: Attachment,
        /// For people.
        pub descr: String,
        /// Whether the profile's template made it; kept by the controller.
        pub from_template: bool,
    }
}
