//! The asking side.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kvstored_core::transport::Exposure;
use kvstored_core::{Error, ErrorKind, Result};
use parking_lot::Mutex;

use super::batch::{Answer, Batch, Common, fenced};
use crate::counters::Side;
use crate::link::{Entry, Link};
use crate::memory::Span;
use crate::settings::TransportKind;
use crate::shared::Shared;
use crate::tcp::{Late, TcpLink, ended_by};
use crate::transfer::{TransferKind, TransferState};
use crate::wire::{Attach, Kind, MOST_MOVES, MoveEntry, Moves};

/// How often whoever waits looks whether the peer still lives.
const LOOK: Duration = Duration::from_millis(25);
/// How long connecting may take.
const ATTACH: Duration = Duration::from_secs(2);
/// How long the peer may take to stop what isn't wanted any more, before the memory is taken from it.
const GRACE: Duration = Duration::from_millis(500);

/// The link to a peer over a plugged-in transport.
pub(crate) struct AscendLink {
    common: Arc<Common>,
    control: Arc<TcpLink>,
    next: AtomicU64,
    closed: AtomicBool,
}

/// Waits for the answer to an attachment.
struct Attached(Arc<TransferState>);

impl Late for Attached {
    fn answered(self: Box<Self>, result: Result<Vec<u8>>) {
        self.0.finish_one(result.map(drop));
    }

    fn lost(self: Box<Self>, error: Error) {
        self.0.finish_one(Err(error));
    }
}

impl AscendLink {
    /// Lets the peer connect its transport with ours. `other` takes over what can't be done so.
    ///
    /// Fails with `Unsupported` or `Unavailable` where one of both has none or they don't reach each other, and with
    /// `TimedOut`.
    pub fn attach(
        shared: &Arc<Shared>,
        control: &Arc<TcpLink>,
        other: Option<Arc<TcpLink>>,
        deadline: Instant,
    ) -> Result<Arc<Self>> {
        let port = shared.ascend.port(shared)?;
        let worker = shared.ascend.worker(shared)?;
        let attach = Attach {
            name: port.transport.name().to_owned(),
            address: port.transport.address()?,
        };
        let deadline = deadline.min(shared.runtime.deadline(ATTACH));
        let attached = TransferState::new(1, deadline);
        control.ask_late(
            Kind::Attach,
            attach.encode(),
            Box::new(Attached(attached.clone())),
        )?;
        control.wait(&attached, deadline);
        let late = || {
            Err(Error::new(
                ErrorKind::TimedOut,
                "the peer's transport doesn't connect",
            ))
        };
        attached.result().unwrap_or_else(late)?;
        let common = Arc::new(Common {
            shared: shared.clone(),
            port,
            worker,
            tally: shared
                .ledger
                .tally(control.peer(), TransportKind::Ascend, Side::Requested),
            control: Arc::downgrade(control),
            hands_on: other.is_some(),
            outstanding: AtomicUsize::new(0),
            moving: Mutex::default(),
            rests_until: Mutex::new(None),
        });
        let link = Arc::new(Self {
            common,
            control: control.clone(),
            next: AtomicU64::new(1),
            closed: AtomicBool::new(false),
        });
        shared.ascend.add(&link);
        Ok(link)
    }

    fn gone(&self) -> Error {
        Error::new(ErrorKind::Unavailable, "the peer has gone").with("peer", self.control.peer())
    }

    /// Ends batches whose memory is being unregistered.
    pub fn sweep(&self) {
        self.fence_in_background(&fenced(), Batch::is_closed);
    }

    fn batches(&self, which: impl Fn(&Batch) -> bool) -> Vec<Arc<Batch>> {
        let moving = self.common.moving.lock();
        moving.values().filter(|batch| which(batch)).cloned().collect()
    }

    fn fence_in_background(&self, error: &Error, which: impl Fn(&Batch) -> bool) {
        for batch in self.batches(which) {
            let error = error.clone();
            self.common.worker.push(Box::new(move || batch.fence(&error)));
        }
    }

    /// Splits entries into frames, registers their memory and counts them in. With the operations on memory that is being
    /// unregistered.
    fn batches_of(
        &self,
        transfer: &Arc<TransferState>,
        kind: TransferKind,
        entries: &[Entry],
    ) -> Result<(Vec<Arc<Batch>>, usize)> {
        let (mut batches, mut fenced) = (Vec::new(), 0);
        for chunk in entries.chunks(MOST_MOVES) {
            let (mut taken, mut spans) = (Vec::with_capacity(chunk.len()), Vec::with_capacity(chunk.len()));
            for entry in chunk {
                let Some(span) = Span::local(&entry.region, entry.local_offset, entry.length as usize) else {
                    fenced += entry.operations();
                    continue;
                };
                self.common.port.know(&entry.region, Exposure::Peers)?;
                spans.push(span);
                taken.push(entry.clone());
            }
            if taken.is_empty() {
                continue;
            }
            batches.push(Arc::new(Batch {
                common: self.common.clone(),
                number: self.next.fetch_add(1, Ordering::Relaxed),
                transfer: transfer.clone(),
                kind,
                entries: taken,
                spans: Mutex::new(Some(spans)),
            }));
        }
        Ok((batches, fenced))
    }

