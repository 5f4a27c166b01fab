//! The acceptor's side of a connection: the handshake, then requests, each checked before a byte moves.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kvstored_core::{Error, ErrorKind, Result};
use kvstored_verbs::RequestLink;

use super::channel::Channel;
use super::outgoing::{Outgoing, Sending};
use super::receiving::{Inbound, LARGE_BYTES, Sink};
use crate::ascend::Desk;
use crate::counters::{Side, Tally};
use crate::grant::{GRANT_BYTES, Grant, GrantKey, GrantRequest};
use crate::handshake::{Acceptor, Agreed};
use crate::identity::EngineId;
use crate::memory::Span;
use crate::notification::Notification;
use crate::settings::TransportKind;
use crate::shared::Shared;
use crate::wire::{
    Attach, HANDSHAKE_BYTES, HandshakeFrame, Header, Kind, MAX_MESSAGE_BYTES, Moves, Range, Wanted,
};

/// Answers that may wait on one connection; while so many do, its requests wait in the socket.
const MOST_ANSWERS: usize = 256;
/// How long a grant by address holds: as long as the peer lives, which comes down to its registration.
const BY_ADDRESS: Duration = Duration::from_hours(10 * 365 * 24);

/// How far an accepted connection is.
pub(crate) enum Accepted {
    /// Nothing was said.
    Silent,
    /// Hellos were said.
    Greeted(Box<Acceptor>),
    /// The peer is known.
    Serving(Box<Serving>),
}

/// What is known of a peer that is served.
pub(crate) struct Serving {
    peer: EngineId,
    key: GrantKey,
    tally: Arc<Tally>,
    /// Bytes of the last write.
    last_write: u64,
    /// The peer's link over RDMA, which ends with this connection.
    rdma: Option<Arc<RequestLink>>,
    /// Where its requests over a plugged-in transport are decided on, as long as this connection lasts.
    ascend: Option<Desk>,
}

/// Takes requests.
pub(crate) struct Requested<'a> {
    pub shared: &'a Arc<Shared>,
    pub channel: &'a Channel,
    pub accepted: &'a mut Accepted,
    /// Answers go here; the caller sends them.
    pub sending: &'a parking_lot::Mutex<Sending>,
    /// Set when the handshake is over.
    pub agreed: Option<Agreed>,
    /// Whether one more connection may be served.
    pub admits: &'a dyn Fn() -> bool,
    /// Makes what answers a request later.
    pub later: &'a dyn Fn(&Header) -> Reply,
}

/// Answers a request, once, from any thread that holds none of its connection's locks.
pub(crate) type Reply = Box<dyn FnOnce(Result<Vec<u8>>) + Send>;

/// The frame that answers a request.
pub(super) fn answer_to(request: &Header, result: Result<Vec<u8>>) -> Outgoing {
    let (error, body) = match result {
        Ok(body) => (None, body),
        Err(error) => (Some(error.kind()), message(&error)),
    };
    Outgoing::new(request.answered(error, body.len()), body)
}

