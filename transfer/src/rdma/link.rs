//! The asking side.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use kvstored_core::{Error, ErrorKind, Result};
use kvstored_verbs::{Direction, LinkAddress, NoService, Operation, Owner, RequestLink, Unconnected};
use parking_lot::Mutex;

use super::port::Port;
use crate::counters::{Side, Tally};
use crate::link::{Entry, Link};
use crate::memory::Span;
use crate::settings::TransportKind;
use crate::shared::Shared;
use crate::tcp::{TcpLink, ended_by};
use crate::transfer::{TransferKind, TransferState};
use crate::wire::{Kind, MAX_PAYLOAD_BYTES};

/// How often whoever waits looks whether the peer still lives: its death shows on the other connection first.
const LOOK: Duration = Duration::from_millis(25);
/// A link that failed is made anew at most so often; in between, the next transport is used if there is one.
const REST: Duration = Duration::from_secs(1);
/// How long that may take.
const REBUILD: Duration = Duration::from_secs(2);

/// The lengths of the operations that a run of bytes counts as.
pub(super) fn pieces(length: u64) -> impl Iterator<Item = u64> {
    let count = length.div_ceil(MAX_PAYLOAD_BYTES);
    (0..count).map(move |index| (length - index * MAX_PAYLOAD_BYTES).min(MAX_PAYLOAD_BYTES))
}

struct Current {
    link: Arc<RequestLink>,
    made: Instant,
}

/// The link to a peer over RDMA.
pub(crate) struct RdmaLink {
    me: Weak<Self>,
    shared: Arc<Shared>,
    port: Arc<Port>,
    /// Tells whether the peer lives.
    control: Arc<TcpLink>,
    /// Takes what can't be done here.
    other: Option<Arc<TcpLink>>,
    tally: Tally,
    current: Mutex<Current>,
    outstanding: AtomicUsize,
    closed: AtomicBool,
}

impl RdmaLink {
    /// Connects with a peer. `other` takes over what can't be done over RDMA.
    ///
    /// Fails with `Unavailable` or `Unsupported` where this end or the peer has no RDMA.
    pub fn attach(
        shared: &Arc<Shared>,
        control: &Arc<TcpLink>,
        other: Option<Arc<TcpLink>>,
        deadline: Instant,
    ) -> Result<Arc<Self>> {
        let port = shared.rdma.port(&shared.settings, &shared.runtime)?;
        let link = connect(shared, &port, control, deadline)?;
        let tally = shared
            .ledger
            .tally(control.peer(), TransportKind::Rdma, Side::Requested);
        Ok(Arc::new_cyclic(|me| Self {
            me: me.clone(),
            shared: shared.clone(),
            port,
            control: control.clone(),
            other,
            tally,
            current: Mutex::new(Current {
                link,
                made: shared.runtime.clock.now(),
            }),
            outstanding: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
        }))
    }

    fn gone(&self) -> Error {
        Error::new(ErrorKind::Unavailable, "the peer has gone").with("peer", self.control.peer())
    }

    fn link(&self) -> Arc<RequestLink> {
        self.current.lock().link.clone()
    }

    /// The link that works: the present one, or a new one in its place if it failed a while ago.
    fn working(&self, deadline: Instant) -> Result<Arc<RequestLink>> {
        let mut current = self.current.lock();
        if current.link.is_alive() {
            return Ok(current.link.clone());
        }
        let now = self.shared.runtime.clock.now();
        if self.other.is_some() && now.saturating_duration_since(current.made) < REST {
            return Err(Error::new(
                ErrorKind::Unavailable,
                "the RDMA link has just failed",
            ));
        }
        current.made = now;
        let deadline = deadline.min(self.shared.runtime.deadline(REBUILD));
        let link = connect(&self.shared, &self.port, &self.control, deadline)?;
        tracing::info!(peer = %self.control.peer(), "an RDMA link was made anew");
        current.link = link.clone();
        Ok(link)
    }

    /// The operations of a transfer, and how many there are on memory that is being unregistered.
    fn operations(
        &self,
        transfer: &Arc<TransferState>,
        kind: TransferKind,
        entries: &[Entry],
    ) -> Result<(Vec<Operation>, usize)> {
        let (mut operations, mut fenced) = (Vec::with_capacity(entries.len()), 0);
        for entry in entries {
            let Some(span) = Span::local(&entry.region, entry.local_offset, entry.length as usize) else {
                fenced += entry.operations();
                continue;
            };
            let memory = self.port.slice(&entry.region, entry.local_offset, entry.length)?;
            operations.push(Operation {
                direction: match kind {
                    TransferKind::Read => Direction::Read,
                    TransferKind::Write => Direction::Write,
                },
                memory,
                grant: entry.grant.encode().to_vec(),
                offset: entry.remote_offset,
                deadline: transfer.deadline(),
                tag: tag(transfer),
                owner: Box::new(Moving {
                    link: self.me.clone(),
                    transfer: transfer.clone(),
                    kind,
                    entry: entry.clone(),
                    span: Some(span),
                }),
            });
        }
        Ok((operations, fenced))
    }

