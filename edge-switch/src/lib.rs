//! The edge switch: carries the fabric links of many hosts over few uplinks to a director.
//!
//! ```text
//! host1 ══ link ══╗              ╔══ link ══╗
//! host2 ══ link ══╬═ edge switch ╬══ link ══╬═ director
//! host3 ══ link ══╝   24 ports   ╚══ link ══╝
//!                     one uplink, shaped both ways
//! ```
//!
//! For each link that a host makes (a **port**) the switch makes one of its own to the director,
//! and passes whole frames between the two, in order. Sessions, credit, acknowledgement and replay
//! stay between host and director: a switch that dies is a lost link, and nothing that was
//! acknowledged is lost with it.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`relay`] | whose frame is next, and who must wait. Core: no socket, no clock, no thread |
//! | [`switch`] | start and stop |
//! | `event_loop` | the one thread that reads, greets, relays and closes |
//! | `port` | a host's link and the one to the director |
//! | `hop` | the switch's schedulers, for `orimono-qos` |
//!
//! **Memory is bounded**: for each port and direction [`relay::QUEUE_BYTES_MAX`] of frames, what a
//! link that does not take them was handed already (a batch and a window, under 512 KiB), and one
//! receive buffer. What is beyond that stays with its sender, by the flow control of the link.
#![forbid(unsafe_code)]

mod event_loop;
mod hop;
mod port;
pub mod relay;
pub mod switch;

pub use switch::{EdgeSwitch, EdgeSwitchError};
