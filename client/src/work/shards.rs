//! Layerwise dumps: slots are reserved first, then shards arrive in any order and from several threads.

use std::collections::VecDeque;
use std::sync::Arc;

use kvstored_core::error::{Error, ErrorKind, Result};
use kvstored_core::memory::Arena;
use kvstored_core::tier::Durability;
use parking_lot::Mutex;

use crate::copy::CopyPlan;
use crate::session::{PooledSession, Ticket};
use crate::task::{BlockOutcome, TaskState};
use crate::wire::Request;

use super::acknowledge::Pending;
use super::{Claims, Core};

/// A block of a layerwise dump.
pub(crate) enum ShardBlock {
    /// Its slot is being filled.
    Open {
        /// What to commit.
        reservation: u64,
        /// Where its image begins in the arena.
        offset: u64,
        /// Of the shards that have come.
        checksums: Vec<Option<u64>>,
    },
    /// Nothing more is done for it; what its shards end with.
    Ended(BlockOutcome),
}

struct State {
    blocks: Vec<ShardBlock>,
    /// Shards that were put, also those still being copied.
    begun: Vec<bool>,
    /// Windows being copied: their slots must not be given back yet.
    copying: usize,
    aborted: Option<Error>,
    /// Reservations of blocks that were given up.
    unwanted: Vec<u64>,
    commits: VecDeque<(Ticket, Vec<usize>)>,
    session: Option<PooledSession>,
}

/// A layerwise dump under way.
pub(crate) struct LayerwiseDump {
    pub(crate) task: Arc<TaskState>,
    durability: Durability,
    arena: Arc<Arena>,
    state: Mutex<State>,
}

impl LayerwiseDump {
    /// Takes over blocks whose slots are reserved in that session.
    pub(crate) fn new(
        task: Arc<TaskState>,
        durability: Durability,
        shards: usize,
        blocks: Vec<ShardBlock>,
        session: PooledSession,
    ) -> Self {
        let arena = session.arena().clone();
        let none_open = !blocks
            .iter()
            .any(|block| matches!(block, ShardBlock::Open { .. }));
        let session = (!none_open).then_some(session);
        let state = State {
            blocks,
            begun: vec![false; shards],
            copying: 0,
            aborted: None,
            unwanted: Vec::new(),
            commits: VecDeque::new(),
            session,
        };
        Self {
            task,
            durability,
            arena,
            state: Mutex::new(state),
        }
    }

    /// Notes that a shard is on its way. Fails with `AlreadyExists` if it was before, and after an abort
    /// with its reason.
    pub(crate) fn begin_shard(&self, shard: usize) -> Result<()> {
        let mut state = self.state.lock();
        if let Some(error) = &state.aborted {
            return Err(error.clone());
        }
        let count = state.begun.len();
        match state.begun.get_mut(shard) {
            None => Err(Error::invalid(format!(
                "shard index {shard} is outside the layout's {count} shards"
            ))),
            Some(true) => Err(Error::new(
                ErrorKind::AlreadyExists,
                format!("shard {shard} was put before"),
            )),
            Some(begun) => {
                *begun = true;
                Ok(())
            }
        }
    }

    /// Takes a shard's note back: it never got into line.
    pub(crate) fn forget_shard(&self, shard: usize) {
        if let Some(begun) = self.state.lock().begun.get_mut(shard) {
            *begun = false;
        }
    }

    /// Whether every shard is done or on its way.
    pub(crate) fn is_complete(&self) -> bool {
        self.state.lock().begun.iter().all(|begun| *begun)
    }

    /// Whether nothing is left to be done but waiting for acknowledgements.
    pub(crate) fn is_over(&self) -> bool {
        self.state.lock().session.is_none()
    }

    /// Gives up some blocks.
    fn give_up(&self, core: &Core, blocks: &[usize], error: &Error) {
        let mut state = self.state.lock();
        self.end(core, &mut state, blocks, error);
    }

    /// Gives up all blocks that aren't committed.
    pub(crate) fn abort(&self, core: &Core, error: &Error) {
        let mut state = self.state.lock();
        state.aborted.get_or_insert_with(|| error.clone());
        let open: Vec<usize> = open_blocks(&state);
        self.end(core, &mut state, &open, error);
    }

    /// Gives up some blocks.
    fn end(&self, core: &Core, state: &mut State, blocks: &[usize], error: &Error) {
        for index in blocks {
            if let Some(block @ ShardBlock::Open { .. }) = state.blocks.get_mut(*index) {
                let ended = ShardBlock::Ended(BlockOutcome::Failed(error.clone()));
                if let ShardBlock::Open { reservation, .. } = std::mem::replace(block, ended) {
                    state.unwanted.push(reservation);
                }
            }
        }
        self.task.fail(blocks.iter().copied(), error);
        self.settle(core, state);
    }

    /// Gives slots back and hands the session on, each as soon as no copy is under way that may need them.
    fn settle(&self, core: &Core, state: &mut State) {
        if state.copying > 0 {
            return;
        }
        let reservations = std::mem::take(&mut state.unwanted);
        if let Some(session) = &mut state.session
            && !reservations.is_empty()
        {
            session.tell(Request::Abort {
                reservations: reservations.into(),
            });
        }
        if open_blocks(state).is_empty()
            && let Some(session) = state.session.take()
        {
            let commits = std::mem::take(&mut state.commits);
            core.acknowledger.wait_for(Pending {
                task: self.task.clone(),
                session,
                commits,
            });
        }
    }

