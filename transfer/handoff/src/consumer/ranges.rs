//! From slices and blocks to the ranges that grants are asked for, and the entries of transfers.

use kvstored_transfer::{Grant, TransferEntry};

use crate::memory::Placed;
use crate::plan::Slice;
use crate::wire::{Item, MAX_ITEMS};

/// Bytes of one range.
const RANGE_BYTES: u64 = 8 << 20;
/// Bytes that one transfer moves.
const BATCH_BYTES: u64 = 32 << 20;
/// Entries of one transfer.
const BATCH_ENTRIES: u64 = 8192;

/// Successive blocks of one slice that lie in one run at the producer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Range {
    /// Which slice of the producer.
    pub slice: Slice,
    /// The first block, counted in the pull.
    pub first: u32,
    pub blocks: u32,
}

impl Range {
    /// What to ask a grant for; `first_block` is where the pull begins in the request.
    pub fn item(&self, first_block: u32) -> Item {
        Item {
            piece: self.slice.remote_piece,
            first: first_block + self.first,
            blocks: self.blocks,
            first_head: self.slice.remote_head as u16,
            heads: self.slice.heads as u16,
        }
    }

    /// Adds its entries: one for each run of bytes that is one on both sides.
    pub fn entries(&self, local: &Placed, blocks: &[u32], grant: Grant, entries: &mut Vec<TransferEntry>) {
        let slice = &self.slice;
        let head = slice.local.head_bytes();
        let whole = slice.is_whole();
        let (rows, length) = if whole {
            (1, slice.local.block_bytes)
        } else {
            (slice.local.rows, u64::from(slice.heads) * head)
        };
        let dense = whole && slice.local.is_dense() && slice.remote.is_dense();
        let range = self.first as usize..(self.first as usize + self.blocks as usize);
        let mut before = None;
        for (index, block) in blocks.get(range).unwrap_or_default().iter().enumerate() {
            if dense
                && before == block.checked_sub(1)
                && before.is_some()
                && let Some(last) = entries.last_mut()
            {
                last.length += length;
                before = Some(*block);
                continue;
            }
            before = Some(*block);
            let local_block = local.offset + u64::from(*block) * slice.local.stride;
            // the producer says how far its blocks are apart; what lies outside the grant is refused
            let remote_block = (index as u64).saturating_mul(slice.remote.stride);
            for row in 0..u64::from(rows) {
                let inside = |heads: u32, first: u32| (row * u64::from(heads) + u64::from(first)) * head;
                entries.push(TransferEntry {
                    local: local.region,
                    local_offset: local_block + inside(slice.local.heads, slice.local_head),
                    grant,
                    remote_offset: remote_block.saturating_add(inside(slice.remote.heads, slice.remote_head)),
                    length,
                });
            }
        }
    }

    /// Bytes of it.
    pub fn bytes(&self) -> u64 {
        let block = u64::from(self.slice.local.rows) * u64::from(self.slice.heads);
        block * self.slice.local.head_bytes() * u64::from(self.blocks)
    }

    fn entries_at_most(&self) -> u64 {
        let rows = if self.slice.is_whole() {
            1
        } else {
            self.slice.local.rows
        };
        u64::from(rows) * u64::from(self.blocks)
    }
}

/// How far the blocks of a slice were given out.
#[derive(Clone, Copy, Debug, Default)]
struct Cursor {
    run: usize,
    /// The first block that wasn't given out, of the pull and of the run.
    block: u32,
    in_run: u32,
    /// Blocks before this one may be given out.
    limit: u32,
}

/// The ranges of one producer, batch by batch.
pub(crate) struct Batches {
    slices: Vec<Slice>,
    /// Blocks of each run at the producer, as far as they are located.
    runs: Vec<u32>,
    /// For each slice.
    cursors: Vec<Cursor>,
    /// The first slice of which there may be something to give out.
    slice: usize,
}

impl Batches {
    /// All blocks of the runs.
    pub fn new(slices: Vec<Slice>, runs: Vec<u32>) -> Self {
        let mut batches = Self::growing(slices);
        batches.located(runs);
        batches.allow(|_| u32::MAX);
        batches
    }

    /// Blocks that are located later, and given out as they are allowed.
    pub fn growing(slices: Vec<Slice>) -> Self {
        Self {
            cursors: vec![Cursor::default(); slices.len()],
            slices,
            runs: Vec::new(),
            slice: 0,
        }
    }

    /// Where further blocks lie.
    pub fn located(&mut self, runs: Vec<u32>) {
        self.runs.extend(runs);
    }

    /// How many blocks of each slice may be given out, counted in the pull.
    pub fn allow(&mut self, limit: impl Fn(&Slice) -> u32) {
        for (cursor, slice) in self.cursors.iter_mut().zip(&self.slices) {
            cursor.limit = limit(slice);
        }
        self.slice = 0;
    }

    /// Whether that many blocks of each slice were given out.
    pub fn gave_out(&self, blocks: u32) -> bool {
        self.cursors.iter().all(|cursor| cursor.block >= blocks)
    }

