//! Why a session was ended by us: the rule the front-end broke, and what to change.

use std::io;

use thiserror::Error;
use vm_memory::mmap::MmapRegionError;

/// A front-end's message, memory or file descriptor that is not accepted; ends its session.
///
/// The text names the rule and, where an operator can do something, what to change.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Header: unknown number.
    #[error("request number {request} is unknown")]
    UnknownRequest {
        /// Number in the header.
        request: u32,
    },
    /// Header: a request that belongs to a feature which was not offered or not acknowledged.
    #[error("request {request} needs a protocol feature that was not negotiated")]
    NotNegotiated {
        /// Name of the request.
        request: &'static str,
    },
    /// Header: version is not 1, a reply flag or reserved flags.
    #[error("header flags {flags:#x} are not those of a version 1 request")]
    HeaderFlags {
        /// Flags in the header.
        flags: u32,
    },
    /// Header: payload size does not fit the request.
    #[error("request {request} has a payload of {bytes} bytes")]
    PayloadSize {
        /// Name of the request.
        request: &'static str,
        /// Size in the header.
        bytes: u32,
    },
    /// Wrong number of file descriptors.
    #[error("request {request} came with {count} file descriptors, {expected} are right")]
    DescriptorCount {
        /// Name of the request.
        request: &'static str,
        /// Descriptors received.
        count: usize,
        /// Descriptors the request needs.
        expected: usize,
    },
    /// The kernel could not hand over the file descriptors.
    #[error("file descriptors were lost: raise the process's limit of open files (LimitNOFILE)")]
    DescriptorsLost,
    /// A message began and did not end in time, or the handshake did not go on.
    #[error("{what} was not complete after {millis} ms")]
    TooSlow {
        /// What was waited for.
        what: &'static str,
        /// The limit.
        millis: u128,
    },
    /// The front-end does not take its replies.
    #[error("replies are not read")]
    RepliesNotRead,
    /// SET_FEATURES or SET_PROTOCOL_FEATURES with bits that were not offered.
    #[error(
        "{request} with bits {bits:#x} that were not offered; for virtio-scsi check \
             param_change=, t10_pi= and packed= of the device"
    )]
    FeaturesNotOffered {
        /// Name of the request.
        request: &'static str,
        /// The bits too many.
        bits: u64,
    },
    /// Feature bits other than LOG_ALL changed while a ring runs.
    #[error("features changed by {bits:#x} while ring {index} is running")]
    FeaturesWhileRunning {
        /// The bits that differ.
        bits: u64,
        /// A running ring.
        index: usize,
    },
    /// Ring index out of range.
    #[error("{request} for ring {index}, the device has {count}: lower queues= or num_queues=")]
    RingIndex {
        /// Name of the request.
        request: &'static str,
        /// Index in the message.
        index: u64,
        /// Rings of the device.
        count: usize,
    },
    /// Ring size is no power of two in range.
    #[error(
        "ring {index} has size {size}, must be a power of two up to {most}: lower \
             virtqueue_size=, rx_queue_size= or tx_queue_size="
    )]
    RingSize {
        /// Ring.
        index: usize,
        /// Size in the message.
        size: u32,
        /// Largest size.
        most: u16,
    },
    /// Ring base above 16 bits.
    #[error("ring {index} has base {base}, at most 65535")]
    RingBase {
        /// Ring.
        index: usize,
        /// Base in the message.
        base: u32,
    },
    /// Ring addresses: misaligned, outside the memory table, or before it.
    #[error("ring {index} has a {part} at {address:#x}: {problem}")]
    RingAddress {
        /// Ring.
        index: usize,
        /// Descriptor table, available or used ring.
        part: &'static str,
        /// Front-end virtual address.
        address: u64,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A parameter of a ring changed while it runs, or it is started without being set up.
    #[error("{request} for ring {index}: {problem}")]
    RingState {
        /// Name of the request.
        request: &'static str,
        /// Ring.
        index: usize,
        /// What is wrong.
        problem: &'static str,
    },
    /// Enable value is neither 0 nor 1.
    #[error("SET_VRING_ENABLE of ring {index} with value {value}")]
    EnableValue {
        /// Ring.
        index: usize,
        /// Value in the message.
        value: u32,
    },
    /// Kick, call or error descriptor is not an eventfd.
    #[error("{request} of ring {index} came with {kind}, not with an eventfd")]
    NotEventfd {
        /// Name of the request.
        request: &'static str,
        /// Ring.
        index: usize,
        /// What the descriptor is.
        kind: String,
    },
    /// Memory table: number of regions.
    #[error("memory table has {count} regions, 1 to {most} are accepted")]
    RegionCount {
        /// Regions in the message.
        count: u32,
        /// Largest number.
        most: u32,
    },
    /// Memory table: empty region, wrap-around, unaligned offset.
    #[error("memory region at {guest_address:#x}: {problem}")]
    Region {
        /// Guest physical address.
        guest_address: u64,
        /// What is wrong.
        problem: &'static str,
    },
    /// Memory table: two regions share guest addresses.
    #[error("memory regions at {first:#x} and {second:#x} overlap")]
    RegionsOverlap {
        /// The lower region.
        first: u64,
        /// The higher region.
        second: u64,
    },
    /// File is shorter than the region.
    #[error("memory region at {guest_address:#x} needs a file of {needed} bytes, it has {found}")]
    FileTooShort {
        /// Guest physical address, or 0 for the dirty log.
        guest_address: u64,
        /// Offset plus length.
        needed: u64,
        /// Size of the file.
        found: u64,
    },
    /// File can shrink under us.
    #[error(
        "memory region at {guest_address:#x} is not sealed against shrinking: use \
             -object memory-backend-memfd (seal=on is its default), or start with \
             --allow-unsealed-memory if the front-end is trusted"
    )]
    NotSealed {
        /// Guest physical address.
        guest_address: u64,
    },
    /// Dirty log too small for the memory table, or unusable.
    #[error("dirty log of {bytes} bytes at offset {offset}: {problem}")]
    DirtyLog {
        /// Size in the message.
        bytes: u64,
        /// Offset in the message.
        offset: u64,
        /// What is wrong.
        problem: &'static str,
    },
    /// The dirty log cannot be mapped.
    #[error("dirty log cannot be mapped")]
    MapDirtyLog(#[source] MmapRegionError),
    /// SET_OWNER twice.
    #[error("SET_OWNER came twice")]
    OwnedTwice,
    /// The stock back end did not accept a message that passed all checks.
    #[error("{request} failed in the back end")]
    BackEnd {
        /// Name of the request.
        request: &'static str,
    },
    /// The socket, or a descriptor received on it, failed.
    #[error("{what} failed")]
    Io {
        /// The operation.
        what: &'static str,
        /// Its error.
        #[source]
        source: io::Error,
    },
}