    /// Where the blocks of a window lie, if their shard can still be copied.
    fn begin_window(&self, window: &[usize]) -> Vec<(usize, Result<u64, BlockOutcome>)> {
        let mut state = self.state.lock();
        state.copying += 1;
        let place = |index: usize| match state.blocks.get(index) {
            Some(ShardBlock::Open { offset, .. }) => Ok(*offset),
            Some(ShardBlock::Ended(outcome)) => Err(outcome.clone()),
            None => Err(BlockOutcome::Failed(Error::internal("a block outside the dump"))),
        };
        window.iter().map(|index| (*index, place(*index))).collect()
    }

    /// Records the checksums of a window's copies and commits blocks that are whole now.
    fn end_window(&self, core: &Core, shard: usize, copied: Vec<(usize, Result<u64>)>) {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        state.copying -= 1;
        let (mut whole, mut indices, mut failed) = (Vec::new(), Vec::new(), Vec::new());
        // a block that ends as cancelled must not become visible
        let stopped = core.stopped(&self.task);
        for (index, result) in copied {
            let result = stopped.as_ref().map_or(result, |error| Err(error.clone()));
            let Some(block) = state.blocks.get_mut(index) else {
                continue;
            };
            let ShardBlock::Open {
                reservation,
                checksums,
                ..
            } = block
            else {
                continue;
            };
            match result {
                Ok(checksum) => {
                    if let Some(place) = checksums.get_mut(shard) {
                        *place = Some(checksum);
                    }
                    if let Some(checksums) = checksums.iter().copied().collect::<Option<Vec<u64>>>() {
                        whole.push((*reservation, checksums));
                        indices.push(index);
                        *block = ShardBlock::Ended(BlockOutcome::Copied);
                    }
                }
                // a shard that failed takes its block with it
                Err(error) => failed.push((index, error)),
            }
        }
        if let Some(session) = &mut state.session
            && !whole.is_empty()
        {
            let request = Request::Commit {
                blocks: whole.into(),
                durability: self.durability,
            };
            match session.begin(request) {
                Ok(ticket) => state.commits.push_back((ticket, indices)),
                Err(error) => self.task.fail(indices, &error),
            }
        }
        for (index, error) in failed {
            self.end(core, state, &[index], &error);
        }
        self.settle(core, state);
    }
}

impl Drop for LayerwiseDump {
    fn drop(&mut self) {
        // slots that nobody will fill go back with the session
        if let Some(session) = self.state.get_mut().session.take() {
            session.discard();
        }
    }
}

fn open_blocks(state: &State) -> Vec<usize> {
    let open = |(_, block): &(usize, &ShardBlock)| matches!(block, ShardBlock::Open { .. });
    state
        .blocks
        .iter()
        .enumerate()
        .filter(open)
        .map(|(index, _)| index)
        .collect()
}

/// One shard to be copied into the slots of a layerwise dump.
pub(crate) struct ShardJob {
    pub(crate) task: Arc<TaskState>,
    pub(crate) claims: Claims,
    dump: Arc<LayerwiseDump>,
    plan: CopyPlan,
    shard: usize,
}

impl ShardJob {
    pub(crate) fn new(
        core: &Core,
        task: Arc<TaskState>,
        dump: Arc<LayerwiseDump>,
        plan: CopyPlan,
        shard: usize,
        blocks: usize,
    ) -> Self {
        let window = core.settings.window(plan.block_bytes());
        Self {
            task,
            claims: Claims::new(blocks, window),
            dump,
            plan,
            shard,
        }
    }

    /// Why it must not go on: it, or the dump as a whole, was cancelled or is late.
    pub(crate) fn stopped(&self) -> Option<Error> {
        self.task.stopped().or_else(|| self.dump.task.stopped())
    }

    /// Copies windows until none is left.
    pub(crate) fn run(&self, core: &Core) {
        while self.copy_window(core) {}
    }

    /// Copies one window; `false` when none is left.
    pub(crate) fn copy_window(&self, core: &Core) -> bool {
        let window = self.claims.claim();
        if window.is_empty() {
            return false;
        }
        let (mut copied, mut outcomes) = (Vec::with_capacity(window.len()), Vec::with_capacity(window.len()));
        let mut slots = Vec::with_capacity(window.len());
        for (index, place) in self.dump.begin_window(&window) {
            match place {
                Ok(offset) => slots.push((index, offset as usize)),
                Err(outcome) => outcomes.push((index, outcome)),
            }
        }
        let at_once = if self.plan.is_on_device() {
            slots.len().max(1)
        } else {
            1
        };
        let shards = self.shard..self.shard + 1;
        for part in slots.chunks(at_once) {
            let stopped = core.stopped(&self.task).or_else(|| core.stopped(&self.dump.task));
            let results = match stopped {
                Some(error) => part.iter().map(|_| Err(error.clone())).collect(),
                None => self
                    .plan
                    .copy_in_all(part, &shards, &self.dump.arena, self.task.deadline()),
            };
            for ((index, _), result) in part.iter().zip(results) {
                let sum: Result<u64> = result.and_then(|sums| {
                    let first = sums.first().copied();
                    first.ok_or_else(|| Error::internal("a copy without a checksum"))
                });
                outcomes.push((
                    *index,
                    match &sum {
                        Ok(_) => BlockOutcome::Copied,
                        Err(error) => BlockOutcome::Failed(error.clone()),
                    },
                ));
                copied.push((*index, sum));
            }
        }
        self.dump.end_window(core, self.shard, copied);
        self.task.finish(outcomes);
        true
    }

    /// Ends the blocks that nobody has claimed: without this shard they can't become whole.
    pub(crate) fn fail_rest(&self, core: &Core, error: &Error) {
        let rest = self.claims.claim_all();
        self.dump.give_up(core, &rest, error);
        self.task.fail(rest, error);
    }
}
