//! What the tier's threads do: whole batches of loads and dumps, each with one question to the master and one to every
//! node.
#![allow(unsafe_code)]

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kvstored_core::{
    Action, Arena, BlockHash, Error, ErrorKind, Namespace, NamespaceInfo, Operation, Result, Runtime,
};
use kvstored_master::PutOptions;
use parking_lot::{Condvar, Mutex};

use super::feed::Feed;
use super::images::{check, parts};
use super::index::{block_key, object_key};
use super::{TierSettings, stopped};
use crate::client::{GetRequest, PoolClient, PutRequest};

/// Blocks that are moved together.
const BATCH: usize = 64;
/// Removals that may wait; past that, blocks leave only this node's index.
const MOST_REMOVALS: usize = 65_536;
/// How long going through all objects of the pool may take.
const PURGE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long removing blocks may take.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Default)]
struct Queues {
    reads: VecDeque<Operation>,
    writes: VecDeque<Operation>,
    removals: VecDeque<Box<[u8]>>,
    /// How many removals of a block have yet to end: nobody reads it meanwhile.
    leaving: HashMap<Box<[u8]>, usize>,
    under_way: usize,
    stopping: bool,
}

impl Queues {
    fn leaves(&self, operation: &Operation) -> bool {
        !self.leaving.is_empty()
            && self
                .leaving
                .contains_key(&*object_key(&operation.namespace, &operation.hash))
    }

    fn outstanding(&self) -> usize {
        self.reads.len() + self.writes.len() + self.under_way
    }
}

/// The tier's numbers.
#[derive(Default)]
pub(crate) struct Counts {
    pub outstanding: u64,
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub corrupt_blocks: u64,
    pub refused_writes: u64,
    pub degraded: Option<String>,
}

/// Queues and what works them off.
pub(crate) struct Work {
    settings: TierSettings,
    client: Arc<PoolClient>,
    feed: Arc<Feed>,
    runtime: Runtime,
    queues: Mutex<Queues>,
    bell: Condvar,
    idle: Condvar,
    /// The memory that slots lie in, registered when the first block moves.
    arena: Mutex<Option<Arc<Arena>>>,
    degraded: Mutex<Option<String>>,
    read_bytes: AtomicU64,
    written_bytes: AtomicU64,
    corrupt_blocks: AtomicU64,
    refused_writes: AtomicU64,
}

impl Work {
    pub fn new(settings: TierSettings, client: Arc<PoolClient>, feed: Arc<Feed>, runtime: Runtime) -> Self {
        Self {
            settings,
            client,
            feed,
            runtime,
            queues: Mutex::default(),
            bell: Condvar::new(),
            idle: Condvar::new(),
            arena: Mutex::default(),
            degraded: Mutex::default(),
            read_bytes: AtomicU64::new(0),
            written_bytes: AtomicU64::new(0),
            corrupt_blocks: AtomicU64::new(0),
            refused_writes: AtomicU64::new(0),
        }
    }

    pub fn submit(&self, batch: Vec<Operation>) {
        let mut refused = Vec::new();
        {
            let mut queues = self.queues.lock();
            for operation in batch {
                let refusal = if queues.stopping {
                    Err(stopped())
                } else if queues.outstanding() >= self.settings.queue_depth {
                    Err(Error::new(ErrorKind::Busy, "the pool's queue is full"))
                } else if !matches!(operation.action, Action::Write(_)) && queues.leaves(&operation) {
                    Err(Error::new(ErrorKind::NotFound, "the block is being removed"))
                } else {
                    operation.namespace.check_size(&operation.buffer)
                };
                if refusal.is_err() {
                    refused.push((operation, refusal));
                    continue;
                }
                match operation.action {
                    Action::Write(_) => queues.writes.push_back(operation),
                    Action::Read | Action::Verify => queues.reads.push_back(operation),
                }
            }
        }
        self.bell.notify_all();
        for (operation, refusal) in refused {
            operation.complete(refusal);
        }
    }

    /// Removes blocks from the pool, later; from now on they are read no more.
    pub fn remove(&self, namespace: &NamespaceInfo, hashes: &[BlockHash]) {
        let mut queues = self.queues.lock();
        let room = MOST_REMOVALS.saturating_sub(queues.removals.len());
        for hash in hashes.iter().take(room) {
            let key = object_key(namespace, hash);
            *queues.leaving.entry(key.clone()).or_default() += 1;
            queues.removals.push_back(key);
        }
        drop(queues);
        self.bell.notify_all();
    }

