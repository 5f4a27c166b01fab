//! Loads: acquire a window of blocks, check and copy them out, release.

mod device;

use std::collections::VecDeque;
use std::sync::Arc;

use kvstored_core::block::BlockHash;
use kvstored_core::envelope::Envelope;
use kvstored_core::error::{Error, ErrorKind, Result};
use kvstored_core::layout::PAGE_BYTES;
use kvstored_core::memory::Arena;
use kvstored_core::tier::NamespaceInfo;

use crate::copy::CopyPlan;
use crate::request::LoadOrder;
use crate::session::{PooledSession, Ticket, Until, unexpected};
use crate::task::{BlockOutcome, TaskState};
use crate::wire::{Answer, Held, Request};

use super::{Claims, Core};

/// Acquires under way per stream: the reads of the next windows overlap the copies of this one.
const DEPTH: usize = 4;
/// A shard-major load pins up to this part of the arena, over all streams.
const ARENA_SHARE: usize = 4;
/// Loads below this stay on one stream.
const SPLIT_BYTES: usize = 4 << 20;

/// A load to be done.
pub(crate) struct LoadJob {
    pub(crate) task: Arc<TaskState>,
    pub(crate) claims: Claims,
    info: Arc<NamespaceInfo>,
    hashes: Vec<BlockHash>,
    plan: CopyPlan,
    order: LoadOrder,
    window: usize,
}

impl LoadJob {
    pub(crate) fn new(
        core: &Core,
        task: Arc<TaskState>,
        info: Arc<NamespaceInfo>,
        hashes: Vec<BlockHash>,
        plan: CopyPlan,
        order: LoadOrder,
        arena_bytes: usize,
    ) -> Self {
        let image_bytes = info.layout.image_bytes();
        let streams = core.settings.streams.max(1);
        let window = core.settings.window(image_bytes);
        let claim = match order {
            LoadOrder::BlockMajor => window,
            LoadOrder::ShardMajor => {
                let pinned = arena_bytes / ARENA_SHARE / streams / image_bytes;
                let whole = hashes.len() * plan.block_bytes() < SPLIT_BYTES;
                let share = if whole {
                    hashes.len()
                } else {
                    hashes.len().div_ceil(streams)
                };
                share.min(pinned.max(1))
            }
        };
        Self {
            task,
            claims: Claims::new(hashes.len(), claim),
            info,
            hashes,
            plan,
            order,
            window,
        }
    }

    /// Loads windows until none is left.
    pub(crate) fn run(&self, core: &Core) {
        let stopped = || core.stopped(&self.task);
        let until = Until::Stopped(&stopped);
        let session = until.check(&core.runtime).and_then(|()| {
            let mut session = core.sessions.take(until)?;
            let number = session.namespace(&self.info, until)?;
            Ok((session, number))
        });
        let (session, number) = match session {
            Ok(session) => session,
            Err(error) => return self.task.fail(self.claims.claim_all(), &error),
        };
        let arena = session.arena().clone();
        let flights = VecDeque::new();
        let mut loading = Loading {
            core,
            job: self,
            session,
            number,
            arena,
            flights,
            retry: Vec::new(),
            fruitless: 0,
            page: Box::new([0; PAGE_BYTES]),
        };
        let result = match self.order {
            LoadOrder::BlockMajor => loading.block_major(),
            LoadOrder::ShardMajor => loading.shard_major(),
        };
        if let Err(error) = result {
            loading.fail(&error);
            // leases and answers under way go back with the session
            loading.session.discard();
        }
    }
}

/// A block that is pinned and being copied.
struct Block {
    index: usize,
    held: Held,
    checksums: Vec<u64>,
}

struct Loading<'a> {
    core: &'a Core,
    job: &'a LoadJob,
    session: PooledSession,
    number: u32,
    arena: Arc<Arena>,
    flights: VecDeque<(Ticket, Vec<usize>)>,
    /// Blocks there was no room for at the last attempt.
    retry: Vec<usize>,
    /// Attempts in a row that found no room at all.
    fruitless: u32,
    page: Box<[u8; PAGE_BYTES]>,
}