impl Requested<'_> {
    fn push(&self, frame: Outgoing) {
        let mut sending = self.sending.lock();
        if !sending.closed {
            sending.queue.push_back(frame);
        }
    }

    fn answer(&self, request: &Header, result: Result<Vec<u8>>) {
        self.push(answer_to(request, result));
    }

    /// Refuses a connection in its handshake, saying so.
    fn refuse(&self, error: Error) -> Error {
        self.push(Outgoing::raw(&HandshakeFrame::Refusal(error.kind()).encode()));
        error
    }

    fn greet(&mut self, bytes: &[u8; HANDSHAKE_BYTES]) -> Result<bool> {
        let frame = HandshakeFrame::decode(bytes)?;
        match self.accepted {
            Accepted::Silent => {
                let binding = self.channel.binding()?;
                let (acceptor, answer) = Acceptor::new(&self.shared.identity, frame, &binding)?;
                *self.accepted = Accepted::Greeted(Box::new(acceptor));
                self.push(Outgoing::raw(&answer.encode()));
                Ok(false)
            }
            Accepted::Greeted(acceptor) => {
                let (agreed, answer) = acceptor.finish(frame)?;
                if !(self.admits)() {
                    return Err(Error::new(ErrorKind::Busy, "too many connections"));
                }
                *self.accepted = Accepted::Serving(Box::new(Serving {
                    peer: agreed.peer,
                    key: self.shared.authority.key(agreed.peer),
                    tally: Arc::new(
                        self.shared
                            .ledger
                            .tally(agreed.peer, TransportKind::Tcp, Side::Served),
                    ),
                    last_write: 0,
                    rdma: None,
                    ascend: None,
                }));
                self.agreed = Some(agreed);
                self.push(Outgoing::raw(&answer.encode()));
                Ok(true)
            }
            Accepted::Serving(_) => Err(Error::internal("the handshake is over")),
        }
    }

    fn serving(&mut self) -> Result<&mut Serving> {
        match self.accepted {
            Accepted::Serving(serving) => Ok(serving),
            _ => Err(Error::internal("the handshake isn't over")),
        }
    }

    /// The memory of a read or write, counted in.
    fn permitted(&mut self, header: &Header, body: &[u8]) -> Result<Span> {
        let shared = self.shared;
        let serving = self.serving()?;
        let writes = header.kind == Kind::Write;
        let entered = Grant::decode(body).and_then(|grant| {
            let authority = &shared.authority;
            authority
                .check(
                    &grant,
                    serving.peer,
                    &serving.key,
                    writes,
                    header.offset,
                    header.length,
                )?
                .enter()
        });
        if entered.is_err() {
            serving.tally.refused();
        }
        entered
    }

    fn wanted(&mut self, body: &[u8]) -> Result<Vec<u8>> {
        let wanted = Wanted::decode(body)?;
        let shared = self.shared;
        if !shared.registered_allowed.load(Ordering::Relaxed) {
            return Err(Error::new(
                ErrorKind::PermissionDenied,
                "this engine grants no memory by its address",
            ));
        }
        let region = shared
            .table
            .region_at(wanted.address, wanted.length)
            .ok_or_else(|| Error::new(ErrorKind::NotFound, "no registered memory holds these addresses"))?;
        let publication = shared.table.publish_whole(&region)?;
        let grant = shared.authority.issue(GrantRequest {
            peer: self.serving()?.peer,
            publication: publication.id,
            offset: wanted.address - region.base() as u64,
            length: wanted.length,
            rights: wanted.rights,
            expires_in: BY_ADDRESS,
        })?;
        Ok(grant.encode().to_vec())
    }

    fn offer(&mut self) -> Result<Vec<u8>> {
        let shared = self.shared;
        let peer = self.serving()?.peer;
        match &shared.shm {
            Some(host) => Ok(host.offer(shared, peer)?.encode()),
            None => Err(Error::new(ErrorKind::Unsupported, "this engine shares no memory")),
        }
    }

    fn connect_rdma(&mut self, body: &[u8]) -> Result<Vec<u8>> {
        let shared = self.shared;
        let serving = self.serving()?;
        // the one before has failed, or the peer wouldn't ask for another
        serving.rdma = None;
        let (link, address) = shared.rdma.serve(shared, serving.peer, body)?;
        serving.rdma = Some(link);
        Ok(address.to_vec())
    }

    /// Begins to serve the peer over a plugged-in transport. The one before has failed, or the peer wouldn't ask again.
    fn attach(&mut self, header: &Header, body: &[u8]) -> Result<()> {
        let (shared, later) = (self.shared, self.later);
        let serving = self.serving()?;
        serving.ascend = None;
        let attach = Attach::decode(body)?;
        serving.ascend = Some(Desk::open(shared, serving.peer, attach, later(header))?);
        Ok(())
    }

    fn move_bytes(&mut self, header: &Header, body: &[u8]) -> Result<()> {
        let later = self.later;
        let desk = self.serving()?.ascend.as_ref();
        let desk = desk.ok_or_else(|| Error::new(ErrorKind::Unavailable, "nothing is attached"))?;
        desk.take(&Moves::decode(body)?, || later(header))
    }

    fn first(&self) -> Result<Vec<u8>> {
        let shared = self.shared;
        if !shared.registered_allowed.load(Ordering::Relaxed) {
            return Err(Error::new(
                ErrorKind::PermissionDenied,
                "this engine names no memory",
            ));
        }
        let region = shared.table.first_region();
        let region = region.ok_or_else(|| Error::new(ErrorKind::NotFound, "no memory is registered"))?;
        let range = Range {
            address: region.base() as u64,
            length: region.length() as u64,
        };
        Ok(range.encode().to_vec())
    }
}

