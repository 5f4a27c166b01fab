//! One held request: its blocks, and what of them is published.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use kvstored_core::{Error, Result};
use kvstored_transfer::{Publication, TransferEngine};

use super::early::Early;
use crate::memory::{Memory, Placed};
use crate::wire::Item;

/// Blocks with successive numbers, which lie one behind the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// The first, counted in the request.
    pub first: u32,
    pub blocks: u32,
}

impl Run {
    fn end(self) -> u32 {
        self.first + self.blocks
    }
}

/// The runs of a request's blocks, in order.
pub(super) fn runs(blocks: &[u32]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut next = None;
    for (index, block) in blocks.iter().enumerate() {
        match runs.last_mut() {
            Some(run) if next == Some(*block) => run.blocks += 1,
            _ => runs.push(Run {
                first: index as u32,
                blocks: 1,
            }),
        }
        next = block.checked_add(1);
    }
    runs
}

/// A range of a publication.
pub(super) struct Part {
    pub publication: Publication,
    pub offset: u64,
    pub length: u64,
}

/// A held request.
pub(super) struct Hold {
    /// Its number: the same request may be held again later.
    pub number: u64,
    pub blocks: Arc<[u32]>,
    runs: Vec<Run>,
    pub lease_end: Instant,
    /// By piece and run.
    published: BTreeMap<(u32, u32), Publication>,
    /// Ranks of the consumer that want nothing any more.
    done: BTreeSet<u32>,
    pub tickets: Vec<u64>,
    /// While the request is computed: how many of the blocks are good, from the first on, by layer.
    ready: Option<Vec<u32>>,
    /// Checksums that are made before they are asked for.
    pub early: Option<Arc<Early>>,
}

impl Hold {
    pub fn new(number: u64, blocks: Arc<[u32]>, lease_end: Instant) -> Self {
        Self {
            number,
            runs: runs(&blocks),
            blocks,
            lease_end,
            published: BTreeMap::new(),
            done: BTreeSet::new(),
            tickets: Vec::new(),
            ready: None,
            early: None,
        }
    }

    /// A request that is computed from now on, into blocks that are told later.
    pub fn announced(number: u64, layers: usize, lease_end: Instant) -> Self {
        Self {
            ready: Some(vec![0; layers]),
            ..Self::new(number, Vec::new().into(), lease_end)
        }
    }

    /// Whether it's computed still.
    pub fn is_announced(&self) -> bool {
        self.ready.is_some()
    }

    /// Tells where further blocks lie. A run never grows, as it may be published already.
    pub fn extend(&mut self, blocks: &[u32]) {
        let before = self.blocks.len() as u32;
        let more = runs(blocks).into_iter().map(|run| Run {
            first: before + run.first,
            ..run
        });
        self.runs.extend(more);
        self.blocks = self.blocks.iter().chain(blocks).copied().collect();
    }

    /// That many blocks are good in a layer, or in all.
    pub fn advance(&mut self, layer: Option<usize>, blocks: u32) {
        let most = self.blocks.len() as u32;
        for (index, ready) in self.ready.iter_mut().flatten().enumerate() {
            if layer.is_none_or(|layer| layer == index) {
                *ready = blocks.min(most).max(*ready);
            }
        }
    }

    /// All blocks are good.
    pub fn complete(&mut self) {
        self.ready = None;
    }

    /// Whether it's complete, and how many blocks are good in each layer.
    pub fn progress(&self, layers: usize) -> (bool, Vec<u32>) {
        match &self.ready {
            Some(ready) => (false, ready.clone()),
            None => (true, vec![self.blocks.len() as u32; layers]),
        }
    }

    /// Whether the place of some blocks is known, or never will be.
    pub fn knows(&self, first: u32, blocks: u32) -> bool {
        self.ready.is_none() || self.end(first, blocks).is_ok()
    }

    /// Whether an item's blocks are good. One that makes no sense is for [`Hold::part`] to refuse.
    pub fn is_ready(&self, memory: &Memory, item: &Item) -> bool {
        let Some(ready) = &self.ready else { return true };
        let layer = memory.layer_of.get(item.piece as usize);
        let ready = layer.and_then(|layer| ready.get(*layer as usize));
        ready.is_none_or(|ready| item.first.saturating_add(item.blocks) <= *ready)
    }

    /// The runs of some blocks, as far as they lie within them. Fails with `InvalidInput` for blocks that it doesn't have.
    pub fn locate(&self, first: u32, blocks: u32) -> Result<Vec<u32>> {
        let end = self.end(first, blocks)?;
        let begin = self.runs.partition_point(|run| run.end() <= first);
        let within = self.runs.iter().skip(begin).take_while(|run| run.first < end);
        Ok(within
            .map(|run| run.end().min(end) - run.first.max(first))
            .collect())
    }

