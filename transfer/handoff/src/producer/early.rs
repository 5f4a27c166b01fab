//! Checksums that are made as soon as blocks are held, so that they are there when a consumer asks: between a prefill's end
//! and the pull there are two engines' steps and the way through a proxy.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use kvstored_core::checksum::Checksum;

use crate::memory::{Heads, Memory};
use crate::wire::Item;

/// Checksums of one hold.
const MOST_SUMS: usize = 1 << 20;

/// Those of a piece's blocks, all heads of each.
#[derive(Default)]
struct PieceSums {
    claimed: AtomicBool,
    sums: OnceLock<Box<[u64]>>,
}

/// Those of a hold's blocks, as far as they are made.
pub(super) struct Early {
    pieces: Vec<PieceSums>,
}

impl Early {
    /// For a request of that many blocks. None where there are too many.
    pub fn new(memory: &Memory, blocks: usize) -> Option<Arc<Self>> {
        let pieces = memory.pieces.len();
        (blocks.saturating_mul(pieces) <= MOST_SUMS).then(|| {
            Arc::new(Self {
                pieces: (0..pieces).map(|_| PieceSums::default()).collect(),
            })
        })
    }

    /// How many pieces there are.
    pub fn pieces(&self) -> usize {
        self.pieces.len()
    }

    /// Makes those of a piece, unless somebody has or does.
    pub fn make(&self, memory: &Memory, blocks: &[u32], piece: usize) {
        let (Some(sums), Some(placed)) = (self.pieces.get(piece), memory.pieces.get(piece)) else {
            return;
        };
        if sums.claimed.swap(true, Ordering::AcqRel) {
            return;
        }
        let heads = Heads {
            first: 0,
            count: placed.shape.heads,
        };
        let sum = |block: &u32| {
            let mut checksum = Checksum::new();
            placed.sum(*block, heads, &mut checksum);
            checksum.value()
        };
        let _ = sums.sums.set(blocks.iter().map(sum).collect());
    }

    /// That of an item, made if nobody makes its piece's. None where it's to be made for itself.
    pub fn item(&self, memory: &Memory, blocks: &[u32], item: &Item) -> Option<u64> {
        let shape = memory.pieces.get(item.piece as usize)?.shape;
        if item.first_head != 0 || u32::from(item.heads) != shape.heads {
            return None;
        }
        // whoever wants a few blocks shouldn't wait for all
        if item.blocks as usize * 2 >= blocks.len() {
            self.make(memory, blocks, item.piece as usize);
        }
        let sums = self.pieces.get(item.piece as usize)?.sums.get()?;
        let range = item.first as usize..(item.first as usize + item.blocks as usize);
        let mut all = Checksum::new();
        for sum in sums.get(range)? {
            all.append(*sum, shape.block_bytes);
        }
        Some(all.value())
    }
}
