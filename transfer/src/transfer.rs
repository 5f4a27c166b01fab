//! A transfer: what was asked, how far it is, and the handle that its caller holds.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use kvstored_core::checksum::Checksum;
use kvstored_core::runtime::Clock;
use kvstored_core::{Error, ErrorKind, Result};
use parking_lot::{Condvar, Mutex};

use crate::grant::Grant;
use crate::identity::RegionId;
use crate::link::Link;
use crate::shm::Job;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TransferKind {
    /// From the peer's memory to this process's.
    Read,
    /// From this process's memory to the peer's.
    Write,
}

/// One run of bytes to move.
#[derive(Clone, Debug)]
pub struct TransferEntry {
    /// The region in this process.
    pub local: RegionId,
    /// Where the bytes begin in it.
    pub local_offset: u64,
    /// The right on the peer's memory.
    pub grant: Grant,
    /// Where the bytes begin, counted from the beginning of the grant's range.
    pub remote_offset: u64,
    /// How many bytes.
    pub length: u64,
}

/// What a waiting thread was woken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Woken {
    /// The transfer is over.
    Done,
    /// It's this thread's turn to drive the sockets.
    Lead,
    /// The deadline passed.
    TimedOut,
}

/// The checksum and the length of each operation's bytes.
type Sums = Mutex<Vec<Option<(u64, u64)>>>;

#[derive(Default)]
struct Outcome {
    error: Option<Error>,
    body: Option<Vec<u8>>,
    lead: bool,
}

impl fmt::Debug for TransferState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("TransferState")
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}

/// How far a transfer is. It's over when every operation it consists of is.
pub(crate) struct TransferState {
    deadline: Instant,
    left: AtomicUsize,
    done: AtomicBool,
    abandoned: AtomicBool,
    /// What it consists of, where a helper and the waiting thread share it.
    job: OnceLock<Arc<Job>>,
    /// Where they are asked for; filled where the transport tells.
    sums: Option<Sums>,
    outcome: Mutex<Outcome>,
    changed: Condvar,
}

impl TransferState {
    /// A transfer of that many operations.
    pub fn new(operations: usize, deadline: Instant) -> Arc<Self> {
        Self::with(operations, deadline, None)
    }

    /// The same, whose checksum is asked for.
    pub fn summed(operations: usize, deadline: Instant) -> Arc<Self> {
        Self::with(operations, deadline, Some(Mutex::new(vec![None; operations])))
    }

    fn with(operations: usize, deadline: Instant, sums: Option<Sums>) -> Arc<Self> {
        Arc::new(Self {
            deadline,
            left: AtomicUsize::new(operations),
            done: AtomicBool::new(operations == 0),
            abandoned: AtomicBool::new(false),
            job: OnceLock::new(),
            sums,
            outcome: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// When it's given up.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Nobody wants it any more.
    pub fn abandon(&self) {
        self.abandoned.store(true, Ordering::Release);
    }

    pub fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Acquire)
    }

    /// Keeps what it consists of; once.
    pub fn attach(&self, job: Arc<Job>) {
        let _ = self.job.set(job);
    }

    pub fn job(&self) -> Option<&Arc<Job>> {
        self.job.get()
    }

    pub fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire)
    }

    /// An operation is over, and touches no memory any more. The first error is the transfer's.
    pub fn finish_one(&self, result: Result<()>) {
        if let Err(error) = result {
            self.outcome.lock().error.get_or_insert(error);
        }
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.done.store(true, Ordering::Release);
            // under the lock, so that it can't fall between a waiter's look and its sleep
            drop(self.outcome.lock());
            self.changed.notify_all();
        }
    }

    /// Whether its checksum is asked for.
    pub fn is_summed(&self) -> bool {
        self.sums.is_some()
    }

    /// Keeps the checksum of an operation's bytes, before the operation is finished.
    pub fn keep_sum(&self, operation: usize, value: u64, length: u64) {
        let Some(sums) = &self.sums else { return };
        if let Some(slot) = sums.lock().get_mut(operation) {
            *slot = Some((value, length));
        }
    }

    /// The checksum of all bytes in the order of its entries, once it's over and if every operation told its own.
    fn checksum(&self) -> Option<u64> {
        if !self.is_done() {
            return None;
        }
        let sums = self.sums.as_ref()?.lock();
        let mut all = Checksum::new();
        for sum in sums.iter() {
            let (value, length) = (*sum)?;
            all.append(value, length);
        }
        Some(all.value())
    }

    /// Keeps the body of an answer, before its operation is finished.
    pub fn keep(&self, body: &[u8]) {
        self.outcome.lock().body = Some(body.to_vec());
    }

    /// The body of the answer.
    pub fn take_body(&self) -> Vec<u8> {
        self.outcome.lock().body.take().unwrap_or_default()
    }

    /// What it came to, once it's over.
    pub fn result(&self) -> Option<Result<()>> {
        self.is_done().then(|| match &self.outcome.lock().error {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        })
    }

    /// Tells a thread that waits for this transfer that it's its turn to drive.
    pub fn promote(&self) {
        self.outcome.lock().lead = true;
        self.changed.notify_all();
    }

    /// Takes that back. Whether it was so.
    pub fn demote(&self) -> bool {
        std::mem::take(&mut self.outcome.lock().lead)
    }

    /// Sleeps until something happens to it.
    pub fn sleep(&self, deadline: Instant) -> Woken {
        let mut outcome = self.outcome.lock();
        loop {
            if std::mem::take(&mut outcome.lead) {
                return Woken::Lead;
            }
            if self.is_done() {
                return Woken::Done;
            }
            if self.changed.wait_until(&mut outcome, deadline).timed_out() {
                return match (std::mem::take(&mut outcome.lead), self.is_done()) {
                    (true, _) => Woken::Lead,
                    (false, true) => Woken::Done,
                    (false, false) => Woken::TimedOut,
                };
            }
        }
    }
}

