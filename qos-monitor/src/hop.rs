//! What is watched.

use qos::{Decision, HopSnapshot, Trace};

use crate::link::LinkHop;

/// A scheduler that shares one link or port in one direction, with the names of its devices.
///
/// Called on the monitor's thread, a few times a second. A hop that is not there at the moment (a
/// link without a session) has no snapshot, no decisions and no trace.
pub trait Hop: Send + Sync {
    /// Its name: that of its budget, which snapshots carry too. Does not change.
    fn name(&self) -> &str;

    /// Its present state.
    fn snapshot(&self) -> Option<HopSnapshot>;

    /// The decisions made last, oldest first.
    fn decisions(&self) -> Vec<Decision>;

    /// Begins a trace, in the place of any other. False when the hop is not there.
    fn start_trace(&self) -> bool;

    /// Ends the trace; `None` when there is none, also because the hop went away meanwhile.
    fn take_trace(&self) -> Option<Trace>;

    /// The hop as a link between host and director, if it is one.
    fn link(&self) -> Option<&LinkHop> {
        None
    }
}
