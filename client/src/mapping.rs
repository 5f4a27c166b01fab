//! The daemon's arena, mapped into this process.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::{Arc, Weak};

use kvstored_core::error::{Error, ErrorKind, Result};
use kvstored_core::memory::Arena;
use parking_lot::Mutex;
use rustix::fs::fstat;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

struct Unmap {
    base: NonNull<u8>,
    length: usize,
    /// Keeps the file, and so its number, from being reused while the mapping is shared by that number.
    _file: OwnedFd,
}

// SAFETY: it only owns a mapping, which any thread may unmap.
unsafe impl Send for Unmap {}
// SAFETY: nothing is accessed through it.
unsafe impl Sync for Unmap {}

impl Drop for Unmap {
    fn drop(&mut self) {
        // SAFETY: mapped in this module with this base and length; the arena that used it is gone.
        if let Err(error) = unsafe { munmap(self.base.as_ptr().cast::<c_void>(), self.length) } {
            tracing::warn!(%error, "arena not unmapped");
        }
    }
}

/// Maps an arena once, however many connections hand out its descriptor: page faults are paid once as well.
#[derive(Default)]
pub struct Mappings {
    last: Mutex<Option<(u64, u64, Weak<Arena>)>>,
}

impl Mappings {
    /// The arena behind the descriptor. Fails with `InvalidInput` if the file is shorter than it's said to be.
    pub fn map(&self, file: OwnedFd, length: u64) -> Result<Arc<Arena>> {
        let failed = |error: rustix::io::Errno| {
            Error::from_io(error.into(), format!("can't map an arena of {length} bytes"))
        };
        let about = fstat(&file).map_err(failed)?;
        if length == 0 || (about.st_size as u64) < length {
            return Err(Error::invalid(format!(
                "an arena of {length} bytes in a file of {}",
                about.st_size
            )));
        }
        let mut last = self.last.lock();
        if let Some((device, inode, arena)) = &*last
            && (*device, *inode) == (about.st_dev, about.st_ino)
            && let Some(arena) = arena.upgrade()
            && arena.length() as u64 == length
        {
            return Ok(arena);
        }
        let length = usize::try_from(length).map_err(|_| {
            Error::new(
                ErrorKind::TooLarge,
                "the arena exceeds this process's address space",
            )
        })?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh mapping touches no existing memory.
        let address = unsafe {
            mmap(
                std::ptr::null_mut(),
                length,
                protection,
                MapFlags::SHARED,
                &file,
                0,
            )
        }
        .map_err(failed)?;
        let base = NonNull::new(address.cast::<u8>()).ok_or_else(|| Error::internal("mmap returned null"))?;
        // SAFETY: advice about our own fresh mapping; it's refused where the file has no huge pages, which is fine.
        let _ = unsafe { madvise(address, length, Advice::LinuxHugepage) };
        let mapping = Unmap {
            base,
            length,
            _file: file,
        };
        // SAFETY: the mapping is readable and writable for its length (the file is at least as long) and lives
        // inside the arena.
        let arena = Arc::new(unsafe { Arena::from_mapping(base, length, Box::new(mapping)) });
        *last = Some((about.st_dev, about.st_ino, Arc::downgrade(&arena)));
        Ok(arena)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    fn file(length: u64) -> OwnedFd {
        let file = memfd_create("kvstored-test", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, length).unwrap();
        file
    }

    #[test]
    fn one_file_is_mapped_once_and_another_anew() {
        let mappings = Mappings::default();
        let first = file(8192);
        let a = mappings.map(first.try_clone().unwrap(), 8192).unwrap();
        let b = mappings.map(first, 8192).unwrap();
        assert!(Arc::ptr_eq(&a, &b));
        a.write(5000, &[7; 9]).unwrap();
        let c = mappings.map(file(8192), 8192).unwrap();
        let mut bytes = [1u8; 9];
        c.read(5000, &mut bytes).unwrap();
        assert_eq!(bytes, [0; 9]);
    }

    #[test]
    fn a_file_shorter_than_announced_is_refused() {
        let error = Mappings::default().map(file(4096), 8192).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
}