    fn submit_here(
        &self,
        transfer: &Arc<TransferState>,
        kind: TransferKind,
        entries: &[Entry],
    ) -> Result<()> {
        let link = self.working(transfer.deadline())?;
        let (operations, fenced) = self.operations(transfer, kind, entries)?;
        link.submit(operations)?;
        if fenced > 0 {
            self.let_go(fenced);
            (0..fenced).for_each(|_| transfer.finish_one(Err(ended_by(ErrorKind::Fenced))));
        }
        Ok(())
    }

    fn let_go(&self, operations: usize) {
        self.outstanding.fetch_sub(operations, Ordering::AcqRel);
    }

    /// What is over, or goes on over the other transport.
    fn ended(&self, transfer: &Arc<TransferState>, kind: TransferKind, entry: &Entry, result: Result<()>) {
        self.let_go(entry.operations());
        // a link that failed says nothing of the peer, which the other transport may reach
        let failed = matches!(&result, Err(error) if error.kind() == ErrorKind::Unavailable);
        if failed && self.is_alive() && !transfer.is_abandoned() {
            let handed_on = self
                .other
                .as_ref()
                .map(|other| other.submit(transfer, kind, std::slice::from_ref(entry)));
            if matches!(handed_on, Some(Ok(()))) {
                return;
            }
        }
        for bytes in pieces(entry.length) {
            match (&result, kind) {
                (Err(_), _) => self.tally.failed(),
                (Ok(()), TransferKind::Read) => self.tally.read(bytes),
                (Ok(()), TransferKind::Write) => self.tally.written(bytes),
            }
            transfer.finish_one(result.clone());
        }
    }

    /// Ends the link if the peer is gone, without waiting for the device to find that out.
    fn look(&self) {
        if !self.control.is_alive() {
            self.link().fail(&self.gone());
        }
    }
}

/// Makes a queue pair and connects it with a new one of the peer's.
fn connect(
    shared: &Arc<Shared>,
    port: &Port,
    control: &TcpLink,
    deadline: Instant,
) -> Result<Arc<RequestLink>> {
    let unconnected = Unconnected::new(&port.nic, &port.settings, &shared.runtime)?;
    let own = unconnected.address().encode().to_vec();
    let address = LinkAddress::decode(&control.ask(Kind::Rdma, own, deadline)?)?;
    // the peer asks over a queue pair of its own
    unconnected.connect(&address, Arc::new(NoService), &port.driver)
}

/// One name for all operations of a transfer: each holds the transfer, so that no other has it meanwhile.
fn tag(transfer: &Arc<TransferState>) -> u64 {
    Arc::as_ptr(transfer).addr() as u64
}

/// An entry under way.
struct Moving {
    link: Weak<RdmaLink>,
    transfer: Arc<TransferState>,
    kind: TransferKind,
    entry: Entry,
    span: Option<Span>,
}

impl Owner for Moving {
    fn is_wanted(&self) -> bool {
        self.span.as_ref().is_some_and(|span| !span.is_closed())
    }

    fn finish(mut self: Box<Self>, result: Result<()>) {
        // let go before anybody hears of it, who may want to free the memory
        self.span = None;
        if let Some(link) = self.link.upgrade() {
            link.ended(&self.transfer, self.kind, &self.entry, result);
        } else {
            let error = result.err().unwrap_or_else(|| ended_by(ErrorKind::Cancelled));
            for _ in 0..self.entry.operations() {
                self.transfer.finish_one(Err(error.clone()));
            }
        }
    }
}

impl Link for RdmaLink {
    fn transport(&self) -> TransportKind {
        TransportKind::Rdma
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
            self.let_go(operations);
            return Err(Error::new(
                ErrorKind::Busy,
                "too many operations are under way to the peer",
            ));
        }
        let error = match self.submit_here(transfer, kind, entries) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        self.let_go(operations);
        match &self.other {
            Some(other) if error.kind() != ErrorKind::Busy => {
                tracing::debug!(%error, peer = %self.control.peer(), "a transfer goes over tcp instead of RDMA");
                other.submit(transfer, kind, entries)
            }
            _ => Err(error),
        }
    }

    fn poll(&self, transfer: &Arc<TransferState>) {
        self.look();
        self.link().progress();
        if let Some(other) = &self.other {
            other.poll(transfer);
        }
    }

    fn wait(&self, transfer: &Arc<TransferState>, deadline: Instant) {
        self.link().progress();
        while !transfer.is_done() && self.shared.runtime.clock.now() < deadline {
            let next_look = deadline.min(self.shared.runtime.deadline(LOOK));
            match &self.other {
                // what was handed on needs somebody who drives the sockets
                Some(other) if !self.link().is_alive() => other.wait(transfer, next_look),
                _ => {
                    transfer.sleep(next_look);
                }
            }
            self.look();
        }
    }

    fn cancel(&self, transfer: &Arc<TransferState>, kind: ErrorKind) {
        transfer.abandon();
        self.link().cancel(tag(transfer), &ended_by(kind));
        loop {
            if let Some(other) = &self.other {
                // again and again: something may just have been handed on
                other.cancel(transfer, kind);
            }
            if transfer.is_done() {
                return;
            }
            transfer.sleep(self.shared.runtime.deadline(LOOK));
        }
    }

    fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.link().close();
    }
}

impl Drop for RdmaLink {
    fn drop(&mut self) {
        self.close();
    }
}
