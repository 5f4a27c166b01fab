//! The asker's side of what the peer was asked to move in one frame.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use kvstored_core::{Error, ErrorKind, Result};
use parking_lot::Mutex;

use super::port::Port;
use super::worker::Worker;
use crate::counters::Tally;
use crate::link::{Entry, Link};
use crate::memory::Span;
use crate::shared::Shared;
use crate::tcp::{Late, TcpLink, ended_by};
use crate::transfer::{TransferKind, TransferState};
use crate::wire::MAX_PAYLOAD_BYTES;

/// After a failure the next transport is used for so long, if there is one.
const REST: Duration = Duration::from_secs(1);

/// The lengths of the operations that a run of bytes counts as.
pub(super) fn pieces(length: u64) -> impl Iterator<Item = u64> {
    let count = length.div_ceil(MAX_PAYLOAD_BYTES);
    (0..count).map(move |index| (length - index * MAX_PAYLOAD_BYTES).min(MAX_PAYLOAD_BYTES))
}

/// What the batches of a link share.
pub(super) struct Common {
    pub shared: Arc<Shared>,
    pub port: Arc<Port>,
    pub worker: Arc<Worker>,
    pub tally: Tally,
    pub control: Weak<TcpLink>,
    /// Whether sockets take over what can't be done here.
    pub hands_on: bool,
    pub outstanding: AtomicUsize,
    /// What the peer was asked for and hasn't answered, by this side's number.
    pub moving: Mutex<HashMap<u64, Arc<Batch>>>,
    pub rests_until: Mutex<Option<Instant>>,
}

impl Common {
    /// The sockets, where they may take over.
    pub fn other(&self) -> Option<Arc<TcpLink>> {
        self.control.upgrade().filter(|_| self.hands_on)
    }

    /// Whether the transport has just failed, and sockets are better used.
    pub fn rests(&self) -> bool {
        let now = self.shared.runtime.clock.now();
        self.rests_until.lock().is_some_and(|until| now < until)
    }

    pub fn let_go(&self, operations: usize) {
        self.outstanding.fetch_sub(operations, Ordering::AcqRel);
    }
}

/// One frame's moves. Its memory is counted in until it's certain that the peer doesn't touch it any more.
pub(super) struct Batch {
    pub common: Arc<Common>,
    pub number: u64,
    pub transfer: Arc<TransferState>,
    pub kind: TransferKind,
    pub entries: Vec<Entry>,
    pub spans: Mutex<Option<Vec<Span>>>,
}

impl Batch {
    fn operations(&self) -> usize {
        self.entries.iter().map(Entry::operations).sum()
    }

    /// Whether its memory is being unregistered.
    pub fn is_closed(&self) -> bool {
        let spans = self.spans.lock();
        spans
            .as_ref()
            .is_some_and(|spans| spans.iter().any(Span::is_closed))
    }

    /// Whoever gets the memory ends the batch.
    pub fn take(&self) -> Option<Vec<Span>> {
        let spans = self.spans.lock().take();
        if spans.is_some() {
            self.common.moving.lock().remove(&self.number);
        }
        spans
    }

    /// Says what it came to. The memory was let go of before.
    pub fn finish(&self, result: &Result<()>) {
        self.common.let_go(self.operations());
        for bytes in self.entries.iter().flat_map(|entry| pieces(entry.length)) {
            match (result, self.kind) {
                (Err(_), _) => self.common.tally.failed(),
                (Ok(()), TransferKind::Read) => self.common.tally.read(bytes),
                (Ok(()), TransferKind::Write) => self.common.tally.written(bytes),
            }
            self.transfer.finish_one(result.clone());
        }
    }

    /// Takes the registration of its memory back, so that the peer can't touch it whatever it does, and ends the batch.
    pub fn fence(&self, error: &Error) {
        let Some(spans) = self.take() else { return };
        let regions: BTreeSet<_> = self.entries.iter().map(|entry| entry.region.id()).collect();
        for region in regions {
            if let Err(why) = self.common.port.fence(region) {
                tracing::error!(%why, region = region.value(), "memory may still be written by a peer: it stays in use");
                // counted in for ever: the region can't be unregistered
                std::mem::forget(spans);
                let message = "the transport doesn't let go of the local memory, which must not be reused";
                self.finish(&Err(Error::new(ErrorKind::Unavailable, message)));
                return;
            }
        }
        drop(spans);
        self.finish(&Err(error.clone()));
    }

    /// The peer couldn't, and touches nothing: sockets go on with it, unless nobody wants it any more.
    fn hand_on(&self, error: Error) {
        let now = self.common.shared.runtime.clock.now();
        let wanted = !self.transfer.is_abandoned() && now < self.transfer.deadline();
        if let Some(other) = self.common.other().filter(|other| wanted && other.is_alive()) {
            tracing::debug!(%error, "a transfer goes over tcp instead of the plugged-in transport");
            match other.submit(&self.transfer, self.kind, &self.entries) {
                Ok(()) => self.common.let_go(self.operations()),
                Err(error) => self.finish(&Err(error)),
            }
        } else {
            self.finish(&Err(error));
        }
    }
}

/// Ends a batch when its answer comes.
pub(super) struct Answer(pub Arc<Batch>);

impl Late for Answer {
    fn answered(self: Box<Self>, result: Result<Vec<u8>>) {
        let batch = self.0;
        // an answer says that the peer touches the memory no more
        let Some(spans) = batch.take() else { return };
        drop(spans);
        match result {
            Ok(_) => batch.finish(&Ok(())),
            Err(error) if error.kind() == ErrorKind::Unavailable && batch.common.hands_on => {
                let rests_until = batch.common.shared.runtime.deadline(REST);
                *batch.common.rests_until.lock() = Some(rests_until);
                let worker = batch.common.worker.clone();
                worker.push(Box::new(move || batch.hand_on(error)));
            }
            Err(error) => batch.finish(&Err(error)),
        }
    }

    fn lost(self: Box<Self>, error: Error) {
        let batch = self.0;
        let worker = batch.common.worker.clone();
        worker.push(Box::new(move || batch.fence(&error)));
    }
}

/// The error of a batch whose memory is being unregistered.
pub(super) fn fenced() -> Error {
    ended_by(ErrorKind::Fenced)
}
