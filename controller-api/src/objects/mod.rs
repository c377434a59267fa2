//! The fields of each kind of object.
//!
//! A field that is not said has its default: nothing, `false`, 0 or an empty text. Rates are texts like
//! `250m`, where a bare number is kilobits per second.

macro_rules! object {
    ($(#[$doc:meta])* $name:ident { $($body:tt)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
        #[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
        pub struct $name { $($body)* }
    };
}

mod access;
mod chassis;
mod network;
mod pool;
mod qos;
mod server;
mod server_profile;
mod storage;
mod system;
mod template;
mod vhba;
mod vnic;

pub use access::{RoleMapping, User};
pub use chassis::{Director, EthernetPort, FcPort, Iocard, IocardKind, Lag};
pub use network::{PublicNetwork, Pvi};
pub use pool::Pool;
pub use qos::{Attachment, Policy};
pub use server::{Host, PhysicalServer};
pub use server_profile::ServerProfile;
pub use storage::{Lun, LunMask, SanMap};
pub use system::System;
pub use template::Template;
pub use vhba::Vhba;
pub use vnic::{AddrType, Vnic, VnicMode};
