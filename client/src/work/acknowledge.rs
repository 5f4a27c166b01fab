//! Waiting for the acknowledgements of commits, so that no stream has to.

use std::collections::VecDeque;
use std::sync::Arc;

use kvstored_core::error::Result;
use parking_lot::{Condvar, Mutex};

use crate::session::{PooledSession, Ticket};
use crate::task::TaskState;

use super::dump::committed;
use super::{Core, closed};

/// Commits of one session that wait for their acknowledgement.
pub(crate) struct Pending {
    pub(crate) task: Arc<TaskState>,
    pub(crate) session: PooledSession,
    pub(crate) commits: VecDeque<(Ticket, Vec<usize>)>,
}

impl Pending {
    fn fail(&self, error: &kvstored_core::Error) {
        self.task.fail(
            self.commits.iter().flat_map(|(_, window)| window.iter().copied()),
            error,
        );
    }

    /// Waits for every commit, oldest first.
    fn finish(mut self, core: &Core) {
        while let Some((ticket, _)) = self.commits.front() {
            let result: Result<()> = core
                .wait(&mut *self.session, *ticket, &self.task, false)
                .and_then(|answer| match self.commits.pop_front() {
                    Some((_, window)) => committed(&self.task, window, answer),
                    None => Ok(()),
                });
            if let Err(error) = result {
                self.fail(&error);
                return self.session.discard();
            }
        }
    }
}

#[derive(Default)]
struct State {
    line: VecDeque<Pending>,
    closed: bool,
}

/// A thread that waits for acknowledgements, first come first served. The number of dump sessions bounds its line.
#[derive(Default)]
pub(crate) struct Acknowledger {
    state: Mutex<State>,
    changed: Condvar,
}

impl Acknowledger {
    /// Takes commits over.
    pub(crate) fn wait_for(&self, pending: Pending) {
        if pending.commits.is_empty() {
            return;
        }
        let mut state = self.state.lock();
        if state.closed {
            drop(state);
            pending.fail(&closed());
            return pending.session.discard();
        }
        state.line.push_back(pending);
        drop(state);
        self.changed.notify_one();
    }

    /// The thread's body.
    pub(crate) fn run(core: &Core) {
        let this = &core.acknowledger;
        loop {
            let mut state = this.state.lock();
            let pending = loop {
                if let Some(pending) = state.line.pop_front() {
                    break pending;
                }
                if state.closed {
                    return;
                }
                this.changed.wait(&mut state);
            };
            drop(state);
            pending.finish(core);
        }
    }

    /// Lets the thread end; what waits in line ends as cancelled.
    pub(crate) fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_all();
    }
}
