//! The link to a process of the same host.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use kvstored_core::checksum::Checksum;
use kvstored_core::{Error, ErrorKind, Result};

use kvstored_shm::copy::Stores;

use super::admissions::{Admission, Admissions};
use super::job::{Copier, Job};
use crate::counters::{Side, Tally};
use crate::grant::Grant;
use crate::link::{Entry, Link};
use crate::memory::Span;
use crate::settings::TransportKind;
use crate::shared::Shared;
use crate::tcp::TcpLink;
use crate::transfer::{TransferKind, TransferState};
use crate::wire::{Kind, Offer};

/// Transfers up to so many bytes are done by whoever submits them: they take no longer than waking somebody else.
const AT_ONCE_BYTES: u64 = 1 << 20;
/// A range that is taken back again and again is given up after so many tries.
const TRIES: usize = 4;
/// How often it's looked whether a transfer that was cancelled is over.
const LOOK: Duration = Duration::from_millis(100);

/// The link to a peer whose memory this process may touch by itself.
pub(crate) struct ShmLink {
    me: Weak<Self>,
    shared: Arc<Shared>,
    admissions: Admissions,
    /// Tells whether the peer lives.
    control: Arc<TcpLink>,
    /// Takes what can't be done here.
    other: Option<Arc<TcpLink>>,
    copier: Arc<Copier>,
    tally: Tally,
    outstanding: AtomicUsize,
    closed: AtomicBool,
}

impl ShmLink {
    /// Attaches to a peer. `other` takes over what sharing can't do.
    ///
    /// Fails with `Unsupported` when the peer doesn't share, and with `NotFound` or `Unavailable` when it's elsewhere.
    pub fn attach(
        shared: &Arc<Shared>,
        control: &Arc<TcpLink>,
        other: Option<Arc<TcpLink>>,
        deadline: Instant,
    ) -> Result<Arc<Self>> {
        let offer = Offer::decode(&control.ask(Kind::Share, Vec::new(), deadline)?)?;
        let admissions = Admissions::attach(&offer, &shared.runtime, deadline)?;
        let tally = shared
            .ledger
            .tally(control.peer(), TransportKind::Shm, Side::Requested);
        let link = Arc::new_cyclic(|me| Self {
            me: me.clone(),
            shared: shared.clone(),
            admissions,
            control: control.clone(),
            other,
            copier: Arc::default(),
            tally,
            outstanding: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
        });
        control.accompany(&link);
        Ok(link)
    }

    /// Lets go of memory that the peer has given up.
    pub fn tidy(&self) {
        self.admissions.forget_stale();
    }

    fn gone(&self) -> Error {
        Error::new(ErrorKind::Unavailable, "the peer has gone").with("peer", self.control.peer())
    }

    /// Pieces that won't be run.
    pub fn let_go(&self, pieces: usize) {
        self.outstanding.fetch_sub(pieces, Ordering::AcqRel);
    }

    /// Moves one piece of a transfer, its `index`th, and finishes it, or hands it on to another transport. Whether it was handed on.
    pub fn run(
        &self,
        transfer: &Arc<TransferState>,
        kind: TransferKind,
        stores: Stores,
        index: usize,
        piece: &Entry,
    ) -> bool {
        let outcome = self.moved(transfer, kind, stores, piece).map(|sum| {
            if let Some(sum) = sum {
                transfer.keep_sum(index, sum.value(), piece.length);
            }
        });
        self.let_go(1);
        match (&outcome, &self.other) {
            (Err(error), Some(other)) if is_unable(error) => {
                if let Err(error) = other.submit(transfer, kind, std::slice::from_ref(piece)) {
                    transfer.finish_one(Err(error));
                }
                return true;
            }
            (Err(_), _) => self.tally.failed(),
            (Ok(()), _) if kind == TransferKind::Read => self.tally.read(piece.length),
            (Ok(()), _) => self.tally.written(piece.length),
        }
        transfer.finish_one(outcome);
        false
    }

    fn moved(
        &self,
        transfer: &TransferState,
        kind: TransferKind,
        stores: Stores,
        piece: &Entry,
    ) -> Result<Option<Checksum>> {
        if !self.is_alive() {
            return Err(self.gone());
        }
        let mut admission = match self.admissions.known(&piece.grant) {
            Some(known) => known,
            None => self.ask(transfer, piece)?,
        };
        for _ in 0..TRIES {
            let offset = self.checked(kind, piece, &admission)?;
            if let Some(inside) = self.admissions.page.enter(admission.slot, admission.epoch) {
                // not before: nobody who unregisters local memory has to wait for the peer's answers
                let span = Span::local(&piece.region, piece.local_offset, piece.length as usize)
                    .ok_or_else(|| Error::new(ErrorKind::Fenced, "local memory was unregistered"))?;
                let goes_on = || !inside.is_fenced() && !span.is_closed();
                let mut sum = transfer.is_summed().then(Checksum::new);
                let outcome = admission
                    .region
                    .run(kind, &span, offset, stores, sum.as_mut(), goes_on);
                match outcome {
                    Err(error) if error.kind() == ErrorKind::Fenced && !span.is_closed() => {}
                    other => return other.map(|passed| sum.filter(|_| passed)),
                }
            }
            // taken back, or another grant on it was revoked: only the peer can tell
            self.admissions.forget(&admission);
            admission = self.ask(transfer, piece)?;
        }
        Err(Error::new(
            ErrorKind::Fenced,
            "the memory is taken back again and again",
        ))
    }

