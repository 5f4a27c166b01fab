//! Engine memory as engines lay it out: one region per tensor, in each the blocks one after the other.

use std::time::Duration;

use kvstored_client::{BlockOutcome, Client, NamespaceHandle, TaskReport};
use kvstored_core::runtime::Clock;
use kvstored_core::{BlockHash, Durability, Error, ErrorKind, Result};

use super::geometry::Geometry;
use crate::tools::buffer::{Buffer, Piece, Transfer};
use crate::tools::content::{Content, block_hash};

/// Deadline of each task.
pub const TIMEOUT: Duration = Duration::from_mins(2);

/// Some blocks in engine memory.
pub struct Scattered {
    geometry: Geometry,
    blocks: usize,
    buffer: Buffer,
}

impl Scattered {
    /// Memory for so many blocks.
    pub fn new(geometry: Geometry, blocks: usize) -> Result<Self> {
        Ok(Self {
            geometry,
            blocks,
            buffer: Buffer::new(geometry.block_bytes() * blocks)?,
        })
    }

    /// Bytes of KV of all blocks.
    pub fn payload_bytes(&self) -> usize {
        self.buffer.len()
    }

    /// Fills the memory with bytes that depend on the seed.
    pub fn fill(&mut self, seed: u64) {
        Content::of(seed).fill(self.buffer.as_mut_slice());
    }

    /// Fails with `Corrupt` unless the memory holds what [`Scattered::fill`] wrote.
    pub fn check(&self, seed: u64) -> Result<()> {
        if Content::of(seed).matches(self.buffer.as_slice()) {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Corrupt,
            "what was loaded is not what was dumped",
        ))
    }

    /// The memory as it lies.
    #[cfg(test)]
    pub fn bytes(&self) -> &[u8] {
        self.buffer.as_slice()
    }

    /// Empties the memory.
    pub fn clear(&mut self) {
        self.buffer.as_mut_slice().fill(0);
    }

    fn offset(&self, block: usize, tensor: usize) -> usize {
        (tensor * self.blocks + block) * self.geometry.tensor_bytes as usize
    }

    fn transfer(&self, hashes: &[BlockHash], layers: std::ops::Range<usize>) -> Transfer {
        let tensors = self.geometry.layers * self.geometry.tensors;
        let pieces = (0..hashes.len())
            .flat_map(|block| (0..tensors).map(move |tensor| (block, tensor)))
            .map(|(block, tensor)| Piece {
                offset: self.offset(block % self.blocks, tensor),
                bytes: self.geometry.tensor_bytes,
            })
            .collect();
        Transfer {
            hashes: hashes.to_vec(),
            shards: layers,
            pieces,
            timeout: TIMEOUT,
        }
    }

    /// Dumps blocks under these hashes; where there are more hashes than blocks, the blocks serve in turn.
    pub fn dump(
        &mut self,
        client: &Client,
        namespace: &NamespaceHandle,
        hashes: &[BlockHash],
        durability: Durability,
    ) -> Result<()> {
        let transfer = self.transfer(hashes, 0..namespace.info().layout.shards().len());
        let report = self.buffer.dump(client, namespace, transfer, None, durability)?;
        expect(&report, |outcome| matches!(outcome, BlockOutcome::Dumped(_)))
    }

    /// Loads all blocks, whole ones.
    pub fn load(&mut self, client: &Client, namespace: &NamespaceHandle, hashes: &[BlockHash]) -> Result<()> {
        let transfer = self.transfer(hashes, 0..namespace.info().layout.shards().len());
        let report = self.buffer.load(client, namespace, transfer)?;
        expect(&report, |outcome| matches!(outcome, BlockOutcome::Loaded { .. }))
    }

    /// Loads all blocks layer by layer; gives the time until the first layer was there.
    pub fn load_layerwise(
        &mut self,
        client: &Client,
        namespace: &NamespaceHandle,
        hashes: &[BlockHash],
        clock: &dyn Clock,
    ) -> Result<Duration> {
        let transfer = self.transfer(hashes, 0..namespace.info().layout.shards().len());
        let started = clock.now();
        let (report, first) = self.buffer.load_by_shard(client, namespace, transfer, clock)?;
        expect(&report, |outcome| matches!(outcome, BlockOutcome::Loaded { .. }))?;
        first
            .map(|first| first.saturating_duration_since(started))
            .ok_or_else(|| Error::internal("no shard came"))
    }

    /// Copies blocks that lie whole, one after the other, into this memory: what a load would cost if it only
    /// copied.
    pub fn copy_whole_blocks(&mut self, source: &Buffer) {
        for block in 0..self.blocks {
            for tensor in 0..self.geometry.layers * self.geometry.tensors {
                self.copy_tensor(source, block, tensor);
            }
        }
    }

    /// The same, layer by layer.
    pub fn copy_layers(&mut self, source: &Buffer) {
        for layer in 0..self.geometry.layers {
            for block in 0..self.blocks {
                for tensor in 0..self.geometry.tensors {
                    self.copy_tensor(source, block, layer * self.geometry.tensors + tensor);
                }
            }
        }
    }

    fn copy_tensor(&mut self, source: &Buffer, block: usize, tensor: usize) {
        let bytes = self.geometry.tensor_bytes as usize;
        let from = block * self.geometry.block_bytes() + tensor * bytes;
        let to = self.offset(block, tensor);
        let source = source.as_slice().get(from..from + bytes);
        if let (Some(destination), Some(source)) =
            (self.buffer.as_mut_slice().get_mut(to..to + bytes), source)
        {
            destination.copy_from_slice(source);
        }
    }
}

/// Different hashes for each `first`, in runs of up to a million.
pub fn hashes(first: u64, blocks: usize) -> Result<Vec<BlockHash>> {
    (0..blocks as u64)
        .map(|index| block_hash((first << 20) + index))
        .collect()
}

fn expect(report: &TaskReport, wanted: impl Fn(&BlockOutcome) -> bool) -> Result<()> {
    match report.blocks.iter().find(|outcome| !wanted(outcome)) {
        None => Ok(()),
        Some(BlockOutcome::Failed(error)) => Err(error.clone()),
        Some(other) => Err(Error::internal(format!("a block ended as {other:?}"))),
    }
}
