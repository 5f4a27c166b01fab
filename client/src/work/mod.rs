//! The data plane: threads that copy between engine memory and the arena.
//!
//! A stream (a worker thread) takes a task, claims a window of its blocks after the other, and has a few windows
//! under way so that the engine's reads and writes overlap the copies. Streams share a large task. Dumps
//! wait for room, loads for devices; the shards of a layerwise dump wait for nothing, so any stream that has to
//! wait copies those meanwhile: their blocks may be what the others wait for.

mod acknowledge;
mod dump;
mod keeper;
mod load;
mod queue;
mod shards;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kvstored_core::error::{Error, ErrorKind, Result};
use kvstored_core::runtime::{Runtime, ThreadHandle};
use parking_lot::{Condvar, Mutex};

use crate::session::{Pool, SLICE, Session, Source, Ticket};
use crate::settings::ClientSettings;
use crate::task::TaskState;
use crate::wire::Answer;

pub(crate) use acknowledge::Acknowledger;
pub(crate) use dump::DumpJob;
pub(crate) use keeper::Keeper;
pub(crate) use load::LoadJob;
pub(crate) use queue::{Job, Queue};
pub(crate) use shards::{LayerwiseDump, ShardBlock, ShardJob};

/// Sessions for calls, besides one per stream.
const CALL_SESSIONS: usize = 16;
/// Sessions whose dumps are being filled or acknowledged.
const DUMP_SESSIONS: usize = 32;

/// What all streams share.
pub(crate) struct Core {
    pub(crate) settings: ClientSettings,
    pub(crate) runtime: Runtime,
    /// Sessions for calls and loads.
    pub(crate) sessions: Arc<Pool>,
    /// Sessions for dumps, which keep them until the last block is acknowledged.
    pub(crate) dump_sessions: Arc<Pool>,
    pub(crate) queue: Queue,
    pub(crate) acknowledger: Acknowledger,
    pub(crate) keeper: Arc<Keeper>,
    closing: AtomicBool,
    threads: Mutex<Vec<ThreadHandle>>,
}

impl Core {
    /// Starts the streams.
    pub(crate) fn start(source: Source, settings: ClientSettings, runtime: Runtime) -> Result<Arc<Self>> {
        let source = Arc::new(source);
        let streams = settings.streams.clamp(1, 256);
        let core = Arc::new(Self {
            sessions: Pool::new(source.clone(), runtime.clone(), streams + CALL_SESSIONS),
            dump_sessions: Pool::new(source, runtime.clone(), DUMP_SESSIONS),
            queue: Queue::new(settings.queue_depth, streams),
            acknowledger: Acknowledger::default(),
            keeper: Arc::default(),
            closing: AtomicBool::new(false),
            threads: Mutex::default(),
            settings,
            runtime,
        });
        let own = core.clone();
        let mut spawned = core.spawn("kvstored-acknowledge", move || Acknowledger::run(&own));
        let own = core.clone();
        spawned = spawned.and_then(|()| core.spawn("kvstored-keep", move || Keeper::run(&own)));
        for stream in 0..streams {
            let own = core.clone();
            spawned =
                spawned.and_then(|()| core.spawn(&format!("kvstored-copy-{stream}"), move || own.stream()));
        }
        spawned.inspect_err(|_| core.close())?;
        Ok(core)
    }

    fn spawn(&self, name: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = self.runtime.spawner.spawn(name, Box::new(body))?;
        self.threads.lock().push(thread);
        Ok(())
    }

    fn stream(&self) {
        while let Some(job) = self.queue.next() {
            match &job {
                Job::Load(load) => load.run(self),
                Job::Dump(dump) => dump.run(self),
                Job::Shard(shard) => shard.run(self),
            }
            self.queue.ran(&job);
        }
    }

    /// Stops every task and joins the threads.
    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::Release);
        let waiting = self.queue.close();
        for job in waiting {
            job.fail(self, &closed());
        }
        self.acknowledger.close();
        self.keeper.close();
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            thread.join();
        }
    }

    /// Why a task must not go on.
    pub(crate) fn stopped(&self, task: &TaskState) -> Option<Error> {
        if self.closing.load(Ordering::Acquire) {
            return Some(closed());
        }
        task.stopped()
    }

    /// The state of a new task.
    pub(crate) fn task(&self, blocks: usize, shards: Range<usize>, deadline: Instant) -> Arc<TaskState> {
        TaskState::new(
            blocks,
            shards,
            self.runtime.clone(),
            self.keeper.clone(),
            deadline,
        )
    }

    /// Puts a job in line. Fails with `Busy` when the line is full.
    pub(crate) fn push(&self, job: Job) -> Result<()> {
        let deadline = job.deadline();
        self.queue.push(job)?;
        self.keeper.expect(deadline);
        Ok(())
    }

    /// Waits for an answer until the task is cancelled or late; copies shards meanwhile.
    pub(crate) fn wait(&self, session: &mut dyn Session, ticket: Ticket, task: &TaskState) -> Result<Answer> {
        loop {
            if let Some(error) = self.stopped(task) {
                return Err(error);
            }
            let slice = self.runtime.deadline(SLICE).min(task.deadline());
            if let Some(answer) = session.finish(ticket, slice)? {
                return Ok(answer);
            }
            self.help(Duration::ZERO, task);
        }
    }

    /// Waits without a core, or copies a shard if one comes by, for as long as the own task is to go on.
    fn help(&self, timeout: Duration, task: &TaskState) {
        if let Some(job) = self.queue.take_shard(timeout) {
            while self.stopped(task).is_none() && job.copy_window(self) {}
        }
    }

    /// The pause after `fruitless` attempts in a row that found no room.
    pub(crate) fn back_off(&self, fruitless: u32, task: &TaskState) {
        self.help(pause(fruitless), task);
    }
}

/// Waits, without a core.
pub(crate) fn rest(timeout: Duration) {
    let (nobody, notifies) = (Mutex::new(()), Condvar::new());
    notifies.wait_for(&mut nobody.lock(), timeout);
}

/// How long to pause after `fruitless` attempts in a row that found no room.
pub(crate) fn pause(fruitless: u32) -> Duration {
    Duration::from_millis(1 << fruitless.min(6)).min(Duration::from_millis(50))
}

/// What a task whose client is gone ends with.
pub(crate) fn closed() -> Error {
    Error::new(ErrorKind::Cancelled, "the client is closed")
}

/// Hands a task's blocks out, one window after the other, to whichever stream asks.
pub(crate) struct Claims {
    next: AtomicUsize,
    blocks: usize,
    window: usize,
}

impl Claims {
    pub(crate) fn new(blocks: usize, window: usize) -> Self {
        Self {
            next: AtomicUsize::new(0),
            blocks,
            window: window.max(1),
        }
    }

    /// Blocks in a window.
    pub(crate) fn window(&self) -> usize {
        self.window
    }

    /// The next window; empty at the end.
    pub(crate) fn claim(&self) -> Vec<usize> {
        let begin = self
            .next
            .fetch_add(self.window, Ordering::Relaxed)
            .min(self.blocks);
        (begin..(begin + self.window).min(self.blocks)).collect()
    }

    /// Whatever nobody has claimed yet.
    pub(crate) fn claim_all(&self) -> Vec<usize> {
        let begin = self.next.swap(self.blocks, Ordering::Relaxed).min(self.blocks);
        (begin..self.blocks).collect()
    }

    pub(crate) fn is_exhausted(&self) -> bool {
        self.next.load(Ordering::Relaxed) >= self.blocks
    }
}
