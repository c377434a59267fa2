//! Commands without frames.
//!
//! ```text
//! ring ──> DirectSession::execute ──> medium <──> guest memory (DataBuffers)
//!   └── not now (None): frames on the lanes, as from any other host
//! ```

use std::fmt::Debug;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use fabric_payload::scsi::{Command, ServiceResponse};

/// The guest's memory for the data of one command. It is written and read in place, and all of it
/// may change at any moment.
pub trait DataBuffers {
    /// Copies write data, from `offset` on, into `to`.
    ///
    /// # Errors
    /// There is less, or the guest has taken the memory away.
    fn read_at(&self, offset: usize, to: &mut [u8]) -> io::Result<()>;

    /// Copies `from` to where read data goes, from `offset` on.
    ///
    /// # Errors
    /// There is less room, or the guest has taken the memory away.
    fn write_at(&self, offset: usize, from: &[u8]) -> io::Result<()>;

    /// Reads `bytes` of `file`, from `position` on, to where read data goes: all, or less at the
    /// end of the file.
    ///
    /// # Errors
    /// Those of preadv2(2); with `wait` false also when it would have to wait
    /// ([`io::ErrorKind::WouldBlock`]), or the file cannot tell
    /// ([`io::ErrorKind::Unsupported`]).
    fn read_file(
        &self,
        file: BorrowedFd<'_>,
        position: u64,
        bytes: usize,
        wait: bool,
    ) -> io::Result<usize>;

    /// Writes `bytes` of write data into `file`, from `position` on; how many were written.
    ///
    /// # Errors
    /// Those of pwritev(2).
    fn write_file(&self, file: BorrowedFd<'_>, position: u64, bytes: usize) -> io::Result<usize>;
}

/// What a vHBA of this process knows of its director.
pub trait DirectTarget: Debug + Send + Sync {
    /// The session of that epoch, if it is the one that has the vHBA.
    fn session(&self, epoch: u16) -> Option<Arc<dyn DirectSession>>;
}

/// A session of a vHBA, as its host agent sees it from within the same process.
pub trait DirectSession: Send + Sync {
    /// Whether nothing that goes to the vHBA waits for its turn on the link.
    fn is_clear(&self) -> bool;

    /// Executes `command` now, on this thread, if it is one that then ends with GOOD and needs no
    /// waiting; its tag means nothing. After [`ServiceResponse::TaskComplete`] all its data has
    /// moved; other responses say what took it away meanwhile. `None`: it is to be sent on its
    /// lanes.
    fn execute(&self, command: &Command<'_>, data: &dyn DataBuffers) -> Option<ServiceResponse>;

    /// Charges the link towards the host with what commands had to answer.
    fn charge(&self, bytes: u32);
}