    fn ask(&self, transfer: &TransferState, piece: &Entry) -> Result<Arc<Admission>> {
        let goes_on = || self.is_alive() && !transfer.is_abandoned();
        let asked = self
            .admissions
            .ask_one(&piece.grant, &goes_on, transfer.deadline());
        asked.map_err(|error| {
            // the peer lives, but what it shares memory with doesn't
            let only_here = error.kind() == ErrorKind::Unavailable && goes_on();
            if only_here {
                Error::new(ErrorKind::Unsupported, "the peer shares its memory no more").with("cause", error)
            } else {
                error
            }
        })
    }

    /// Where the piece lies in the peer's region. The peer has allowed the grant's range; the rest is checked here.
    fn checked(&self, kind: TransferKind, piece: &Entry, admission: &Admission) -> Result<u64> {
        let allowed = match kind {
            TransferKind::Read => admission.rights.may_read(),
            TransferKind::Write => admission.rights.may_write(),
        };
        if !allowed {
            return Err(Error::new(
                ErrorKind::PermissionDenied,
                "the grant doesn't allow this direction",
            ));
        }
        if self.shared.runtime.clock.now() >= admission.until {
            return Err(Error::new(ErrorKind::PermissionDenied, "the grant has expired"));
        }
        let end = piece.remote_offset.checked_add(piece.length);
        let inside = end.is_some_and(|end| end <= piece.grant.length());
        let offset = admission.offset.checked_add(piece.remote_offset);
        offset
            .filter(|_| inside)
            .ok_or_else(|| Error::invalid("the range is outside the grant's"))
    }
}

/// Whether another transport may be able to do it.
fn is_unable(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Unsupported | ErrorKind::Busy | ErrorKind::NoSpace | ErrorKind::Io
    )
}

impl Link for ShmLink {
    fn transport(&self) -> TransportKind {
        TransportKind::Shm
    }

    fn sums(&self) -> bool {
        true
    }

    fn foretold(&self, grant: &Grant, worth: &[u8]) {
        self.admissions.believe(grant, worth);
    }

    fn is_alive(&self) -> bool {
        !self.closed.load(Ordering::Acquire) && self.control.is_alive()
    }

    fn submit(&self, transfer: &Arc<TransferState>, kind: TransferKind, entries: &[Entry]) -> Result<()> {
        if !self.is_alive() {
            return Err(self.gone());
        }
        let operations: usize = entries.iter().map(Entry::operations).sum();
        let before = self.outstanding.fetch_add(operations, Ordering::AcqRel);
        if before + operations > self.shared.settings.queue_depth {
            self.outstanding.fetch_sub(operations, Ordering::AcqRel);
            return Err(Error::new(
                ErrorKind::Busy,
                "too many operations are under way to the peer",
            ));
        }
        // what goes wrong here is found again by the piece that it concerns
        let grants = entries.iter().map(|entry| &entry.grant);
        let _ = self
            .admissions
            .ask_about(grants, &|| self.is_alive(), transfer.deadline());
        let bytes: u64 = entries.iter().map(|entry| entry.length).sum();
        let stores = Stores::suiting(bytes);
        let pieces = entries.iter().flat_map(Entry::pieces);
        let Some(me) = self.me.upgrade().filter(|_| bytes > AT_ONCE_BYTES) else {
            for (index, piece) in pieces.enumerate() {
                self.run(transfer, kind, stores, index, &piece);
            }
            return Ok(());
        };
        let job = Job::new(me, kind, stores, pieces.collect());
        transfer.attach(job.clone());
        let helped = self
            .copier
            .push(job.clone(), transfer.clone(), &self.shared.runtime);
        if let Err(error) = helped {
            tracing::warn!(%error, "a transfer through shared memory goes on without a helper");
            while job.step(transfer) {}
        }
        Ok(())
    }

    fn poll(&self, transfer: &Arc<TransferState>) {
        if let Some(other) = &self.other {
            other.poll(transfer);
        }
    }

    fn wait(&self, transfer: &Arc<TransferState>, deadline: Instant) {
        let job = transfer.job();
        while !transfer.is_done() && self.shared.runtime.clock.now() < deadline {
            if job.is_some_and(|job| job.step(transfer)) {
                continue;
            }
            match &self.other {
                // some pieces may have been handed on
                Some(other) if job.is_none_or(|job| job.was_handed_on()) => other.wait(transfer, deadline),
                _ => {
                    transfer.sleep(deadline);
                }
            }
        }
    }

    fn cancel(&self, transfer: &Arc<TransferState>, kind: ErrorKind) {
        transfer.abandon();
        if let Some(job) = transfer.job() {
            job.drop_rest(transfer, &crate::tcp::ended_by(kind));
        }
        if let Some(other) = &self.other {
            other.cancel(transfer, kind);
        }
        // what was claimed is a copy of 1 MiB at most, and nothing else is left
        while !transfer.is_done() {
            transfer.sleep(self.shared.runtime.deadline(LOOK));
        }
    }

    fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.copier.stop();
        self.copier.join();
    }
}

impl Drop for ShmLink {
    fn drop(&mut self) {
        // no job is queued, as each holds the link; the helper may be the thread that drops it, and ends by itself
        self.copier.stop();
    }
}
