//! Copies in as few calls as the library takes them.

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, Ordering};

use kvstored_plugin::{Copy, Direction, Failure, Kind};

use crate::counts::Counts;
use crate::failures::failure;
use crate::symbols::{
    BatchAttribute, DEVICE_TO_DEVICE, DEVICE_TO_HOST, Functions, HOST_TO_DEVICE, LOCATION_DEVICE,
    LOCATION_HOST, Location, MOST_BATCH, OK, Status, UNSUPPORTED,
};

/// Hands copies over, and remembers whether the library takes batches.
#[derive(Default)]
pub(crate) struct Copier {
    /// It was asked for a batch and can't.
    no_batches: AtomicBool,
    pub counts: Counts,
}

impl Copier {
    /// Hands copies to a stream.
    ///
    /// # Safety
    /// The stream must be alive, and every range valid until it has passed the copies.
    pub unsafe fn copy(
        &self,
        functions: &Functions,
        device: u32,
        stream: *mut c_void,
        direction: Direction,
        copies: &[Copy],
    ) -> Result<(), Failure> {
        // within the device the library takes no batches
        if direction != Direction::DeviceToDevice && !self.no_batches.load(Ordering::Relaxed) {
            // SAFETY: the caller vouches for it.
            match unsafe { self.batches(functions, device, stream, direction, copies) } {
                Err(refused) if refused.kind() == Kind::Unsupported => {
                    self.no_batches.store(true, Ordering::Relaxed);
                }
                outcome => return outcome,
            }
        }
        for copy in copies {
            // SAFETY: the caller vouches for it.
            unsafe { self.single(functions, stream, direction, copy) }?;
        }
        Ok(())
    }

    /// # Safety
    /// As for [`Copier::copy`].
    unsafe fn batches(
        &self,
        functions: &Functions,
        device: u32,
        stream: *mut c_void,
        direction: Direction,
        copies: &[Copy],
    ) -> Result<(), Failure> {
        let Some(copy_batch) = functions.copy_batch_async else {
            return Err(Failure::new(Kind::Unsupported, "no batches in this library"));
        };
        let host = Location {
            id: 0,
            kind: LOCATION_HOST,
        };
        let device = Location {
            id: device,
            kind: LOCATION_DEVICE,
        };
        let (destination, source) = match direction {
            Direction::HostToDevice => (device, host),
            Direction::DeviceToHost => (host, device),
            Direction::DeviceToDevice => (device, device),
        };
        for (number, part) in copies.chunks(MOST_BATCH).enumerate() {
            let mut destinations: Vec<*mut c_void> =
                part.iter().map(|copy| copy.destination as *mut c_void).collect();
            let mut sources: Vec<*mut c_void> = part.iter().map(|copy| copy.source as *mut c_void).collect();
            let mut sizes: Vec<usize> = part.iter().map(|copy| copy.bytes as usize).collect();
            let mut most = sizes.clone();
            let (mut attribute, mut first, mut failed) = (
                BatchAttribute {
                    destination,
                    source,
                    reserved: [0; 16],
                },
                0,
                usize::MAX,
            );
            // SAFETY: the arrays have that many entries and are lent for the call, as is one attribute that holds from the
            // first copy on; the caller vouches for the ranges and the stream.
            let status = unsafe {
                copy_batch(
                    destinations.as_mut_ptr(),
                    most.as_mut_ptr(),
                    sources.as_mut_ptr(),
                    sizes.as_mut_ptr(),
                    part.len(),
                    &raw mut attribute,
                    &raw mut first,
                    1,
                    &raw mut failed,
                    stream,
                )
            };
            match status {
                OK => self.counts.batch(part),
                // the first call tells; a later one would leave what went before copied, and again is no harm
                UNSUPPORTED if number == 0 => return Err(Failure::new(Kind::Unsupported, "")),
                status => return Err(Self::failed_batch(functions, status, part.len(), failed)),
            }
        }
        Ok(())
    }

    fn failed_batch(functions: &Functions, status: Status, copies: usize, failed: usize) -> Failure {
        let what = if failed < copies {
            format!("copy {failed} of a batch of {copies}")
        } else {
            format!("a batch of {copies} copies")
        };
        let failure = failure(functions, &what, status);
        // said of a single batch it's an error like others: batches as such are known to work
        match failure.kind() {
            Kind::Unsupported => Failure::new(Kind::Io, failure.message()),
            _ => failure,
        }
    }

    /// # Safety
    /// As for [`Copier::copy`].
    unsafe fn single(
        &self,
        functions: &Functions,
        stream: *mut c_void,
        direction: Direction,
        copy: &Copy,
    ) -> Result<(), Failure> {
        let kind: c_int = match direction {
            Direction::HostToDevice => HOST_TO_DEVICE,
            Direction::DeviceToHost => DEVICE_TO_HOST,
            Direction::DeviceToDevice => DEVICE_TO_DEVICE,
        };
        let bytes = copy.bytes as usize;
        // SAFETY: the caller vouches for the ranges and the stream.
        let status = unsafe {
            (functions.copy_async)(
                copy.destination as *mut c_void,
                bytes,
                copy.source as *const c_void,
                bytes,
                kind,
                stream,
            )
        };
        if status != OK {
            return Err(failure(functions, "aclrtMemcpyAsync", status));
        }
        self.counts.single(copy);
        Ok(())
    }
}
