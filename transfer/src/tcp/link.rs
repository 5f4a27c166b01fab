//! The tcp link to one peer: several connections, over which large transfers are spread.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Instant;

use kvstored_core::{Error, ErrorKind, Result};

use super::connection::{Connection, gone};
use super::ending::Doomed;
use super::gate::Gate;
use super::lead::{BUDGET, SMALL_BYTES, Team};
use super::nanoseconds;
use super::open::{Destination, open};
use super::outgoing::Outgoing;
use super::reactor::Reactor;
use super::requests::{Late, Pending, Requests};
use crate::counters::Side;
use crate::identity::EngineId;
use crate::link::{Entry, Link};
use crate::memory::Span;
use crate::settings::TransportKind;
use crate::shared::Shared;
use crate::shm::ShmLink;
use crate::transfer::{TransferKind, TransferState};
use crate::wire::{Header, Kind};

/// Bytes that go over one connection before the next one's turn.
const RUN_BYTES: u64 = 256 << 10;
/// Nanoseconds between two looks for memory that the peer has given up.
const TIDY_NS: u64 = 500_000_000;

/// All connections to one peer. If one of them fails, all do.
pub(crate) struct TcpLink {
    peer: EngineId,
    shared: Arc<Shared>,
    reactor: Weak<Reactor>,
    team: Team,
    next: AtomicUsize,
    id: AtomicU64,
    closed: AtomicBool,
    /// The link that shares memory with the same peer, to be tidied up now and then.
    companion: OnceLock<Weak<ShmLink>>,
    tidied: AtomicU64,
}

impl TcpLink {
    /// Opens the connections. Fails with `Unavailable` or `TimedOut` when the peer doesn't answer, and with
    /// `PermissionDenied` when it refuses.
    pub fn open(
        shared: &Arc<Shared>,
        reactors: &[Arc<Reactor>],
        gate: &Arc<Gate>,
        destination: &Destination,
        deadline: Instant,
    ) -> Result<Arc<Self>> {
        let mut opened = Vec::new();
        let mut peer = None;
        for _ in 0..shared.settings.streams_per_peer {
            let one = open(shared, &destination.host, &destination.addresses, deadline)?;
            if peer.is_some_and(|peer| peer != one.agreed.peer) {
                return Err(Error::new(
                    ErrorKind::Unavailable,
                    "the peer was restarted in the middle",
                ));
            }
            peer = Some(one.agreed.peer);
            opened.push(one.channel);
        }
        let (Some(peer), Some(reactor)) = (peer, reactors.first()) else {
            return Err(Error::internal("no streams or no reactors"));
        };
        let tally = Arc::new(shared.ledger.tally(peer, TransportKind::Tcp, Side::Requested));
        let mut connections = Vec::new();
        for (channel, reactor) in opened.into_iter().zip(reactors.iter().cycle()) {
            let requests = Requests::new(tally.clone());
            let connection = Connection::opened(channel, shared, reactor, gate, requests);
            reactor.adopt(&connection);
            connections.push(connection);
        }
        let link = Arc::new(Self {
            peer,
            shared: shared.clone(),
            reactor: Arc::downgrade(reactor),
            team: Team::new(connections, &shared.runtime)?,
            next: AtomicUsize::new(0),
            id: AtomicU64::new(1),
            closed: AtomicBool::new(false),
            companion: OnceLock::new(),
            tidied: AtomicU64::new(0),
        });
        reactor.look_after(&link);
        Ok(link)
    }

    /// The peer.
    pub fn peer(&self) -> EngineId {
        self.peer
    }

    /// Looks after a link that shares memory with the same peer; once.
    pub fn accompany(&self, companion: &Arc<ShmLink>) {
        let _ = self.companion.set(Arc::downgrade(companion));
    }

    fn tidy(&self, now: u64) {
        if now.saturating_sub(self.tidied.load(Ordering::Relaxed)) < TIDY_NS {
            return;
        }
        self.tidied.store(now, Ordering::Relaxed);
        if let Some(companion) = self.companion.get().and_then(Weak::upgrade) {
            companion.tidy();
        }
    }

    fn gone(&self) -> Error {
        gone().with("peer", self.peer)
    }

    fn request(&self, kind: Kind, body_bytes: usize) -> Header {
        Header::request(kind, self.id.fetch_add(1, Ordering::Relaxed), body_bytes)
    }

    /// One frame that moves no bytes. Returns the body of its answer.
    pub fn ask(&self, kind: Kind, body: Vec<u8>, deadline: Instant) -> Result<Vec<u8>> {
        let transfer = TransferState::new(1, deadline);
        let header = self.request(kind, body.len());
        let pending = Pending {
            header,
            transfer: Some(transfer.clone()),
            span: None,
        };
        let mut frame = Outgoing::new(header, body);
        frame.owner = Some(transfer.clone());
        let connection = self.team.connections.first().ok_or_else(|| self.gone())?;
        connection.request([(frame, pending)])?;
        self.began(0);
        self.wait(&transfer, deadline);
        if !transfer.is_done() {
            self.cancel(&transfer, ErrorKind::TimedOut);
        }
        transfer.result().unwrap_or_else(|| Err(self.gone()))?;
        Ok(transfer.take_body())
    }

    /// One frame whose answer comes when the peer has done what it asks.
    ///
    /// Fails with `Unavailable` when the connection is over already; then it wasn't taken.
    pub fn ask_late(&self, kind: Kind, body: Vec<u8>, late: Box<dyn Late>) -> Result<()> {
        let frame = Outgoing::new(self.request(kind, body.len()), body);
        let connection = self.team.connections.first().ok_or_else(|| self.gone())?;
        connection.request_late(frame, late)?;
        // nobody may come to wait for it: somebody has to watch for the answer
        self.began(u64::MAX);
        Ok(())
    }

