//! The kinds of objects.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

macro_rules! kinds {
    ($($(#[$doc:meta])* $variant:ident = $text:literal,)*) => {
        /// What an object is. Written in kebab-case.
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
        )]
        #[serde(rename_all = "kebab-case")]
        pub enum Kind {
            $($(#[$doc])* $variant,)*
        }

        impl Kind {
            /// All of them; those that others refer to come first.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// As it is written.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }
        }
    };
}

kinds! {
    /// Settings of the whole system; its only object is called `system`.
    System = "system",
    /// Where MAC addresses come from.
    MacPool = "mac-pool",
    /// Where world wide names come from.
    WwnPool = "wwn-pool",
    /// An I/O director.
    Director = "director",
    /// An I/O module in a slot of a director.
    Iocard = "iocard",
    /// Settings of a port of an Ethernet module.
    EthernetPort = "ethernet-port",
    /// Settings of a port of a SAN module.
    FcPort = "fc-port",
    /// Ports that carry one flow each of many.
    Lag = "lag",
    /// A logical unit behind a SAN port.
    Lun = "lun",
    /// A list of LUNs that a vHBA sees.
    LunMask = "lun-mask",
    /// The order of targets of a vHBA.
    SanMap = "san-map",
    /// A rate of vNICs.
    QosNetwork = "qos-network",
    /// A rate of vHBAs.
    QosSan = "qos-san",
    /// A network behind a port.
    PublicNetwork = "public-network",
    /// A network between vNICs, without a port.
    Pvi = "pvi",
    /// A hypervisor machine.
    Host = "host",
    /// What a profile is connected to: a VM on a host.
    PhysicalServer = "physical-server",
    /// Devices of profiles that are alike.
    Template = "template",
    /// The devices of one server.
    ServerProfile = "server-profile",
    /// A virtual NIC.
    Vnic = "vnic",
    /// A virtual HBA.
    Vhba = "vhba",
    /// Who may change what.
    User = "user",
    /// What the members of a group may.
    RoleMapping = "role-mapping",
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.text())
    }
}

/// A text that names no kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no kind of object; try vnic or server-profile")]
pub struct UnknownKind {
    /// The text.
    pub text: String,
}

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let kind = Self::ALL.iter().find(|kind| kind.text() == text);
        kind.copied().ok_or_else(|| UnknownKind {
            text: text.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_written_alike_in_texts_and_in_json() {
        for kind in Kind::ALL {
            let json = serde_json::to_string(kind).unwrap();
            assert_eq!(json, format!("\"{kind}\""));
            assert_eq!(kind.text().parse(), Ok(*kind));
        }
        assert!("vnics".parse::<Kind>().is_err());
    }
}
