//! Memory of another process, mapped here.

use std::os::fd::{AsFd, OwnedFd};

use kvstored_core::{Error, ErrorKind, Result};
use rustix::fs::{SealFlags, fcntl_get_seals, fstat};

use super::{Mapping, Sharing};
use crate::time::os;

/// Memory that another process shares, as long as this lives. The descriptor isn't kept.
#[derive(Debug)]
pub struct PeerMemory {
    mapping: Mapping,
    access: Sharing,
}

impl PeerMemory {
    /// Maps the first `length` bytes of a file that a peer has passed.
    ///
    /// Fails with `PermissionDenied` for a file that can be shrunk (its owner could make every access fault)
    /// or can't be mapped in that way, with `InvalidInput` for a length of 0 or past the file's end, and with
    /// `NoSpace`.
    pub fn map(file: OwnedFd, length: u64, access: Sharing) -> Result<Self> {
        let denied = |why: &str| Error::new(ErrorKind::PermissionDenied, format!("a peer's memory {why}"));
        let seals = fcntl_get_seals(&file).map_err(|_| denied("is no sealed file"))?;
        if !seals.contains(SealFlags::SHRINK) {
            return Err(denied("could be shrunk"));
        }
        let about = fstat(&file).map_err(|errno| os(errno, "fstat"))?;
        let there = u64::try_from(about.st_size).unwrap_or(0);
        let length = usize::try_from(length)
            .ok()
            .filter(|_| length > 0 && length <= there)
            .ok_or_else(|| Error::invalid(format!("{length} bytes of a peer's file of {there}")))?;
        Ok(Self {
            mapping: Mapping::new(file.as_fd(), length, access == Sharing::ReadWrite)?,
            access,
        })
    }

    /// Its bytes.
    pub fn length(&self) -> usize {
        self.mapping.length()
    }

    /// What it's mapped for.
    pub fn access(&self) -> Sharing {
        self.access
    }

    /// The address of `length` bytes at `offset`, valid as long as this lives; a store faults unless it's
    /// mapped for writing. Fails with `InvalidInput` outside.
    pub fn address(&self, offset: u64, length: usize) -> Result<*mut u8> {
        self.mapping.address(offset, length)
    }

    /// Takes the page faults of a range now. Fails with `InvalidInput` outside.
    pub fn prefault(&self, offset: u64, length: usize) -> Result<()> {
        self.mapping.prefault(offset, length)
    }

    /// Copies bytes out. Fails with `InvalidInput` outside.
    pub fn read(&self, offset: u64, destination: &mut [u8]) -> Result<()> {
        self.mapping.read(offset, destination)
    }

    /// Copies bytes in. Fails with `InvalidInput` outside, and where it's mapped for reading.
    pub fn write(&self, offset: u64, source: &[u8]) -> Result<()> {
        self.mapping.write(offset, source)
    }

    pub(crate) fn mapping(&self) -> &Mapping {
        &self.mapping
    }
}
