//! A mapped file, unmapped when dropped.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64};

use kvstored_core::{Error, Result};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

use crate::time::os;

const HUGE_PAGE_BYTES: usize = 2 << 20;

/// A range of a file in this process's memory.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    length: usize,
    writable: bool,
}

// SAFETY: plain memory that is only copied from and to through raw pointers, or accessed as atomics.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `length` bytes, shared, with huge pages where the kernel has any. The caller has made
    /// sure that the file is that long and stays so.
    pub fn new(file: BorrowedFd<'_>, length: usize, writable: bool) -> Result<Self> {
        let protection = if writable {
            ProtFlags::READ | ProtFlags::WRITE
        } else {
            ProtFlags::READ
        };
        // SAFETY: a fresh mapping, at an address that the kernel chooses, touches no existing memory.
        let base = unsafe {
            mmap(
                std::ptr::null_mut(),
                length,
                protection,
                MapFlags::SHARED,
                file,
                0,
            )
        }
        .map_err(|errno| os(errno, "mmap").with("bytes", length))?;
        let base = NonNull::new(base.cast::<u8>()).ok_or_else(|| Error::internal("mapped at null"))?;
        let mapping = Self {
            base,
            length,
            writable,
        };
        // a small file would take a huge page for itself all the same
        if length >= HUGE_PAGE_BYTES {
            // refused where the kernel has no huge pages, which is fine
            let _ = mapping.advise(0, length, Advice::LinuxHugepage);
        }
        Ok(mapping)
    }

    pub fn length(&self) -> usize {
        self.length
    }

    pub fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// The address of `length` bytes at `offset`. Fails with `InvalidInput` outside.
    pub fn address(&self, offset: u64, length: usize) -> Result<*mut u8> {
        match usize::try_from(offset) {
            Ok(start) if start <= self.length && length <= self.length - start => {
                // SAFETY: the offset is inside the mapping, or its end.
                Ok(unsafe { self.base.as_ptr().add(start) })
            }
            _ => Err(Error::invalid(format!(
                "bytes {offset}+{length} are outside {} mapped bytes",
                self.length
            ))),
        }
    }

    /// Takes the page faults of a range now. Fails with `InvalidInput` outside, and as the kernel does.
    pub fn prefault(&self, offset: u64, length: usize) -> Result<()> {
        self.address(offset, length)?;
        let start = offset as usize / super::PAGE_BYTES * super::PAGE_BYTES;
        let advice = if self.writable {
            Advice::LinuxPopulateWrite
        } else {
            Advice::LinuxPopulateRead
        };
        self.advise(start, offset as usize + length - start, advice)
            .map_err(|errno| os(errno, "madvise"))
    }

    fn advise(&self, start: usize, length: usize, advice: Advice) -> rustix::io::Result<()> {
        debug_assert!(start + length <= self.length);
        // SAFETY: the advice is about a range of our own mapping, and changes no contents.
        unsafe { madvise(self.base.as_ptr().add(start).cast::<c_void>(), length, advice) }
    }

    /// Copies bytes out. Fails with `InvalidInput` outside.
    pub fn read(&self, offset: u64, destination: &mut [u8]) -> Result<()> {
        let source = self.address(offset, destination.len())?;
        // SAFETY: the range was checked, and no slice of ours overlaps a mapping.
        unsafe { std::ptr::copy_nonoverlapping(source, destination.as_mut_ptr(), destination.len()) };
        Ok(())
    }

    /// Copies bytes in. Fails with `InvalidInput` outside, and where the mapping is only for reading.
    pub fn write(&self, offset: u64, source: &[u8]) -> Result<()> {
        if !self.writable {
            return Err(Error::invalid("the memory is mapped for reading"));
        }
        let destination = self.address(offset, source.len())?;
        // SAFETY: the range was checked and may be written, and no slice of ours overlaps a mapping.
        unsafe { std::ptr::copy_nonoverlapping(source.as_ptr(), destination, source.len()) };
        Ok(())
    }

    /// The aligned word at a byte offset, or `None` outside. Where the mapping is only for reading, storing
    /// to it faults.
    pub fn word(&self, offset: usize) -> Option<&AtomicU32> {
        let inside = offset.is_multiple_of(4) && offset.checked_add(4)? <= self.length;
        // SAFETY: mapped pages are aligned, the word is aligned and inside, and it's only ever accessed as an
        // atomic.
        inside.then(|| unsafe { AtomicU32::from_ptr(self.base.as_ptr().add(offset).cast()) })
    }

    /// The aligned double word at a byte offset; otherwise as [`Mapping::word`].
    pub fn double(&self, offset: usize) -> Option<&AtomicU64> {
        let inside = offset.is_multiple_of(8) && offset.checked_add(8)? <= self.length;
        // SAFETY: as in `word`.
        inside.then(|| unsafe { AtomicU64::from_ptr(self.base.as_ptr().add(offset).cast()) })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length; whoever uses an address of it keeps the mapping alive.
        if let Err(error) = unsafe { munmap(self.base.as_ptr().cast::<c_void>(), self.length) } {
            tracing::warn!(%error, "memory not unmapped");
        }
    }
}
