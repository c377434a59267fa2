//! Hosts and the servers on them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

object! {
    /// A hypervisor machine that runs a host agent.
    Host {
        /// The director that serves it; default: the only one.
        pub director: String,
        /// Whether the host agent runs the director in its own process.
        pub embedded: bool,
        /// Where it finds the director; default: where that listens.
        pub director_addresses: Vec<String>,
        /// Folder of its device sockets; default: `/run/orimono/NAME`.
        pub run_dir: String,
        /// What its link is sold as; default `10g`.
        pub rate: String,
        /// What it carries; default: the rate.
        pub payload: String,
        /// What of it may be reserved; default 95 % of the payload.
        pub reservable: String,
        /// Most of protected reservations.
        pub protected: String,
        /// Whether more than `reservable` may be reserved.
        pub oversubscribe: bool,
        /// For people.
        pub descr: String,
    }
}

object! {
    /// A server that a profile can be connected to, called `name@where`. Any `vm@host` is there as soon
    /// as its host is; an object says where others are, like the original's
    /// `HP_DL360@ExtSw-b8cffff004401-Port16`.
    PhysicalServer {
        /// Its host; default: what stands behind the `@`.
        pub host: String,
        /// Where its QEMU serves a monitor for the host agent, by which devices come and go; default:
        /// `PROFILE.qmp` in the host's `run-dir`.
        pub qmp: String,
        /// For people.
        pub os: String,
        /// For people.
        pub descr: String,
    }
}
