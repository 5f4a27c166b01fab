//! The system calls that move bytes between sockets and registered memory, and the copies into it.
//!
//! Registered memory may be written by others at any moment, so no reference to it is ever formed: it's handed to the
//! kernel, or copied through raw pointers. A [`Span`] holds a guard, so its memory is valid for as long as the span is
//! borrowed: the engine's own memory is mapped while a guard lives, and who registers foreign memory promises to keep it
//! until `unregister` has returned, which waits for the guard.
#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::memory::Span;

/// Parts of one send.
const MOST_PARTS: usize = 128;

const NOTHING: libc::iovec = libc::iovec {
    iov_base: std::ptr::null_mut(),
    iov_len: 0,
};

/// Parts to be sent with one call. They're borrowed for as long as it lives.
pub(crate) struct Gather<'a> {
    parts: [libc::iovec; MOST_PARTS],
    count: usize,
    bytes: usize,
    borrowed: PhantomData<&'a [u8]>,
}

impl<'a> Gather<'a> {
    pub fn new() -> Self {
        Self {
            parts: [NOTHING; MOST_PARTS],
            count: 0,
            bytes: 0,
            borrowed: PhantomData,
        }
    }

    /// Bytes of all parts.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many more parts fit.
    pub fn room(&self) -> usize {
        MOST_PARTS - self.count
    }

    fn push(&mut self, base: *mut u8, length: usize) {
        if length > 0
            && let Some(part) = self.parts.get_mut(self.count)
        {
            part.iov_base = base.cast();
            part.iov_len = length;
            self.count += 1;
            self.bytes += length;
        }
    }

    /// Bytes of this process's own.
    pub fn push_bytes(&mut self, bytes: &'a [u8]) {
        self.push(bytes.as_ptr().cast_mut(), bytes.len());
    }

    /// `length` bytes at `at` of guarded memory.
    pub fn push_span(&mut self, span: &'a Span, at: usize, length: usize) {
        let length = length.min(span.length().saturating_sub(at));
        self.push(std::ptr::with_exposed_provenance_mut(span.address() + at), length);
    }

    /// Copies the parts' first bytes, for whoever must change them before they are sent. Returns how many.
    pub fn copy_out(&self, mut skip: usize, buffer: &mut [u8]) -> usize {
        let mut copied = 0;
        for part in self.parts.iter().take(self.count) {
            if skip >= part.iov_len {
                skip -= part.iov_len;
                continue;
            }
            let length = (part.iov_len - skip).min(buffer.len() - copied);
            // SAFETY: the part is borrowed bytes or guarded memory, valid for iov_len bytes; the buffer has room for them
            // and is this process's own, so it can't overlap.
            unsafe {
                let source = part.iov_base.cast::<u8>().add(skip);
                let target = buffer.as_mut_ptr().add(copied);
                std::ptr::copy_nonoverlapping(source, target, length);
            }
            copied += length;
            skip = 0;
            if copied == buffer.len() {
                break;
            }
        }
        copied
    }
}

/// Sends what the socket takes at this moment. `None` if that's nothing.
pub(super) fn send(socket: BorrowedFd<'_>, gather: &Gather<'_>) -> std::io::Result<Option<usize>> {
    // SAFETY: an all-zero msghdr is a valid one without any parts.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = gather.parts.as_ptr().cast_mut();
    message.msg_iovlen = gather.count;
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the parts are borrowed by `gather` and only read; the kernel copies them before it returns.
    outcome(|| unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) })
}

/// Receives into guarded memory at `at`, and what's more into `rest`. `None` if nothing is there, 0 at the end.
pub(super) fn receive(
    socket: BorrowedFd<'_>,
    memory: Option<(&Span, usize, usize)>,
    rest: &mut [u8],
) -> std::io::Result<Option<usize>> {
    let mut parts = [NOTHING; 2];
    let (first, second) = parts.split_at_mut(1);
    if let (Some(part), Some((span, at, length))) = (first.first_mut(), memory) {
        part.iov_base = std::ptr::with_exposed_provenance_mut(span.address() + at);
        part.iov_len = length.min(span.length().saturating_sub(at));
    }
    if let Some(part) = second.first_mut() {
        part.iov_base = rest.as_mut_ptr().cast();
        part.iov_len = rest.len();
    }
    // SAFETY: an all-zero msghdr is a valid one without any parts.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = parts.as_mut_ptr();
    message.msg_iovlen = parts.len();
    // SAFETY: the first part is guarded memory, the second a borrowed buffer; both are valid for writes of their lengths,
    // and the kernel writes nothing after it returns.
    outcome(|| unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) })
}

/// Throws away up to `length` bytes that arrived, without copying them. `None` if nothing is there, 0 at the end.
pub(super) fn discard(socket: BorrowedFd<'_>, length: usize) -> std::io::Result<Option<usize>> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
    // SAFETY: with MSG_TRUNC a TCP socket writes nothing to the buffer, which may be null (tcp(7)).
    outcome(|| unsafe { libc::recv(socket.as_raw_fd(), std::ptr::null_mut(), length, flags) })
}

fn outcome(mut call: impl FnMut() -> isize) -> std::io::Result<Option<usize>> {
    loop {
        if let Ok(moved) = usize::try_from(call()) {
            return Ok(Some(moved));
        }
        let error = std::io::Error::last_os_error();
        match error.kind() {
            std::io::ErrorKind::Interrupted => {}
            std::io::ErrorKind::WouldBlock => return Ok(None),
            _ => return Err(error),
        }
    }
}

/// Copies bytes into guarded memory at `at`; what doesn't fit is left out.
pub(crate) fn copy_in(span: &Span, at: usize, bytes: &[u8]) {
    let length = bytes.len().min(span.length().saturating_sub(at));
    let target = std::ptr::with_exposed_provenance_mut::<u8>(span.address() + at);
    // SAFETY: the guard keeps the memory valid, the length was cut to it, and `bytes` is this process's own buffer.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), target, length) };
}
