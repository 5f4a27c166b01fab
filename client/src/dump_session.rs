//! Layerwise dumps: slots first, shards as the engine computes them.

use std::sync::Arc;
use std::time::Duration;

use kvstored_core::block::BlockHash;
use kvstored_core::error::{Error, ErrorKind, Result};
use kvstored_core::tier::{Durability, NamespaceInfo};

use crate::copy::{CopyPlan, TensorAddress};
use crate::session::{PooledSession, unexpected};
use crate::task::{BlockOutcome, Task, TaskState};
use crate::wire::{Answer, Granted, Request};
use crate::work::{Core, Job, LayerwiseDump, ShardBlock, ShardJob};

/// Once some blocks have slots, the others wait no longer than this: two dumps that each hold part of the room
/// would otherwise wait for one another.
const PATIENCE: Duration = Duration::from_millis(250);

/// A layerwise dump under way. Dropped before every shard was put, it leaves no trace of blocks that aren't whole.
pub struct DumpSession {
    core: Arc<Core>,
    info: Arc<NamespaceInfo>,
    blocks: usize,
    dump: Arc<LayerwiseDump>,
    task: Task,
}

impl DumpSession {
    pub(crate) fn begin(
        core: &Arc<Core>,
        info: &Arc<NamespaceInfo>,
        hashes: &[BlockHash],
        parent: Option<BlockHash>,
        durability: Durability,
        state: Arc<TaskState>,
    ) -> Result<Self> {
        let mut session = core.dump_sessions.take(state.deadline())?;
        let blocks = match reserve(core, &mut session, info, hashes, parent, &state) {
            Ok(blocks) => blocks,
            Err(error) => {
                // slots that were reserved go back with the session
                session.discard();
                return Err(error);
            }
        };
        state.finish(
            blocks
                .iter()
                .enumerate()
                .filter_map(|(index, block)| match block {
                    ShardBlock::Ended(outcome) => Some((index, outcome.clone())),
                    ShardBlock::Open { .. } => None,
                }),
        );
        let shards = info.layout.shards().len();
        let dump = Arc::new(LayerwiseDump::new(
            state.clone(),
            durability,
            shards,
            blocks,
            session,
        ));
        Ok(Self {
            core: core.clone(),
            info: info.clone(),
            blocks: hashes.len(),
            dump,
            task: Task { state },
        })
    }

    /// Begins to copy one shard of all blocks; from any thread, shards in any order. The task's outcomes are
    /// [`BlockOutcome::Copied`], or what the block had ended with before.
    ///
    /// Fails with `InvalidInput` when tensors don't fit the layout, `AlreadyExists` for a shard that was put before,
    /// `Busy` when too many tasks wait: then the shard may be put once more. A shard whose task fails takes its
    /// blocks with it.
    ///
    /// # Safety
    /// The tensors' memory must be readable, and written by nobody, until the returned task has ended.
    #[allow(unsafe_code)] // the caller's promise is passed on to the copy plan
    pub unsafe fn put_shard(&self, shard: usize, tensors: Vec<TensorAddress>) -> Result<Task> {
        self.info.layout.shard(shard)?;
        // SAFETY: the caller vouches for the tensors' memory until the task's end.
        let plan = unsafe { CopyPlan::new(&self.info, self.blocks, shard..shard + 1, tensors) }?;
        let deadline = self.core.runtime.deadline(self.core.settings.timeout);
        let state = TaskState::new(self.blocks, shard..shard + 1, self.core.runtime.clone(), deadline);
        self.dump.begin_shard(shard)?;
        self.task.state.extend(deadline);
        if self.blocks > 0 {
            let job = ShardJob::new(
                &self.core,
                state.clone(),
                self.dump.clone(),
                plan,
                shard,
                self.blocks,
            );
            let pushed = self.core.queue.push(Job::Shard(Arc::new(job)));
            pushed.inspect_err(|_| self.dump.forget_shard(shard))?;
        }
        Ok(Task { state })
    }

    /// The dump as a whole: ends when every block is acknowledged or has failed.
    pub fn task(&self) -> &Task {
        &self.task
    }

    /// Gives up every block that isn't whole yet.
    pub fn abort(self) {
        self.give_up();
    }

    fn give_up(&self) {
        self.dump.abort(
            &self.core,
            &Error::new(ErrorKind::Cancelled, "the dump was aborted"),
        );
    }
}

impl Drop for DumpSession {
    fn drop(&mut self) {
        if !self.dump.is_complete() {
            self.give_up();
        }
    }
}

impl std::fmt::Debug for DumpSession {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("DumpSession")
            .field("task", &self.task)
            .finish_non_exhaustive()
    }
}

/// Asks for a slot per block, in windows, and once more for those there was no room for.
fn reserve(
    core: &Core,
    session: &mut PooledSession,
    info: &Arc<NamespaceInfo>,
    hashes: &[BlockHash],
    parent: Option<BlockHash>,
    task: &TaskState,
) -> Result<Vec<ShardBlock>> {
    let namespace = session.namespace(info, task.deadline())?;
    let shards = info.layout.shards().len();
    let window = core.settings.window(info.layout.image_bytes());
    let mut until = task.deadline();
    let mut blocks = Vec::with_capacity(hashes.len());
    let mut parent = parent;
    for run in hashes.chunks(window) {
        let first = blocks.len();
        blocks.resize_with(first + run.len(), || None);
        let mut open: Vec<usize> = (0..run.len()).collect();
        let mut fruitless = 0;
        while !open.is_empty() {
            let late = core.runtime.clock.now() >= until;
            let wait = until.saturating_duration_since(core.runtime.clock.now());
            let request = Request::Reserve {
                namespace,
                parent,
                hashes: open.iter().filter_map(|index| run.get(*index).copied()).collect(),
                wait_ms: u32::try_from(wait.as_millis()).unwrap_or(u32::MAX),
            };
            let granted = match session.call(request, task.deadline() + PATIENCE)? {
                Answer::Reserved(granted) if granted.len() == open.len() => granted,
                other => return Err(unexpected(&other)),
            };
            let (asked, mut got_slot) = (std::mem::take(&mut open), false);
            for (index, granted) in asked.into_iter().zip(granted) {
                let block = match granted {
                    Granted::Slot { reservation, offset } => {
                        got_slot = true;
                        ShardBlock::Open {
                            reservation,
                            offset,
                            checksums: vec![None; shards],
                        }
                    }
                    Granted::Present => ShardBlock::Ended(BlockOutcome::Present),
                    Granted::Refused(failure) if failure.kind == ErrorKind::Busy && !late => {
                        open.push(index);
                        continue;
                    }
                    Granted::Refused(failure) => ShardBlock::Ended(BlockOutcome::Failed(failure.into())),
                };
                if let Some(place) = blocks.get_mut(first + index) {
                    *place = Some(block);
                }
            }
            if got_slot {
                until = until.min(core.runtime.deadline(PATIENCE));
                fruitless = 0;
            } else if !open.is_empty() {
                core.back_off(fruitless);
                fruitless += 1;
            }
        }
        parent = run.last().copied();
    }
    blocks
        .into_iter()
        .collect::<Option<_>>()
        .ok_or_else(|| Error::internal("a block was not asked for"))
}
