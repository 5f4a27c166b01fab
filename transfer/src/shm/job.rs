//! Transfers that take a while: pieces that the waiting thread and a helper take in turn.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use kvstored_core::runtime::ThreadHandle;
use kvstored_core::{Error, ErrorKind, Result, Runtime};
use kvstored_shm::copy::Stores;
use parking_lot::{Condvar, Mutex};

use super::link::ShmLink;
use crate::link::Entry;
use crate::transfer::{TransferKind, TransferState};

/// A transfer's pieces. Each is claimed, and finished, by exactly one thread.
pub(crate) struct Job {
    link: Arc<ShmLink>,
    kind: TransferKind,
    stores: Stores,
    pieces: Vec<Entry>,
    next: AtomicUsize,
    /// Whether pieces were handed to another transport.
    handed_on: AtomicBool,
}

impl Job {
    pub fn new(link: Arc<ShmLink>, kind: TransferKind, stores: Stores, pieces: Vec<Entry>) -> Arc<Self> {
        Arc::new(Self {
            link,
            kind,
            stores,
            pieces,
            next: AtomicUsize::new(0),
            handed_on: AtomicBool::new(false),
        })
    }

    pub fn was_handed_on(&self) -> bool {
        self.handed_on.load(Ordering::Acquire)
    }

    fn claim(&self) -> Option<(usize, &Entry)> {
        // nobody counts past the end more often than there are threads
        let index = self.next.fetch_add(1, Ordering::AcqRel);
        Some((index, self.pieces.get(index)?))
    }

    /// Moves the next piece. False if there's none.
    pub fn step(&self, transfer: &Arc<TransferState>) -> bool {
        let Some((index, piece)) = self.claim() else {
            return false;
        };
        if self.link.run(transfer, self.kind, self.stores, index, piece) {
            self.handed_on.store(true, Ordering::Release);
        }
        true
    }

    /// Finishes all pieces that nobody has claimed.
    pub fn drop_rest(&self, transfer: &TransferState, error: &Error) {
        let claimed = self.next.swap(self.pieces.len(), Ordering::AcqRel);
        let left = self.pieces.len() - claimed.min(self.pieces.len());
        self.link.let_go(left);
        for _ in 0..left {
            transfer.finish_one(Err(error.clone()));
        }
    }
}

impl std::fmt::Debug for Job {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Job")
            .field("pieces", &self.pieces.len())
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

type Work = (Arc<Job>, Arc<TransferState>);

#[derive(Default)]
struct Queue {
    work: VecDeque<Work>,
    stopping: bool,
}

/// A link's helper, so that its transfers go on while nobody waits for them. Each link has its own: a piece may have to ask
/// the peer what its grant is worth, and a peer that doesn't answer must hold up nobody else's transfers.
#[derive(Default)]
pub(super) struct Copier {
    queue: Mutex<Queue>,
    changed: Condvar,
    /// Started with the first job.
    thread: Mutex<Option<ThreadHandle>>,
}

impl Copier {
    /// Queues a job. It's bounded by what the link lets in.
    ///
    /// Fails as starting the thread does; then nothing was queued.
    pub fn push(
        self: &Arc<Self>,
        job: Arc<Job>,
        transfer: Arc<TransferState>,
        runtime: &Runtime,
    ) -> Result<()> {
        {
            let mut thread = self.thread.lock();
            if thread.is_none() && !self.queue.lock().stopping {
                let body = self.clone();
                let body = Box::new(move || body.work());
                *thread = Some(runtime.spawner.spawn("transfer-shm-copy", body)?);
            }
        }
        let mut queue = self.queue.lock();
        if queue.stopping {
            drop(queue);
            job.drop_rest(&transfer, &stopped());
            return Ok(());
        }
        queue.work.push_back((job, transfer));
        self.changed.notify_one();
        Ok(())
    }

    fn work(&self) {
        while let Some((job, transfer)) = self.next() {
            while job.step(&transfer) {}
        }
    }

    fn next(&self) -> Option<Work> {
        let mut queue = self.queue.lock();
        loop {
            if queue.stopping {
                return None;
            }
            if let Some(work) = queue.work.pop_front() {
                return Some(work);
            }
            self.changed.wait(&mut queue);
        }
    }

    /// Tells the thread to end; what is queued fails.
    pub fn stop(&self) {
        let rest = {
            let mut queue = self.queue.lock();
            queue.stopping = true;
            self.changed.notify_all();
            std::mem::take(&mut queue.work)
        };
        for (job, transfer) in rest {
            job.drop_rest(&transfer, &stopped());
        }
    }

    /// Waits for the end of the thread that was told to end. Never called on that thread.
    pub fn join(&self) {
        let thread = self.thread.lock().take();
        if let Some(thread) = thread {
            thread.join();
        }
    }
}

fn stopped() -> Error {
    Error::new(ErrorKind::Unavailable, "the link to the peer was closed")
}
