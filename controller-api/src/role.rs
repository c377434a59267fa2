//! Who may do what.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Kind;

/// A role, as in the original.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Everything.
    Administrators,
    /// Ethernet: modules, ports, networks, vNICs, and what they share.
    Network,
    /// Storage: SAN ports, LUNs, vHBAs, and what they share.
    Storage,
    /// Hosts, servers, profiles and templates.
    Server,
    /// Looks only.
    Operators,
    /// Nothing, whatever else says so.
    #[default]
    Noaccess,
}

impl Role {
    /// Whether it may look.
    #[must_use]
    pub const fn may_read(self) -> bool {
        !matches!(self, Self::Noaccess)
    }

    /// Whether it may change objects of `kind`.
    #[must_use]
    pub const fn may_change(self, kind: Kind) -> bool {
        match self {
            Self::Administrators => true,
            Self::Network => matches!(
                kind,
                Kind::Iocard
                    | Kind::EthernetPort
                    | Kind::Lag
                    | Kind::MacPool
                    | Kind::Pvi
                    | Kind::PublicNetwork
                    | Kind::QosNetwork
                    | Kind::Vnic
            ),
            Self::Storage => matches!(
                kind,
                Kind::FcPort
                    | Kind::Lun
                    | Kind::LunMask
                    | Kind::QosSan
                    | Kind::SanMap
                    | Kind::Vhba
                    | Kind::WwnPool
            ),
            Self::Server => matches!(
                kind,
                Kind::Host | Kind::PhysicalServer | Kind::ServerProfile | Kind::Template
            ),
            Self::Operators | Self::Noaccess => false,
        }
    }

    /// As it is written.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Administrators => "administrators",
            Self::Network => "network",
            Self::Storage => "storage",
            Self::Server => "server",
            Self::Operators => "operators",
            Self::Noaccess => "noaccess",
        }
    }
}