    /// Removes every block of a namespace from the pool.
    pub fn purge(&self, namespace: &Namespace) -> Result<()> {
        let chosen = |key: &[u8]| block_key(key).is_some_and(|key| key.namespace == *namespace);
        self.client
            .remove_where(chosen, self.runtime.deadline(PURGE_TIMEOUT))
            .map(drop)
    }

    pub fn counts(&self) -> Counts {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            outstanding: self.queues.lock().outstanding() as u64,
            read_bytes: value(&self.read_bytes),
            written_bytes: value(&self.written_bytes),
            corrupt_blocks: value(&self.corrupt_blocks),
            refused_writes: value(&self.refused_writes),
            degraded: self.degraded.lock().clone(),
        }
    }

    pub fn drain(&self, deadline: Instant) -> Result<()> {
        let mut queues = self.queues.lock();
        while queues.outstanding() > 0 {
            if self.idle.wait_until(&mut queues, deadline).timed_out() {
                return Err(
                    Error::new(ErrorKind::TimedOut, "the pool's queue isn't empty").with("tier", "Pool")
                );
            }
        }
        Ok(())
    }

    /// Ends what waits; what is under way ends at its deadline at the latest.
    pub fn stop(&self) {
        let waiting: Vec<Operation> = {
            let mut queues = self.queues.lock();
            queues.stopping = true;
            queues.removals.clear();
            queues.leaving.clear();
            let reads: Vec<_> = queues.reads.drain(..).collect();
            reads.into_iter().chain(queues.writes.drain(..)).collect()
        };
        self.bell.notify_all();
        for operation in waiting {
            operation.complete(Err(stopped()));
        }
        self.idle.notify_all();
    }

    /// Unregisters the slots' memory, once the threads are gone.
    pub fn forget_memory(&self) {
        if let Some(arena) = self.arena.lock().take() {
            let deadline = self.runtime.deadline(REMOVE_TIMEOUT);
            if let Err(error) = self.client.unregister(arena.base() as usize, deadline) {
                tracing::warn!(%error, "the cache's memory is still registered for transfers");
                // a transfer may touch it still: better kept for ever than reused
                std::mem::forget(arena);
            }
        }
    }

    pub fn run_reads(&self) {
        while let Some(batch) = self.next(|queues| take(&mut queues.reads)) {
            self.read(batch);
        }
    }

    pub fn run_writes(&self) {
        loop {
            let removals = {
                let mut queues = self.queues.lock();
                let most = queues.removals.len().min(BATCH);
                queues.removals.drain(..most).collect::<Vec<_>>()
            };
            if !removals.is_empty() {
                self.remove_now(&removals);
            }
            let Some(batch) = self.next(|queues| {
                if queues.removals.is_empty() {
                    take(&mut queues.writes)
                } else {
                    Some(Vec::new())
                }
            }) else {
                return;
            };
            if !batch.is_empty() {
                self.write(batch);
            }
        }
    }

    /// Waits for a batch; `None` when the tier stops.
    fn next(&self, choose: impl Fn(&mut Queues) -> Option<Vec<Operation>>) -> Option<Vec<Operation>> {
        let mut queues = self.queues.lock();
        loop {
            if queues.stopping {
                return None;
            }
            if let Some(batch) = choose(&mut queues) {
                queues.under_way += batch.len();
                return Some(batch);
            }
            self.bell.wait(&mut queues);
        }
    }

    fn read(&self, batch: Vec<Operation>) {
        let deadline = self.runtime.deadline(self.settings.read_timeout);
        let outcomes = self.registered(&batch).map(|()| {
            let (keys, pieces) = parts(&batch);
            let gets: Vec<GetRequest<'_>> = keys
                .iter()
                .zip(&pieces)
                .map(|(key, piece)| GetRequest {
                    key,
                    pieces: std::slice::from_ref(piece),
                })
                .collect();
            self.client.get_batch(&gets, deadline)
        });
        self.end(batch, outcomes, |operation, bytes| {
            let outcome = check(operation, bytes);
            if outcome.is_ok() {
                self.read_bytes.fetch_add(bytes, Ordering::Relaxed);
            }
            outcome
        });
    }

    fn write(&self, batch: Vec<Operation>) {
        let deadline = self.runtime.deadline(self.settings.write_timeout);
        let outcomes = self.registered(&batch).map(|()| {
            let (keys, pieces) = parts(&batch);
            let puts: Vec<PutRequest<'_>> = keys
                .iter()
                .zip(&pieces)
                .map(|(key, piece)| PutRequest {
                    key,
                    pieces: std::slice::from_ref(piece),
                })
                .collect();
            let outcomes = self.client.put_batch(&puts, &PutOptions::default(), deadline);
            let lengths = pieces.iter().map(|piece| piece.length as u64);
            let one = |(outcome, length): (Result<()>, u64)| match outcome {
                Ok(()) => {
                    self.written_bytes.fetch_add(length, Ordering::Relaxed);
                    Ok(length)
                }
                Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(length),
                Err(error) => {
                    self.refused_writes.fetch_add(1, Ordering::Relaxed);
                    Err(error)
                }
            };
            outcomes.into_iter().zip(lengths).map(one).collect()
        });
        let own = self.client.node().map(|node| node.id());
        self.end(batch, outcomes, |operation, _| {
            // others tell of themselves; what this node put is found at once
            self.feed
                .stored(own.unwrap_or_default(), &operation.namespace.key(operation.hash));
            Ok(())
        });
    }

    /// Completes a batch, whatever became of it.
    fn end(
        &self,
        batch: Vec<Operation>,
        outcomes: Result<Vec<Result<u64>>>,
        finish: impl Fn(&Operation, u64) -> Result<()>,
    ) {
        let count = batch.len();
        let mut outcomes = outcomes.map(Vec::into_iter);
        let mut trouble = None;
        let mut ended = Vec::with_capacity(count);
        for operation in batch {
            let outcome = match &mut outcomes {
                Ok(outcomes) => outcomes
                    .next()
                    .unwrap_or_else(|| Err(Error::internal("an operation without an outcome"))),
                Err(error) => Err(error.clone()),
            };
            let outcome = outcome.and_then(|bytes| finish(&operation, bytes));
            if let Err(error) = &outcome {
                self.learn_from(&operation, error, &mut trouble);
            }
            ended.push((operation, outcome));
        }
        // whoever is told may look at the tier's state
        *self.degraded.lock() = trouble;
        for (operation, outcome) in ended {
            operation.complete(outcome);
        }
        let mut queues = self.queues.lock();
        queues.under_way = queues.under_way.saturating_sub(count);
        if queues.outstanding() == 0 {
            self.idle.notify_all();
        }
    }

    fn learn_from(&self, operation: &Operation, error: &Error, trouble: &mut Option<String>) {
        let is_load = !matches!(operation.action, Action::Write(_));
        match error.kind() {
            ErrorKind::NotFound | ErrorKind::Corrupt if is_load => {
                if error.kind() == ErrorKind::Corrupt {
                    self.corrupt_blocks.fetch_add(1, Ordering::Relaxed);
                }
                self.feed.forget(&operation.namespace.key(operation.hash));
            }
            ErrorKind::Unavailable | ErrorKind::TimedOut => *trouble = Some(error.to_string()),
            _ => {}
        }
    }

    fn remove_now(&self, keys: &[Box<[u8]>]) {
        let keys: Vec<&[u8]> = keys.iter().map(|key| &**key).collect();
        if let Err(error) = self
            .client
            .remove(&keys, true, self.runtime.deadline(REMOVE_TIMEOUT))
        {
            tracing::warn!(%error, "removed blocks may stay in the pool until they are evicted");
        }
        let mut queues = self.queues.lock();
        for key in keys {
            if let Some(removals) = queues.leaving.get_mut(key) {
                *removals = removals.saturating_sub(1);
                if *removals == 0 {
                    queues.leaving.remove(key);
                }
            }
        }
    }

    /// Makes sure that the slots' memory is registered: all of it, once.
    fn registered(&self, batch: &[Operation]) -> Result<()> {
        let Some(first) = batch.first() else { return Ok(()) };
        let arena = first.buffer.arena();
        let mut registered = self.arena.lock();
        match &*registered {
            Some(known) if Arc::ptr_eq(known, arena) => Ok(()),
            Some(_) => Err(Error::internal("slots of two memories in one tier")),
            None => {
                // SAFETY: the arena is kept until it's unregistered, and slots that an operation owns are neither
                // written (while dumped) nor used (while loaded) by anybody else.
                unsafe { self.client.register(arena.base() as usize, arena.length())? };
                *registered = Some(arena.clone());
                Ok(())
            }
        }
    }
}

fn take(queue: &mut VecDeque<Operation>) -> Option<Vec<Operation>> {
    let most = queue.len().min(BATCH);
    (most > 0).then(|| queue.drain(..most).collect())
}
