//! The rank's own KV memory: registered regions, and checksums of what lies in them.
#![allow(unsafe_code)]

use std::time::Instant;

use kvstored_core::checksum::Checksum;
use kvstored_core::{Error, Result};
use kvstored_transfer::{Region, RegionId, TransferEngine};

use crate::geometry::{Description, Layer, Shape};

/// A piece and where it lies in registered memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placed {
    pub region: RegionId,
    /// Of block 0 in the region.
    pub offset: u64,
    pub shape: Shape,
    address: usize,
}

/// Heads of one block's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Heads {
    pub first: u32,
    pub count: u32,
}

impl Placed {
    /// Adds the bytes of some heads of a block.
    ///
    /// Only for blocks that nobody writes meanwhile; the memory is there as long as it's registered.
    pub fn sum(&self, block: u32, heads: Heads, checksum: &mut Checksum) {
        debug_assert!(u64::from(block) < self.shape.blocks && heads.first + heads.count <= self.shape.heads);
        let head = self.shape.head_bytes();
        let start = self.address + (u64::from(block) * self.shape.stride) as usize;
        let whole = heads.count == self.shape.heads;
        let (runs, length) = if whole {
            (1, self.shape.block_bytes)
        } else {
            (u64::from(self.shape.rows), u64::from(heads.count) * head)
        };
        for row in 0..runs {
            let inside = (row * u64::from(self.shape.heads) + u64::from(heads.first)) * head;
            let bytes = std::ptr::with_exposed_provenance::<u8>(start + inside as usize);
            // SAFETY: blocks and heads within the shape lie in registered memory, which the caller of `describe` keeps
            // valid; whoever holds or pulls a block has promised that nobody else writes it meanwhile.
            checksum.update(unsafe { std::slice::from_raw_parts(bytes, length as usize) });
        }
    }
}

/// All pieces of this rank.
pub(crate) struct Memory {
    pub description: Description<Shape>,
    /// Of all layers, in order.
    pub pieces: Vec<Placed>,
    /// The layer of each piece.
    pub layer_of: Vec<u32>,
    /// Blocks that every piece has.
    pub blocks: u64,
    regions: Vec<RegionId>,
}

impl Memory {
    /// Registers what a description names; overlapping pieces share a region, and those in memory that the engine allocated
    /// use that.
    ///
    /// # Safety
    /// As for [`TransferEngine::register`], until [`Memory::unregister`] has returned `Ok` or the engine is shut down.
    pub unsafe fn register(
        engine: &TransferEngine,
        own: &[Region],
        description: &Description,
    ) -> Result<Self> {
        description.check()?;
        let mut memory = Self {
            description: description.shapes(),
            pieces: Vec::new(),
            layer_of: layers_of_pieces(&description.layers),
            blocks: u64::MAX,
            regions: Vec::new(),
        };
        let mut known: Vec<(usize, u64, RegionId)> = own
            .iter()
            .map(|region| (region.address() as usize, region.length() as u64, region.id()))
            .collect();
        let inside = |known: &[(usize, u64, RegionId)], start: usize, length: u64| {
            known.iter().find_map(|(address, whole, region)| {
                let offset = start.checked_sub(*address)? as u64;
                (offset + length <= *whole).then_some((*region, offset))
            })
        };
        for (start, length) in ranges(&description.layers) {
            if inside(&known, start, length).is_some() {
                continue;
            }
            let address = std::ptr::with_exposed_provenance_mut(start);
            // SAFETY: the caller vouches for all pieces, and the range is their union.
            let region = unsafe { engine.register(address, length as usize) }?;
            memory.regions.push(region.id());
            known.push((start, length, region.id()));
        }
        for piece in description.layers.iter().flat_map(|layer| &layer.pieces) {
            let span = piece.shape.span(piece.shape.blocks).unwrap_or(u64::MAX);
            let (region, offset) = inside(&known, piece.address, span)
                .ok_or_else(|| Error::internal("a piece lies in no region"))?;
            memory.blocks = memory.blocks.min(piece.shape.blocks);
            memory.pieces.push(Placed {
                region,
                offset,
                shape: piece.shape,
                address: piece.address,
            });
        }
        Ok(memory)
    }

    /// Ends all registrations. Fails with `Busy` when something is still touched at the deadline.
    pub fn unregister(&self, engine: &TransferEngine, deadline: Instant) -> Result<()> {
        for region in &self.regions {
            match engine.unregister(*region, deadline) {
                Err(error) if error.kind() != kvstored_core::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

/// The layer of each piece, counted through all layers.
pub(crate) fn layers_of_pieces<P>(layers: &[Layer<P>]) -> Vec<u32> {
    let counted = (0u32..).zip(layers);
    counted
        .flat_map(|(index, layer)| layer.pieces.iter().map(move |_| index))
        .collect()
}

/// Where pieces lie, overlapping ones together.
fn ranges(layers: &[Layer<crate::geometry::Piece>]) -> Vec<(usize, u64)> {
    let pieces = layers.iter().flat_map(|layer| &layer.pieces);
    let mut spans: Vec<(usize, u64)> = pieces
        .map(|piece| {
            let span = piece.shape.span(piece.shape.blocks).unwrap_or(u64::MAX);
            (piece.address, span)
        })
        .collect();
    spans.sort_unstable();
    let mut merged: Vec<(usize, u64)> = Vec::new();
    for (start, length) in spans {
        match merged.last_mut() {
            Some((first, whole)) if ((start - *first) as u64) < *whole => {
                *whole = (*whole).max((start - *first) as u64 + length);
            }
            _ => merged.push((start, length)),
        }
    }
    merged
}
