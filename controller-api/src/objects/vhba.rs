//! Virtual HBAs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Attachment;
use crate::AdminState;

object! {
    /// A virtual HBA, called `device.profile`.
    Vhba {
        /// The SAN port; empty or `none`: it ends nowhere yet.
        #[serde(rename = "if")]
        pub termination: String,
        /// Its number on the fabric; kept by the controller.
        pub id: u32,
        /// World wide port name; default: from the pool `default`.
        pub wwpn: String,
        /// What the guest sees beside the mask: names of LUNs, by number.
        pub luns: BTreeMap<u16, String>,
        /// A mask that says what the guest sees.
        pub lun_mask: String,
        /// Whether the guest sees all LUNs behind the port, numbered in the order of their names,
        /// whatever `luns` and `lun-mask` say.
        pub no_lun_masking: bool,
        /// The order of targets.
        pub map: String,
        /// Whether it is used.
        pub admin: AdminState,
        /// Its place in the server, 1 to 32.
        pub local_id: Option<u32>,
        /// Request queues; default 1.
        pub queues: Option<u16>,
        /// As of a vNIC.
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
