//! Memory of this process that others may map.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use kvstored_core::{Error, Result};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

use super::{Mapping, PAGE_BYTES};
use crate::time::os;

/// What a process may do with memory whose descriptor it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sharing {
    /// It can only map it for reading; the kernel sees to it, however the descriptor was come by.
    ReadOnly,
    /// It can map it for reading and writing.
    ReadWrite,
}

/// Zeroed memory in a file without a name (a memfd), mapped for reading and writing.
///
/// The file is sealed: nobody can shrink it, which would make every access of the others fault, nor make it
/// grow. Memory is taken from the system as it's touched.
#[derive(Debug)]
pub struct SharedMemory {
    mapping: Mapping,
    file: OwnedFd,
    sharing: Sharing,
}

impl SharedMemory {
    /// Memory of at least `length` bytes (whole pages). The name shows in `/proc`, and means nothing
    /// otherwise.
    ///
    /// Fails with `InvalidInput` for a length of 0 or near 2^63, and with `NoSpace`.
    pub fn new(name: &str, length: usize, sharing: Sharing) -> Result<Self> {
        let mapped = length
            .checked_next_multiple_of(PAGE_BYTES)
            .filter(|mapped| *mapped > 0 && i64::try_from(*mapped).is_ok())
            .ok_or_else(|| Error::invalid(format!("shared memory of {length} bytes")))?;
        let failed = |what| move |errno| os(errno, what).with("bytes", mapped);
        let file = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map_err(failed("memfd_create"))?;
        ftruncate(&file, mapped as u64).map_err(failed("ftruncate"))?;
        // ours is mapped before writing is sealed: the seal spares what is mapped already
        let mapping = Mapping::new(file.as_fd(), mapped, true)?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        let seals = match sharing {
            Sharing::ReadOnly => seals | SealFlags::FUTURE_WRITE,
            Sharing::ReadWrite => seals,
        };
        fcntl_add_seals(&file, seals).map_err(failed("seals"))?;
        Ok(Self {
            mapping,
            file,
            sharing,
        })
    }

    /// Its bytes: what was asked for, rounded up to whole pages.
    pub fn length(&self) -> usize {
        self.mapping.length()
    }

    /// The first byte. The memory is there as long as this is.
    pub fn base(&self) -> *mut u8 {
        self.mapping.base()
    }

    /// The address of `length` bytes at `offset`. Fails with `InvalidInput` outside.
    pub fn address(&self, offset: u64, length: usize) -> Result<*mut u8> {
        self.mapping.address(offset, length)
    }

    /// The file, to be passed to other processes.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// What other processes may do with it.
    pub fn sharing(&self) -> Sharing {
        self.sharing
    }

    /// Takes the memory of a range from the system now, and the page faults. Fails with `InvalidInput`
    /// outside.
    pub fn prefault(&self, offset: u64, length: usize) -> Result<()> {
        self.mapping.prefault(offset, length)
    }

    /// Copies bytes out. Fails with `InvalidInput` outside.
    pub fn read(&self, offset: u64, destination: &mut [u8]) -> Result<()> {
        self.mapping.read(offset, destination)
    }

    /// Copies bytes in. Fails with `InvalidInput` outside.
    pub fn write(&self, offset: u64, source: &[u8]) -> Result<()> {
        self.mapping.write(offset, source)
    }

    pub(crate) fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    pub(crate) fn into_parts(self) -> (Mapping, OwnedFd) {
        (self.mapping, self.file)
    }
}
