//! Reads by io_uring: the only unsafe code of this program.
//!
//! The kernel writes into buffers while a read is underway. [`Reads`] owns them with the ring, never
//! touches them, and waits for what is underway before it frees them.
//!
//! Read first: `io_uring_enter`(2), `io_uring`(7).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use io_uring::{IoUring, opcode, types};

/// A ring with a buffer for each read that is underway.
pub(super) struct Reads {
    ring: IoUring,
    file: File,
    buffers: Vec<Vec<u8>>,
    underway: usize,
}

impl Reads {
    /// For `depth` reads of `bytes` of `file` at a time.
    ///
    /// # Errors
    /// The kernel has no io_uring for us.
    pub(super) fn new(file: File, depth: u16, bytes: u32) -> io::Result<Self> {
        let bytes = usize::try_from(bytes).map_err(io::Error::other)?;
        Ok(Self {
            ring: IoUring::new(u32::from(depth).next_power_of_two())?,
            file,
            buffers: vec![vec![0; bytes]; usize::from(depth)],
            underway: 0,
        })
    }

    /// Queues a read of a whole buffer; its last one has ended.
    ///
    /// # Errors
    /// There is no such buffer, or no room in the ring.
    pub(super) fn queue(&mut self, buffer: u16, offset: u64) -> io::Result<()> {
        let room = self.buffers.get_mut(usize::from(buffer));
        let room = room.ok_or_else(|| io::Error::other("no such buffer"))?;
        let length = u32::try_from(room.len()).map_err(io::Error::other)?;
        let fd = types::Fd(self.file.as_raw_fd());
        let read = opcode::Read::new(fd, room.as_mut_ptr(), length).offset(offset);
        let read = read.build().user_data(buffer.into());
        let mut queue = self.ring.submission();
        // SAFETY: `push` wants what the entry names to be valid until the read has ended. The file
        // and the buffer belong to this value, nothing moves or frees either, and `drop` waits.
        unsafe { queue.push(&read) }.map_err(io::Error::other)?;
        drop(queue);
        self.underway += 1;
        Ok(())
    }

    /// Submits what is queued, waits for one read at least, and calls `ended` with the buffer of
    /// each that has ended.
    ///
    /// # Errors
    /// A read failed or was short.
    pub(super) fn wait(&mut self, mut ended: impl FnMut(u16)) -> io::Result<()> {
        self.ring.submit_and_wait(1)?;
        let mut completions = self.ring.completion();
        for completion in &mut completions {
            self.underway -= 1;
            let buffer = u16::try_from(completion.user_data()).map_err(io::Error::other)?;
            let wanted = self.buffers.get(usize::from(buffer)).map(Vec::len);
            if usize::try_from(completion.result()).ok() != wanted {
                return Err(io::Error::other("a read failed or was short"));
            }
            ended(buffer);
        }
        Ok(())
    }
}

impl Drop for Reads {
    fn drop(&mut self) {
        while self.underway > 0 {
            if self.ring.submit_and_wait(1).is_err() {
                // The kernel may still write: better to lose the memory than to free it.
                std::mem::forget(std::mem::take(&mut self.buffers));
                return;
            }
            self.underway -= self.ring.completion().count();
        }
    }
}
