//! What there should be: all objects, and what is right for them. Pure: no files, sockets or clocks.
//!
//! A change works on a copy (tables share what stays) and is verified as a whole before the copy takes
//! the model's place, so that half a transaction is never seen.

mod access;
mod chassis;
mod device;
mod diff;
mod document;
mod item;
mod names;
mod network;
mod place;
mod policy;
mod pool;
mod port;
mod problem;
mod ranges;
mod render;
mod server;
mod server_profile;
mod storage;
mod system;
mod template;
mod transact;
mod vhba;
mod vnic;

use std::collections::BTreeMap;
use std::sync::Arc;

use controller_api::objects::{
    Director, EthernetPort, FcPort, Host, Iocard, Lag, Lun, LunMask, PhysicalServer, Pool,
    PublicNetwork, Pvi, RoleMapping, SanMap, ServerProfile, System, Template, User, Vhba, Vnic,
};
use controller_api::{Fields, Kind};

pub(crate) use diff::diff;
pub(crate) use document::migrate;
pub(crate) use names::profile_of;
pub(crate) use place::{Place, Resolved};
pub(crate) use policy::{QosNetwork, QosSan};
pub(crate) use pool::{MacPool, WwnPool};
pub(crate) use problem::Problem;
pub(crate) use render::{NodeFile, Rendered};
pub(crate) use transact::{Transacted, no_such};

use item::HasTable;

/// Objects of one kind, by name.
pub(crate) type Table<T> = BTreeMap<String, Arc<T>>;

macro_rules! model {
    ($($kind:ident $table:ident: $item:ident,)*) => {
        /// All objects.
        #[derive(Debug, Clone, PartialEq)]
        pub(crate) struct Model {
            $(pub(crate) $table: Table<$item>,)*
        }

        impl Model {
            /// Without anything.
            pub(crate) fn empty() -> Self {
                Self { $($table: Table::new(),)* }
            }
        }

        $(impl HasTable for $item {
            const KIND: Kind = Kind::$kind;
            fn table(model: &Model) -> &Table<Self> {
                &model.$table
            }
            fn table_mut(model: &mut Model) -> &mut Table<Self> {
                &mut model.$table
            }
        })*

        /// `$body` with `$T` standing for the type of the objects of `$of`.
        macro_rules! with_kind {
            ($of:expr, $T:ident => $body:expr) => {
                match $of {
                    $(Kind::$kind => {
                        type $T = $crate::model::$item;
                        $body
                    })*
                }
            };
        }
        pub(crate) use with_kind;
    };
}

model! {
    System system: System,
    MacPool mac_pools: MacPool,
    WwnPool wwn_pools: WwnPool,
    Director directors: Director,
    Iocard iocards: Iocard,
    EthernetPort ethernet_ports: EthernetPort,
    FcPort fc_ports: FcPort,
    Lag lags: Lag,
    Lun luns: Lun,
    LunMask lun_masks: LunMask,
    SanMap san_maps: SanMap,
    QosNetwork qos_network: QosNetwork,
    QosSan qos_san: QosSan,
    PublicNetwork public_networks: PublicNetwork,
    Pvi pvis: Pvi,
    Host hosts: Host,
    PhysicalServer physical_servers: PhysicalServer,
    Template templates: Template,
    ServerProfile server_profiles: ServerProfile,
    Vnic vnics: Vnic,
    Vhba vhbas: Vhba,
    User users: User,
    RoleMapping role_mappings: RoleMapping,
}

/// The only object of kind `system`, and the pool that is there from the start.
pub(crate) const DEFAULT_POOL: &str = "default";
/// The name of the only object of kind `system`.
pub(crate) const SYSTEM: &str = "system";

impl Default for Model {
    /// What is there from the start: the system and two pools.
    fn default() -> Self {
        let mut model = Self::empty();
        let system = System {
            next_id: 1,
            ..System::default()
        };
        model.system.insert(SYSTEM.to_owned(), Arc::new(system));
        let pool = |first: &str, size| Pool {
            first: first.to_owned(),
            size,
            ..Pool::default()
        };
        // Locally administered (IEEE 802 section 8.2.2), with the original's company id behind.
        let macs = pool("02:13:97:00:00:00", 1 << 24);
        // NAA 3, locally assigned (FC-FS-3 section 15.4).
        let wwns = pool("30:00:13:97:00:00:00:00", 1 << 32);
        let name = DEFAULT_POOL.to_owned();
        model
            .mac_pools
            .insert(name.clone(), Arc::new(MacPool(macs)));
        model.wwn_pools.insert(name, Arc::new(WwnPool(wwns)));
        model
    }
}

impl Model {
    /// The fields of an object that are not the default.
    pub(crate) fn fields(&self, kind: Kind, name: &str) -> Option<Fields> {
        with_kind!(kind, T => T::table(self).get(name).map(|item| item::fields(&**item)))
    }

    /// All fields of an object.
    pub(crate) fn all_fields(&self, kind: Kind, name: &str) -> Option<Fields> {
        with_kind!(kind, T => T::table(self).get(name).map(|item| item::all_fields(&**item)))
    }

    /// The names of all objects of a kind.
    pub(crate) fn names(&self, kind: Kind) -> Vec<&str> {
        with_kind!(kind, T => T::table(self).keys().map(String::as_str).collect())
    }

    /// How many objects of a kind there are.
    pub(crate) fn count(&self, kind: Kind) -> usize {
        with_kind!(kind, T => T::table(self).len())
    }

    /// The vNICs of a profile.
    pub(crate) fn vnics_of(&self, profile: &str) -> impl Iterator<Item = (&String, &Arc<Vnic>)> {
        self.vnics
            .iter()
            .filter(move |(name, _)| names::profile_of(name) == profile)
    }

    /// The vHBAs of a profile.
    pub(crate) fn vhbas_of(&self, profile: &str) -> impl Iterator<Item = (&String, &Arc<Vhba>)> {
        self.vhbas
            .iter()
            .filter(move |(name, _)| names::profile_of(name) == profile)
    }
}

#[cfg(test)]
mod tests;