    /// Where an item's bytes lie, published if they weren't. Fails with `InvalidInput` for an item that makes no sense.
    pub fn part(&mut self, engine: &TransferEngine, memory: &Memory, item: &Item) -> Result<Part> {
        let end = self.end(item.first, item.blocks)?;
        let piece = memory
            .pieces
            .get(item.piece as usize)
            .ok_or_else(|| Error::invalid(format!("piece {} isn't there", item.piece)))?;
        let heads = u32::from(item.first_head) + u32::from(item.heads);
        if item.heads == 0 || heads > piece.shape.heads {
            return Err(Error::invalid(format!(
                "heads {}+{} of a piece with {}",
                item.first_head, item.heads, piece.shape.heads
            )));
        }
        let index = self.runs.partition_point(|run| run.end() <= item.first);
        let run = self.runs.get(index).filter(|run| end <= run.end());
        let run = *run.ok_or_else(|| Error::invalid("the blocks don't lie in one run"))?;
        let publication = if let Some(known) = self.published.get(&(item.piece, index as u32)) {
            known.clone()
        } else {
            let (offset, length) = self.range(piece, run)?;
            let new = engine.publish(piece.region, offset, length)?;
            self.published.insert((item.piece, index as u32), new.clone());
            new
        };
        let span = piece.shape.span(u64::from(item.blocks));
        Ok(Part {
            publication,
            offset: u64::from(item.first - run.first) * piece.shape.stride,
            length: span.ok_or_else(|| Error::internal("a run past the end of numbers"))?,
        })
    }

    /// Notes that a rank is done. Whether all are.
    pub fn note_done(&mut self, rank: u32, ranks: u32) -> bool {
        self.done.insert(rank);
        self.done.range(..ranks).count() >= ranks as usize
    }

    /// Its publications.
    pub fn into_publications(self) -> Vec<Publication> {
        self.published.into_values().collect()
    }

    pub fn publications(&self) -> usize {
        self.published.len()
    }

    fn end(&self, first: u32, blocks: u32) -> Result<u32> {
        let end = first
            .checked_add(blocks)
            .filter(|end| *end as usize <= self.blocks.len());
        end.filter(|_| blocks > 0).ok_or_else(|| {
            Error::invalid(format!(
                "blocks {first}+{blocks} of a request with {}",
                self.blocks.len()
            ))
        })
    }

    /// A run's bytes in the piece's region.
    fn range(&self, piece: &Placed, run: Run) -> Result<(u64, u64)> {
        let block = self.blocks.get(run.first as usize).copied().unwrap_or(u32::MAX);
        let offset = u64::from(block)
            .checked_mul(piece.shape.stride)
            .and_then(|inside| inside.checked_add(piece.offset));
        let length = piece.shape.span(u64::from(run.blocks));
        offset
            .zip(length)
            .ok_or_else(|| Error::internal("a run past the end of numbers"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvstored_core::Runtime;

    fn hold(blocks: &[u32]) -> Hold {
        Hold::new(1, blocks.into(), Runtime::system().clock.now())
    }

    #[test]
    fn runs_are_found_within_what_is_asked_for() {
        let hold = hold(&[7, 8, 9, 3, 4, u32::MAX, 0]);
        assert_eq!(hold.locate(0, 7).unwrap(), [3, 2, 1, 1]);
        assert_eq!(hold.locate(1, 3).unwrap(), [2, 1]);
        assert_eq!(hold.locate(4, 1).unwrap(), [1]);
        for (first, blocks) in [(0, 8), (7, 1), (0, 0), (u32::MAX, 1), (1, u32::MAX)] {
            assert!(hold.locate(first, blocks).is_err(), "{first}+{blocks}");
        }
    }

    #[test]
    fn runs_of_what_is_computed_do_not_grow() {
        let mut hold = Hold::announced(1, 2, Runtime::system().clock.now());
        assert!(hold.is_announced() && !hold.knows(0, 1));
        hold.extend(&[5, 6]);
        hold.extend(&[7, 2]);
        assert_eq!(hold.locate(0, 4).unwrap(), [2, 1, 1]);
        hold.advance(Some(1), 3);
        hold.advance(Some(1), 2);
        hold.advance(Some(9), 4);
        assert_eq!(hold.progress(2), (false, vec![0, 3]));
        hold.advance(None, 9);
        assert_eq!(hold.progress(2), (false, vec![4, 4]));
        assert!(hold.knows(3, 1) && !hold.knows(3, 2));
        hold.complete();
        assert_eq!(hold.progress(2), (true, vec![4, 4]));
        assert!(hold.knows(3, 2), "so that it's refused");
    }

    #[test]
    fn all_ranks_have_to_be_done() {
        let mut hold = hold(&[1]);
        assert!(!hold.note_done(1, 2));
        assert!(!hold.note_done(1, 2));
        assert!(hold.note_done(0, 2));
    }
}
