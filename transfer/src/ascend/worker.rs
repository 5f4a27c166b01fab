//! A thread for what must not be done where answers arrive: taking registrations back, and sending over another transport.

use std::collections::VecDeque;

use parking_lot::{Condvar, Mutex};

type Task = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Queue {
    tasks: VecDeque<Task>,
    stopped: bool,
}

/// Runs tasks one after the other. There are never more than operations under way, which are bounded.
#[derive(Default)]
pub(super) struct Worker {
    queue: Mutex<Queue>,
    changed: Condvar,
}

impl Worker {
    /// Runs a task soon; at once where the thread has ended.
    pub fn push(&self, task: Task) {
        let mut queue = self.queue.lock();
        if queue.stopped {
            drop(queue);
            task();
            return;
        }
        queue.tasks.push_back(task);
        drop(queue);
        self.changed.notify_one();
    }

    /// What the thread does: all tasks, until it's stopped and none is left.
    pub fn run(&self) {
        let mut queue = self.queue.lock();
        loop {
            if let Some(task) = queue.tasks.pop_front() {
                drop(queue);
                task();
                queue = self.queue.lock();
            } else if queue.stopped {
                return;
            } else {
                self.changed.wait(&mut queue);
            }
        }
    }

    /// Ends the thread when it has done what is queued.
    pub fn stop(&self) {
        self.queue.lock().stopped = true;
        self.changed.notify_one();
    }
}
