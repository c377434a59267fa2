//! Bandwidth guarantees of the fabric: rates, admission and the scheduler of one shared link.
//!
//! A pure core: no sockets, no clock, no threads, no floating point. Time is an argument
//! ([`MonotonicTime`]), rates are whole decimal bits per second ([`BitRate`]) of the bytes the
//! caller charges, and the same calls give the same grants.
//!
//! Read [`scheduler`] first: it states what a device is promised and why the promise holds.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`time`] | the time stamp every call takes |
//! | [`rate`] | bit rates and the rate words of a device (RFC 2698) |
//! | [`policy`] | rate words under a name, which devices refer to |
//! | [`profiles`] | server profiles (VMs) by name |
//! | [`admission`] | what a link may promise, and the refusal that names what is missing |
//! | [`scheduler`] | who sends next |
//! | [`decision`] | why it was not sooner |
//! | [`trace`] | what happened, written down so that it can be replayed |
//! | [`report`] | what decisions or a trace say about one device |
//! | [`sla`] | whether a device got what it was promised, interval by interval |
//! | [`snapshot`] | the present state, as data |
//!
//! ```
//! use qos::{BitRate, DeviceRate, LinkBudget, MonotonicTime, Scheduler};
//!
//! let rate: BitRate = "1G".parse()?;
//! let mut scheduler = Scheduler::new(LinkBudget::new("host1 uplink", rate));
//! let now = MonotonicTime::from_nanos(0);
//! let vnic = scheduler.add_device(now, DeviceRate::new("300M".parse()?, None)?)?;
//! scheduler.enqueue(now, vnic, 1, 1500, "a frame")?;
//! let grant = scheduler.dequeue(now).ok_or("nothing to send")?;
//! assert_eq!((grant.device, grant.item), (vnic, "a frame"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]
#![deny(clippy::float_arithmetic, clippy::as_conversions)]

pub mod admission;
mod calendar;
mod clock;
pub mod decision;
mod device;
mod frames;
mod heap;
mod link;
mod order;
pub mod policy;
pub mod profiles;
pub mod rate;
pub mod report;
pub mod scheduler;
pub mod sla;
mod slots;
pub mod snapshot;
pub mod time;
pub mod trace;
mod vm;

pub use admission::{AdmissionError, Commitment, InvalidBudget, LinkBudget};
pub use decision::{DECISIONS_MAX, Decision, WaitCause, Waits};
pub use policy::{Attachment, PolicyCatalog, PolicyError, PolicyKind, PolicyName, PolicySet};
pub use profiles::Profiles;
pub use rate::{BitRate, DeviceRate, InvalidRate, OperationLimit, ParseBitRateError, VmRate};
pub use report::{DelayHistogram, Report, Rights};
pub use scheduler::{
    CLASSES_MAX, DEVICES_MAX, DeviceHandle, DeviceStatistics, Grant, GrantReason, Granted,
    QUEUE_FRAMES_MAX, RefusalReason, Refused, Scheduler, StaleHandle, VmHandle,
};
pub use sla::{AlarmChange, SlaMeter, SlaReport};
pub use snapshot::{DeviceSnapshot, HopSnapshot};
pub use time::MonotonicTime;
pub use trace::{Divergence, ReplaySummary, TRACE_EVENTS_MAX, Trace};
