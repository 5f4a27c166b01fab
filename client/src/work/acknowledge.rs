//! Waiting for the acknowledgements of commits, so that no stream has to.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::session::{PooledSession, SLICE, Ticket};
use crate::task::TaskState;

use super::dump::committed;
use super::{Core, closed};

/// How long one is waited for while others are in line.
const SHARED_SLICE: Duration = Duration::from_millis(5);

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

    /// Takes acknowledgements, oldest first, waiting until `until` at most; gives itself back if some are missing.
    fn advance(mut self, core: &Core, until: Instant) -> Option<Self> {
        while let Some((ticket, _)) = self.commits.front() {
            let answer = match core.stopped(&self.task) {
                Some(error) => Err(error),
                None => self.session.finish(*ticket, until),
            };
            let taken = match answer {
                Ok(None) => return Some(self),
                Ok(Some(answer)) => match self.commits.pop_front() {
                    Some((_, window)) => committed(&self.task, window, answer),
                    None => Ok(()),
                },
                Err(error) => Err(error),
            };
            if let Err(error) = taken {
                self.fail(&error);
                self.session.discard();
                return None;
            }
        }
        None
    }
}

#[derive(Default)]
struct State {
    line: VecDeque<Pending>,
    closed: bool,
}

/// A thread that waits for acknowledgements. The number of dump sessions bounds its line.
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
        let mut line = VecDeque::new();
        while core.acknowledger.more(&mut line) {
            // the first is waited for and the others are looked at, so that none is stuck behind another
            let slice = if line.len() > 1 { SHARED_SLICE } else { SLICE };
            let mut until = core.runtime.deadline(slice);
            for _ in 0..line.len() {
                let pending = line.pop_front();
                line.extend(pending.and_then(|pending: Pending| pending.advance(core, until)));
                until = until.min(core.runtime.clock.now());
            }
        }
    }

    /// Takes what has come in line, and waits for something if there's nothing; `false` at the end.
    fn more(&self, line: &mut VecDeque<Pending>) -> bool {
        let mut state = self.state.lock();
        loop {
            line.append(&mut state.line);
            if !line.is_empty() {
                return true;
            }
            if state.closed {
                return false;
            }
            self.changed.wait(&mut state);
        }
    }

    /// Lets the thread end; what waits in line ends as cancelled.
    pub(crate) fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_all();
    }
}
