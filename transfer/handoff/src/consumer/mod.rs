//! The consumer's side: pulls, and words to producers that they are done.

mod ending;
mod follow;
mod producers;
mod ranges;
mod request;
mod run;

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use kvstored_core::runtime::ThreadHandle;
use kvstored_core::{Error, ErrorKind, Result, Runtime};
use kvstored_transfer::TransferEngine;
use parking_lot::{Condvar, Mutex};

pub use request::{Pulled, RemoteRequest};

use crate::geometry::name_length;
use crate::limits::{MAX_ENDINGS, MAX_PULLS};
use crate::memory::Memory;
use crate::producer::check_blocks;
use crate::queue::Queue;
use crate::settings::HandoffSettings;
use crate::statistics::{PullCounts, Statistics};
use ending::Ending;
use producers::Producers;
use request::{Pull, Stopped};
use run::Step;

/// Threads that tell producers.
const ENDING_THREADS: usize = 2;
/// Waits for a producer that doesn't know a request yet grow from the one to the other …
const NOT_YET_WAITS: [Duration; 2] = [Duration::from_millis(5), Duration::from_millis(80)];
/// … and those for one that computes it.
const FOLLOWING_WAITS: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(16)];

/// What looks after pulls that no thread works on, or that are to end.
enum Watch {
    /// The deadline of a pull.
    Expire(Weak<Pull>),
    /// Ends what a cancelled pull has under way.
    Cancel(Arc<Pull>),
}

#[derive(Default)]
struct Pulls {
    pending: HashMap<String, Arc<Pull>>,
    over: Vec<Pulled>,
}

/// What a rank wants of producers.
pub(crate) struct Consumer {
    engine: Arc<TransferEngine>,
    runtime: Runtime,
    memory: Arc<OnceLock<Memory>>,
    producers: Producers,
    verify: bool,
    grace: Duration,
    done_timeout: Duration,
    pulls: Mutex<Pulls>,
    /// A pull is over.
    ended: Condvar,
    queue: Arc<Queue<Arc<Pull>>>,
    endings: Arc<Queue<Ending>>,
    watch: Arc<Queue<Watch>>,
    counts: PullCounts,
    threads: Mutex<Vec<ThreadHandle>>,
}

impl Consumer {
    /// Starts its threads.
    pub fn start(
        settings: &HandoffSettings,
        engine: &Arc<TransferEngine>,
        memory: Arc<OnceLock<Memory>>,
        runtime: &Runtime,
    ) -> Result<Arc<Self>> {
        let consumer = Arc::new(Self {
            engine: engine.clone(),
            runtime: runtime.clone(),
            memory,
            producers: Producers::default(),
            verify: settings.verify,
            grace: settings.grace,
            done_timeout: settings.done_timeout,
            pulls: Mutex::default(),
            ended: Condvar::new(),
            queue: Queue::new(MAX_PULLS, runtime),
            endings: Queue::new(MAX_ENDINGS, runtime),
            // deadlines of pulls that are over stay until then
            watch: Queue::new(MAX_ENDINGS, runtime),
            counts: PullCounts::default(),
            threads: Mutex::default(),
        });
        consumer.spawn(settings.pull_threads, runtime).inspect_err(|_| {
            consumer.stop();
        })?;
        Ok(consumer)
    }

    fn spawn(self: &Arc<Self>, pull_threads: usize, runtime: &Runtime) -> Result<()> {
        let mut threads = self.threads.lock();
        let this = self.clone();
        let pulling = move |pull| this.advance(&pull);
        threads.extend(self.queue.spawn("handoff-pull", pull_threads, runtime, pulling)?);
        let this = self.clone();
        let telling = move |ending| this.deliver(ending);
        threads.extend(
            self.endings
                .spawn("handoff-done", ENDING_THREADS, runtime, telling)?,
        );
        let this = self.clone();
        let watching = move |what| this.look(what);
        threads.extend(self.watch.spawn("handoff-watch", 1, runtime, watching)?);
        Ok(())
    }

