//! Ethernet module: ports on TAP interfaces, each with a switch for its vNICs.

mod port;
mod switch;
mod sys;
mod tap;
mod vnic_session;
mod wire;

pub use port::{EthernetPort, WINDOWS};
pub use switch::{AGE_MAX, Destination, DropReason, LEARNED_MAX, Source, Switch};
pub use tap::{Tap, TapError};