    fn send(&self, batch: &Arc<Batch>) {
        let now = self.common.shared.runtime.clock.now();
        let left = batch.transfer.deadline().saturating_duration_since(now);
        let moves = Moves {
            generation: self.common.port.generation(Exposure::Peers),
            lasts: u64::try_from(left.as_nanos()).unwrap_or(u64::MAX),
            kind: batch.kind,
            entries: batch
                .entries
                .iter()
                .map(|entry| MoveEntry {
                    address: entry.region.base() as u64 + entry.local_offset,
                    offset: entry.remote_offset,
                    length: entry.length,
                    grant: entry.grant,
                })
                .collect(),
        };
        self.common.moving.lock().insert(batch.number, batch.clone());
        let late = Box::new(Answer(batch.clone()));
        if let Err(error) = self.control.ask_late(Kind::Move, moves.encode(), late) {
            // it was never sent
            if let Some(spans) = batch.take() {
                drop(spans);
                batch.finish(&Err(error));
            }
        }
    }
}

impl Link for AscendLink {
    fn transport(&self) -> TransportKind {
        TransportKind::Ascend
    }

    fn is_alive(&self) -> bool {
        !self.closed.load(Ordering::Acquire) && self.control.is_alive()
    }

    fn submit(&self, transfer: &Arc<TransferState>, kind: TransferKind, entries: &[Entry]) -> Result<()> {
        if !self.is_alive() {
            return Err(self.gone());
        }
        if let Some(other) = self.common.other().filter(|_| self.common.rests()) {
            return other.submit(transfer, kind, entries);
        }
        let operations: usize = entries.iter().map(Entry::operations).sum();
        let before = self.common.outstanding.fetch_add(operations, Ordering::AcqRel);
        if before + operations > self.common.shared.settings.queue_depth {
            self.common.let_go(operations);
            return Err(Error::new(
                ErrorKind::Busy,
                "too many operations are under way to the peer",
            ));
        }
        match self.batches_of(transfer, kind, entries) {
            Ok((batches, fenced_operations)) => {
                for batch in &batches {
                    self.send(batch);
                }
                self.common.let_go(fenced_operations);
                (0..fenced_operations).for_each(|_| transfer.finish_one(Err(fenced())));
                Ok(())
            }
            Err(error) => {
                self.common.let_go(operations);
                match self.common.other() {
                    Some(other) => {
                        tracing::debug!(%error, "a transfer goes over tcp: its memory can't be registered");
                        other.submit(transfer, kind, entries)
                    }
                    None => Err(error),
                }
            }
        }
    }

    fn poll(&self, transfer: &Arc<TransferState>) {
        self.control.poll(transfer);
    }

    fn wait(&self, transfer: &Arc<TransferState>, deadline: Instant) {
        while !transfer.is_done() && self.common.shared.runtime.clock.now() < deadline {
            let next_look = deadline.min(self.common.shared.runtime.deadline(LOOK));
            if self.control.is_alive() {
                self.control.wait(transfer, next_look);
            } else {
                transfer.sleep(next_look);
            }
        }
    }

    fn cancel(&self, transfer: &Arc<TransferState>, kind: ErrorKind) {
        transfer.abandon();
        let patience = self.common.shared.runtime.deadline(GRACE);
        let other = self.common.other();
        if let Some(other) = &other {
            other.cancel(transfer, kind);
        }
        // at the deadline the peer gives it up by itself, and says so
        self.wait(transfer, patience);
        for batch in self.batches(|batch| Arc::ptr_eq(&batch.transfer, transfer)) {
            batch.fence(&ended_by(kind));
        }
        while !transfer.is_done() {
            if let Some(other) = &other {
                // again and again: something may just have been handed on
                other.cancel(transfer, kind);
            }
            transfer.sleep(self.common.shared.runtime.deadline(LOOK));
        }
    }

    fn close(&self) {
        if !self.closed.swap(true, Ordering::AcqRel) {
            self.fence_in_background(&self.gone(), |_| true);
        }
    }
}

impl Drop for AscendLink {
    fn drop(&mut self) {
        self.close();
    }
}