    /// Begins to pull. Fails with `InvalidInput`, naming what makes no sense, with `AlreadyExists`, and with `Busy` when too
    /// many pulls aren't over.
    pub fn pull(
        &self,
        request: &str,
        remote: RemoteRequest,
        blocks: Vec<u32>,
        first_block: u32,
        timeout: Duration,
    ) -> Result<()> {
        self.start_pull(request, remote, blocks, first_block, timeout, false)
    }

    /// The same for a request that the producer computes still, or will.
    pub fn follow(
        &self,
        request: &str,
        remote: RemoteRequest,
        blocks: Vec<u32>,
        first_block: u32,
        timeout: Duration,
    ) -> Result<()> {
        self.start_pull(request, remote, blocks, first_block, timeout, true)
    }

    fn start_pull(
        &self,
        request: &str,
        remote: RemoteRequest,
        blocks: Vec<u32>,
        first_block: u32,
        timeout: Duration,
        follows: bool,
    ) -> Result<()> {
        name_length("request", request.len())?;
        remote.check()?;
        check_blocks(self.memory()?, &blocks)?;
        if first_block.checked_add(blocks.len() as u32).is_none() {
            return Err(Error::invalid(format!("first_block is {first_block}")));
        }
        let mut sorted = blocks.clone();
        sorted.sort_unstable();
        if let Some([one, _]) = sorted.array_windows::<2>().find(|[one, other]| one == other) {
            return Err(Error::invalid(format!("block {one} is there twice")));
        }
        let deadline = self.runtime.deadline(timeout);
        // a request that waits for its turn at the producer may be announced late
        let grace = if follows { timeout } else { self.grace };
        let grace_end = deadline.min(self.runtime.deadline(grace));
        let pull = Pull::new(
            request.to_owned(),
            remote,
            blocks,
            first_block,
            deadline,
            grace_end,
            follows,
        );
        let mut pulls = self.pulls.lock();
        if pulls.pending.contains_key(request) {
            let error = Error::new(ErrorKind::AlreadyExists, "the request is being pulled already");
            return Err(error.with("request", request));
        }
        if pulls.pending.len() + pulls.over.len() >= MAX_PULLS {
            let message = format!("{MAX_PULLS} pulls aren't over, or not taken");
            return Err(Error::new(ErrorKind::Busy, message));
        }
        self.watch.push(deadline, Watch::Expire(Arc::downgrade(&pull)))?;
        self.queue.push_now(pull.clone())?;
        pulls.pending.insert(request.to_owned(), pull);
        Ok(())
    }

    /// Ends a pull, if there is one that isn't over.
    pub fn cancel(&self, request: &str) {
        let Some(pull) = self.pulls.lock().pending.get(request).cloned() else {
            return;
        };
        match pull.stop() {
            Stopped::Here => self.report(&pull, Err(cancelled())),
            Stopped::Elsewhere => {
                // at worst its thread finds out by itself
                let _ = self.watch.push_now(Watch::Cancel(pull));
            }
            Stopped::Over => {}
        }
    }

    /// Pulls that are over since the last call.
    pub fn take_pulled(&self) -> Vec<Pulled> {
        std::mem::take(&mut self.pulls.lock().over)
    }

    /// The same, once there are any, or none at the deadline.
    pub fn wait_pulled(&self, deadline: Instant) -> Vec<Pulled> {
        let mut pulls = self.pulls.lock();
        while pulls.over.is_empty() && !self.ended.wait_until(&mut pulls, deadline).timed_out() {}
        std::mem::take(&mut pulls.over)
    }

    /// Tells a producer that this rank wants nothing of a request. Fails with `InvalidInput`, and with `Busy` when too much
    /// waits to be told.
    pub fn release_remote(&self, remote: RemoteRequest, timeout: Duration) -> Result<()> {
        remote.check()?;
        self.memory()?;
        let deadline = self.runtime.deadline(timeout);
        Ending::all(remote, deadline).try_for_each(|ending| self.endings.push_now(ending))
    }

    pub fn add_to(&self, statistics: &mut Statistics) {
        self.counts.add_to(statistics);
        statistics.pending_pulls = self.pulls.lock().pending.len() as u64;
    }