impl Loading<'_> {
    fn block_major(&mut self) -> Result<()> {
        loop {
            // without room there's no point in asking for more than one window at a time
            let depth = if self.fruitless > 0 { 1 } else { DEPTH };
            while self.flights.len() < depth {
                // where room is short, the head of the run before its tail
                let mut window = if self.fruitless > 0 {
                    self.again(self.job.window)
                } else {
                    self.job.claims.claim()
                };
                if window.is_empty() {
                    window = if self.fruitless > 0 {
                        self.job.claims.claim()
                    } else {
                        self.again(self.job.window)
                    };
                }
                if window.is_empty() {
                    break;
                }
                self.acquire(window)?;
            }
            let Some(blocks) = self.land()? else { return Ok(()) };
            let leases: Vec<u64> = blocks.iter().map(|block| block.held.lease).collect();
            let mut outcomes = Vec::with_capacity(blocks.len());
            let mut stopped = self.core.stopped(&self.job.task);
            if self.job.plan.is_on_device() && stopped.is_none() {
                let all: Vec<&Block> = blocks.iter().collect();
                let copied = self.copy_to_device(&all, &self.job.plan.shards());
                outcomes.extend(blocks.iter().map(|block| block.index).zip(copied));
            }
            for block in blocks.iter().skip(outcomes.len()) {
                stopped = stopped.or_else(|| self.core.stopped(&self.job.task));
                let outcome = match &stopped {
                    Some(error) => BlockOutcome::Failed(error.clone()),
                    None => self.copy(block, self.job.plan.shards())?,
                };
                outcomes.push((block.index, outcome));
            }
            self.job.task.finish(outcomes);
            self.session.tell(Request::Release {
                leases: leases.into(),
            });
            if let Some(error) = stopped {
                return Err(error);
            }
        }
    }

    fn shard_major(&mut self) -> Result<()> {
        loop {
            let mut group = self.job.claims.claim();
            if group.is_empty() {
                group = self.again(self.job.claims.window());
            }
            if group.is_empty() {
                return Ok(());
            }
            // whatever happens on the way, every block of the group gets an outcome
            let result = self.shard_major_group(&group);
            if let Err(error) = &result {
                self.job.task.fail(group, error);
            }
            result?;
        }
    }

    fn shard_major_group(&mut self, group: &[usize]) -> Result<()> {
        let task = &self.job.task;
        let shards = self.job.plan.shards();
        let mut windows = group.chunks(self.job.window);
        let (mut blocks, mut outcomes): (Vec<Block>, Vec<Option<BlockOutcome>>) = (Vec::new(), Vec::new());
        loop {
            while self.flights.len() < DEPTH
                && let Some(window) = windows.next()
            {
                self.acquire(window.to_vec())?;
            }
            let Some(landed) = self.land()? else { break };
            let mut of_landed = vec![None; landed.len()];
            self.copy_shard(&landed, &mut of_landed, shards.start)?;
            outcomes.extend(of_landed);
            task.shard_done(landed.iter().map(|block| block.index));
            blocks.extend(landed);
        }
        for shard in shards.start + 1..shards.end {
            self.copy_shard(&blocks, &mut outcomes, shard)?;
            task.shard_done(blocks.iter().map(|block| block.index));
        }
        let loaded = |block: &Block| BlockOutcome::Loaded {
            tier: usize::from(block.held.tier),
        };
        task.finish(
            blocks
                .iter()
                .zip(outcomes)
                .map(|(block, outcome)| (block.index, outcome.unwrap_or_else(|| loaded(block)))),
        );
        let leases: Vec<u64> = blocks.iter().map(|block| block.held.lease).collect();
        self.session.tell(Request::Release {
            leases: leases.into(),
        });
        Ok(())
    }

    /// Up to `limit` blocks to ask for once more, after a pause where the last attempts found no room at all.
    fn again(&mut self, limit: usize) -> Vec<usize> {
        if self.retry.is_empty() || !self.flights.is_empty() {
            return Vec::new();
        }
        if self.fruitless > 0 {
            self.core.back_off(self.fruitless - 1, &self.job.task);
        }
        let count = self.retry.len().min(limit);
        self.retry.drain(..count).collect()
    }

    fn acquire(&mut self, window: Vec<usize>) -> Result<()> {
        let hashes: Vec<BlockHash> = window
            .iter()
            .filter_map(|index| self.job.hashes.get(*index).copied())
            .collect();
        let request = Request::Acquire {
            namespace: self.number,
            hashes: hashes.into(),
        };
        let begun = self.session.begin(request);
        // it's in line even if it failed: then it's failed together with the others
        self.flights
            .push_back((begun.as_ref().copied().unwrap_or(Ticket(0)), window));
        begun.map(drop)
    }

    /// The blocks of the oldest acquire that were found and whose envelope is right; `None` when none is under way.
    fn land(&mut self) -> Result<Option<Vec<Block>>> {
        let Some((ticket, _)) = self.flights.front() else {
            return Ok(None);
        };
        let answer = match self.core.wait(&mut *self.session, *ticket, &self.job.task) {
            Err(error) if error.kind() == ErrorKind::Busy => None,
            answer => Some(answer?),
        };
        let Some((_, window)) = self.flights.pop_front() else {
            return Ok(None);
        };
        let outcomes = match answer {
            Some(Answer::Acquired(outcomes)) if outcomes.len() == window.len() => outcomes,
            Some(other) => {
                self.retry.extend(window);
                return Err(unexpected(&other));
            }
            None => {
                self.retry.extend(window);
                self.fruitless += 1;
                return Ok(Some(Vec::new()));
            }
        };
        let (mut blocks, mut ended, mut busy) = (Vec::with_capacity(window.len()), Vec::new(), false);
        for (index, outcome) in window.into_iter().zip(outcomes) {
            match outcome {
                Ok(held) => match self.envelope(index, &held) {
                    Ok(checksums) => blocks.push(Block {
                        index,
                        held,
                        checksums,
                    }),
                    Err(error) => {
                        self.report(index, &held, &error);
                        ended.push((index, BlockOutcome::Missing));
                    }
                },
                Err(failure) => match failure.kind {
                    ErrorKind::NotFound | ErrorKind::Corrupt => ended.push((index, BlockOutcome::Missing)),
                    ErrorKind::Busy => {
                        busy = true;
                        self.retry.push(index);
                    }
                    _ => ended.push((index, BlockOutcome::Failed(failure.into()))),
                },
            }
        }
        self.fruitless = if busy && blocks.is_empty() {
            self.fruitless + 1
        } else {
            0
        };
        self.job.task.finish(ended);
        Ok(Some(blocks))
    }

    /// Checks whose image lies in the slot; returns the checksums of its shards.
    fn envelope(&mut self, index: usize, held: &Held) -> Result<Vec<u64>> {
        let info = &self.job.info;
        let offset = held.offset as usize;
        self.arena.address(offset, info.layout.image_bytes())?;
        self.arena.read(offset, &mut self.page[..])?;
        let envelope = Envelope::decode(&self.page[..])?;
        let hash = self
            .job
            .hashes
            .get(index)
            .ok_or_else(|| Error::internal("a block without a hash"))?;
        envelope.expect(&info.key(*hash), &info.layout)?;
        Ok(envelope.shard_checksums)
    }

    /// Copies some shards of a block and compares their checksums.
    fn copy(&mut self, block: &Block, shards: std::ops::Range<usize>) -> Result<BlockOutcome> {
        for shard in shards {
            let copied =
                self.job
                    .plan
                    .copy_out(block.index, shard, &self.arena, block.held.offset as usize)?;
            if block.checksums.get(shard) != Some(&copied) {
                let error = Error::new(ErrorKind::Corrupt, format!("shard {shard} has a wrong checksum"));
                self.report(block.index, &block.held, &error);
                return Ok(BlockOutcome::Missing);
            }
        }
        Ok(BlockOutcome::Loaded {
            tier: usize::from(block.held.tier),
        })
    }

    fn report(&mut self, index: usize, held: &Held, error: &Error) {
        if let Some(hash) = self.job.hashes.get(index) {
            tracing::warn!(key = %self.job.info.key(*hash), %error, "block failed verification; reported, not loaded");
        }
        self.session.tell(Request::ReportCorrupt { lease: held.lease });
    }

    /// Ends every block this stream has claimed, and those nobody has.
    fn fail(&mut self, error: &Error) {
        let flying = std::mem::take(&mut self.flights)
            .into_iter()
            .flat_map(|(_, window)| window);
        let waiting = std::mem::take(&mut self.retry);
        self.job
            .task
            .fail(flying.chain(waiting).chain(self.job.claims.claim_all()), error);
    }
}
