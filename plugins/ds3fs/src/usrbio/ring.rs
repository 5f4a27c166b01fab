//! A ring of I/O in one direction.

use std::cell::UnsafeCell;
use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::os::fd::RawFd;
use std::time::Duration;

use kvstored_core::{Error, Result};
use rustix::time::{ClockId, Timespec, clock_gettime};

use super::{Memory, Mount, abi, failed};

/// A ring. One thread at a time may prepare and submit, while another one waits.
pub struct Ring {
    mount: Mount,
    raw: Box<UnsafeCell<MaybeUninit<abi::Ior>>>,
    for_read: bool,
}

// SAFETY: the library allows one thread to prepare and another one to wait, and `prepare`, `submit` and `wait` say so.
unsafe impl Send for Ring {}
// SAFETY: as above.
unsafe impl Sync for Ring {}

/// What was reaped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// As given to [`Ring::prepare`].
    pub userdata: usize,
    /// Bytes moved, or an error number below zero.
    pub result: i64,
}

impl Ring {
    /// Makes a ring with that many places. Fails as the library does.
    ///
    /// Batches are left to whoever submits: a ring that waits for a number of I/O never starts the last few, and one
    /// with a time limit for that doesn't either.
    pub fn create(mount: &Mount, entries: usize, for_read: bool, io_depth: c_int) -> Result<Self> {
        let raw = Box::new(UnsafeCell::new(MaybeUninit::<abi::Ior>::zeroed()));
        // SAFETY: the room is a ring's, the name ends in a zero.
        let outcome = unsafe {
            (mount.library().iorcreate4)(
                raw.get().cast(),
                mount.name.as_ptr(),
                entries as c_int,
                for_read,
                io_depth,
                0,
                -1,
                0,
            )
        };
        if outcome != 0 {
            return Err(failed(outcome, "a ring can't be made").with("entries", entries));
        }
        Ok(Self {
            mount: mount.clone(),
            raw,
            for_read,
        })
    }

    /// Puts an I/O into the ring; it may start at once. Returns its place, or an error number: `EAGAIN` when the ring is
    /// full, and nothing is done then.
    ///
    /// # Safety
    /// `length` bytes at `address` must be memory's, stay valid until the completion is reaped, and be touched by nobody
    /// else if they are read into. Only one thread may be in here at once.
    pub unsafe fn prepare(
        &self,
        memory: &Memory,
        address: *mut u8,
        length: usize,
        descriptor: RawFd,
        file_offset: u64,
        userdata: usize,
    ) -> std::result::Result<usize, c_int> {
        // SAFETY: ring and memory are alive; the caller vouches for the rest.
        let outcome = unsafe {
            (self.mount.library().prep_io)(
                self.raw.get().cast::<abi::Ior>().cast_const(),
                memory.raw(),
                self.for_read,
                address.cast(),
                descriptor,
                file_offset as usize,
                length as u64,
                userdata as *const c_void,
            )
        };
        usize::try_from(outcome).map_err(|_| -outcome)
    }

    /// Has the prepared I/O started. Fails as the library does.
    pub fn submit(&self) -> Result<()> {
        // SAFETY: the ring is alive.
        let outcome =
            unsafe { (self.mount.library().submit_ios)(self.raw.get().cast::<abi::Ior>().cast_const()) };
        if outcome == 0 {
            return Ok(());
        }
        Err(failed(outcome, "I/O can't be submitted"))
    }

    /// Reaps up to `most` completions; waits until there are `least` or the time is over. Fails as the library does.
    ///
    /// # Safety
    /// Only one thread may be in here at once.
    pub unsafe fn wait(&self, most: usize, least: usize, timeout: Duration) -> Result<Vec<Completion>> {
        let empty = abi::Cqe {
            index: 0,
            reserved: 0,
            result: 0,
            userdata: std::ptr::null(),
        };
        let mut reaped = vec![empty; most];
        let until = realtime_in(timeout)?;
        // SAFETY: the ring is alive, there is room for `most`, the time is lent for the call.
        let count = unsafe {
            (self.mount.library().wait_for_ios)(
                self.raw.get().cast::<abi::Ior>().cast_const(),
                reaped.as_mut_ptr(),
                most as c_int,
                least as c_int,
                &raw const until,
            )
        };
        match usize::try_from(count) {
            Ok(count) if count <= most => {
                reaped.truncate(count);
                Ok(reaped
                    .iter()
                    .map(|completion| Completion {
                        userdata: completion.userdata as usize,
                        result: completion.result,
                    })
                    .collect())
            }
            Ok(count) => Err(Error::internal(format!("{count} completions where {most} fit"))),
            Err(_) if -count == libc::ETIMEDOUT => Ok(Vec::new()),
            Err(_) => Err(failed(count, "completions can't be waited for")),
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: made in `create`; whoever drops it has no I/O under way.
        unsafe { (self.mount.library().iordestroy)(self.raw.get().cast()) }
    }
}

/// The wall clock's time that much later, as the library wants it.
fn realtime_in(timeout: Duration) -> Result<libc::timespec> {
    let now = clock_gettime(ClockId::Realtime);
    let later = Timespec::try_from(timeout)
        .ok()
        .and_then(|timeout| now.checked_add(timeout))
        .ok_or_else(|| Error::internal("a time limit that the clock can't express"))?;
    Ok(libc::timespec {
        tv_sec: later.tv_sec,
        tv_nsec: later.tv_nsec as _,
    })
}
