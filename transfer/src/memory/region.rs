//! Regions and publications, as callers hold them and as the engine does.
#![allow(unsafe_code)]

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use kvstored_core::{Error, Result};
use kvstored_shm::{SharedMemory, Sharing};
use parking_lot::Mutex;

use super::usage::Usage;
use crate::identity::{PublicationId, RegionId};

/// Whose memory it is.
#[derive(Debug)]
enum Backing {
    /// The engine's own.
    Own(SharedMemory),
    /// The caller's, who keeps it valid until it's unregistered.
    Foreign,
}

/// What the engine knows of a region.
#[derive(Debug)]
pub(crate) struct RegionState {
    id: RegionId,
    base: usize,
    length: usize,
    backing: Backing,
    /// The publication of all of it, for grants by address.
    pub whole: Mutex<Option<PublicationId>>,
    /// Operations that touch it.
    pub usage: Usage,
}

impl RegionState {
    pub fn own(id: RegionId, length: usize) -> Result<Self> {
        let memory = SharedMemory::new("kvstored-transfer", length, Sharing::ReadWrite)?;
        Ok(Self {
            id,
            base: memory.base().expose_provenance(),
            length,
            backing: Backing::Own(memory),
            whole: Mutex::new(None),
            usage: Usage::default(),
        })
    }

    /// Memory of the caller's. Fails with `InvalidInput` for none and past the end of the address space.
    pub fn foreign(id: RegionId, address: *mut u8, length: usize) -> Result<Self> {
        let base = address.expose_provenance();
        if base == 0 || length == 0 || base.checked_add(length).is_none() {
            return Err(Error::invalid(format!("memory of {length} bytes at {base:#x}")));
        }
        Ok(Self {
            id,
            base,
            length,
            backing: Backing::Foreign,
            whole: Mutex::new(None),
            usage: Usage::default(),
        })
    }

    pub fn id(&self) -> RegionId {
        self.id
    }

    pub fn base(&self) -> usize {
        self.base
    }

    pub fn length(&self) -> usize {
        self.length
    }

    /// The memfd, where the memory is the engine's own.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match &self.backing {
            Backing::Own(memory) => Some(memory.descriptor()),
            Backing::Foreign => None,
        }
    }

    /// Whether the range lies inside; never overflows.
    pub fn contains(&self, offset: u64, length: u64) -> bool {
        offset
            .checked_add(length)
            .is_some_and(|end| end <= self.length as u64)
    }
}

/// A registered region of memory. Clones are handles to the same region, which stays registered until
/// [`crate::TransferEngine::unregister`]; memory that the engine allocated is freed with the last handle after that.
#[derive(Clone)]
pub struct Region {
    state: Arc<RegionState>,
}

impl Region {
    pub(crate) fn new(state: Arc<RegionState>) -> Self {
        Self { state }
    }

    /// The engine's number of it.
    pub fn id(&self) -> RegionId {
        self.state.id
    }

    /// Its first byte.
    pub fn address(&self) -> *mut u8 {
        std::ptr::with_exposed_provenance_mut(self.state.base)
    }

    /// Its bytes.
    pub fn length(&self) -> usize {
        self.state.length
    }

    /// The memfd behind memory that the engine allocated, for mapping it elsewhere.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.state.descriptor()
    }

    /// Copies `destination.len()` bytes out of memory that the engine allocated. Fails with `InvalidInput` outside the
    /// region, and for memory that the caller registered, which only the caller knows to be valid.
    pub fn read(&self, offset: u64, destination: &mut [u8]) -> Result<()> {
        let source = self.own_range(offset, destination.len())?;
        // SAFETY: the range lies in the mapping, which lives as long as this handle, and no slice overlaps it.
        unsafe { std::ptr::copy_nonoverlapping(source, destination.as_mut_ptr(), destination.len()) };
        Ok(())
    }

    /// Copies bytes into memory that the engine allocated. Fails as [`Region::read`] does.
    pub fn write(&self, offset: u64, source: &[u8]) -> Result<()> {
        let destination = self.own_range(offset, source.len())?;
        // SAFETY: as in `read`.
        unsafe { std::ptr::copy_nonoverlapping(source.as_ptr(), destination, source.len()) };
        Ok(())
    }

    /// Copies bytes from another region to this one, without a transfer; the engine must have allocated both. Fails as
    /// [`Region::read`] does.
    pub fn copy_from(&self, offset: u64, source: &Self, source_offset: u64, length: usize) -> Result<()> {
        let destination = self.own_range(offset, length)?;
        let source = source.own_range(source_offset, length)?;
        // SAFETY: both ranges lie in mappings that live as long as the handles; they may overlap.
        unsafe { std::ptr::copy(source, destination, length) };
        Ok(())
    }

    fn own_range(&self, offset: u64, length: usize) -> Result<*mut u8> {
        if matches!(self.state.backing, Backing::Foreign) {
            return Err(Error::invalid("the memory is the caller's own"));
        }
        if !self.state.contains(offset, length as u64) {
            return Err(Error::invalid(format!(
                "bytes {offset}+{length} are outside a region of {} bytes",
                self.state.length
            )));
        }
        // SAFETY: the offset was checked against the mapping.
        Ok(unsafe { self.address().add(offset as usize) })
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Region")
            .field("id", &self.state.id.value())
            .field("length", &self.state.length)
            .finish_non_exhaustive()
    }
}

/// What the engine knows of a publication.
#[derive(Debug)]
pub(crate) struct PublicationState {
    pub id: PublicationId,
    pub epoch: u64,
    pub region: Arc<RegionState>,
    /// Where it begins in the region.
    pub offset: u64,
    pub length: u64,
    /// Operations that touch it.
    pub usage: Usage,
    /// Where peers that share the memory are counted in.
    pub slot: Mutex<Slot>,
}

/// A publication's place in the control page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Slot {
    /// No peer shares it.
    #[default]
    None,
    /// Peers get in.
    Open(u32),
    /// No peer gets in any more, but some may be in.
    Closing(u32),
}

/// A range that peers may be granted rights on, under an epoch of its own. It lasts until it's released or its region
/// unregistered, whether or not this is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    id: PublicationId,
    epoch: u64,
    region: RegionId,
    offset: u64,
    length: u64,
}

impl Publication {
    pub(crate) fn of(state: &PublicationState) -> Self {
        Self {
            id: state.id,
            epoch: state.epoch,
            region: state.region.id,
            offset: state.offset,
            length: state.length,
        }
    }

    /// The engine's number of it.
    pub fn id(&self) -> PublicationId {
        self.id
    }

    /// Its epoch: greater than that of anything released before it was published.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The region it lies in.
    pub fn region(&self) -> RegionId {
        self.region
    }

    /// Where it begins in the region.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Its bytes.
    pub fn length(&self) -> u64 {
        self.length
    }
}
