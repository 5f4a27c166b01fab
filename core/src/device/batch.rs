//! Copies that go to a device in one call, with what keeps their memory alive.

use std::any::Any;
use std::sync::Arc;

use super::{Copy, DeviceAddress, DeviceMemory, Direction, HostAddress};
use crate::error::{Error, Result};
use crate::memory::{Arena, SlotGuard};

/// A batch of copies in one direction. It holds the memory it touches, until the stream that it's given to has passed it.
pub struct CopyBatch {
    direction: Direction,
    copies: Vec<Copy>,
    bytes: u64,
    held: Vec<Arc<dyn Any + Send + Sync>>,
    /// The arena that was held last.
    arena: Option<Arc<Arena>>,
}

impl CopyBatch {
    /// The most copies in one batch.
    pub const MAX_COPIES: usize = 1 << 20;

    /// An empty batch.
    pub fn new(direction: Direction) -> Self {
        Self {
            direction,
            copies: Vec::new(),
            bytes: 0,
            held: Vec::new(),
            arena: None,
        }
    }

    /// The direction of all its copies.
    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// The copies.
    pub fn copies(&self) -> &[Copy] {
        &self.copies
    }

    /// Bytes of all copies.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether there's nothing to copy.
    pub fn is_empty(&self) -> bool {
        self.copies.is_empty()
    }

    /// Adds a copy between a slot and device memory, in the batch's direction; both ranges are checked. The memory is to
    /// be held with [`CopyBatch::hold`], which one call does for many copies.
    fn pair(&mut self, device: DeviceAddress, host: HostAddress, bytes: usize) -> Result<()> {
        let (destination, source) = match self.direction {
            Direction::HostToDevice => (device.0, host.0),
            Direction::DeviceToHost => (host.0, device.0),
            Direction::DeviceToDevice => {
                return Err(Error::invalid("host memory in a batch within the device"));
            }
        };
        self.push(destination, source, bytes)
    }

    fn push(&mut self, destination: u64, source: u64, bytes: usize) -> Result<()> {
        if bytes == 0 || self.copies.len() >= Self::MAX_COPIES {
            return Err(Error::invalid(format!(
                "copy {} of {bytes} bytes; a batch has up to {} and none is empty",
                self.copies.len(),
                Self::MAX_COPIES
            )));
        }
        self.copies.push(Copy {
            destination,
            source,
            bytes: bytes as u64,
        });
        self.bytes += bytes as u64;
        Ok(())
    }

    /// Adds a copy between a slot and device memory; it goes the batch's way. Fails with `InvalidInput` outside of either.
    pub fn slot(
        &mut self,
        slot: &SlotGuard,
        slot_offset: usize,
        memory: &Arc<DeviceMemory>,
        memory_offset: usize,
        bytes: usize,
    ) -> Result<()> {
        if slot_offset
            .checked_add(bytes)
            .is_none_or(|end| end > slot.length())
        {
            return Err(Error::invalid(format!(
                "bytes {slot_offset}+{bytes} are outside the slot's {}",
                slot.length()
            )));
        }
        let host = slot.arena().address(slot.offset() + slot_offset, bytes)?;
        let device = memory.address(memory_offset, bytes)?;
        self.pair(device, HostAddress::of(host), bytes)?;
        self.held.push(Arc::new(slot.clone()));
        self.held.push(memory.clone());
        Ok(())
    }

    /// Adds a copy between an arena and device memory of the engine. Fails with `InvalidInput` outside of the arena, which is
    /// held.
    ///
    /// # Safety
    /// `engine` must be valid for `bytes` on the device that the batch goes to, until the stream has passed it, and be
    /// neither written by others nor, where the batch writes to it, read. The arena's bytes must be the caller's until then.
    pub unsafe fn arena_and_engine(
        &mut self,
        arena: &Arc<Arena>,
        offset: usize,
        engine: DeviceAddress,
        bytes: usize,
    ) -> Result<()> {
        let host = arena.address(offset, bytes)?;
        self.pair(engine, HostAddress::of(host), bytes)?;
        if self.arena.as_ref().is_none_or(|held| !Arc::ptr_eq(held, arena)) {
            self.held.push(arena.clone());
            self.arena = Some(arena.clone());
        }
        Ok(())
    }

    /// Adds a copy within the device.
    ///
    /// # Safety
    /// Both ranges must be valid for `bytes` on the device that the batch goes to until the stream has passed it, and not
    /// overlap; nothing else may write to the source or touch the destination.
    pub unsafe fn within_device(
        &mut self,
        destination: DeviceAddress,
        source: DeviceAddress,
        bytes: usize,
    ) -> Result<()> {
        if self.direction != Direction::DeviceToDevice {
            return Err(Error::invalid(
                "a copy within the device in a batch that leaves it",
            ));
        }
        self.push(destination.0, source.0, bytes)
    }

    /// Keeps something alive until the stream has passed the batch: memory that its copies touch.
    pub fn hold(&mut self, memory: Arc<dyn Any + Send + Sync>) {
        self.held.push(memory);
    }

    pub(super) fn into_held(self) -> Vec<Arc<dyn Any + Send + Sync>> {
        self.held
    }
}
