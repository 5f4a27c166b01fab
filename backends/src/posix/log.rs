//! One directory's log: its queue of writes, what it owns, and how it is.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kvstored_core::tier::Completion;
use kvstored_core::{BlockHash, Durability, Error, ErrorKind, NamespaceInfo, Result, SlotGuard};
use parking_lot::{Condvar, Mutex};

use super::directory::Directory;
use super::index::{Location, NamespaceIndex};
use super::own::Own;
use super::quarantine::Suspect;
use super::shared::Shared;
use super::tail::Tailer;
use crate::io::IoEngine;

/// How long a degraded log waits at most before it tries again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Corrupt extents that may wait to be copied aside.
const SUSPECTS_LIMIT: usize = 256;

/// A block to be stored.
pub struct WriteTask {
    /// Its namespace's index.
    pub index: Arc<NamespaceIndex>,
    /// Identity and layout.
    pub info: Arc<NamespaceInfo>,
    /// The block.
    pub hash: BlockHash,
    /// When to complete.
    pub durability: Durability,
    /// For a hot block of a segment that goes: where it is and its generation, both kept.
    pub reinserted: Option<(Location, u64)>,
    /// The image.
    pub buffer: SlotGuard,
    /// Whom to tell.
    pub completion: Completion,
}

/// An image write that ended.
pub struct Finished {
    /// Number of the write.
    pub ticket: u64,
    /// The image, back from the I/O engine.
    pub buffer: SlotGuard,
    /// How it went.
    pub result: Result<()>,
}

/// What the log's thread is to do.
#[derive(Default)]
pub struct Queue {
    /// Blocks to store.
    pub waiting: VecDeque<WriteTask>,
    /// Image writes that ended.
    pub finished: Vec<Finished>,
    /// No new ones are accepted, and the thread is to end.
    pub stopped: bool,
}

/// Why a log doesn't take writes.
#[derive(Clone, Debug)]
pub struct Degraded {
    /// With what writes are refused.
    pub kind: ErrorKind,
    /// In words.
    pub reason: String,
    /// When to try again.
    pub retry_at: Instant,
}

/// Work for the maintenance thread.
#[derive(Default)]
pub struct Chores {
    /// Corrupt extents.
    pub suspects: Vec<Suspect>,
    /// Something else is to be done.
    pub wanted: bool,
    /// The thread is to end.
    pub stopped: bool,
}

/// One directory's log.
pub struct Log {
    /// What all logs share.
    pub shared: Arc<Shared>,
    /// Its number among them.
    pub number: usize,
    /// Its directory.
    pub directory: Directory,
    /// The I/O engine.
    pub engine: Arc<dyn IoEngine>,
    /// Bound of the directory's physical bytes.
    pub capacity_bytes: u64,
    /// Physical bytes as last added up.
    pub used_bytes: AtomicU64,
    /// What this process owns here. Taken before any lock of the index or the segment table.
    pub own: Mutex<Own>,
    /// The other writers.
    pub tailer: Mutex<Tailer>,
    /// One preparation of a segment at a time.
    pub preparing: Mutex<()>,
    /// Whether a segment couldn't be had for want of capacity.
    pub starving: AtomicBool,
    /// Until when writes are refused without looking again whether there's room for a segment.
    pub no_room_until: Mutex<Option<Instant>>,
    /// Whether something was written since the directory was last added up.
    pub dirty: AtomicBool,
    queue: Mutex<Queue>,
    queue_changed: Condvar,
    degraded: Mutex<Option<Degraded>>,
    chores: Mutex<Chores>,
    chores_changed: Condvar,
}

impl Log {
    /// A log over a directory that nothing is read from yet.
    pub fn new(
        shared: Arc<Shared>,
        number: usize,
        directory: Directory,
        engine: Arc<dyn IoEngine>,
        capacity_bytes: u64,
    ) -> Self {
        Self {
            shared,
            number,
            directory,
            engine,
            capacity_bytes,
            used_bytes: AtomicU64::new(0),
            own: Mutex::new(Own::default()),
            tailer: Mutex::new(Tailer::default()),
            preparing: Mutex::new(()),
            starving: AtomicBool::new(false),
            no_room_until: Mutex::new(None),
            dirty: AtomicBool::new(true),
            queue: Mutex::new(Queue::default()),
            queue_changed: Condvar::new(),
            degraded: Mutex::new(None),
            chores: Mutex::new(Chores::default()),
            chores_changed: Condvar::new(),
        }
    }

