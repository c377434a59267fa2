//! Rates by name.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

object! {
    /// A policer of vNICs or shaper of vHBAs, called `set/name`. The set `default` is predefined and is
    /// not among the objects.
    Policy {
        /// What is guaranteed; default: nothing.
        pub cir: String,
        /// What is never exceeded; default: what the link carries.
        pub pir: String,
        /// Bytes of a burst at `cir`; default: automatic.
        pub cbs: String,
        /// Bytes of a burst at `pir`; default: automatic.
        pub pbs: String,
        /// The share of what is left; 0: automatic.
        pub weight: u32,
    }
}

object! {
    /// A policy of one direction of a device.
    Attachment {
        /// Its name, like `default/100m_250m`; empty: best effort.
        pub policer: String,
        /// Whether it stays attached without being in force.
        pub disabled: bool,
    }
}
