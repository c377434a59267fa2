//! Logical units and what vHBAs see of them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

object! {
    /// A logical unit. Exactly one of `file`, `block-device`, `qcow2`, `ram`, `null`, `iscsi` and `sg`
    /// says what it is.
    Lun {
        /// The SAN port that it stands behind.
        pub port: String,
        /// A raw file.
        pub file: String,
        /// A block device.
        pub block_device: String,
        /// A qcow2 image.
        pub qcow2: String,
        /// Memory of the director, like `64M`.
        pub ram: String,
        /// Reads zeroes and keeps nothing, like `1G`.
        pub null: String,
        /// A SCSI generic device.
        pub sg: String,
        /// The name of an iSCSI target.
        pub iscsi: String,
        /// Where the target listens.
        pub portal: String,
        /// The number at the target.
        pub target_lun: Option<u16>,
        /// Our name to the target.
        pub initiator: String,
        /// The account at the target.
        pub user: String,
        /// The file that is the account's secret.
        pub secret_file: String,
        /// Whether past the page cache.
        pub direct: bool,
        /// Bytes of a block; default 512.
        pub block_bytes: Option<u32>,
        /// Whether it may only be read.
        pub read_only: bool,
        /// Its serial number; default: its name.
        pub serial: String,
        /// For people.
        pub descr: String,
    }
}

object! {
    /// What a vHBA with this mask sees: the LUN of each number.
    LunMask {
        /// Names of LUNs, by their number in the guest.
        pub luns: BTreeMap<u16, String>,
        /// For people.
        pub descr: String,
    }
}

object! {
    /// The order of targets of a vHBA (persistent binding).
    SanMap {
        /// World wide port names, by their place, 0 to 255.
        pub entries: BTreeMap<u8, String>,
        /// For people.
        pub descr: String,
    }
}
