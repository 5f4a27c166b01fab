//! The bounded queue of one direction, which its rings' threads share.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};

use kvstored_backends::io::{IoRequest, admit, cancelled};
use kvstored_core::Result;
use parking_lot::{Condvar, Mutex};

#[derive(Default)]
struct Waiting {
    requests: VecDeque<IoRequest>,
    closed: bool,
}

/// Requests of one direction.
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
    limit: usize,
    held: AtomicUsize,
}

impl Queue {
    pub fn new(limit: usize) -> Self {
        Self {
            waiting: Mutex::default(),
            changed: Condvar::new(),
            limit,
            held: AtomicUsize::new(0),
        }
    }

    /// Queues what is valid and fits, and completes the rest at once.
    pub fn offer(&self, batch: Vec<IoRequest>) {
        let mut waiting = self.waiting.lock();
        let closed = waiting.closed;
        let (accepted, refused) = admit(batch, closed, self.limit, &mut waiting.requests);
        self.held.fetch_add(accepted, Ordering::Relaxed);
        drop(waiting);
        match accepted {
            0 => {}
            1 => {
                self.changed.notify_one();
            }
            _ => {
                self.changed.notify_all();
            }
        }
        for (request, verdict) in refused {
            request.complete(verdict);
        }
    }

    /// Waits for requests and takes up to `most`. Returns none once the queue is closed, or when `interrupted` says so,
    /// which is asked again after [`Queue::nudge`].
    pub fn take(&self, most: usize, interrupted: impl Fn() -> bool) -> Vec<IoRequest> {
        let mut waiting = self.waiting.lock();
        while waiting.requests.is_empty() && !waiting.closed && !interrupted() {
            self.changed.wait(&mut waiting);
        }
        Self::pop(&mut waiting, most)
    }

    /// Takes up to `most` that wait.
    pub fn take_now(&self, most: usize) -> Vec<IoRequest> {
        Self::pop(&mut self.waiting.lock(), most)
    }

    fn pop(waiting: &mut Waiting, most: usize) -> Vec<IoRequest> {
        let count = waiting.requests.len().min(most);
        waiting.requests.drain(..count).collect()
    }

    /// Wakes whoever waits for requests.
    pub fn nudge(&self) {
        drop(self.waiting.lock());
        self.changed.notify_all();
    }

    /// Whether nothing is accepted any more.
    pub fn is_closed(&self) -> bool {
        self.waiting.lock().closed
    }

    /// Ends a request that was queued here.
    pub fn complete(&self, request: IoRequest, result: Result<()>) {
        self.held.fetch_sub(1, Ordering::Relaxed);
        request.complete(result);
    }

    /// Counts a request that goes into a ring at once.
    pub fn enter(&self) {
        self.held.fetch_add(1, Ordering::Relaxed);
    }

    /// Gives up a request that goes elsewhere.
    pub fn hand_on(&self) {
        self.held.fetch_sub(1, Ordering::Relaxed);
    }

    /// Accepts nothing from now on, and ends what waits.
    pub fn close(&self) {
        let stranded = {
            let mut waiting = self.waiting.lock();
            waiting.closed = true;
            std::mem::take(&mut waiting.requests)
        };
        self.changed.notify_all();
        for request in stranded {
            self.complete(request, Err(cancelled()));
        }
    }

    /// Requests queued and not completed.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }
}
