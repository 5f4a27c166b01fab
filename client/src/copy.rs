//! Copying between engine memory and the arena: the only place that touches engine memory.
#![allow(unsafe_code)]

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use kvstored_core::checksum::Checksum;
use kvstored_core::device::{CopyBatch, DeviceAddress, Direction};
use kvstored_core::error::{Error, Result};
use kvstored_core::layout::Shard;
use kvstored_core::memory::Arena;
use kvstored_core::tier::NamespaceInfo;

use crate::device::Place;

/// One contiguous piece of engine memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorAddress {
    /// Where it begins.
    pub address: usize,
    /// Its length in bytes.
    pub bytes: u32,
}

/// The engine memory of a task, checked against the layout: for each block, each shard of a range, each tensor, in one
/// piece or in several that follow one another in the block.
pub(crate) struct CopyPlan {
    info: Arc<NamespaceInfo>,
    shards: Range<usize>,
    tensors: Vec<TensorAddress>,
    /// Where each shard of the range begins among a block's tensors, and the end.
    starts: Vec<usize>,
    block_bytes: usize,
    place: Place,
}

impl CopyPlan {
    /// Checks count and sizes. Fails with `InvalidInput`, naming what is wrong.
    ///
    /// # Safety
    /// The tensors' memory must be valid for the copies asked of the plan, on the device if the place is one, and belong to
    /// nobody else meanwhile. The place's event, if it has one, must be a live one of the device's runtime as long.
    pub(crate) unsafe fn new(
        info: &Arc<NamespaceInfo>,
        blocks: usize,
        shards: Range<usize>,
        tensors: Vec<TensorAddress>,
        place: Place,
    ) -> Result<Self> {
        let count = info.layout.shards().len();
        let chosen = info
            .layout
            .shards()
            .get(shards.clone())
            .filter(|chosen| !chosen.is_empty())
            .ok_or_else(|| {
                Error::invalid(format!(
                    "shards {}..{} are not within the layout's {count}",
                    shards.start, shards.end
                ))
            })?;
        let (starts, expected) = pieces(chosen, blocks, &tensors)?;
        for (index, (tensor, bytes)) in tensors.iter().zip(expected.iter().cycle()).enumerate() {
            if tensor.bytes != *bytes || tensor.address == 0 {
                return Err(Error::invalid(format!(
                    "tensor {index} (block {}, tensor {} of the block) has {} bytes at {:#x}; {bytes} are expected",
                    index / expected.len(),
                    index % expected.len(),
                    tensor.bytes,
                    tensor.address
                )));
            }
        }
        let block_bytes = expected.iter().map(|bytes| *bytes as usize).sum();
        Ok(Self {
            info: info.clone(),
            shards,
            tensors,
            starts,
            block_bytes,
            place,
        })
    }

    /// The layout's shards that the plan covers.
    pub(crate) fn shards(&self) -> Range<usize> {
        self.shards.clone()
    }

    /// Bytes copied per block.
    pub(crate) fn block_bytes(&self) -> usize {
        self.block_bytes
    }

    /// Whether the engine's memory is on a device: then blocks are copied many at a time.
    pub(crate) fn is_on_device(&self) -> bool {
        matches!(self.place, Place::Device(..))
    }

    /// Copies some shards of blocks into their images and returns the checksums of what was copied, of each block. A block
    /// is its number and where its image begins in the arena.
    pub(crate) fn copy_in_all(
        &self,
        blocks: &[(usize, usize)],
        shards: &Range<usize>,
        arena: &Arc<Arena>,
        deadline: Instant,
    ) -> Vec<Result<Vec<u64>>> {
        let sums = |(block, image): &(usize, usize)| {
            let shards = shards.clone();
            if self.is_on_device() {
                shards.map(|shard| self.sum(shard, arena, *image)).collect()
            } else {
                shards
                    .map(|shard| self.copy_in(*block, shard, arena, *image))
                    .collect()
            }
        };
        if let Place::Device(..) = &self.place
            && let Err(error) = self.batch(Direction::DeviceToHost, blocks, shards, arena, deadline)
        {
            return blocks.iter().map(|_| Err(error.clone())).collect();
        }
        blocks.iter().map(sums).collect()
    }

    /// Copies some shards of blocks to a device, in one call of it, from images that were verified.
    pub(crate) fn copy_out_all(
        &self,
        blocks: &[(usize, usize)],
        shards: &Range<usize>,
        arena: &Arc<Arena>,
        deadline: Instant,
    ) -> Result<()> {
        self.batch(Direction::HostToDevice, blocks, shards, arena, deadline)
    }

    /// The checksum of a shard in the image at `image` in the arena.
    pub(crate) fn sum(&self, shard: usize, arena: &Arena, image: usize) -> Result<u64> {
        let bytes = self.info.layout.shard(shard)?.payload_bytes();
        let offset = self
            .info
            .layout
            .shard_offset(shard)
            .and_then(|offset| offset.checked_add(image))
            .ok_or_else(|| Error::internal(format!("shard {shard} is outside the copy plan")))?;
        arena.checksum(offset, bytes)
    }

