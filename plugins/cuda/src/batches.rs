//! Copies in as few calls as the driver takes them.

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kvstored_plugin::{Copy, DeviceStatistics, Direction, Failure, Kind};

use crate::failures::failure;
use crate::symbols::{
    BatchAttribute, Functions, LOCATION_DEVICE, LOCATION_HOST, Location, OK, ORDER_STREAM, Status,
};

/// Most copies in one call: the driver names no limit, and arrays shouldn't grow without one.
const MOST_BATCH: usize = 65_536;

/// Hands copies over, and remembers whether the driver takes batches.
#[derive(Default)]
pub(crate) struct Copier {
    /// It was asked for a batch and can't.
    no_batches: AtomicBool,
    batch_calls: AtomicU64,
    single_calls: AtomicU64,
    copies: AtomicU64,
    copied_bytes: AtomicU64,
}

impl Copier {
    /// Hands copies to a stream.
    ///
    /// # Safety
    /// The stream must be alive, and every range valid until it has passed the copies.
    pub unsafe fn copy(
        &self,
        functions: &Functions,
        device: c_int,
        stream: *mut c_void,
        direction: Direction,
        copies: &[Copy],
    ) -> Result<(), Failure> {
        let mut parts = copies.chunks(MOST_BATCH).peekable();
        // a single copy is cheapest as one
        while copies.len() > 1
            && !self.no_batches.load(Ordering::Relaxed)
            && let Some(part) = parts.peek()
        {
            // SAFETY: the caller vouches for it.
            match unsafe { batch(functions, device, stream, direction, part) } {
                None => self.no_batches.store(true, Ordering::Relaxed),
                Some(OK) => {
                    self.batch_calls.fetch_add(1, Ordering::Relaxed);
                    self.count(part);
                    parts.next();
                }
                Some(status) => match failure(functions, "cuMemcpyBatchAsync", status) {
                    refused if refused.kind() == Kind::Unsupported => {
                        self.no_batches.store(true, Ordering::Relaxed);
                    }
                    failure => return Err(failure),
                },
            }
        }
        for copy in parts.flatten() {
            // SAFETY: the caller vouches for it.
            let status = unsafe { single(functions, stream, direction, copy) };
            if status != OK {
                return Err(failure(functions, "a copy", status));
            }
            self.single_calls.fetch_add(1, Ordering::Relaxed);
            self.count(std::slice::from_ref(copy));
        }
        Ok(())
    }

    fn count(&self, copies: &[Copy]) {
        let bytes = copies.iter().map(|copy| copy.bytes).sum();
        self.copies.fetch_add(copies.len() as u64, Ordering::Relaxed);
        self.copied_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn fill(&self, statistics: &mut DeviceStatistics) {
        statistics.batch_calls = self.batch_calls.load(Ordering::Relaxed);
        statistics.single_calls = self.single_calls.load(Ordering::Relaxed);
        statistics.copies = self.copies.load(Ordering::Relaxed);
        statistics.copied_bytes = self.copied_bytes.load(Ordering::Relaxed);
    }
}

/// One call for many copies; `None` where the driver has none.
///
/// # Safety
/// As for [`Copier::copy`].
unsafe fn batch(
    functions: &Functions,
    device: c_int,
    stream: *mut c_void,
    direction: Direction,
    copies: &[Copy],
) -> Option<Status> {
    let host = Location {
        kind: LOCATION_HOST,
        id: 0,
    };
    let device = Location {
        kind: LOCATION_DEVICE,
        id: device,
    };
    let (destination, source) = match direction {
        Direction::HostToDevice => (device, host),
        Direction::DeviceToHost => (host, device),
        Direction::DeviceToDevice => (device, device),
    };
    let mut destinations: Vec<u64> = copies.iter().map(|copy| copy.destination).collect();
    let mut sources: Vec<u64> = copies.iter().map(|copy| copy.source).collect();
    let mut sizes: Vec<usize> = copies.iter().map(|copy| copy.bytes as usize).collect();
    let (mut attribute, mut first, mut failed) = (
        BatchAttribute {
            source_order: ORDER_STREAM,
            source,
            destination,
            flags: 0,
        },
        0,
        0,
    );
    let (to, from, bytes, count) = (
        destinations.as_mut_ptr(),
        sources.as_mut_ptr(),
        sizes.as_mut_ptr(),
        copies.len(),
    );
    // SAFETY: the arrays have that many entries and are lent for the call, as is one attribute that holds from the first
    // copy on; the caller vouches for the ranges and the stream.
    unsafe {
        match (functions.copy_batch, functions.copy_batch_v2) {
            (Some(call), _) => Some(call(
                to,
                from,
                bytes,
                count,
                &raw mut attribute,
                &raw mut first,
                1,
                &raw mut failed,
                stream,
            )),
            (None, Some(call)) => Some(call(
                to,
                from,
                bytes,
                count,
                &raw mut attribute,
                &raw mut first,
                1,
                stream,
            )),
            (None, None) => None,
        }
    }
}

/// # Safety
/// As for [`Copier::copy`].
unsafe fn single(functions: &Functions, stream: *mut c_void, direction: Direction, copy: &Copy) -> Status {
    let bytes = copy.bytes as usize;
    // SAFETY: the caller vouches for the ranges and the stream.
    unsafe {
        match direction {
            Direction::HostToDevice => {
                (functions.copy_to_device)(copy.destination, copy.source as *const c_void, bytes, stream)
            }
            Direction::DeviceToHost => {
                (functions.copy_to_host)(copy.destination as *mut c_void, copy.source, bytes, stream)
            }
            Direction::DeviceToDevice => {
                (functions.copy_within)(copy.destination, copy.source, bytes, stream)
            }
        }
    }
}
