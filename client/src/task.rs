//! Handles of loads and dumps under way, and what became of their blocks.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kvstored_core::error::{Error, ErrorKind, Result};
use kvstored_core::runtime::Runtime;
use kvstored_core::tier::Durability;
use parking_lot::{Condvar, Mutex};

use crate::work::Keeper;

/// What became of one block.
#[derive(Clone, Debug)]
pub enum BlockOutcome {
    /// Its bytes are in engine memory, verified.
    Loaded {
        /// Index in the pipeline of the tier that had it.
        tier: usize,
    },
    /// It's stored, as safe as said.
    Dumped(Durability),
    /// A dump found it there already, or being dumped by somebody else.
    Present,
    /// One shard of a layerwise dump lies in the block's slot; the block isn't visible before all have come.
    Copied,
    /// A load didn't find it, or what was found failed verification: a miss. The destination's bytes are undefined.
    Missing,
    /// It wasn't loaded or stored for another reason. The destination's bytes are undefined.
    Failed(Error),
}

/// What became of all blocks, in the order of the request.
#[derive(Clone, Debug)]
pub struct TaskReport {
    /// One outcome per block.
    pub blocks: Vec<BlockOutcome>,
    /// From the task's start until its last block ended.
    pub elapsed: Duration,
}

struct Progress {
    outcomes: Vec<Option<BlockOutcome>>,
    unfinished: usize,
    /// From the task's start until the last block ended so far.
    elapsed: Duration,
    /// Shards of each block that are done, counted from the first; empty where nobody may ask for shards.
    shards_done: Vec<u16>,
    /// Blocks that each shard still waits for.
    shards_left: Vec<usize>,
}

/// The shared side of a task.
pub(crate) struct TaskState {
    runtime: Runtime,
    keeper: Arc<Keeper>,
    began: Instant,
    deadline: Mutex<Instant>,
    first_shard: usize,
    cancelled: AtomicBool,
    progress: Mutex<Progress>,
    changed: Condvar,
}

impl TaskState {
    pub(crate) fn new(
        blocks: usize,
        shards: Range<usize>,
        runtime: Runtime,
        keeper: Arc<Keeper>,
        deadline: Instant,
    ) -> Arc<Self> {
        Arc::new(Self {
            began: runtime.clock.now(),
            runtime,
            keeper,
            deadline: Mutex::new(deadline),
            first_shard: shards.start,
            cancelled: AtomicBool::new(false),
            progress: Mutex::new(Progress {
                outcomes: vec![None; blocks],
                unfinished: blocks,
                elapsed: Duration::ZERO,
                shards_done: vec![0; blocks],
                shards_left: vec![blocks; shards.len()],
            }),
            changed: Condvar::new(),
        })
    }

    pub(crate) fn deadline(&self) -> Instant {
        *self.deadline.lock()
    }