impl Sink for Requested<'_> {
    fn handshake(&mut self, bytes: &[u8; HANDSHAKE_BYTES]) -> Result<bool> {
        self.greet(bytes).map_err(|error| self.refuse(error))
    }

    fn frame(&mut self, header: &Header, body: &[u8]) -> Result<Option<Inbound>> {
        if header.answer {
            return Err(Error::new(
                ErrorKind::Corrupt,
                "an answer came where requests come",
            ));
        }
        match header.kind {
            Kind::Read => match self.permitted(header, body) {
                Ok(span) => {
                    let tally = Some(self.serving()?.tally.clone());
                    let mut answer = Outgoing::with_payload(header.answered(None, 0), Vec::new(), span);
                    answer.tally = tally;
                    self.push(answer);
                }
                Err(error) => self.answer(header, Err(error)),
            },
            Kind::Write => {
                let (span, error) = match self.permitted(header, body) {
                    Ok(span) => (Some(span), None),
                    Err(error) => (None, Some(error)),
                };
                self.serving()?.last_write = header.length;
                return Ok(Some(Inbound::new(*header, span, error, None)));
            }
            Kind::Notify => {
                let peer = self.serving()?.peer;
                let payload = body.to_vec();
                let taken = self.shared.inbox.push(Notification { peer, payload });
                self.answer(header, taken.map(|()| Vec::new()));
            }
            Kind::Ping => self.answer(header, Ok(Vec::new())),
            Kind::Want => {
                let grant = self.wanted(body);
                self.answer(header, grant);
            }
            Kind::First => self.answer(header, self.first()),
            Kind::Share => {
                let offer = self.offer();
                self.answer(header, offer);
            }
            Kind::Rdma => {
                let address = self.connect_rdma(body);
                self.answer(header, address);
            }
            Kind::Attach => {
                if let Err(error) = self.attach(header, body) {
                    self.answer(header, Err(error));
                }
            }
            Kind::Move => {
                if let Err(error) = self.move_bytes(header, body) {
                    self.answer(header, Err(error));
                }
            }
            Kind::Ask => {
                let peer = self.serving()?.peer;
                self.answer(header, self.shared.respond(peer, body));
            }
        }
        Ok(None)
    }

    fn ended(&mut self, inbound: Inbound) -> Result<()> {
        // let go before the answer, so that who waits for it finds the memory free
        drop(inbound.span);
        let serving = self.serving()?;
        match &inbound.error {
            None => serving.tally.written(inbound.header.length),
            Some(_) => serving.tally.failed(),
        }
        self.answer(&inbound.header, inbound.error.map_or(Ok(Vec::new()), Err));
        Ok(())
    }

    fn is_paused(&self) -> bool {
        self.sending.lock().queue.len() >= MOST_ANSWERS
    }

    fn expects_large(&self) -> Option<usize> {
        match &*self.accepted {
            Accepted::Serving(serving) => (serving.last_write >= LARGE_BYTES).then_some(GRANT_BYTES),
            _ => None,
        }
    }
}

fn message(error: &Error) -> Vec<u8> {
    let text = error.message();
    let end = text.floor_char_boundary(MAX_MESSAGE_BYTES);
    text.get(..end).unwrap_or_default().as_bytes().to_vec()
}

impl Accepted {
    /// An acceptor that has heard nothing.
    pub fn new() -> Self {
        Self::Silent
    }
}

/// Kept together so that both change under one lock.
pub(crate) struct Intake {
    pub receiving: super::receiving::Receiving,
    pub accepted: Accepted,
}
