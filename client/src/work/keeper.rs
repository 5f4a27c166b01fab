//! Looking after tasks that no stream works on: those in line, and layerwise dumps whose shards haven't come.
//!
//! A stream notices by itself that its task was cancelled or is late. The keeper's thread sleeps until somebody
//! cancels a task or a deadline passes, so that it costs nothing while all goes well.

use std::sync::{Arc, Weak};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use super::{Core, LayerwiseDump};

#[derive(Default)]
struct State {
    dumps: Vec<Weak<LayerwiseDump>>,
    /// No deadline that it has to look after is earlier.
    wake_at: Option<Instant>,
    woken: bool,
    closed: bool,
}

/// Ends what nobody works on.
#[derive(Default)]
pub(crate) struct Keeper {
    state: Mutex<State>,
    changed: Condvar,
}

impl Keeper {
    /// Somebody cancelled a task.
    pub(crate) fn wake(&self) {
        self.state.lock().woken = true;
        self.changed.notify_all();
    }

    /// A task that may have to wait has this deadline.
    pub(crate) fn expect(&self, deadline: Instant) {
        let mut state = self.state.lock();
        if state.wake_at.is_none_or(|earliest| deadline < earliest) {
            state.wake_at = Some(deadline);
            drop(state);
            self.changed.notify_all();
        }
    }

    /// Looks after a dump until it ends.
    pub(crate) fn watch(&self, dump: &Arc<LayerwiseDump>) {
        let mut state = self.state.lock();
        if state.dumps.len() == state.dumps.capacity() {
            // nobody else throws out those that have ended before the next deadline
            state.dumps.retain(|dump| dump.strong_count() > 0);
        }
        state.dumps.push(Arc::downgrade(dump));
        drop(state);
        self.expect(dump.task.deadline());
    }

    /// The thread's body.
    pub(crate) fn run(core: &Core) {
        while core.keeper.sleep(core) {
            core.keeper.round(core);
        }
        // now every task is to end
        core.keeper.round(core);
    }

    /// Sleeps until there's something to look after; `false` once it's closed.
    fn sleep(&self, core: &Core) -> bool {
        let mut state = self.state.lock();
        loop {
            if state.closed {
                return false;
            }
            let now = core.runtime.clock.now();
            if std::mem::take(&mut state.woken) || state.wake_at.is_some_and(|at| at <= now) {
                // what is expected from here on is not lost, nor a deadline that is still to come
                state.wake_at = state.wake_at.filter(|at| *at > now);
                return true;
            }
            match state.wake_at {
                Some(at) => {
                    let pause = at.saturating_duration_since(now);
                    self.changed.wait_for(&mut state, pause);
                }
                None => self.changed.wait(&mut state),
            }
        }
    }

    fn round(&self, core: &Core) {
        for (job, error) in core.queue.take_stopped() {
            job.fail(core, &error);
        }
        let mut next = core.queue.earliest_deadline();
        let mut dumps = std::mem::take(&mut self.state.lock().dumps);
        dumps.retain(|dump| {
            let Some(dump) = dump.upgrade().filter(|dump| !dump.is_over()) else {
                return false;
            };
            if let Some(error) = core.stopped(&dump.task) {
                dump.abort(core, &error);
                return false;
            }
            let deadline = dump.task.deadline();
            next = Some(next.map_or(deadline, |next| next.min(deadline)));
            true
        });
        let mut state = self.state.lock();
        state.dumps.append(&mut dumps);
        state.wake_at = match (state.wake_at, next) {
            (Some(expected), Some(next)) => Some(expected.min(next)),
            (expected, next) => expected.or(next),
        };
    }

    /// Lets the thread end, after it has ended every task.
    pub(crate) fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_all();
    }
}
