//! Loads into engine memory on a device: verified in their slots, and copied many at a time.

use std::ops::Range;

use kvstored_core::error::{Error, ErrorKind, Result};

use super::{Block, Loading};
use crate::task::BlockOutcome;

impl Loading<'_> {
    /// Copies one shard of those blocks that have no outcome yet; one that fails gets it.
    pub(super) fn copy_shard(
        &mut self,
        blocks: &[Block],
        outcomes: &mut [Option<BlockOutcome>],
        shard: usize,
    ) -> Result<()> {
        let bad = |copied: BlockOutcome| (!matches!(copied, BlockOutcome::Loaded { .. })).then_some(copied);
        if self.job.plan.is_on_device() {
            if let Some(error) = self.core.stopped(&self.job.task) {
                return Err(error);
            }
            let open = blocks
                .iter()
                .zip(&*outcomes)
                .filter(|(_, outcome)| outcome.is_none());
            let open: Vec<&Block> = open.map(|(block, _)| block).collect();
            let copied = self.copy_to_device(&open, &(shard..shard + 1));
            let places = outcomes.iter_mut().filter(|outcome| outcome.is_none());
            places
                .zip(copied)
                .for_each(|(place, copied)| *place = bad(copied));
            return Ok(());
        }
        for (block, outcome) in blocks.iter().zip(outcomes) {
            if let Some(error) = self.core.stopped(&self.job.task) {
                return Err(error);
            }
            if outcome.is_none() {
                *outcome = bad(self.copy(block, shard..shard + 1)?);
            }
        }
        Ok(())
    }

    /// Verifies shards in their slots, and copies those of good blocks to the device in one call. One outcome per block.
    pub(super) fn copy_to_device(&mut self, blocks: &[&Block], shards: &Range<usize>) -> Vec<BlockOutcome> {
        let mut outcomes = Vec::with_capacity(blocks.len());
        let mut good = Vec::with_capacity(blocks.len());
        for block in blocks {
            let image = block.held.offset as usize;
            let wrong = shards.clone().find(|shard| {
                let sum = self.job.plan.sum(*shard, &self.arena, image).ok();
                sum.is_none() || block.checksums.get(*shard).copied() != sum
            });
            outcomes.push(if let Some(shard) = wrong {
                let what = format!("shard {shard} has a wrong checksum");
                self.report(block.index, &block.held, &Error::new(ErrorKind::Corrupt, what));
                BlockOutcome::Missing
            } else {
                good.push((block.index, image));
                BlockOutcome::Loaded {
                    tier: usize::from(block.held.tier),
                }
            });
        }
        let deadline = self.job.task.deadline();
        if let Err(error) = self.job.plan.copy_out_all(&good, shards, &self.arena, deadline) {
            let loaded = outcomes
                .iter_mut()
                .filter(|outcome| matches!(outcome, BlockOutcome::Loaded { .. }));
            loaded.for_each(|outcome| *outcome = BlockOutcome::Failed(error.clone()));
        }
        outcomes
    }
}
