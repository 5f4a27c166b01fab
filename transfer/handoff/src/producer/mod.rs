//! The producer's side: holds, the answers to consumers, and releases.

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
use table::Table;

/// Threads that make checksums.
const SUM_THREADS: usize = 2;

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
    /// Tickets whose checksums are to be made.
    sums: Arc<Queue<u64>>,
    threads: Mutex<Vec<ThreadHandle>>,
}

impl Producer {
    /// Starts its threads and answers consumers from now on.
    pub fn start(
        engine: &Arc<TransferEngine>,
        memory: Arc<OnceLock<Memory>>,
        runtime: &Runtime,
    ) -> Result<Arc<Self>> {
        let producer = Arc::new(Self {
            engine: engine.clone(),
            runtime: runtime.clone(),
            memory,
            table: Mutex::default(),
            changed: Condvar::new(),
            idle: Condvar::new(),
            sums: Queue::new(crate::limits::MAX_TICKETS, runtime),
            threads: Mutex::default(),
        });
        let keeper = producer.clone();
        let thread = runtime
            .spawner
            .spawn("handoff-keeper", Box::new(move || keeper.keep()))?;
        producer.threads.lock().push(thread);
        let worker = producer.clone();
        let threads = producer
            .sums
            .spawn("handoff-sums", SUM_THREADS, runtime, move |ticket| {
                worker.make_sums(ticket);
            });
        match threads {
            Ok(threads) => producer.threads.lock().extend(threads),
            Err(error) => {
                producer.stop(runtime.deadline(Duration::from_secs(1)));
                return Err(error);
            }
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

    /// Lets consumers pull blocks of a request until it's released. Fails with `InvalidInput` for blocks that aren't there
    /// and before the memory was described, with `AlreadyExists`, and with `Busy` when too many are held.
    pub fn hold(&self, request: &str, blocks: &[u32], lease: Duration) -> Result<()> {
        name_length("request", request.len())?;
        let memory = self.memory()?;
        check_blocks(memory, blocks)?;
        let lease_end = self.runtime.deadline(lease);
        self.table.lock().hold(request, blocks, lease_end)?;
        self.changed.notify_all();
        Ok(())
    }

    /// Ends a hold, if there is one.
    pub fn drop_request(&self, request: &str) {
        self.table.lock().end(request, Reason::Dropped);
        self.changed.notify_all();
    }

    /// Requests that were released since the last call.
    pub fn take_released(&self) -> Vec<Released> {
        std::mem::take(&mut self.table.lock().released)
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
