//! The producer's side: holds, the answers to consumers, and releases.

mod early;
mod hold;
mod keeper;
mod serve;
mod sums;
mod table;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use kvstored_core::runtime::ThreadHandle;
use kvstored_core::{Error, ErrorKind, Result, Runtime};
use kvstored_transfer::TransferEngine;
use parking_lot::{Condvar, Mutex};

pub use table::{Reason, Released};

use crate::geometry::name_length;
use crate::limits::MAX_BLOCKS;
use crate::memory::Memory;
use crate::queue::Queue;
use crate::statistics::Statistics;
use early::Early;
use hold::Hold;
use sums::EarlyJob;
use table::Table;

/// Threads that make checksums which are asked for …
const SUM_THREADS: usize = 2;
/// … and those that make them before.
const EARLY_THREADS: usize = 1;
/// Holds whose checksums wait to be made before they are asked for; of others they are made then.
const MOST_EARLY: usize = 1024;

/// What a rank offers to consumers.
pub(crate) struct Producer {
    engine: Arc<TransferEngine>,
    runtime: Runtime,
    memory: Arc<OnceLock<Memory>>,
    table: Mutex<Table>,
    /// Something in the table is for the keeper.
    changed: Condvar,
    /// Everything that ended is released.
    idle: Condvar,
    /// A request is released.
    freed: Condvar,
    /// Tickets whose checksums are to be made.
    sums: Arc<Queue<u64>>,
    /// Holds whose checksums are to be made before that; none where they aren't.
    early: Option<Arc<Queue<EarlyJob>>>,
    threads: Mutex<Vec<ThreadHandle>>,
}

impl Producer {
    /// Starts its threads and answers consumers from now on.
    pub fn start(
        engine: &Arc<TransferEngine>,
        memory: Arc<OnceLock<Memory>>,
        early_sums: bool,
        runtime: &Runtime,
    ) -> Result<Arc<Self>> {
        let producer = Arc::new(Self {
            engine: engine.clone(),
            runtime: runtime.clone(),
            memory,
            table: Mutex::default(),
            changed: Condvar::new(),
            idle: Condvar::new(),
            freed: Condvar::new(),
            sums: Queue::new(crate::limits::MAX_TICKETS, runtime),
            early: early_sums.then(|| Queue::new(MOST_EARLY, runtime)),
            threads: Mutex::default(),
        });
        let keeper = producer.clone();
        let thread = runtime
            .spawner
            .spawn("handoff-keeper", Box::new(move || keeper.keep()))?;
        producer.threads.lock().push(thread);
        if let Err(error) = producer.spawn_sums(runtime) {
            producer.stop(runtime.deadline(Duration::from_secs(1)));
            return Err(error);
        }
        let answering = Arc::downgrade(&producer);
        engine.set_responder(Some(Arc::new(move |peer, question| {
            let producer = answering.upgrade();
            producer
                .ok_or_else(|| Error::new(ErrorKind::Unavailable, "the hand-off is closed"))?
                .respond(peer, question)
        })));
        Ok(producer)
    }

    fn spawn_sums(self: &Arc<Self>, runtime: &Runtime) -> Result<()> {
        let worker = self.clone();
        let run = move |ticket| worker.make_sums(ticket);
        let threads = self.sums.spawn("handoff-sums", SUM_THREADS, runtime, run)?;
        self.threads.lock().extend(threads);
        if let Some(early) = &self.early {
            let worker = self.clone();
            let run = move |job: EarlyJob| worker.make_early(&job);
            let threads = early.spawn("handoff-early", EARLY_THREADS, runtime, run)?;
            self.threads.lock().extend(threads);
        }
        Ok(())
    }

    /// Lets consumers pull blocks of a request until it's released. Fails with `InvalidInput` for blocks that aren't there
    /// and before the memory was described, with `AlreadyExists`, and with `Busy` when too many are held.
    pub fn hold(&self, request: &str, blocks: &[u32], lease: Duration) -> Result<()> {
        name_length("request", request.len())?;
        let memory = self.memory()?;
        check_blocks(memory, blocks)?;
        let lease_end = self.runtime.deadline(lease);
        let early = self.early.as_ref().and_then(|_| Early::new(memory, blocks.len()));
        let wanted = early.is_some();
        let mut hold = 0;
        self.table.lock().hold(request, lease_end, |number, lease_end| {
            hold = number;
            let mut held = Hold::new(number, blocks.into(), lease_end);
            held.early = early;
            held
        })?;
        self.changed.notify_all();
        if let Some(queue) = self.early.as_ref().filter(|_| wanted) {
            let request = request.to_owned();
            // where too many wait, they are made when they are asked for
            let _ = queue.push_now(EarlyJob { request, hold });
        }
        Ok(())
    }