    /// One operation of a transfer. `None` if its memory is being unregistered.
    fn operation(
        &self,
        transfer: &Arc<TransferState>,
        kind: TransferKind,
        piece: &Entry,
    ) -> Option<(Outgoing, Pending)> {
        let span = Span::local(&piece.region, piece.local_offset, piece.length as usize)?;
        let body = piece.grant.encode().to_vec();
        let kind_of_frame = match kind {
            TransferKind::Read => Kind::Read,
            TransferKind::Write => Kind::Write,
        };
        let header = Header {
            offset: piece.remote_offset,
            length: piece.length,
            ..self.request(kind_of_frame, body.len())
        };
        let (mut frame, span) = match kind {
            TransferKind::Read => (Outgoing::new(header, body), Some(span)),
            TransferKind::Write => (Outgoing::with_payload(header, body, span), None),
        };
        frame.owner = Some(transfer.clone());
        let pending = Pending {
            header,
            transfer: Some(transfer.clone()),
            span,
        };
        Some((frame, pending))
    }

    fn began(&self, bytes: u64) {
        if let Some(reactor) = self.reactor.upgrade() {
            reactor.activate();
        }
        self.team.began(bytes);
    }

    /// Looks after the link, in the reactor's thread. Whether that should happen again soon.
    pub fn tick(&self, now: u64) -> bool {
        if self.closed.load(Ordering::Acquire) {
            return false;
        }
        self.tidy(now);
        let active = self.team.tick();
        let timeout = nanoseconds(self.shared.settings.peer_timeout);
        // one look earlier, so that the next isn't too late
        let patience = timeout - timeout / 6;
        for connection in &self.team.connections {
            let silent = || now.saturating_sub(connection.heard());
            if connection.outstanding() > 0 && silent() > patience {
                // what it said may wait in the socket, if this process slept
                connection.drive_for_others(BUDGET);
                if connection.outstanding() > 0 && silent() > patience {
                    connection.close(
                        &Error::new(ErrorKind::Unavailable, "the peer is silent").with("peer", self.peer),
                    );
                }
            } else if connection.outstanding() == 0 && silent() > timeout / 3 {
                self.ping(connection);
            }
        }
        if self.team.is_broken() {
            self.close();
            return false;
        }
        active
    }

    fn ping(&self, connection: &Connection) {
        let header = self.request(Kind::Ping, 0);
        let pending = Pending {
            header,
            transfer: None,
            span: None,
        };
        // a connection that is over is seen by whoever looks next
        let _ = connection.request([(Outgoing::new(header, Vec::new()), pending)]);
    }
}

impl Link for TcpLink {
    fn transport(&self) -> TransportKind {
        TransportKind::Tcp
    }

    fn is_alive(&self) -> bool {
        !self.closed.load(Ordering::Acquire) && !self.team.is_broken()
    }

    fn submit(&self, transfer: &Arc<TransferState>, kind: TransferKind, entries: &[Entry]) -> Result<()> {
        if !self.is_alive() {
            return Err(self.gone());
        }
        let operations: usize = entries.iter().map(Entry::operations).sum();
        if self.team.outstanding() + operations > self.shared.settings.queue_depth {
            return Err(Error::new(
                ErrorKind::Busy,
                "too many operations are under way to the peer",
            ));
        }
        let bytes: u64 = entries.iter().map(|entry| entry.length).sum();
        let connections = &self.team.connections;
        let streams = if bytes <= SMALL_BYTES {
            1
        } else {
            connections.len()
        };
        let mut shares: Vec<Vec<(Outgoing, Pending)>> = Vec::new();
        shares.resize_with(streams, Vec::new);
        let (mut index, mut run, mut fenced) = (0, 0, 0);
        for piece in entries.iter().flat_map(Entry::pieces) {
            let Some(operation) = self.operation(transfer, kind, &piece) else {
                fenced += 1;
                continue;
            };
            if let Some(share) = shares.get_mut(index % streams) {
                share.push(operation);
            }
            // small ones stay together, so that one call takes many
            run += piece.length;
            if run >= RUN_BYTES {
                run = 0;
                index += 1;
            }
        }
        let first = match streams {
            1 => 0,
            _ => self.next.fetch_add(1, Ordering::Relaxed),
        };
        for (offset, share) in shares.into_iter().enumerate() {
            let count = share.len();
            let taken = match connections.get((first + offset) % connections.len()) {
                Some(connection) if count > 0 => connection.request(share),
                _ => Ok(()),
            };
            if let Err(error) = taken {
                (0..count).for_each(|_| transfer.finish_one(Err(error.clone())));
            }
        }
        for _ in 0..fenced {
            transfer.finish_one(Err(Error::new(
                ErrorKind::Fenced,
                "local memory was unregistered",
            )));
        }
        self.began(bytes);
        Ok(())
    }

    fn poll(&self, _: &Arc<TransferState>) {
        self.team.poll();
    }

    fn wait(&self, transfer: &Arc<TransferState>, deadline: Instant) {
        self.team.wait(transfer, deadline);
    }

    fn cancel(&self, transfer: &Arc<TransferState>, kind: ErrorKind) {
        for connection in &self.team.connections {
            connection.end(&Doomed::Of(transfer, kind));
        }
        self.team.nudge();
    }

    fn close(&self) {
        if !self.closed.swap(true, Ordering::AcqRel) {
            self.team.break_up(&self.gone());
        }
    }
}

impl Drop for TcpLink {
    fn drop(&mut self) {
        self.close();
    }
}
