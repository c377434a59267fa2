//! Directors, their modules and ports.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::AdminState;

object! {
    /// An I/O director.
    Director {
        /// Where it listens for hosts, like `tls:192.0.2.1:7471`; may be empty when it is embedded.
        pub listen: Vec<String>,
        /// Whether it locks the files of its LUNs only while a vHBA is attached.
        pub shared_luns: bool,
        /// Files that qcow2 images may stand on.
        pub backing_files: Vec<String>,
        /// Where hosts find it by asking, like `239.255.77.71:7470`.
        pub discoverable: String,
        /// For people.
        pub descr: String,
    }
}

/// What a module is; the original's five.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
pub enum IocardKind {
    /// Four Ethernet ports of 1 Gb/s.
    #[serde(rename = "4x1ge")]
    Gigabit4,
    /// Ten Ethernet ports of 1 Gb/s.
    #[default]
    #[serde(rename = "10x1ge")]
    Gigabit10,
    /// One Ethernet port of 10 Gb/s.
    #[serde(rename = "1x10ge")]
    TenGigabit,
    /// Two SAN ports of 4 Gb/s.
    #[serde(rename = "2x4fc")]
    FibreChannel,
    /// One port of 10 Gb/s to another director.
    #[serde(rename = "1x10ib")]
    Fabric,
    /// Any number of Ethernet ports, up to 255, without a rate of their own.
    #[serde(rename = "ethernet")]
    Ethernet,
    /// Any number of SAN ports, up to 255, without a rate of their own.
    #[serde(rename = "san")]
    San,
}

impl IocardKind {
    /// As it is written.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Gigabit4 => "4x1ge",
            Self::Gigabit10 => "10x1ge",
            Self::TenGigabit => "1x10ge",
            Self::FibreChannel => "2x4fc",
            Self::Fabric => "1x10ib",
            Self::Ethernet => "ethernet",
            Self::San => "san",
        }
    }

    /// How many ports it has.
    #[must_use]
    pub const fn ports(self) -> u8 {
        match self {
            Self::Gigabit4 => 4,
            Self::Gigabit10 => 10,
            Self::TenGigabit | Self::Fabric => 1,
            Self::FibreChannel => 2,
            Self::Ethernet | Self::San => 255,
        }
    }

    /// What each port carries; `None`: it is not scheduled.
    #[must_use]
    pub const fn rate(self) -> Option<&'static str> {
        match self {
            Self::Gigabit4 | Self::Gigabit10 => Some("1g"),
            Self::TenGigabit | Self::Fabric => Some("10g"),
            Self::FibreChannel => Some("4g"),
            Self::Ethernet | Self::San => None,
        }
    }

    /// Whether vNICs end at its ports.
    #[must_use]
    pub const fn is_ethernet(self) -> bool {
        matches!(
            self,
            Self::Gigabit4 | Self::Gigabit10 | Self::TenGigabit | Self::Ethernet
        )
    }

    /// Whether vHBAs end at its ports.
    #[must_use]
    pub const fn is_san(self) -> bool {
        matches!(self, Self::FibreChannel | Self::San)
    }
}

object! {
    /// An I/O module. Its name is its slot, 1 to 15, of the first director; `director2:10` names that of
    /// another.
    Iocard {
        /// What it is.
        pub kind: IocardKind,
        /// Whether its ports are used.
        pub admin: AdminState,
        /// The policy set that its vNICs choose from, as the original wants it; any may be chosen.
        pub qos_set: String,
        /// For people.
        pub descr: String,
    }
}

object! {
    /// Settings of an Ethernet port, called `slot/port`; a port without any has the defaults.
    EthernetPort {
        /// The TAP interface that it is; default: `orimonoSpP` for `S/P`.
        pub tap: String,
        /// Its MTU; default 1500.
        pub mtu: Option<u16>,
        /// What it carries; default: by the module's kind.
        pub rate: String,
        /// What of it may be reserved; default 95 %.
        pub reservable: String,
        /// Whether checksums and super-frames cross the TAP unfinished; default true.
        pub offloads: Option<bool>,
        /// For people.
        pub descr: String,
    }
}

object! {
    /// Settings of a SAN port, called `slot/port`; a port without any has the defaults.
    FcPort {
        /// What it carries; default: by the module's kind.
        pub rate: String,
        /// What of it may be reserved; default 95 %.
        pub reservable: String,
        /// For people.
        pub descr: String,
    }
}

object! {
    /// Ports of one module that stand for one, called `slot.number`, number 1 to 5.
    Lag {
        /// Like `1-4`.
        pub ports: String,
        /// For people.
        pub descr: String,
    }
}