/// A transfer under way. It goes on when the handle is dropped.
pub struct Transfer {
    state: Arc<TransferState>,
    link: Arc<dyn Link>,
    clock: Arc<dyn Clock>,
}

impl Transfer {
    pub(crate) fn new(state: Arc<TransferState>, link: Arc<dyn Link>, clock: Arc<dyn Clock>) -> Self {
        Self { state, link, clock }
    }

    /// What it came to, or `None` while it's under way.
    ///
    /// The error is the first that any of its entries met: `Fenced` when the memory was released or unregistered,
    /// `PermissionDenied` for a grant that doesn't allow it, `Unavailable` when the peer went, `TimedOut` past the
    /// deadline it was submitted with, `Cancelled`. Bytes of a read that failed are worthless, and so is the target of a
    /// write that failed.
    pub fn poll(&self) -> Option<Result<()>> {
        if !self.state.is_done() {
            self.link.poll(&self.state);
            if !self.state.is_done() && self.clock.now() >= self.state.deadline() {
                self.link.cancel(&self.state, ErrorKind::TimedOut);
            }
        }
        self.state.result()
    }

    /// Waits until it's over and says what it came to, as [`Transfer::poll`] does. Fails with `TimedOut` at the deadline:
    /// then it's still under way, unless the deadline it was submitted with has passed as well.
    pub fn wait(&self, deadline: Instant) -> Result<()> {
        if !self.state.is_done() {
            self.link.wait(&self.state, deadline.min(self.state.deadline()));
            if !self.state.is_done() && self.clock.now() >= self.state.deadline() {
                self.link.cancel(&self.state, ErrorKind::TimedOut);
            }
        }
        self.state
            .result()
            .unwrap_or_else(|| Err(Error::new(ErrorKind::TimedOut, "the transfer is still under way")))
    }

    /// The CRC-64/NVME of the bytes that were moved, in the order of the entries: after
    /// [`TransferEngine::submit_summed`](crate::TransferEngine::submit_summed), when the transfer is over and its
    /// transport had the bytes in hand anyway. `None` leaves it to the caller.
    pub fn checksum(&self) -> Option<u64> {
        self.state.checksum()
    }

    /// Whether [`Transfer::checksum`] is to be expected.
    pub fn tells_checksum(&self) -> bool {
        self.state.is_summed() && self.link.sums()
    }

    /// Ends it. When this returns, no local memory is touched any more, and [`Transfer::poll`] answers `Cancelled`, or what
    /// it came to before.
    pub fn cancel(&self) {
        if !self.state.is_done() {
            self.link.cancel(&self.state, ErrorKind::Cancelled);
        }
    }
}

impl fmt::Debug for Transfer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Transfer")
            .field("done", &self.state.is_done())
            .finish_non_exhaustive()
    }
}
