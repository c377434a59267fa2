//! What the fabric costs and holds: the figures F1 to F11, each next to its limit in the same run.

mod failover;
mod latency;
mod scale;
mod throughput;

pub(super) use failover::measure as failover;
pub(super) use latency::measure as latency;
pub(super) use scale::measure as scale;
pub(super) use throughput::{
    beside_iperf, cost_of_a_frame, lanes, many_devices, record, shared_memory, tls,
};