    /// The ranges of the next batch; none if there is nothing to give out.
    pub fn next_batch(&mut self) -> Vec<Range> {
        let (mut bytes, mut entries) = (0, 0);
        let mut batch = Vec::new();
        while batch.len() < MAX_ITEMS && self.slice < self.slices.len() {
            let Some(range) = self.peek() else {
                self.slice += 1;
                continue;
            };
            bytes += range.bytes();
            entries += range.entries_at_most();
            if !batch.is_empty() && (bytes > BATCH_BYTES || entries > BATCH_ENTRIES) {
                break;
            }
            self.advance(range.blocks);
            batch.push(range);
        }
        batch
    }

    fn peek(&self) -> Option<Range> {
        let slice = *self.slices.get(self.slice)?;
        let cursor = self.cursors.get(self.slice)?;
        let left = self.runs.get(cursor.run)?.checked_sub(cursor.in_run)?;
        let allowed = cursor.limit.saturating_sub(cursor.block);
        if allowed == 0 {
            return None;
        }
        let one = Range {
            slice,
            first: cursor.block,
            blocks: 1,
        };
        let by_bytes = RANGE_BYTES / one.bytes().max(1);
        let by_entries = BATCH_ENTRIES / one.entries_at_most().max(1);
        let most = by_bytes.min(by_entries).clamp(1, u64::from(u32::MAX)) as u32;
        Some(Range {
            blocks: left.min(allowed).min(most),
            ..one
        })
    }

    fn advance(&mut self, blocks: u32) {
        let Some(cursor) = self.cursors.get_mut(self.slice) else {
            return;
        };
        cursor.block += blocks;
        cursor.in_run += blocks;
        if self.runs.get(cursor.run).is_none_or(|run| cursor.in_run >= *run) {
            cursor.run += 1;
            cursor.in_run = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::Shape;
    use proptest::prelude::*;

    fn slice(rows: u32, head_bytes: u64, heads: u32) -> Slice {
        let shape = Shape {
            blocks: 1 << 20,
            stride: 4 * u64::from(rows) * head_bytes,
            block_bytes: 4 * u64::from(rows) * head_bytes,
            rows,
            heads: 4,
        };
        Slice {
            local_piece: 0,
            local_head: 0,
            local: shape,
            remote_piece: 3,
            remote_head: 0,
            remote: shape,
            heads,
        }
    }

    proptest! {
        #[test]
        fn batches_cover_each_block_of_each_slice_once(
            runs in prop::collection::vec(1u32..3000, 1..20),
            slices in prop::collection::vec((1u32..64, 1u64..100_000, 1u32..5), 1..6),
        ) {
            let slices: Vec<_> = slices.iter().map(|(rows, bytes, heads)| slice(*rows, *bytes, *heads)).collect();
            let blocks: u32 = runs.iter().sum();
            let starts: Vec<u32> = runs.iter().scan(0, |start, run| { *start += run; Some(*start) }).collect();
            let mut batches = Batches::new(slices.clone(), runs);
            let (mut next, mut slice) = (0, 0);
            loop {
                let batch = batches.next_batch();
                if batch.is_empty() {
                    break;
                }
                prop_assert!(batch.len() <= MAX_ITEMS);
                let bytes: u64 = batch.iter().map(Range::bytes).sum();
                prop_assert!(bytes <= BATCH_BYTES || batch.len() == 1);
                for range in batch {
                    if next == blocks {
                        (next, slice) = (0, slice + 1);
                    }
                    prop_assert_eq!(range.first, next);
                    prop_assert_eq!(range.slice, slices[slice]);
                    next += range.blocks;
                    // it lies in one run
                    prop_assert!(starts.iter().all(|start| *start <= range.first || *start >= next));
                }
            }
            prop_assert_eq!((next, slice), (blocks, slices.len() - 1));
            prop_assert!(batches.gave_out(blocks) && !batches.gave_out(blocks + 1));
        }

        #[test]
        fn what_grows_is_given_out_once_and_as_it_is_allowed(
            steps in prop::collection::vec((prop::collection::vec(1u32..40, 0..4), 0u32..200, 0u32..200), 1..12),
        ) {
            let slices = vec![slice(1, 1000, 4), Slice { remote_piece: 4, ..slice(2, 70_000, 2) }];
            let mut batches = Batches::growing(slices.clone());
            let (mut known, mut taken) = (0, [0, 0]);
            for (runs, one, other) in steps {
                known += runs.iter().sum::<u32>();
                batches.located(runs);
                let limits = [one.min(known), other.min(known)];
                batches.allow(|slice| limits[usize::from(slice.remote_piece == 4)]);
                loop {
                    let batch = batches.next_batch();
                    if batch.is_empty() {
                        break;
                    }
                    for range in batch {
                        let which = usize::from(range.slice.remote_piece == 4);
                        prop_assert_eq!(range.first, taken[which]);
                        taken[which] += range.blocks;
                        prop_assert!(taken[which] <= limits[which]);
                    }
                }
                prop_assert!((0..2).all(|which| taken[which] >= limits[which]));
            }
        }
    }
}
