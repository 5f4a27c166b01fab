//! Layerwise dumps: slots first, shards as the engine computes them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvstored_core::block::BlockHash;
use kvstored_core::device::RawEvent;
use kvstored_core::error::{Error, ErrorKind, Result};
use kvstored_core::tier::{Durability, NamespaceInfo};

use crate::copy::{CopyPlan, TensorAddress};
use crate::device::{DeviceHandle, Place};
use crate::session::{PooledSession, Until, unexpected};
use crate::task::{BlockOutcome, Task, TaskState};
use crate::wire::{Answer, Granted, Request};
use crate::work::{Core, Job, LayerwiseDump, ShardBlock, ShardJob, pause, rest};

/// Once some blocks have slots, the others wait no longer than this: two dumps that each hold part of the room
/// would otherwise wait for one another.
const PATIENCE: Duration = Duration::from_millis(250);
/// The last attempt is made this long before the deadline, so that its answer can still come.
const ANSWER_TIME: Duration = Duration::from_millis(5);
/// How late the engine may be to tell that a wait for room is over, twice over.
const ENGINE_SLACK: Duration = Duration::from_millis(100);

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
        let mut session = core.dump_sessions.take(Until::Moment(state.deadline()))?;
        let blocks = match reserve(core, &mut session, info, hashes, parent, &state) {
            Ok(blocks) => blocks,
            Err(error) => {
                // slots that were reserved go back with the session
                session.discard();
                return Err(error);
            }
        };
        // the caller's timeout was for this much
        state.extend(core.runtime.deadline(core.settings.timeout));
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
        core.keeper.watch(&dump);
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
        // SAFETY: the caller vouches for the tensors' memory until the task's end.
        unsafe { self.put(shard, tensors, Place::Host) }
    }

    /// As [`DumpSession::put_shard`], from memory on a device, with copies that begin after the engine's event.
    ///
    /// # Safety
    /// As for [`DumpSession::put_shard`], on the device; the event must be a live one of the device's runtime in this
    /// process, until the returned task has ended.
    #[allow(unsafe_code)] // the caller's promise is passed on to the copy plan
    pub unsafe fn put_shard_from_device(
        &self,
        shard: usize,
        tensors: Vec<TensorAddress>,
        device: &DeviceHandle,
        after: Option<RawEvent>,
    ) -> Result<Task> {
        // SAFETY: the caller vouches for the tensors' memory and the event until the task's end.
        unsafe { self.put(shard, tensors, device.place(after)) }
    }

    #[allow(unsafe_code)] // the caller's promise is passed on to the copy plan
    unsafe fn put(&self, shard: usize, tensors: Vec<TensorAddress>, place: Place) -> Result<Task> {
        self.info.layout.shard(shard)?;
        // SAFETY: the caller vouches for the tensors' memory until the task's end.
        let plan = unsafe { CopyPlan::new(&self.info, self.blocks, shard..shard + 1, tensors, place) }?;
        let deadline = self.core.runtime.deadline(self.core.settings.timeout);
        let state = self.core.task(self.blocks, shard..shard + 1, deadline);
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
            let pushed = self.core.push(Job::Shard(Arc::new(job)));
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
    let deadline = task.deadline();
    let mut asking = Asking {
        core,
        namespace: session.namespace(info, Until::Moment(deadline))?,
        shards: info.layout.shards().len(),
        deadline,
        until: deadline.checked_sub(ANSWER_TIME).unwrap_or(deadline),
        answered: false,
    };
    let window = core.settings.window(info.layout.image_bytes());
    let mut blocks = Vec::with_capacity(hashes.len());
    let mut parent = parent;
    for run in hashes.chunks(window) {
        blocks.extend(asking.window(session, parent, run)?);
        parent = run.last().copied();
    }
    Ok(blocks)
}

/// Asking for slots until the deadline.
struct Asking<'a> {
    core: &'a Core,
    namespace: u32,
    shards: usize,
    /// When the caller wants to be back.
    deadline: Instant,
    /// Until when another attempt is of use.
    until: Instant,
    /// Whether the daemon has answered once.
    answered: bool,
}

impl Asking<'_> {
    /// One outcome per block of a window.
    fn window(
        &mut self,
        session: &mut PooledSession,
        parent: Option<BlockHash>,
        run: &[BlockHash],
    ) -> Result<Vec<ShardBlock>> {
        let clock = &self.core.runtime.clock;
        let mut blocks: Vec<Option<ShardBlock>> = Vec::new();
        blocks.resize_with(run.len(), || None);
        let mut open: Vec<usize> = (0..run.len()).collect();
        let mut fruitless = 0;
        while !open.is_empty() {
            let now = clock.now();
            let late = now >= self.until;
            if late && self.answered && now >= self.deadline {
                break;
            }
            // the engine looks only now and then who has waited long enough; near the end this side asks again
            let wait = self
                .until
                .saturating_duration_since(now)
                .saturating_sub(ENGINE_SLACK);
            let request = Request::Reserve {
                namespace: self.namespace,
                parent,
                hashes: open.iter().filter_map(|index| run.get(*index).copied()).collect(),
                wait_ms: u32::try_from(wait.as_millis()).unwrap_or(u32::MAX),
            };
            let granted = match session.call(request, Until::Moment(self.deadline)) {
                Ok(Answer::Reserved(granted)) if granted.len() == open.len() => granted,
                Ok(other) => return Err(unexpected(&other)),
                // what it grants after all goes back with the session, which nobody else will use
                Err(error) if error.kind() == ErrorKind::TimedOut && self.answered => break,
                Err(error) => return Err(error),
            };
            self.answered = true;
            let (asked, mut got_slot) = (std::mem::take(&mut open), false);
            for (index, granted) in asked.into_iter().zip(granted) {
                let block = match granted {
                    Granted::Slot { reservation, offset } => {
                        got_slot = true;
                        ShardBlock::Open {
                            reservation,
                            offset,
                            checksums: vec![None; self.shards],
                        }
                    }
                    Granted::Present => ShardBlock::Ended(BlockOutcome::Present),
                    Granted::Refused(failure) if failure.kind == ErrorKind::Busy && !late => {
                        open.push(index);
                        continue;
                    }
                    Granted::Refused(failure) => ShardBlock::Ended(BlockOutcome::Failed(failure.into())),
                };
                if let Some(place) = blocks.get_mut(index) {
                    *place = Some(block);
                }
            }
            if got_slot {
                self.until = self.until.min(self.core.runtime.deadline(PATIENCE));
                fruitless = 0;
            } else if !open.is_empty() {
                // this thread is the caller's: it waits, and copies nobody else's shards meanwhile
                let left = self.until.saturating_duration_since(clock.now());
                rest(pause(fruitless).min(left));
                fruitless += 1;
            }
        }
        let no_room = || {
            let error = Error::new(ErrorKind::Busy, "no room until the deadline");
            ShardBlock::Ended(BlockOutcome::Failed(error))
        };
        Ok(blocks
            .into_iter()
            .map(|block| block.unwrap_or_else(no_room))
            .collect())
    }
}
