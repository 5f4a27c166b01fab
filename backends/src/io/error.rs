//! What the result of one read or write of the kernel means.

use kvstored_core::{Error, ErrorKind};

use super::request::{Direction, IoRequest};

/// How often in a row a request is sent again that was interrupted without any progress.
const RETRY_LIMIT: u32 = 64;

/// How far a request has come.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    /// Bytes moved.
    pub done: usize,
    retries: u32,
}

/// What to do after a result.
#[derive(Debug)]
pub enum Step {
    /// All bytes are moved.
    Done,
    /// Send the rest.
    Again,
    /// It failed for good.
    Failed(Error),
}

impl Progress {
    /// Takes the kernel's result in: the bytes moved, or a negative error number.
    pub fn advance(&mut self, request: &IoRequest, result: i64) -> Step {
        let remaining = request.length - self.done.min(request.length);
        match result {
            0 if remaining > 0 => Step::Failed(cut_short(request, self.done)),
            moved if moved >= 0 => {
                self.done += remaining.min(moved as usize);
                self.retries = 0;
                if self.done == request.length {
                    Step::Done
                } else {
                    Step::Again
                }
            }
            negative => {
                let errno = i32::try_from(-negative).unwrap_or(libc::EIO);
                if matches!(errno, libc::EINTR | libc::EAGAIN) && self.retries < RETRY_LIMIT {
                    self.retries += 1;
                    return Step::Again;
                }
                // A direct transfer that ended at an unaligned end of file can't be continued from there.
                if errno == libc::EINVAL && self.done > 0 {
                    return Step::Failed(cut_short(request, self.done));
                }
                Step::Failed(failure(request, errno))
            }
        }
    }
}

fn cut_short(request: &IoRequest, done: usize) -> Error {
    let message = match request.direction {
        Direction::Read => "short read",
        Direction::Write => "short write",
    };
    Error::new(ErrorKind::Io, message)
        .with("file_offset", request.file_offset)
        .with("length", request.length)
        .with("done", done)
}

/// The error of a request that the kernel failed with this number.
pub(super) fn failure(request: &IoRequest, errno: i32) -> Error {
    let source = std::io::Error::from_raw_os_error(errno);
    let error = match (errno, request.direction) {
        // The request keeps its file open, so this can only be the wrong direction.
        (libc::EBADF, Direction::Read) => {
            Error::new(ErrorKind::PermissionDenied, "the file isn't open for reading")
        }
        (libc::EBADF, Direction::Write) => {
            Error::new(ErrorKind::PermissionDenied, "the file isn't open for writing")
        }
        (_, Direction::Read) => Error::from_io(source, "read failed"),
        (_, Direction::Write) => Error::from_io(source, "write failed"),
    };
    error
        .with("file_offset", request.file_offset)
        .with("length", request.length)
}

/// The error of a request that finds the waiting queue full.
pub fn busy() -> Error {
    Error::new(ErrorKind::Busy, "the I/O queue is full")
}

/// The error of a request that finds the engine stopped.
pub fn cancelled() -> Error {
    Error::new(ErrorKind::Cancelled, "the I/O engine is shut down")
}
