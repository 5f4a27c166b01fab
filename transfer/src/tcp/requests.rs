//! The opener's side of a connection: requests in the order in which their answers come.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use kvstored_core::{Error, ErrorKind, Result};
use parking_lot::Mutex;

use super::receiving::{Inbound, LARGE_BYTES, Sink};
use crate::counters::Tally;
use crate::memory::Span;
use crate::transfer::TransferState;
use crate::wire::{HANDSHAKE_BYTES, Header, Kind};

/// A request that waits for its answer.
#[derive(Debug)]
pub(crate) struct Pending {
    pub header: Header,
    /// What it's part of; `None` once nobody waits for it any more.
    pub transfer: Option<Arc<TransferState>>,
    /// Where the bytes of a read belong.
    pub span: Option<Span>,
}

/// Hears the answer of a request that is answered out of turn. Called with locks held: it must neither wait nor send.
pub(crate) trait Late: Send {
    /// The answer.
    fn answered(self: Box<Self>, result: Result<Vec<u8>>);

    /// The connection is over, and the peer may have taken the request.
    fn lost(self: Box<Self>, error: Error);
}

/// What waits for answers on one connection.
pub(crate) struct Requests {
    pending: Mutex<VecDeque<Pending>>,
    /// What is answered when the peer has done it, by its number. It doesn't count: other frames show that the peer lives.
    late: Mutex<HashMap<u64, Box<dyn Late>>>,
    count: AtomicUsize,
    /// Bytes of the read that is answered next; tells how much to stage.
    next_bytes: AtomicU64,
    tally: Arc<Tally>,
}

impl Requests {
    pub fn new(tally: Arc<Tally>) -> Self {
        Self {
            pending: Mutex::default(),
            late: Mutex::default(),
            count: AtomicUsize::new(0),
            next_bytes: AtomicU64::new(0),
            tally,
        }
    }

    /// How many wait.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    pub fn push(&self, pending: Pending) {
        let mut all = self.pending.lock();
        all.push_back(pending);
        self.note(&all);
    }

    /// Keeps a request that is answered out of turn.
    pub fn push_late(&self, id: u64, late: Box<dyn Late>) {
        self.late.lock().insert(id, late);
    }

    fn take_late(&self, id: u64) -> Option<Box<dyn Late>> {
        self.late.lock().remove(&id)
    }

    fn pop(&self) -> Option<Pending> {
        let mut all = self.pending.lock();
        let first = all.pop_front();
        self.note(&all);
        first
    }

    fn note(&self, all: &VecDeque<Pending>) {
        let reads = all.front().filter(|first| first.header.kind == Kind::Read);
        self.next_bytes
            .store(reads.map_or(0, |first| first.header.length), Ordering::Relaxed);
        self.count.store(all.len(), Ordering::Release);
    }

    /// Takes the request with that number back, which was never sent.
    pub fn withdraw(&self, id: u64) -> Option<Pending> {
        let mut all = self.pending.lock();
        let at = all.iter().rposition(|pending| pending.header.id == id)?;
        let taken = all.remove(at);
        self.note(&all);
        taken
    }

    /// Ends those that `dooms` names an error for. Their answers are still awaited, and thrown away.
    pub fn end(&self, dooms: &dyn Fn(&Pending) -> Option<ErrorKind>) {
        let mut ended = Vec::new();
        for pending in self.pending.lock().iter_mut() {
            if pending.transfer.is_some()
                && let Some(kind) = dooms(pending)
            {
                ended.push((pending.span.take(), pending.transfer.take(), kind));
            }
        }
        for (span, transfer, kind) in ended {
            drop(span);
            self.finish(transfer, Err(ended_by(kind)), None);
        }
    }

    /// Ends all of them, when the connection is over.
    pub fn fail_all(&self, error: &Error) {
        let all = std::mem::take(&mut *self.pending.lock());
        self.count.store(0, Ordering::Release);
        for pending in all {
            drop(pending.span);
            self.finish(pending.transfer, Err(error.clone()), None);
        }
        let late = std::mem::take(&mut *self.late.lock());
        for late in late.into_values() {
            late.lost(error.clone());
        }
    }

    /// Ends one.
    pub fn finish(&self, transfer: Option<Arc<TransferState>>, result: Result<()>, header: Option<&Header>) {
        let Some(transfer) = transfer else { return };
        match (&result, header) {
            (Ok(()), Some(header)) if header.kind == Kind::Read => self.tally.read(header.length),
            (Ok(()), Some(header)) if header.kind == Kind::Write => self.tally.written(header.length),
            (Ok(()), _) => {}
            (Err(_), _) => self.tally.failed(),
        }
        transfer.finish_one(result);
    }
}

/// Why an operation ended before its answer came.
pub(crate) fn ended_by(kind: ErrorKind) -> Error {
    Error::new(
        kind,
        match kind {
            ErrorKind::Fenced => "local memory was unregistered",
            ErrorKind::TimedOut => "the transfer's deadline passed",
            _ => "the transfer was cancelled",
        },
    )
}

/// Takes answers.
pub(crate) struct Answers<'a>(pub &'a Requests);

fn unasked(what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, what)
}

impl Sink for Answers<'_> {
    fn handshake(&mut self, _: &[u8; HANDSHAKE_BYTES]) -> Result<bool> {
        Err(Error::internal("the handshake is over"))
    }

    fn frame(&mut self, header: &Header, body: &[u8]) -> Result<Option<Inbound>> {
        if !header.answer {
            return Err(unasked("a request came where answers come"));
        }
        let result = || match header.error {
            None => Ok(()),
            Some(kind) => Err(Error::new(kind, String::from_utf8_lossy(body)).with("at", "peer")),
        };
        if header.kind.is_late() {
            let late = self.0.take_late(header.id);
            let late = late.ok_or_else(|| unasked("an answer to nothing"))?;
            late.answered(result().map(|()| body.to_vec()));
            return Ok(None);
        }
        let Some(mut pending) = self.0.pop() else {
            return Err(unasked("an answer to nothing"));
        };
        let asked = &pending.header;
        if (asked.id, asked.kind, asked.offset, asked.length)
            != (header.id, header.kind, header.offset, header.length)
        {
            self.0.finish(
                pending.transfer,
                Err(unasked("an answer to another request")),
                None,
            );
            return Err(unasked("an answer to another request"));
        }
        if header.payload_bytes() > 0 {
            let span = pending.span.take();
            return Ok(Some(Inbound::new(*header, span, None, Some(pending))));
        }
        let result = result();
        if let (Ok(()), Some(transfer)) = (&result, &pending.transfer)
            && !body.is_empty()
        {
            transfer.keep(body);
        }
        drop(pending.span);
        self.0.finish(pending.transfer, result, Some(header));
        Ok(None)
    }

    fn ended(&mut self, inbound: Inbound) -> Result<()> {
        drop(inbound.span);
        let result = inbound.error.map_or(Ok(()), Err);
        let transfer = inbound.pending.and_then(|pending| pending.transfer);
        self.0.finish(transfer, result, Some(&inbound.header));
        Ok(())
    }

    fn is_paused(&self) -> bool {
        false
    }

    fn expects_large(&self) -> Option<usize> {
        (self.0.next_bytes.load(Ordering::Relaxed) >= LARGE_BYTES).then_some(0)
    }
}
