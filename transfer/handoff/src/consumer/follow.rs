//! What a thread does for a pull of a request that the producer computes still: turn by turn, as blocks get good.
//!
//! Between two turns nothing is under way, and no thread waits.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use kvstored_core::Error;

use super::producers::strange;
use super::ranges::Batches;
use super::run::{Source, Step, Stop, Work};
use crate::memory::layers_of_pieces;
use crate::plan::plan;
use crate::wire::{Answer, Question};

/// How far a pull has come.
pub(crate) struct Followed {
    sources: Vec<Source>,
    /// For each source, the layer of each piece of the producer's rank.
    layers: Vec<Vec<u32>>,
    /// For each source, how many blocks of the pull are located.
    located: Vec<u32>,
    bad: BTreeSet<u32>,
    /// Bytes that came in the last turn: whether the producer still computed then, the next turn shows.
    last: u64,
}

impl Work<'_> {
    /// One turn.
    pub(super) fn follow(&self) -> Result<Step, Stop> {
        let known = self.pull.followed.lock().take();
        let mut followed = match known {
            Some(followed) => followed,
            None => self.begin_following()?,
        };
        let wanted = self.pull.blocks.len() as u32;
        let complete = self.look(&mut followed)?;
        if !complete {
            let count = &self.consumer.counts.overlapped_bytes;
            count.fetch_add(followed.last, Ordering::Relaxed);
        }
        followed.last = self.drain(&mut followed.sources, &mut followed.bad)?;
        if followed
            .sources
            .iter()
            .all(|source| source.batches.gave_out(wanted))
        {
            return Ok(Step::Over(followed.bad));
        }
        if complete {
            return Err(Error::invalid("the producer's request has fewer blocks than are pulled").into());
        }
        let came = followed.last > 0;
        *self.pull.followed.lock() = Some(followed);
        Ok(Step::Later { came })
    }

    fn begin_following(&self) -> Result<Followed, Stop> {
        let ranks = self.ranks()?;
        let descriptions: Vec<_> = ranks.iter().map(|rank| &*rank.description).collect();
        let slices = plan(&self.memory.description, &descriptions)?;
        let mut followed = Followed {
            sources: Vec::new(),
            layers: Vec::new(),
            located: Vec::new(),
            bad: BTreeSet::new(),
            last: 0,
        };
        for (rank, slices) in ranks.iter().zip(slices) {
            if !slices.is_empty() {
                let batches = Batches::growing(slices);
                followed.sources.push(Source::new(rank.peer.clone(), batches));
                followed.layers.push(layers_of_pieces(&rank.description.layers));
                followed.located.push(0);
            }
        }
        Ok(followed)
    }

    /// Asks how far the producer's ranks are. Whether all are done.
    fn look(&self, followed: &mut Followed) -> Result<bool, Stop> {
        let (first, wanted) = (self.pull.first_block, self.pull.blocks.len() as u32);
        let mut all = true;
        let sources = followed.sources.iter_mut().zip(&followed.layers);
        for ((source, layers), located) in sources.zip(&mut followed.located) {
            let question = Question::Progress {
                engine_id: self.pull.remote.engine_id.clone(),
                request: self.pull.remote.request.clone(),
            };
            let Answer::Progress {
                complete,
                blocks,
                ready,
            } = self.ask(&source.peer, &question)?
            else {
                return Err(strange().into());
            };
            all &= complete;
            // those that come before the pull aren't wanted
            let of_pull = |blocks: u32| blocks.saturating_sub(first).min(wanted);
            let known = of_pull(blocks);
            if known > *located {
                let runs = self.locate(&source.peer, *located as usize, known as usize)?;
                source.batches.located(runs);
                *located = known;
            }
            source.batches.allow(|slice| {
                let layer = layers.get(slice.remote_piece as usize);
                let good = layer.and_then(|layer| ready.get(*layer as usize));
                good.map_or(0, |good| of_pull(*good)).min(*located)
            });
        }
        Ok(all)
    }
}