    /// Ends all pulls and the threads.
    pub fn stop(&self) {
        let pending: Vec<Arc<Pull>> = self.pulls.lock().pending.values().cloned().collect();
        self.queue.stop();
        for pull in pending {
            match pull.stop() {
                Stopped::Here => self.report(&pull, Err(cancelled())),
                Stopped::Elsewhere => pull.transfers().iter().for_each(|transfer| transfer.cancel()),
                Stopped::Over => {}
            }
        }
        self.watch.stop();
        self.endings.stop();
        let threads: Vec<ThreadHandle> = self.threads.lock().drain(..).collect();
        threads.into_iter().for_each(ThreadHandle::join);
    }

    /// Works on a pull when its turn comes.
    fn advance(&self, pull: &Arc<Pull>) {
        if !pull.begin() {
            return;
        }
        let outcome = match self.work(pull) {
            Ok(Step::Over(bad)) => Ok(bad.iter().copied().collect::<Vec<_>>()),
            Ok(Step::NotYet) => match self.again(pull, NOT_YET_WAITS, false) {
                Ok(()) => return,
                Err(error) => Err(error),
            },
            Ok(Step::Later { came }) => match self.again(pull, FOLLOWING_WAITS, came) {
                Ok(()) => return,
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        };
        pull.end();
        self.report(
            pull,
            outcome.map(|bad| {
                let blocks = bad.iter().filter_map(|index| pull.blocks.get(*index as usize));
                blocks.copied().collect()
            }),
        );
    }

    /// Has a pull worked on later.
    fn again(&self, pull: &Arc<Pull>, waits: [Duration; 2], came: bool) -> Result<()> {
        let wait = pull.pause(waits, came).ok_or_else(cancelled)?;
        let at = self.runtime.deadline(wait).min(pull.grace_end);
        self.queue.push(at, pull.clone()).or_else(|error| {
            // somebody else may have ended it meanwhile
            match pull.stop() {
                Stopped::Here => Err(error),
                Stopped::Elsewhere | Stopped::Over => Ok(()),
            }
        })
    }

    fn look(&self, what: Watch) {
        match what {
            Watch::Cancel(pull) => pull.transfers().iter().for_each(|transfer| transfer.cancel()),
            Watch::Expire(pull) => {
                // its thread looks at the clock itself
                if let Some(pull) = pull.upgrade()
                    && pull.expire()
                {
                    let message = if pull.follows {
                        "the blocks weren't computed in time"
                    } else {
                        "no thread was free for the pull in time"
                    };
                    self.report(&pull, Err(Error::new(ErrorKind::TimedOut, message)));
                }
            }
        }
    }

    /// A pull is over: its blocks that didn't come, or why none did.
    fn report(&self, pull: &Pull, outcome: Result<Vec<u32>>) {
        let pulled = match outcome {
            Ok(failed) if failed.is_empty() => {
                self.counts.ok.fetch_add(1, Ordering::Relaxed);
                Pulled {
                    request: pull.request.clone(),
                    failed,
                    message: String::new(),
                }
            }
            Ok(failed) => {
                self.counts.failed(ErrorKind::Corrupt);
                let message = format!(
                    "{} blocks have another checksum than at the producer",
                    failed.len()
                );
                Pulled {
                    request: pull.request.clone(),
                    message: Error::new(ErrorKind::Corrupt, message).to_string(),
                    failed,
                }
            }
            Err(error) => {
                self.counts.failed(error.kind());
                Pulled {
                    request: pull.request.clone(),
                    failed: pull.blocks.clone(),
                    message: error.to_string(),
                }
            }
        };
        let deadline = pull.deadline.max(self.runtime.deadline(self.done_timeout));
        for ending in Ending::all(pull.remote.clone(), deadline) {
            if self.endings.push_now(ending).is_err() {
                self.counts.undelivered.fetch_add(1, Ordering::Relaxed);
            }
        }
        let mut pulls = self.pulls.lock();
        pulls.pending.remove(&pull.request);
        pulls.over.push(pulled);
        drop(pulls);
        self.ended.notify_all();
    }

    fn memory(&self) -> Result<&Memory> {
        self.memory
            .get()
            .ok_or_else(|| Error::invalid("the memory wasn't described yet"))
    }
}

fn cancelled() -> Error {
    Error::new(ErrorKind::Cancelled, "the pull was cancelled")
}