    /// One batch of copies for all of these blocks' shards, waited for.
    fn batch(
        &self,
        direction: Direction,
        blocks: &[(usize, usize)],
        shards: &Range<usize>,
        arena: &Arc<Arena>,
        deadline: Instant,
    ) -> Result<()> {
        let Place::Device(device, after) = &self.place else {
            return Err(Error::internal("a batch for engine memory that's on no device"));
        };
        let mut batch = CopyBatch::new(direction);
        for (block, image) in blocks {
            for shard in shards.clone() {
                let (mut offset, tensors) = self.shard(*block, shard, *image)?;
                for tensor in tensors {
                    let length = tensor.bytes as usize;
                    let engine = DeviceAddress(tensor.address as u64);
                    // SAFETY: whoever made the plan vouches for the engine's memory; the slots in the arena are the task's.
                    unsafe { batch.arena_and_engine(arena, offset, engine, length) }?;
                    offset += length;
                }
            }
        }
        if batch.is_empty() {
            return Ok(());
        }
        // SAFETY: whoever made the plan vouches for the event.
        unsafe { device.copy(batch, arena, *after, deadline) }
    }

    /// Copies a block's shard out of the image at `image` in the arena and returns the checksum of what was copied.
    pub(crate) fn copy_out(&self, block: usize, shard: usize, arena: &Arena, image: usize) -> Result<u64> {
        let (mut offset, tensors) = self.shard(block, shard, image)?;
        let mut checksum = Checksum::new();
        for tensor in tensors {
            let length = tensor.bytes as usize;
            // SAFETY: whoever made the plan vouches for the memory.
            unsafe { arena.copy_out(offset, tensor.address as *mut u8, length, &mut checksum) }?;
            offset += length;
        }
        Ok(checksum.value())
    }

    /// Copies a block's shard into the image at `image` in the arena and returns the checksum of what was copied.
    pub(crate) fn copy_in(&self, block: usize, shard: usize, arena: &Arena, image: usize) -> Result<u64> {
        let (mut offset, tensors) = self.shard(block, shard, image)?;
        let mut checksum = Checksum::new();
        for tensor in tensors {
            let length = tensor.bytes as usize;
            // SAFETY: whoever made the plan vouches for the memory.
            unsafe { arena.copy_in(offset, tensor.address as *const u8, length, &mut checksum) }?;
            offset += length;
        }
        Ok(checksum.value())
    }

    /// Where a shard begins in the arena, and its tensors. `shard` is an index in the layout.
    fn shard(&self, block: usize, shard: usize, image: usize) -> Result<(usize, &[TensorAddress])> {
        let outside = || Error::internal(format!("shard {shard} of block {block} is outside the copy plan"));
        let place = shard.checked_sub(self.shards.start).ok_or_else(outside)?;
        let per_block = self.starts.last().copied().unwrap_or_default();
        let (Some(from), Some(to)) = (self.starts.get(place), self.starts.get(place + 1)) else {
            return Err(outside());
        };
        let tensors = self
            .tensors
            .get(block * per_block + from..block * per_block + to)
            .ok_or_else(outside)?;
        let offset = self
            .info
            .layout
            .shard_offset(shard)
            .and_then(|offset| offset.checked_add(image));
        Ok((offset.ok_or_else(outside)?, tensors))
    }
}

/// Where each shard begins among a block's pieces, and the pieces' bytes: the first block's, which cover every tensor
/// without a gap, or the layout's. Fails with `InvalidInput`.
fn pieces(chosen: &[Shard], blocks: usize, tensors: &[TensorAddress]) -> Result<(Vec<usize>, Vec<u32>)> {
    let layout: Vec<u32> = chosen
        .iter()
        .flat_map(|shard| shard.tensor_bytes.iter().copied())
        .collect();
    let count = layout.len();
    let wrong_number = || {
        Error::invalid(format!(
            "{} tensors were given; {blocks} blocks of {count} tensors in {} shards take {}",
            tensors.len(),
            chosen.len(),
            blocks.saturating_mul(count)
        ))
    };
    let per_block = match blocks {
        0 if tensors.is_empty() => count,
        0 => return Err(wrong_number()),
        _ => tensors.len() / blocks,
    };
    if per_block < count || per_block.saturating_mul(blocks) != tensors.len() {
        return Err(wrong_number());
    }
    let mut sizes: Vec<u32> = tensors.iter().take(per_block).map(|piece| piece.bytes).collect();
    if per_block == count {
        // one piece each: what is wrong shows tensor by tensor
        sizes = layout;
    }
    let mut starts = vec![0];
    let mut next = 0;
    for (index, shard) in chosen.iter().enumerate() {
        for tensor in &shard.tensor_bytes {
            let mut left = *tensor;
            while left > 0 {
                let piece = sizes.get(next).copied().unwrap_or_default();
                left = left.checked_sub(piece).filter(|_| piece > 0).ok_or_else(|| {
                    Error::invalid(format!(
                        "piece {next} of a block has {piece} bytes; a tensor of shard {index} has {left} of its {tensor} left"
                    ))
                })?;
                next += 1;
            }
        }
        starts.push(next);
    }
    if next != sizes.len() {
        return Err(wrong_number());
    }
    Ok((starts, sizes))
}
