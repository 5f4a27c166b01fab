//! Tasks that wait for a stream.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvstored_core::error::{Error, ErrorKind, Result};
use parking_lot::{Condvar, Mutex};

use super::{Core, DumpJob, LoadJob, ShardJob, closed};

/// A task's work. Several streams may run one job: each claims windows of it.
#[derive(Clone)]
pub(crate) enum Job {
    /// Store to engine memory.
    Load(Arc<LoadJob>),
    /// Engine memory to store.
    Dump(Arc<DumpJob>),
    /// One shard of a layerwise dump into slots that are reserved: waits for nothing.
    Shard(Arc<ShardJob>),
}

impl Job {
    fn is_exhausted(&self) -> bool {
        match self {
            Self::Load(job) => job.claims.is_exhausted(),
            Self::Dump(job) => job.claims.is_exhausted(),
            Self::Shard(job) => job.claims.is_exhausted(),
        }
    }

    fn stopped(&self) -> Option<Error> {
        match self {
            Self::Load(job) => job.task.stopped(),
            Self::Dump(job) => job.task.stopped(),
            Self::Shard(job) => job.stopped(),
        }
    }

    pub(crate) fn deadline(&self) -> Instant {
        match self {
            Self::Load(job) => job.task.deadline(),
            Self::Dump(job) => job.task.deadline(),
            Self::Shard(job) => job.task.deadline(),
        }
    }

    /// Ends all blocks that nobody has claimed.
    pub(crate) fn fail(&self, core: &Core, error: &Error) {
        match self {
            Self::Load(job) => job.task.fail(job.claims.claim_all(), error),
            Self::Dump(job) => job.task.fail(job.claims.claim_all(), error),
            Self::Shard(job) => job.fail_rest(core, error),
        }
    }
}

#[derive(Default)]
struct State {
    shards: VecDeque<Job>,
    loads: VecDeque<Job>,
    dumps: VecDeque<Job>,
    dumping: usize,
    dump_is_next: bool,
    closed: bool,
}

/// Jobs by class. Dumps may wait long for room, so they never take all streams where there are several.
pub(crate) struct Queue {
    depth: usize,
    dump_streams: usize,
    state: Mutex<State>,
    changed: Condvar,
}

/// The first job of a line that still has blocks to claim.
fn head(line: &mut VecDeque<Job>) -> Option<Job> {
    while let Some(job) = line.front() {
        if !job.is_exhausted() {
            return Some(job.clone());
        }
        line.pop_front();
    }
    None
}

impl Queue {
    pub(crate) fn new(depth: usize, streams: usize) -> Self {
        let dump_streams = streams.saturating_sub(1).max(1);
        Self {
            depth,
            dump_streams,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Puts a job in line. Fails with `Busy` when the line is full.
    pub(crate) fn push(&self, job: Job) -> Result<()> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(closed());
        }
        let waiting = state.shards.len() + state.loads.len() + state.dumps.len();
        if waiting >= self.depth {
            return Err(Error::new(
                ErrorKind::Busy,
                format!("{waiting} tasks wait for the client's streams"),
            ));
        }
        match &job {
            Job::Load(_) => state.loads.push_back(job),
            Job::Dump(_) => state.dumps.push_back(job),
            Job::Shard(_) => state.shards.push_back(job),
        }
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// Waits for a job; `None` once the queue is closed.
    pub(crate) fn next(&self) -> Option<Job> {
        let mut state = self.state.lock();
        loop {
            if state.closed {
                return None;
            }
            if let Some(job) = self.choose(&mut state) {
                return Some(job);
            }
            self.changed.wait(&mut state);
        }
    }

    fn choose(&self, state: &mut State) -> Option<Job> {
        if let Some(job) = head(&mut state.shards) {
            return Some(job);
        }
        let load = head(&mut state.loads);
        let dump = if state.dumping < self.dump_streams {
            head(&mut state.dumps)
        } else {
            None
        };
        // take turns where both wait
        let chosen = if state.dump_is_next {
            dump.or(load)
        } else {
            load.or(dump)
        };
        if let Some(job) = &chosen {
            let dumps = matches!(job, Job::Dump(_));
            state.dumping += usize::from(dumps);
            state.dump_is_next = !dumps;
        }
        chosen
    }

    /// A stream is done with a job that [`Queue::next`] gave it.
    pub(crate) fn ran(&self, job: &Job) {
        if matches!(job, Job::Dump(_)) {
            self.state.lock().dumping -= 1;
            self.changed.notify_all();
        }
    }

    /// Waits up to `timeout` for a job that waits for nothing.
    pub(crate) fn take_shard(&self, timeout: Duration) -> Option<Arc<ShardJob>> {
        let mut state = self.state.lock();
        let mut waited = timeout.is_zero();
        loop {
            if let Some(Job::Shard(job)) = head(&mut state.shards) {
                return Some(job);
            }
            if waited || state.closed {
                return None;
            }
            self.changed.wait_for(&mut state, timeout);
            // woken for another job: the pause is cut short, which does no harm
            waited = true;
        }
    }

    /// Takes jobs that were cancelled or are late out of line, with the reason: they need not wait for a stream.
    pub(crate) fn take_stopped(&self) -> Vec<(Job, Error)> {
        let mut state = self.state.lock();
        let State {
            shards, loads, dumps, ..
        } = &mut *state;
        let mut stopped = Vec::new();
        for line in [shards, loads, dumps] {
            line.retain(|job| match job.stopped() {
                Some(error) => {
                    stopped.push((job.clone(), error));
                    false
                }
                None => true,
            });
        }
        stopped
    }

    /// The earliest deadline of the jobs in line.
    pub(crate) fn earliest_deadline(&self) -> Option<Instant> {
        let state = self.state.lock();
        let lines = [&state.shards, &state.loads, &state.dumps];
        lines.into_iter().flatten().map(Job::deadline).min()
    }

    /// Lets every stream end; gives back the jobs that wait.
    pub(crate) fn close(&self) -> Vec<Job> {
        let mut state = self.state.lock();
        state.closed = true;
        let (shards, loads, dumps) = (
            std::mem::take(&mut state.shards),
            std::mem::take(&mut state.loads),
            std::mem::take(&mut state.dumps),
        );
        drop(state);
        self.changed.notify_all();
        shards.into_iter().chain(loads).chain(dumps).collect()
    }
}