    /// Queues a write, or hands it back with the reason.
    pub fn push(&self, task: WriteTask) -> Result<(), (WriteTask, Error)> {
        let mut queue = self.queue.lock();
        if queue.stopped {
            return Err((task, Error::new(ErrorKind::Cancelled, "the tier is shut down")));
        }
        if queue.waiting.len() >= self.shared.settings.queue_depth {
            return Err((
                task,
                Error::new(ErrorKind::Busy, "the tier's write queue is full"),
            ));
        }
        queue.waiting.push_back(task);
        drop(queue);
        self.queue_changed.notify_one();
        Ok(())
    }

    /// Takes an image write's end in.
    pub fn finish(&self, finished: Finished) {
        self.queue.lock().finished.push(finished);
        self.queue_changed.notify_one();
    }

    /// Waits for work. At most `room` tasks are taken.
    pub fn next_work(&self, room: usize) -> (Vec<WriteTask>, Vec<Finished>, bool) {
        let mut queue = self.queue.lock();
        if queue.finished.is_empty() && !queue.stopped && (room == 0 || queue.waiting.is_empty()) {
            self.queue_changed.wait_for(&mut queue, Duration::from_mins(1));
        }
        let count = room.min(queue.waiting.len());
        (
            queue.waiting.drain(..count).collect(),
            std::mem::take(&mut queue.finished),
            queue.stopped,
        )
    }

    /// Ends the log's thread once nothing is in flight, and refuses what comes later.
    pub fn stop(&self) {
        self.queue.lock().stopped = true;
        self.queue_changed.notify_all();
        self.chores.lock().stopped = true;
        self.chores_changed.notify_all();
    }

    /// Writes that wait.
    pub fn waiting(&self) -> usize {
        self.queue.lock().waiting.len()
    }

    /// How long to wait between looks at the directory's health.
    pub fn retry_interval(&self) -> Duration {
        RETRY_INTERVAL.min(Duration::from_millis(20 * self.shared.settings.tail_interval_ms))
    }

    /// Why the log takes no writes, if it doesn't.
    pub fn degraded(&self) -> Option<Degraded> {
        self.degraded.lock().clone()
    }

    /// Stops taking writes until a probe succeeds.
    pub fn degrade(&self, error: &Error) {
        let kind = if error.kind() == ErrorKind::NoSpace {
            ErrorKind::NoSpace
        } else {
            ErrorKind::Unavailable
        };
        let retry_at = self.shared.runtime.deadline(self.retry_interval());
        let mut degraded = self.degraded.lock();
        if degraded.is_none() {
            tracing::warn!(%error, directory = %self.directory.path().display(), "the storage directory is degraded");
        }
        *degraded = Some(Degraded {
            kind,
            reason: error.to_string(),
            retry_at,
        });
        drop(degraded);
        self.want_chores();
    }

    /// Takes writes again.
    pub fn heal(&self) {
        if self.degraded.lock().take().is_some() {
            tracing::info!(directory = %self.directory.path().display(), "the storage directory works again");
        }
    }

    /// The error writes are refused with, if they are.
    pub fn refusal(&self) -> Option<Error> {
        self.degraded.lock().as_ref().map(|degraded| {
            Error::new(
                degraded.kind,
                format!("the storage directory is degraded: {}", degraded.reason),
            )
        })
    }

    /// Wakes the maintenance thread.
    pub fn want_chores(&self) {
        self.chores.lock().wanted = true;
        self.chores_changed.notify_one();
    }

    /// Has a corrupt extent looked at.
    pub fn suspect(&self, suspect: Suspect) {
        let mut chores = self.chores.lock();
        if chores.suspects.len() < SUSPECTS_LIMIT {
            chores.suspects.push(suspect);
        }
        chores.wanted = true;
        drop(chores);
        self.chores_changed.notify_one();
    }

    /// Waits for chores. Returns the suspects, and whether to end.
    pub fn next_chores(&self, timeout: Duration) -> (Vec<Suspect>, bool) {
        let mut chores = self.chores.lock();
        if !chores.wanted && !chores.stopped {
            self.chores_changed.wait_for(&mut chores, timeout);
        }
        chores.wanted = false;
        (std::mem::take(&mut chores.suspects), chores.stopped)
    }

    /// Whether the tier is shutting down.
    pub fn is_stopped(&self) -> bool {
        self.chores.lock().stopped
    }

    /// Notes that the directory changed.
    pub fn touch(&self, written_bytes: u64) {
        self.dirty.store(true, Ordering::Relaxed);
        super::shared::count(&self.shared.counters.written_bytes, written_bytes);
    }
}
