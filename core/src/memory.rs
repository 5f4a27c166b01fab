//! Shared memory that blocks live in: arenas, and guards that pin a slot while somebody uses it.
//!
//! Bytes of an arena may be shared with other processes, so nothing ever forms a Rust reference to them: they
//! are only copied from and to, through raw pointers. Consistency comes from the slot protocol (a slot has one
//! writer until it's published and is never written afterwards) and, where a process misbehaves, from the
//! checksums.
#![allow(unsafe_code)]

use std::any::Any;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::checksum::Checksum;
use crate::error::{Error, Result};
use crate::layout::PAGE_BYTES;

/// A mapped range of memory that slots are cut from.
pub struct Arena {
    base: NonNull<u8>,
    length: usize,
    id: u64,
    file: Option<Arc<OwnedFd>>,
    mapping: Box<dyn Any + Send + Sync>,
    extent: Mutex<Extent>,
}

/// How much of an arena is in use at most, from its start.
struct Extent {
    /// Bytes that may have memory behind them, whether or not slots lie there.
    claimed: usize,
    /// Bytes that aren't given up.
    kept: usize,
}

/// The number of the next arena.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

// SAFETY: the arena is plain memory that is only copied from and to; the mapping behind it is Send + Sync.
unsafe impl Send for Arena {}
// SAFETY: as above; concurrent copies of the same bytes are excluded by the slot protocol.
unsafe impl Sync for Arena {}

impl Arena {
    /// Takes a mapping over.
    ///
    /// # Safety
    /// `base` must be valid for reads and writes of `length` bytes for as long as `mapping` lives, and nothing
    /// may form references to those bytes.
    pub unsafe fn from_mapping(
        base: NonNull<u8>,
        length: usize,
        mapping: Box<dyn Any + Send + Sync>,
    ) -> Self {
        Self {
            base,
            length,
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            file: None,
            mapping,
            extent: Mutex::new(Extent {
                claimed: 0,
                kept: length,
            }),
        }
    }

    /// Says which file is mapped, from its start.
    pub fn mapping_file(self, file: Arc<OwnedFd>) -> Self {
        Self {
            file: Some(file),
            ..self
        }
    }

    /// Memory of this process alone, page-aligned and zeroed; for tests and tools.
    pub fn heap(length: usize) -> Result<Self> {
        struct Heap(NonNull<u8>, std::alloc::Layout);
        // SAFETY: Heap only owns an allocation.
        unsafe impl Send for Heap {}
        // SAFETY: as above; nothing is accessed through it.
        unsafe impl Sync for Heap {}
        impl Drop for Heap {
            fn drop(&mut self) {
                // SAFETY: allocated below with this very layout.
                unsafe { std::alloc::dealloc(self.0.as_ptr(), self.1) }
            }
        }
        let layout = std::alloc::Layout::from_size_align(length.max(PAGE_BYTES), PAGE_BYTES)
            .map_err(|_| Error::invalid(format!("arena of {length} bytes")))?;
        // SAFETY: the layout has a non-zero size.
        let base = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) }).ok_or_else(|| {
            Error::new(
                crate::error::ErrorKind::NoSpace,
                format!("no memory for {length} bytes"),
            )
        })?;
        // SAFETY: the allocation lives as long as the Heap that is moved into the arena.
        Ok(unsafe { Self::from_mapping(base, length, Box::new(Heap(base, layout))) })
    }

    /// The file that is mapped, where others can map it too.
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(|file| file.as_fd())
    }

    /// Names the arena in this process; no other ever has the same number.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// What [`Arena::from_mapping`] took over.
    pub fn mapping(&self) -> &(dyn Any + Send + Sync) {
        &*self.mapping
    }

    /// Bytes of the arena.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Says that memory is put behind the bytes from the start to `end`, by somebody who pins or allocates it. Returns
    /// how many there are: fewer where the owner has given the rest up, in which nothing will ever lie.
    pub fn claim(&self, end: usize) -> usize {
        let mut extent = self.extent.lock();
        let end = end.min(extent.kept);
        extent.claimed = extent.claimed.max(end);
        end
    }

    /// Gives up the bytes from `start` on, for good: their owner never touches them. Returns false, and nothing is given
    /// up, where some of them were claimed.
    pub fn give_up(&self, start: usize) -> bool {
        let mut extent = self.extent.lock();
        if extent.claimed > start {
            return false;
        }
        extent.kept = extent.kept.min(start);
        true
    }

    /// The first byte; for registering the arena with the kernel or a device.
    pub fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// The address of `length` bytes at `offset`. Fails with `InvalidInput` outside the arena.
    pub fn address(&self, offset: usize, length: usize) -> Result<*mut u8> {
        match offset.checked_add(length) {
            // SAFETY: offset is within the mapping.
            Some(end) if end <= self.length => Ok(unsafe { self.base.as_ptr().add(offset) }),
            _ => Err(Error::invalid(format!(
                "bytes {offset}+{length} are outside the arena's {} bytes",
                self.length
            ))),
        }
    }

    /// Copies `destination.len()` bytes out of the arena.
    pub fn read(&self, offset: usize, destination: &mut [u8]) -> Result<()> {
        let source = self.address(offset, destination.len())?;
        // SAFETY: both ranges are valid for that length; a slice of ours can't overlap the mapping.
        unsafe { std::ptr::copy_nonoverlapping(source, destination.as_mut_ptr(), destination.len()) };
        Ok(())
    }

    /// Copies bytes into the arena.
    pub fn write(&self, offset: usize, source: &[u8]) -> Result<()> {
        let destination = self.address(offset, source.len())?;
        // SAFETY: as in `read`.
        unsafe { std::ptr::copy_nonoverlapping(source.as_ptr(), destination, source.len()) };
        Ok(())
    }

    /// Copies bytes into the arena and continues the checksum over them.
    pub fn write_summed(&self, offset: usize, source: &[u8], checksum: &mut Checksum) -> Result<()> {
        let destination = self.address(offset, source.len())?;
        // SAFETY: as in `read`; nobody writes to a slice that is lent.
        unsafe { checksum.copy_raw(destination, source.as_ptr(), source.len()) };
        Ok(())
    }

    /// CRC-64/NVME of a range of the arena.
    pub fn checksum(&self, offset: usize, length: usize) -> Result<u64> {
        let mut checksum = Checksum::new();
        let source = self.address(offset, length)?;
        // SAFETY: the range is valid; the slot protocol keeps writers away from it. A process that breaks the
        // protocol changes what the checksum says, which is what it's for.
        checksum.update(unsafe { std::slice::from_raw_parts(source, length) });
        Ok(checksum.value())
    }

    /// Copies engine memory into the arena and continues the checksum over it.
    ///
    /// # Safety
    /// `source` must be valid for reads of `length` bytes and not overlap the arena.
    pub unsafe fn copy_in(
        &self,
        offset: usize,
        source: *const u8,
        length: usize,
        checksum: &mut Checksum,
    ) -> Result<()> {
        let destination = self.address(offset, length)?;
        // SAFETY: the caller vouches for the source, `address` for the destination.
        unsafe { checksum.copy_raw(destination, source, length) };
        Ok(())
    }

    /// Copies from the arena into engine memory and continues the checksum over it.
    ///
    /// # Safety
    /// `destination` must be valid for writes of `length` bytes and not overlap the arena.
    pub unsafe fn copy_out(
        &self,
        offset: usize,
        destination: *mut u8,
        length: usize,
        checksum: &mut Checksum,
    ) -> Result<()> {
        let source = self.address(offset, length)?;
        // SAFETY: the caller vouches for the destination, `address` for the source.
        unsafe { checksum.copy_raw(destination, source, length) };
        Ok(())
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Arena")
            .field("length", &self.length)
            .finish_non_exhaustive()
    }
}

