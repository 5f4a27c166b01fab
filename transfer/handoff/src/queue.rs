//! Work that waits for its time and for a thread.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use kvstored_core::runtime::{Clock, ThreadHandle};
use kvstored_core::{Error, ErrorKind, Result, Runtime};
use parking_lot::{Condvar, Mutex};

struct State<J> {
    jobs: BTreeMap<(Instant, u64), J>,
    next: u64,
    stopped: bool,
}

/// Jobs by the moment from which they may run.
pub(crate) struct Queue<J> {
    state: Mutex<State<J>>,
    changed: Condvar,
    most: usize,
    clock: Arc<dyn Clock>,
}

impl<J: Send + 'static> Queue<J> {
    /// A queue that takes `most` jobs.
    pub fn new(most: usize, runtime: &Runtime) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                jobs: BTreeMap::new(),
                next: 0,
                stopped: false,
            }),
            changed: Condvar::new(),
            most,
            clock: runtime.clock.clone(),
        })
    }

    /// Starts threads that run its jobs.
    pub fn spawn(
        self: &Arc<Self>,
        name: &str,
        threads: usize,
        runtime: &Runtime,
        run: impl Fn(J) + Send + Sync + 'static,
    ) -> Result<Vec<ThreadHandle>> {
        let run = Arc::new(run);
        let start = |_| {
            let (queue, run) = (self.clone(), run.clone());
            let body = move || {
                while let Some(job) = queue.take() {
                    run(job);
                }
            };
            runtime.spawner.spawn(name, Box::new(body))
        };
        (0..threads)
            .map(start)
            .collect::<Result<Vec<_>>>()
            .inspect_err(|_| self.stop())
    }

    /// Has a job run from `at` on. Fails with `Busy` when too many wait, and with `Cancelled` once it's stopped.
    pub fn push(&self, at: Instant, job: J) -> Result<()> {
        let mut state = self.state.lock();
        if state.stopped {
            return Err(Error::new(ErrorKind::Cancelled, "the hand-off is closed"));
        }
        if state.jobs.len() >= self.most {
            return Err(Error::new(ErrorKind::Busy, "too much waits to be done"));
        }
        let number = state.next;
        state.next += 1;
        state.jobs.insert((at, number), job);
        drop(state);
        self.changed.notify_one();
        Ok(())
    }

    /// Has a job run as soon as a thread is free. Fails as [`Queue::push`] does.
    pub fn push_now(&self, job: J) -> Result<()> {
        self.push(self.clock.now(), job)
    }

    /// The next job, when its time has come. `None` once it's stopped.
    fn take(&self) -> Option<J> {
        let mut state = self.state.lock();
        loop {
            if state.stopped {
                return None;
            }
            match state.jobs.first_key_value() {
                None => self.changed.wait(&mut state),
                Some(((at, _), _)) if *at <= self.clock.now() => {
                    let job = state.jobs.pop_first();
                    let more = !state.jobs.is_empty();
                    drop(state);
                    if more {
                        self.changed.notify_one();
                    }
                    return job.map(|(_, job)| job);
                }
                Some(((at, _), _)) => {
                    let at = *at;
                    self.changed.wait_until(&mut state, at);
                }
            }
        }
    }

    /// No job begins any more, and those that wait are forgotten.
    pub fn stop(&self) {
        let jobs = {
            let mut state = self.state.lock();
            state.stopped = true;
            std::mem::take(&mut state.jobs)
        };
        self.changed.notify_all();
        drop(jobs);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn jobs_run_in_the_order_of_their_times_and_not_after_the_end() {
        let runtime = Runtime::system();
        let queue = Queue::new(2, &runtime);
        let (sender, receiver) = std::sync::mpsc::channel();
        let now = runtime.clock.now();
        queue.push(now + Duration::from_millis(5), 2).unwrap();
        queue.push(now, 1).unwrap();
        assert_eq!(queue.push(now, 3).unwrap_err().kind(), ErrorKind::Busy);
        let send = move |job| sender.send(job).unwrap();
        let threads = queue.spawn("queue", 1, &runtime, send).unwrap();
        assert_eq!([receiver.recv().unwrap(), receiver.recv().unwrap()], [1, 2]);
        queue.stop();
        threads.into_iter().for_each(ThreadHandle::join);
        assert_eq!(queue.push(now, 3).unwrap_err().kind(), ErrorKind::Cancelled);
    }
}
