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
//! | [`admission`] | what a link may promise, and the refusal that names what is missing |
//! | [`scheduler`] | who sends next |
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
mod clock;
mod device;
mod heap;
mod link;
pub mod rate;
pub mod scheduler;
pub mod time;

pub use admission::{AdmissionError, Commitment, InvalidBudget, LinkBudget};
pub use rate::{BitRate, DeviceRate, InvalidRate, ParseBitRateError};
pub use scheduler::{
    CLASSES_MAX, DEVICES_MAX, DeviceHandle, DeviceStatistics, Grant, GrantReason, Granted,
    QUEUE_FRAMES_MAX, RefusalReason, Refused, Scheduler, StaleHandle,
};
pub use time::MonotonicTime;