/// Who gets a slot back when its last guard goes.
pub trait SlotOwner: Send + Sync + 'static {
    /// The last guard of this pin is gone. Called without any lock of the caller's held.
    fn release(&self, slot: u32);
}

struct Pin {
    arena: Arc<Arena>,
    owner: Arc<dyn SlotOwner>,
    slot: u32,
    offset: usize,
    length: usize,
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.owner.release(self.slot);
    }
}

/// Keeps a slot in place: it's neither evicted nor reused while a clone of the guard lives.
#[derive(Clone)]
pub struct SlotGuard {
    pin: Arc<Pin>,
}

impl SlotGuard {
    /// A guard over `length` bytes at `offset`; the owner has counted one pin for it.
    pub fn new(
        arena: Arc<Arena>,
        owner: Arc<dyn SlotOwner>,
        slot: u32,
        offset: usize,
        length: usize,
    ) -> Self {
        Self {
            pin: Arc::new(Pin {
                arena,
                owner,
                slot,
                offset,
                length,
            }),
        }
    }

    /// The owner's number of the slot.
    pub fn slot(&self) -> u32 {
        self.pin.slot
    }

    /// Where the slot begins in the arena.
    pub fn offset(&self) -> usize {
        self.pin.offset
    }

    /// Bytes of the slot.
    pub fn length(&self) -> usize {
        self.pin.length
    }

    /// The arena the slot lies in.
    pub fn arena(&self) -> &Arc<Arena> {
        &self.pin.arena
    }

    /// Address of the slot's first byte, for the kernel or a device.
    pub fn address(&self) -> *mut u8 {
        // SAFETY: offset + length was checked against the arena by the owner that cut the slot.
        unsafe { self.pin.arena.base().add(self.pin.offset) }
    }

    /// The descriptor page's bytes.
    pub fn descriptor(&self) -> Result<Box<[u8; PAGE_BYTES]>> {
        let mut page = Box::new([0u8; PAGE_BYTES]);
        self.pin.arena.read(self.pin.offset, &mut page[..])?;
        Ok(page)
    }

    /// Writes the descriptor page; only before the slot is published.
    pub fn write_descriptor(&self, page: &[u8; PAGE_BYTES]) -> Result<()> {
        self.pin.arena.write(self.pin.offset, page)
    }
}

impl fmt::Debug for SlotGuard {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("SlotGuard")
            .field("slot", &self.pin.slot)
            .field("offset", &self.pin.offset)
            .field("length", &self.pin.length)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_claimed_is_not_given_up_and_what_was_given_up_is_not_claimed() {
        let arena = Arena::heap(16 * PAGE_BYTES).unwrap();
        assert_eq!(arena.claim(4 * PAGE_BYTES), 4 * PAGE_BYTES);
        assert!(!arena.give_up(3 * PAGE_BYTES));
        assert!(arena.give_up(12 * PAGE_BYTES) && arena.give_up(8 * PAGE_BYTES));
        assert_eq!(arena.claim(arena.length()), 8 * PAGE_BYTES);
        assert!(!arena.give_up(7 * PAGE_BYTES));
        // what was given up stays so
        assert!(arena.give_up(arena.length()));
        assert_eq!(arena.claim(arena.length()), 8 * PAGE_BYTES);
    }
}
