//! The bounded queue between submitters and the threads of an engine.

use std::cell::Cell;
use std::collections::VecDeque;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

use kvstored_core::{Error, Result};
use parking_lot::{Mutex, MutexGuard};

use super::error::{busy, cancelled};
use super::request::IoRequest;

/// What waits.
#[derive(Default)]
pub(super) struct Waiting {
    /// Requests in the order of their submission.
    pub requests: VecDeque<IoRequest>,
    /// Nothing is accepted any more.
    pub closed: bool,
}

/// The bounded queue, and the count of what the engine holds in all.
pub(super) struct Inbox {
    waiting: Mutex<Waiting>,
    limit: usize,
    held: AtomicUsize,
}

/// Queues what is valid and fits. Returns how many were queued, and the others with how they end; they have to be completed
/// without a lock.
pub fn admit(
    batch: Vec<IoRequest>,
    closed: bool,
    limit: usize,
    queue: &mut VecDeque<IoRequest>,
) -> (usize, Vec<(IoRequest, Result<()>)>) {
    let before = queue.len();
    let mut refused = Vec::new();
    for request in batch {
        let verdict = match request.address() {
            _ if closed => Err(cancelled()),
            Err(error) => Err(error),
            Ok(_) if request.length == 0 => Ok(()),
            Ok(_) if queue.len() >= limit => Err(busy()),
            Ok(_) => {
                queue.push_back(request);
                continue;
            }
        };
        refused.push((request, verdict));
    }
    (queue.len() - before, refused)
}

thread_local! {
    /// The inbox that this thread works for, if it's a thread of an engine.
    static SERVED: Cell<*const Inbox> = const { Cell::new(ptr::null()) };
}

impl Inbox {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            waiting: Mutex::default(),
            limit,
            held: AtomicUsize::new(0),
        }
    }

    /// Queues what is valid and fits, completes the rest at once, and says how many were queued.
    pub(super) fn offer(&self, batch: Vec<IoRequest>) -> usize {
        let mut waiting = self.waiting.lock();
        let closed = waiting.closed;
        let (accepted, refused) = admit(batch, closed, self.limit, &mut waiting.requests);
        self.held.fetch_add(accepted, Ordering::Relaxed);
        drop(waiting);
        for (request, verdict) in refused {
            request.complete(verdict);
        }
        accepted
    }

    /// The queue itself, for the engine's threads.
    pub(super) fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock()
    }

    /// Completes a request that was queued here.
    pub(super) fn complete(&self, request: IoRequest, result: Result<()>) {
        self.held.fetch_sub(1, Ordering::Relaxed);
        request.complete(result);
    }

    /// Accepts nothing from now on, and fails what waits.
    pub(super) fn close(&self, error: &Error) {
        let stranded = {
            let mut waiting = self.waiting.lock();
            waiting.closed = true;
            std::mem::take(&mut waiting.requests)
        };
        for request in stranded {
            self.complete(request, Err(error.clone()));
        }
    }

    /// Requests queued and not completed.
    pub(super) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Marks the calling thread as one of the engine's.
    pub(super) fn serve(&self) {
        SERVED.set(self);
    }

    /// Whether the calling thread is one of the engine's, and so can't wait for the engine to end.
    pub(super) fn is_served_here(&self) -> bool {
        ptr::eq(SERVED.get(), self)
    }
}
