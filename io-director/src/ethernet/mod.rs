//! Ethernet module: ports on interfaces of the machine, each with a switch for its vNICs.

mod access_list;
mod address_service;
mod delivery;
mod guard;
mod mirror;
#[cfg(test)]
mod model;
mod netlink;
mod packet;
mod packet_socket;
mod policy;
mod port;
mod probe;
mod responder;
mod rewrite;
mod snoop;
mod storm;
mod switch;
mod sys;
mod tap;
mod uplink;
mod vlan;
mod vnic_session;
mod wire;

pub use mirror::MirrorTarget;
pub use port::{EthernetPort, WINDOWS};
pub use switch::{AGE_MAX, Destination, DropReason, Forward, LEARNED_MAX, Source, Switch};
pub use tap::{Tap, TapError};
