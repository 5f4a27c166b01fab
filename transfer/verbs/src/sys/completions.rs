//! Completion queues with a descriptor that tells when there is something to take.

use std::ffi::{CStr, c_uint};
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;

use kvstored_core::{Error, ErrorKind, Result};

use super::device::Device;
use super::layout::{Completion, RawCompletions, RawEventChannel};
use super::{check, last_error};

/// Completions taken with one call.
pub(super) const BATCH: usize = 32;

/// What a completion says.
#[derive(Debug)]
pub(super) struct Taken {
    pub id: u64,
    /// The bytes received, of a receive.
    pub outcome: Result<u32>,
}

struct EventChannel {
    device: Arc<Device>,
    raw: NonNull<RawEventChannel>,
}

impl Drop for EventChannel {
    fn drop(&mut self) {
        // SAFETY: its only completion queue is gone.
        if unsafe { (self.device.library().destroy_comp_channel)(self.raw.as_ptr()) } != 0 {
            tracing::warn!("an RDMA event channel can't be closed");
        }
    }
}

/// A completion queue with an event channel of its own.
///
/// To sleep until something completes: poll until nothing is left, [`Completions::arm`], poll once more, and wait for the
/// descriptor to become readable; then [`Completions::take_events`].
pub struct Completions {
    raw: NonNull<RawCompletions>,
    channel: EventChannel,
}

// SAFETY: the library's objects may be used from any thread, and several at once.
unsafe impl Send for Completions {}
// SAFETY: as above.
unsafe impl Sync for Completions {}

impl Completions {
    /// A queue for that many completions; there must never be more.
    pub fn new(device: &Arc<Device>, depth: u32) -> Result<Self> {
        let library = device.library();
        let context = device.context().as_ptr();
        // SAFETY: the context is open.
        let channel = NonNull::new(unsafe { (library.create_comp_channel)(context) })
            .ok_or_else(|| last_error("can't make an RDMA event channel"))?;
        let channel = EventChannel {
            device: device.clone(),
            raw: channel,
        };
        let depth = i32::try_from(depth).map_err(|_| Error::invalid(format!("{depth} completions")))?;
        // SAFETY: the context is open and the channel alive.
        let raw = unsafe { (library.create_cq)(context, depth, null_mut(), channel.raw.as_ptr(), 0) };
        let raw = NonNull::new(raw).ok_or_else(|| last_error("can't make an RDMA completion queue"))?;
        let completions = Self { raw, channel };
        let failed = |errno: rustix::io::Errno| Error::from_io(errno.into(), "fcntl");
        let flags = rustix::fs::fcntl_getfl(&completions).map_err(failed)?;
        rustix::fs::fcntl_setfl(&completions, flags | rustix::fs::OFlags::NONBLOCK).map_err(failed)?;
        Ok(completions)
    }

    pub(super) fn raw(&self) -> NonNull<RawCompletions> {
        self.raw
    }

    /// The next completion makes the descriptor readable.
    pub fn arm(&self) -> Result<()> {
        // SAFETY: the context is open.
        let notify = unsafe { (*self.channel.device.context().as_ptr()).operations.notify };
        let notify =
            notify.ok_or_else(|| Error::new(ErrorKind::Unsupported, "this RDMA provider has no events"))?;
        // SAFETY: the queue is alive.
        check(
            unsafe { notify(self.raw.as_ptr(), 0) },
            "can't arm an RDMA completion queue",
        )
    }

    /// Takes the events that made the descriptor readable.
    pub fn take_events(&self) {
        let library = self.channel.device.library();
        let (mut queue, mut owner) = (null_mut(), null_mut());
        let mut taken: c_uint = 0;
        // SAFETY: the channel is alive and its descriptor doesn't block.
        while unsafe { (library.get_cq_event)(self.channel.raw.as_ptr(), &raw mut queue, &raw mut owner) }
            == 0
        {
            taken += 1;
        }
        if taken > 0 {
            // SAFETY: so many events were taken from this queue, the only one of the channel.
            unsafe { (library.ack_cq_events)(self.raw.as_ptr(), taken) };
        }
    }

    /// Takes up to a batch of completions.
    pub(super) fn poll(&self, taken: &mut Vec<Taken>) -> Result<()> {
        // SAFETY: the context is open.
        let poll = unsafe { (*self.channel.device.context().as_ptr()).operations.poll };
        let poll =
            poll.ok_or_else(|| Error::new(ErrorKind::Unsupported, "this RDMA provider can't be polled"))?;
        // SAFETY: zeros are a value of these plain numbers.
        let mut batch: [Completion; BATCH] = unsafe { std::mem::zeroed() };
        // SAFETY: the queue is alive and the batch has that many entries.
        let count = unsafe { poll(self.raw.as_ptr(), BATCH as i32, batch.as_mut_ptr()) };
        let count = usize::try_from(count)
            .map_err(|_| Error::new(ErrorKind::Io, "an RDMA completion queue failed").with("code", count))?;
        taken.extend(batch.iter().take(count).map(|completion| Taken {
            id: completion.id,
            outcome: self.judge(completion),
        }));
        Ok(())
    }

    fn judge(&self, completion: &Completion) -> Result<u32> {
        if completion.status == 0 {
            return Ok(completion.bytes);
        }
        // SAFETY: the call knows every number, and returns a static string.
        let text =
            unsafe { CStr::from_ptr((self.channel.device.library().wc_status_str)(completion.status)) };
        let error = Error::new(
            kind_of(completion.status),
            format!("RDMA: {}", text.to_string_lossy()),
        );
        Err(error
            .with("status", completion.status)
            .with("vendor", completion.vendor_error))
    }
}

/// The kind of error of a completion's status.
fn kind_of(status: i32) -> ErrorKind {
    match status {
        // the peer's memory may not be touched so
        9 | 10 => ErrorKind::PermissionDenied,
        // flushed, because the queue pair is in error; the peer doesn't answer, or takes nothing
        5 | 12 | 13 => ErrorKind::Unavailable,
        // our own request was wrong
        1 | 2 | 4 | 6 => ErrorKind::Internal,
        _ => ErrorKind::Io,
    }
}

impl AsFd for Completions {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel is alive, and its descriptor open, as long as this lives.
        unsafe { BorrowedFd::borrow_raw((*self.channel.raw.as_ptr()).fd) }
    }
}

impl Drop for Completions {
    fn drop(&mut self) {
        // SAFETY: queue pairs hold it, so that none is left; all events taken were acknowledged.
        if unsafe { (self.channel.device.library().destroy_cq)(self.raw.as_ptr()) } != 0 {
            tracing::warn!("an RDMA completion queue can't be freed");
        }
    }
}

impl fmt::Debug for Completions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Completions").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_key_and_a_dead_peer_are_told_apart() {
        assert_eq!(kind_of(10), ErrorKind::PermissionDenied);
        assert_eq!(kind_of(12), ErrorKind::Unavailable);
        assert_eq!(kind_of(5), ErrorKind::Unavailable);
        assert_eq!(kind_of(4), ErrorKind::Internal);
        assert_eq!(kind_of(99), ErrorKind::Io);
    }
}
