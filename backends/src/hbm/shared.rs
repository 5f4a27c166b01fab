//! What the tier and its threads share: slots on the device, and the queue of batches.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use kvstored_core::device::{DeviceMemory, Direction};
use kvstored_core::tier::{Action, Operation};
use kvstored_core::{Error, ErrorKind, Result, Runtime};
use parking_lot::{Condvar, Mutex};

use super::health::Health;
use super::settings::HbmSettings;
use crate::slots::{Cut, Indexes, State};

/// A block's place on the device, pinned.
pub(super) struct DeviceSlot {
    shared: Arc<Shared>,
    number: u32,
    pub(super) offset: usize,
}

impl Drop for DeviceSlot {
    fn drop(&mut self) {
        self.shared.state.lock().release(self.number);
    }
}

/// An operation and the place that it's about.
pub(super) struct Transfer {
    pub(super) operation: Operation,
    pub(super) slot: Arc<DeviceSlot>,
}

/// Copies for one call to the device.
pub(super) struct Batch {
    pub(super) direction: Direction,
    bytes: u64,
    deadline: Instant,
    work: Mutex<Work>,
}

struct Work {
    /// `None` once the callers were told.
    transfers: Option<Vec<Transfer>>,
    /// The device may have it.
    begun: bool,
}

impl Batch {
    /// Looks at what is to be copied. `None` if that isn't wanted any more.
    pub(super) fn begin<R>(&self, look: impl FnOnce(&[Transfer]) -> R) -> Option<R> {
        let mut work = self.work.lock();
        work.begun = true;
        work.transfers.as_deref().map(look)
    }

    /// Takes the operations, to end them: once.
    fn take(&self) -> (Option<Vec<Transfer>>, bool) {
        let mut work = self.work.lock();
        (work.transfers.take(), work.begun)
    }
}

#[derive(Default)]
struct Queue {
    batches: VecDeque<Arc<Batch>>,
    /// All that may take too long, in the order of their deadlines; those that ended stay until their turn.
    watched: VecDeque<Arc<Batch>>,
    /// Operations that wait or are under way.
    operations: usize,
    stopping: bool,
    /// Threads that are there.
    threads: usize,
}

/// Counters that only grow, and the bytes that a device keeps past its deadline.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) read_bytes: AtomicU64,
    pub(super) written_bytes: AtomicU64,
    pub(super) quarantined_blocks: AtomicU64,
    pub(super) faults: AtomicU64,
    pub(super) held_bytes: AtomicU64,
}

pub(super) struct Shared {
    pub(super) settings: HbmSettings,
    pub(super) runtime: Runtime,
    pub(super) memory: Arc<DeviceMemory>,
    pub(super) indexes: Indexes,
    pub(super) state: Mutex<State>,
    pub(super) health: Health,
    pub(super) counts: Counts,
    queue: Mutex<Queue>,
    /// A batch came, or the tier stops.
    came: Condvar,
    /// An operation or a thread ended.
    ended: Condvar,
    /// There is something to watch again, or the tier has stopped.
    watch: Condvar,
}

impl Shared {
    pub(super) fn new(
        settings: HbmSettings,
        runtime: Runtime,
        memory: Arc<DeviceMemory>,
        indexes: Indexes,
        state: State,
    ) -> Arc<Self> {
        Arc::new(Self {
            settings,
            runtime,
            memory,
            indexes,
            state: Mutex::new(state),
            health: Health::new(),
            counts: Counts::default(),
            queue: Mutex::default(),
            came: Condvar::new(),
            ended: Condvar::new(),
            watch: Condvar::new(),
        })
    }

    /// A guard for what was cut or pinned.
    pub(super) fn slot(self: &Arc<Self>, (number, offset, _): Cut) -> Arc<DeviceSlot> {
        Arc::new(DeviceSlot {
            shared: self.clone(),
            number,
            offset,
        })
    }

    /// Makes a written block visible.
    pub(super) fn publish(&self, slot: &DeviceSlot) {
        self.state.lock().publish(slot.number);
    }

    /// Drops what a slot holds, or was to hold.
    pub(super) fn discard(&self, slot: &DeviceSlot) {
        self.state.lock().discard(slot.number);
    }

    /// Queues operations, or gives them back with why not. They end within twice the timeout, however the device is.
    pub(super) fn push(
        &self,
        direction: Direction,
        transfers: Vec<Transfer>,
    ) -> Result<(), (Vec<Transfer>, Error)> {
        let bytes = |transfer: &Transfer| transfer.operation.namespace.layout.image_bytes() as u64;
        let deadline = self.runtime.deadline(self.settings.timeout.saturating_mul(2));
        let mut queue = self.queue.lock();
        if queue.stopping {
            return Err((transfers, stopped()));
        }
        if queue.operations + transfers.len() > self.settings.queue_depth {
            let what = format!("{} operations wait for the device", queue.operations);
            return Err((transfers, Error::new(ErrorKind::Busy, what)));
        }
        queue.operations += transfers.len();
        let batch = Arc::new(Batch {
            direction,
            bytes: transfers.iter().map(bytes).sum(),
            deadline,
            work: Mutex::new(Work {
                transfers: Some(transfers),
                begun: false,
            }),
        });
        queue.batches.push_back(batch.clone());
        queue.watched.push_back(batch);
        let first = queue.watched.len() == 1;
        drop(queue);
        self.came.notify_one();
        if first {
            self.watch.notify_one();
        }
        Ok(())
    }

