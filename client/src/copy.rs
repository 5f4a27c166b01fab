//! Copying between engine memory and the arena: the only place that touches engine memory.
#![allow(unsafe_code)]

use std::ops::Range;
use std::sync::Arc;

use kvstored_core::checksum::Checksum;
use kvstored_core::error::{Error, Result};
use kvstored_core::memory::Arena;
use kvstored_core::tier::NamespaceInfo;

/// One contiguous piece of engine memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorAddress {
    /// Where it begins.
    pub address: usize,
    /// Its length in bytes.
    pub bytes: u32,
}

/// The engine memory of a task, checked against the layout: for each block, each shard of a range, each tensor.
pub(crate) struct CopyPlan {
    info: Arc<NamespaceInfo>,
    shards: Range<usize>,
    tensors: Vec<TensorAddress>,
    /// Where each shard of the range begins among a block's tensors, and the end.
    starts: Vec<usize>,
    block_bytes: usize,
}

impl CopyPlan {
    /// Checks count and sizes. Fails with `InvalidInput`, naming what is wrong.
    ///
    /// # Safety
    /// The tensors' memory must be valid for the copies asked of the plan, and belong to nobody else meanwhile.
    pub(crate) unsafe fn new(
        info: &Arc<NamespaceInfo>,
        blocks: usize,
        shards: Range<usize>,
        tensors: Vec<TensorAddress>,
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
        let mut starts = vec![0];
        let mut expected = Vec::new();
        for shard in chosen {
            expected.extend_from_slice(&shard.tensor_bytes);
            starts.push(expected.len());
        }
        let wanted = blocks * expected.len();
        if tensors.len() != wanted {
            return Err(Error::invalid(format!(
                "{} tensors were given; {blocks} blocks of {} tensors in {} shards take {wanted}",
                tensors.len(),
                expected.len(),
                chosen.len()
            )));
        }
        for (index, (tensor, bytes)) in tensors.iter().zip(expected.iter().cycle()).enumerate() {
            if tensor.bytes != *bytes || tensor.address == 0 {
                return Err(Error::invalid(format!(
                    "tensor {index} (block {}, tensor {} of the block) has {} bytes at {:#x}; the layout says {bytes}",
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