    /// Lets consumers follow a request that is computed from now on. Fails as [`Producer::hold`] does.
    pub fn announce(&self, request: &str, lease: Duration) -> Result<()> {
        name_length("request", request.len())?;
        let layers = self.memory()?.description.layers.len();
        let lease_end = self.runtime.deadline(lease);
        self.table.lock().hold(request, lease_end, |number, lease_end| {
            Hold::announced(number, layers, lease_end)
        })?;
        self.changed.notify_all();
        Ok(())
    }

    /// Where further blocks of an announced request lie. Whether it's held still. Fails with `InvalidInput` for blocks that
    /// aren't there, and for too many.
    pub fn extend(&self, request: &str, blocks: &[u32]) -> Result<bool> {
        if blocks.is_empty() {
            return Ok(true);
        }
        check_blocks(self.memory()?, blocks)?;
        let mut table = self.table.lock();
        let Some(hold) = table.announced(request) else {
            return Ok(false);
        };
        if hold.blocks.len() + blocks.len() > MAX_BLOCKS {
            let message = format!("a request of more than {MAX_BLOCKS} blocks");
            return Err(Error::invalid(message));
        }
        hold.extend(blocks);
        Ok(true)
    }

    /// How many blocks of an announced request are good, in a layer or in all.
    pub fn advance(&self, request: &str, layer: Option<usize>, blocks: u32) {
        if let Some(hold) = self.table.lock().announced(request) {
            hold.advance(layer, blocks);
        }
    }

    /// All blocks of an announced request are good; its lease begins anew. Whether it's held still.
    pub fn complete(&self, request: &str, lease: Duration) -> bool {
        let lease_end = self.runtime.deadline(lease);
        let mut table = self.table.lock();
        let Some(hold) = table.announced(request) else {
            return false;
        };
        hold.complete();
        table.renew(request, lease_end);
        drop(table);
        self.changed.notify_all();
        true
    }

    /// Ends a hold, if there is one.
    pub fn drop_request(&self, request: &str) {
        self.table.lock().end(request, Reason::Dropped);
        self.changed.notify_all();
    }

    /// The same for several, and waits until nobody reads their blocks. Fails with `Busy` when somebody may still do at the
    /// deadline.
    pub fn withdraw(&self, requests: &[String], deadline: Instant) -> Result<()> {
        let mut table = self.table.lock();
        for request in requests {
            table.end(request, Reason::Dropped);
        }
        self.changed.notify_all();
        while table
            .ending
            .iter()
            .any(|ending| requests.contains(&ending.request))
        {
            if table.stopped || self.freed.wait_until(&mut table, deadline).timed_out() {
                return Err(Error::new(ErrorKind::Busy, "blocks may still be read"));
            }
        }
        Ok(())
    }

    /// Requests that were released since the last call.
    pub fn take_released(&self) -> Vec<Released> {
        std::mem::take(&mut self.table.lock().released)
    }

    /// The same, once there are any, or none at the deadline.
    pub fn wait_released(&self, deadline: Instant) -> Vec<Released> {
        let mut table = self.table.lock();
        while table.released.is_empty() && !self.freed.wait_until(&mut table, deadline).timed_out() {}
        std::mem::take(&mut table.released)
    }

    pub fn add_to(&self, statistics: &mut Statistics) {
        let table = self.table.lock();
        let ended = table.ended;
        statistics.holds_taken = ended.taken;
        statistics.holds_expired = ended.expired;
        statistics.holds_dropped = ended.dropped;
        (
            statistics.held_requests,
            statistics.held_blocks,
            statistics.publications,
        ) = table.totals();
    }

    /// Ends all holds and the threads. Whether everything was released by the deadline.
    pub fn stop(&self, deadline: Instant) -> bool {
        self.engine.set_responder(None);
        let free = {
            let mut table = self.table.lock();
            table.end_all();
            self.changed.notify_all();
            // its keeper has ended where it was stopped before
            while !table.stopped && !table.ending.is_empty() {
                if self.idle.wait_until(&mut table, deadline).timed_out() {
                    break;
                }
            }
            table.stopped = true;
            table.ending.is_empty()
        };
        self.changed.notify_all();
        self.sums.stop();
        if let Some(early) = &self.early {
            early.stop();
        }
        let threads: Vec<ThreadHandle> = self.threads.lock().drain(..).collect();
        threads.into_iter().for_each(ThreadHandle::join);
        free
    }

    fn memory(&self) -> Result<&Memory> {
        self.memory
            .get()
            .ok_or_else(|| Error::invalid("the memory wasn't described yet"))
    }
}

/// Fails with `InvalidInput` for too many blocks, or one that isn't there.
pub(crate) fn check_blocks(memory: &Memory, blocks: &[u32]) -> Result<()> {
    if blocks.is_empty() || blocks.len() > MAX_BLOCKS {
        return Err(Error::invalid(format!(
            "{} blocks; 1 to {MAX_BLOCKS} are accepted",
            blocks.len()
        )));
    }
    match blocks.iter().find(|block| u64::from(**block) >= memory.blocks) {
        Some(block) => Err(Error::invalid(format!("block {block} of {}", memory.blocks))),
        None => Ok(()),
    }
}
