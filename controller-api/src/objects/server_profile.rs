//! Server profiles.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::AdminState;

object! {
    /// The devices of one server. It is there before the server is.
    ServerProfile {
        /// The server that it is connected to; empty: none.
        pub server: String,
        /// Whether its devices are used.
        pub admin: AdminState,
        /// The guest's default gateway.
        pub default_gateway: String,
        /// The template that it follows.
        pub template: String,
        /// What all its devices together may send; default: what each may.
        pub ingress_pir: String,
        /// What all its devices together may receive; default: what each may.
        pub egress_pir: String,
        /// For people.
        pub descr: String,
        /// How often it was connected; kept by the controller. It is the generation of its devices.
        pub generation: u32,
    }
}