    /// Gives the task more time.
    pub(crate) fn extend(&self, deadline: Instant) {
        *self.deadline.lock() = deadline;
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    /// Why the task must not go on: it was cancelled or is late.
    pub(crate) fn stopped(&self) -> Option<Error> {
        if self.is_cancelled() {
            return Some(Error::new(ErrorKind::Cancelled, "the task was cancelled"));
        }
        (self.runtime.clock.now() >= self.deadline())
            .then(|| Error::new(ErrorKind::TimedOut, "the task's deadline has passed"))
    }

    /// One more shard, in order, of each of these blocks is done.
    pub(crate) fn shard_done(&self, blocks: impl Iterator<Item = usize>) {
        let mut progress = self.progress.lock();
        let progress = &mut *progress;
        for block in blocks {
            if let Some(done) = progress.shards_done.get_mut(block)
                && let Some(left) = progress.shards_left.get_mut(usize::from(*done))
            {
                *left -= 1;
                *done += 1;
            }
        }
        self.changed.notify_all();
    }

    /// Ends blocks. Nobody touches their memory any more. A block ends once; later outcomes are ignored.
    pub(crate) fn finish(&self, outcomes: impl IntoIterator<Item = (usize, BlockOutcome)>) {
        let mut progress = self.progress.lock();
        let progress = &mut *progress;
        for (block, outcome) in outcomes {
            let Some(place @ None) = progress.outcomes.get_mut(block) else {
                continue;
            };
            *place = Some(outcome);
            progress.unfinished -= 1;
            let done = progress
                .shards_done
                .get(block)
                .map_or(0, |done| usize::from(*done));
            for left in progress.shards_left.iter_mut().skip(done) {
                *left -= 1;
            }
            if let Some(done) = progress.shards_done.get_mut(block) {
                *done = progress.shards_left.len() as u16;
            }
        }
        progress.elapsed = self.runtime.clock.now().saturating_duration_since(self.began);
        self.changed.notify_all();
    }

    /// Ends blocks with one error.
    pub(crate) fn fail(&self, blocks: impl IntoIterator<Item = usize>, error: &Error) {
        self.finish(
            blocks
                .into_iter()
                .map(|block| (block, BlockOutcome::Failed(error.clone()))),
        );
    }

    /// Waits until `done` holds; `TimedOut` if it doesn't by then.
    fn wait_until<T>(&self, timeout: Duration, mut done: impl FnMut(&Progress) -> Option<T>) -> Result<T> {
        let until = self.runtime.deadline(timeout);
        let mut progress = self.progress.lock();
        loop {
            if let Some(value) = done(&progress) {
                return Ok(value);
            }
            let left = until.saturating_duration_since(self.runtime.clock.now());
            if left.is_zero() {
                return Err(Error::new(
                    ErrorKind::TimedOut,
                    format!(
                        "{} of {} blocks are not finished",
                        progress.unfinished,
                        progress.outcomes.len()
                    ),
                ));
            }
            self.changed.wait_for(&mut progress, left);
        }
    }
}

fn report(progress: &Progress) -> Option<TaskReport> {
    if progress.unfinished > 0 {
        return None;
    }
    progress
        .outcomes
        .iter()
        .cloned()
        .collect::<Option<Vec<_>>>()
        .map(|blocks| TaskReport {
            blocks,
            elapsed: progress.elapsed,
        })
}

/// A load or dump under way. Clones are handles of the same task; dropping them doesn't stop it.
#[derive(Clone)]
pub struct Task {
    pub(crate) state: Arc<TaskState>,
}

impl Task {
    /// The report, if the task has ended: from then on nobody touches its memory any more.
    pub fn poll(&self) -> Option<Result<TaskReport>> {
        report(&self.state.progress.lock()).map(Ok)
    }

    /// Waits for the task's end. Fails with `TimedOut` if it hasn't ended by then; the task goes on all the same.
    pub fn wait(&self, timeout: Duration) -> Result<TaskReport> {
        self.state.wait_until(timeout, report)
    }

    /// Waits until a shard (by its index in the layout) has been loaded for every block that could be loaded; see
    /// [`Task::failed_blocks`] for the others. Shards end in order in a shard-major load, and with their
    /// blocks otherwise.
    ///
    /// Fails with `InvalidInput` for a shard that isn't part of the task, and with `TimedOut`.
    pub fn wait_shard(&self, shard: usize, timeout: Duration) -> Result<()> {
        let index = shard.checked_sub(self.state.first_shard);
        self.state.wait_until(timeout, |progress| {
            match index.and_then(|index| progress.shards_left.get(index)) {
                Some(0) => Some(Ok(())),
                Some(_) => None,
                None => Some(Err(Error::invalid(format!(
                    "shard {shard} is not among the task's {} shards from {}",
                    progress.shards_left.len(),
                    self.state.first_shard
                )))),
            }
        })?
    }

    /// Indices of the blocks that are known by now not to be loaded or dumped.
    pub fn failed_blocks(&self) -> Vec<usize> {
        let progress = self.state.progress.lock();
        let failed = |outcome: &Option<BlockOutcome>| {
            matches!(outcome, Some(BlockOutcome::Missing | BlockOutcome::Failed(_)))
        };
        progress
            .outcomes
            .iter()
            .enumerate()
            .filter(|(_, outcome)| failed(outcome))
            .map(|(index, _)| index)
            .collect()
    }

    /// Asks the task to stop. Blocks not finished end as failed with `Cancelled`, in far less than a tenth of a
    /// second whatever state the daemon is in; the memory is free when [`Task::poll`] gives the report.
    ///
    /// A dump hands no further block to the engine. One it handed over before, from whole and checked bytes, may
    /// become visible all the same, although it's reported as cancelled.
    pub fn cancel(&self) {
        self.state.cancelled.store(true, Ordering::Release);
        self.state.keeper.wake();
    }
}

impl std::fmt::Debug for Task {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let progress = self.state.progress.lock();
        formatter
            .debug_struct("Task")
            .field("blocks", &progress.outcomes.len())
            .field("unfinished", &progress.unfinished)
            .finish_non_exhaustive()
    }
}
