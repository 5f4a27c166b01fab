//! One read or write between a file and a slot.

use std::fmt;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use kvstored_core::{Error, Result, SlotGuard};

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the file to the slot.
    Read,
    /// From the slot to the file.
    Write,
}

/// Called once with the buffer and the outcome. After a failed read the buffer's bytes are undefined.
pub type IoCompletion = Box<dyn FnOnce(SlotGuard, Result<()>) + Send>;

/// One read or write between a file and a slot.
///
/// Files opened for direct I/O want `file_offset`, `length` and the buffer's address in multiples of 4 KiB.
pub struct IoRequest {
    /// The file; kept open until the completion.
    pub file: Arc<File>,
    /// Which way the bytes go.
    pub direction: Direction,
    /// Where in the file, in bytes.
    pub file_offset: u64,
    /// The slot; kept in place until the completion.
    pub buffer: SlotGuard,
    /// Where in the slot, in bytes.
    pub buffer_offset: usize,
    /// How many bytes; the request fails unless all of them are moved.
    pub length: usize,
    /// Who hears about it.
    pub completion: IoCompletion,
}

impl IoRequest {
    /// Address of the first byte in memory. Fails with `InvalidInput` if the range leaves the slot or the
    /// arena, or if the file's range can't exist.
    pub fn address(&self) -> Result<*mut u8> {
        let slot_bytes = self.buffer.length();
        if self
            .buffer_offset
            .checked_add(self.length)
            .is_none_or(|end| end > slot_bytes)
        {
            return Err(Error::invalid(format!(
                "bytes {}+{} are outside the slot's {slot_bytes} bytes",
                self.buffer_offset, self.length
            )));
        }
        if self
            .file_offset
            .checked_add(self.length as u64)
            .is_none_or(|end| end > i64::MAX as u64)
        {
            return Err(Error::invalid(format!(
                "bytes {}+{} can't be in a file",
                self.file_offset, self.length
            )));
        }
        let offset = self.buffer.offset().checked_add(self.buffer_offset);
        self.buffer
            .arena()
            .address(offset.unwrap_or(usize::MAX), self.length)
    }

    /// Calls the completion. A panic in it is caught: it must not take the engine's thread, and with it the
    /// buffers of other requests, down.
    pub fn complete(self, result: Result<()>) {
        let Self {
            file,
            buffer,
            completion,
            ..
        } = self;
        drop(file);
        if catch_unwind(AssertUnwindSafe(move || completion(buffer, result))).is_err() {
            tracing::error!("an I/O completion panicked");
        }
    }
}

impl fmt::Debug for IoRequest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("IoRequest")
            .field("direction", &self.direction)
            .field("file_offset", &self.file_offset)
            .field("buffer", &self.buffer)
            .field("buffer_offset", &self.buffer_offset)
            .field("length", &self.length)
            .finish_non_exhaustive()
    }
}
