//! Why a device got what it got: watches the schedulers of a process and answers for them.
//!
//! ```text
//! hops (host uplink, director downlinks, ports) ──snapshot──> Sampler: SLA meters, alarms in the log
//!                                               ──trace─────> control socket <── orimono-qos
//! logical units and vHBAs (Storage)             ──counters, capture──> the same socket
//! vNICs and ports (Counters, Network)           ──counters, capture──> the same socket
//! ```
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`hop`] | what is watched: a scheduler with the names of its devices |
//! | [`link`] | either end of a session as a hop, with its links |
//! | [`monitor`] | the one thread that samples and answers |
//! | [`protocol`] | requests and answers of the control socket |
//! | [`recording`] | a trace as a file |
//! | [`counters`] | what was counted, by object |
//! | [`storage`] | logical units and vHBAs, of a process that has them |
//! | [`network`] | vNICs and Ethernet ports, of a process that has them |
//! | [`devices_of_host`] | the devices of a host agent |
//! | [`frames`] | what was captured of either |
//! | [`capture_file`] | captured frames as a file for Wireshark |
//! | [`client`] | the other end of the control socket |
//! | [`apply`] | a client asks the process to apply its lab file again |
//!
//! What is deliberately absent: how a scheduler decides (`qos`), and any way to change one from here.
//! Switchover chooses among the links of a session; apply is passed on to whoever serves the lab file.
#![forbid(unsafe_code)]

pub mod apply;
pub mod capture_file;
pub mod client;
mod connection;
pub mod counters;
pub mod devices_of_host;
pub mod frames;
pub mod hop;
pub mod link;
pub mod monitor;
pub mod network;
pub mod protocol;
pub mod recording;
mod sampler;
mod socket;
pub mod storage;

pub use apply::{APPLY_JOBS_MAX, ApplyDone, ApplyJob};
pub use client::{Client, ClientError};
pub use devices_of_host::{DeviceState, Devices, GuestState};
pub use hop::Hop;
pub use link::LinkHop;
pub use monitor::{Monitor, MonitorError, Watched};
pub use recording::{DamagedRecording, Recording};