    /// The next batch; `None` when the tier stops.
    pub(super) fn next(&self) -> Option<Arc<Batch>> {
        let mut queue = self.queue.lock();
        loop {
            if queue.stopping {
                return None;
            }
            match queue.batches.pop_front() {
                Some(batch) => return Some(batch),
                None => self.came.wait(&mut queue),
            }
        }
    }

    /// Tells the callers of a batch what became of it, once. Returns whether they were waiting.
    pub(super) fn settle(&self, batch: &Batch, outcome: impl Fn(&Transfer) -> Result<()>) -> bool {
        let (transfers, _) = batch.take();
        let waiting = transfers.is_some();
        for transfer in transfers.into_iter().flatten() {
            let outcome = outcome(&transfer);
            self.end(transfer, outcome);
        }
        if !waiting {
            // the watch has told them; whatever the device still touches is the stream's to hold
            self.counts.held_bytes.fetch_sub(batch.bytes, Ordering::Relaxed);
        }
        waiting
    }

    /// The thread that ends what takes too long: calls to a device that don't return, and what waits behind them.
    pub(super) fn run_watch(&self) {
        let mut queue = self.queue.lock();
        loop {
            let Some(batch) = queue.watched.front().cloned() else {
                if queue.stopping {
                    break;
                }
                self.watch.wait(&mut queue);
                continue;
            };
            let left = batch.deadline.saturating_duration_since(self.runtime.clock.now());
            if batch.work.lock().transfers.is_none() {
                queue.watched.pop_front();
            } else if left.is_zero() {
                queue.watched.pop_front();
                drop(queue);
                self.expire(&batch);
                queue = self.queue.lock();
            } else {
                self.watch.wait_for(&mut queue, left);
            }
        }
        queue.threads -= 1;
        drop(queue);
        self.ended.notify_all();
    }

    fn expire(&self, batch: &Batch) {
        let (transfers, begun) = batch.take();
        let Some(transfers) = transfers else { return };
        let waited = self.settings.timeout.as_millis() * 2;
        let error = Error::new(
            ErrorKind::TimedOut,
            format!("the device gave no answer in {waited} ms"),
        );
        self.counts.faults.fetch_add(1, Ordering::Relaxed);
        self.health.failed(&error, &self.runtime);
        if begun {
            self.counts.held_bytes.fetch_add(batch.bytes, Ordering::Relaxed);
        }
        for transfer in transfers {
            self.end(transfer, Err(error.clone()));
        }
    }

    /// A thread begins.
    pub(super) fn enter(&self) {
        self.queue.lock().threads += 1;
    }

    /// A thread ends.
    pub(super) fn leave(&self) {
        self.queue.lock().threads -= 1;
        self.ended.notify_all();
    }

    /// Ends one operation of the queue.
    pub(super) fn end(&self, transfer: Transfer, outcome: Result<()>) {
        let Transfer { operation, slot } = transfer;
        if outcome.is_err() && matches!(operation.action, Action::Write(_)) {
            self.discard(&slot);
        }
        drop(slot);
        operation.complete(outcome.map_err(named));
        let mut queue = self.queue.lock();
        queue.operations -= 1;
        let stopping = queue.stopping;
        drop(queue);
        self.ended.notify_all();
        if stopping {
            self.watch.notify_all();
        }
    }

    /// Operations that wait or are under way.
    pub(super) fn operations(&self) -> usize {
        self.queue.lock().operations
    }

    /// Waits until none waits or is under way.
    pub(super) fn wait_idle(&self, deadline: Instant) -> Result<()> {
        self.wait_until(deadline, "operations are under way", |queue| queue.operations)
    }

    /// Waits until every thread has ended.
    pub(super) fn wait_left(&self, deadline: Instant) -> Result<()> {
        self.wait_until(deadline, "threads wait for the device", |queue| queue.threads)
    }

    fn wait_until(&self, deadline: Instant, what: &str, count: fn(&Queue) -> usize) -> Result<()> {
        let mut queue = self.queue.lock();
        while count(&queue) > 0 {
            let left = deadline.saturating_duration_since(self.runtime.clock.now());
            if left.is_zero() {
                let what = format!("{} {what}", count(&queue));
                return Err(named(Error::new(ErrorKind::TimedOut, what)));
            }
            self.ended.wait_for(&mut queue, left);
        }
        Ok(())
    }

    /// Has the threads end, and ends what they haven't begun. Returns whether it's the first time.
    pub(super) fn stop(&self) -> bool {
        let mut queue = self.queue.lock();
        if std::mem::replace(&mut queue.stopping, true) {
            return false;
        }
        let left = std::mem::take(&mut queue.batches);
        drop(queue);
        self.came.notify_all();
        for batch in left {
            for transfer in batch.take().0.into_iter().flatten() {
                self.end(transfer, Err(stopped()));
            }
        }
        self.watch.notify_all();
        true
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.queue.lock().stopping
    }

    pub(super) fn count(&self, direction: Direction, bytes: u64) {
        let counter = match direction {
            Direction::HostToDevice => &self.counts.written_bytes,
            Direction::DeviceToHost | Direction::DeviceToDevice => &self.counts.read_bytes,
        };
        counter.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// The tier has stopped.
pub(super) fn stopped() -> Error {
    Error::new(ErrorKind::Cancelled, "the tier has stopped")
}

/// The error with the tier's name.
pub(super) fn named(error: Error) -> Error {
    error.with("tier", "Hbm")
}
