//! What a process counted, object by object, under the names that users of `ethtool -S` expect.
//!
//! | object | seen from | names |
//! | --- | --- | --- |
//! | `vnic NAME` | the guest's device: `tx` is what the guest sends | `rx_packets`, `tx_bytes`, `tx_dropped_access` ... |
//! | `ethernet-port SLOT/PORT` | its interface: `tx` goes to the LAN | the same |
//! | any other | itself | its own |
//!
//! A vNIC is counted at both ends of the fabric, each of which loses frames for reasons of its own:
//! what the host counts as sent and the director does not is underway or was lost with a session.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// A part of a process that counts. Called on the monitor's thread, which it may not hold up.
pub trait Counters: Send + Sync {
    /// All its objects now.
    fn counters(&self) -> Vec<ObjectCounters>;
}

/// Who counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CountingEnd {
    /// The host agent, at the guest's rings.
    Host,
    /// The I/O director, behind the fabric.
    Director,
}

impl fmt::Display for CountingEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Host => "host",
            Self::Director => "director",
        })
    }
}

/// The counters of one object, and what of its state is a number: `link_up` is 0 or 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectCounters {
    /// The object as the operator knows it: `vnic vn01.vm1`.
    pub object: String,
    /// Who counted.
    pub end: CountingEnd,
    /// By name. They begin with the object and wrap after 2^64.
    pub counts: BTreeMap<String, u64>,
}
