//! Frames as they arrive: what's small is staged in a buffer of the thread, payloads go straight to where they belong.

use std::cell::RefCell;

use kvstored_core::{Error, ErrorKind, Result};

use super::channel::Channel;
use super::failed;
use super::io::copy_in;
use super::requests::Pending;
use crate::memory::Span;
use crate::wire::{HANDSHAKE_BYTES, HEADER_BYTES, Header, MAX_BODY_BYTES, TRAILER_BYTES, Trailer};

/// Bytes that are staged at once where small frames are expected. Any body fits.
const STAGING_BYTES: usize = MAX_BODY_BYTES as usize + 4096;
/// Where the next payload is at least that long, only its header is staged, so that the payload needs no copy.
pub(super) const LARGE_BYTES: u64 = 32 << 10;
/// Room for kept bytes that an idle connection may hold on to.
const KEPT_BYTES: usize = 1024;

thread_local! {
    static STAGING: RefCell<Box<[u8]>> = RefCell::new(vec![0; STAGING_BYTES].into_boxed_slice());
}

/// A payload on its way.
#[derive(Debug)]
pub(crate) struct Inbound {
    pub header: Header,
    /// Where it belongs; without, it's thrown away.
    pub span: Option<Span>,
    /// Why it's worthless.
    pub error: Option<Error>,
    /// The request that it answers, on the opener's side.
    pub pending: Option<Pending>,
    received: usize,
}

impl Inbound {
    pub fn new(header: Header, span: Option<Span>, error: Option<Error>, pending: Option<Pending>) -> Self {
        Self {
            header,
            span,
            error,
            pending,
            received: 0,
        }
    }

    fn left(&self) -> usize {
        self.header.payload_bytes() - self.received
    }

    /// Lets go of memory that is being released.
    fn heed(&mut self) {
        if self.span.as_ref().is_some_and(Span::is_closed) {
            self.span = None;
            let released = || Error::new(ErrorKind::Fenced, "the memory was released in the middle");
            self.error.get_or_insert_with(released);
        }
    }
}

#[derive(Debug)]
enum Phase {
    Handshake,
    Header,
    Body(Header),
    Payload(Inbound),
    Trailer(Inbound),
}

/// Why receiving stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stopped {
    /// Nothing more is there.
    Drained,
    /// Something more may be there, but others wait too.
    Budget,
    /// Its answers have to be sent first.
    Paused,
}

/// What becomes of frames.
pub(crate) trait Sink {
    /// A frame of the handshake. Whether it was the last.
    fn handshake(&mut self, bytes: &[u8; HANDSHAKE_BYTES]) -> Result<bool>;
    /// A header and its body. Whether a payload follows must agree with the header.
    fn frame(&mut self, header: &Header, body: &[u8]) -> Result<Option<Inbound>>;
    /// A payload has ended.
    fn ended(&mut self, inbound: Inbound) -> Result<()>;
    /// Whether no more frames can be taken at this moment.
    fn is_paused(&self) -> bool;
    /// Whether the next payload is expected to be large, and bytes of the body before it.
    fn expects_large(&self) -> Option<usize>;
}

/// One connection's arriving bytes.
#[derive(Debug)]
pub(crate) struct Receiving {
    phase: Phase,
    /// Staged bytes that make no whole part yet.
    kept: Vec<u8>,
}

impl Receiving {
    /// `accepted`: frames of a handshake come first.
    pub fn new(accepted: bool) -> Self {
        Self {
            phase: if accepted { Phase::Handshake } else { Phase::Header },
            kept: Vec::new(),
        }
    }

    /// The payload on its way.
    pub fn inbound(&mut self) -> Option<&mut Inbound> {
        match &mut self.phase {
            Phase::Payload(inbound) | Phase::Trailer(inbound) => Some(inbound),
            _ => None,
        }
    }

    /// Takes the payload on its way, when the connection is over.
    pub fn take_inbound(&mut self) -> Option<Inbound> {
        match std::mem::replace(&mut self.phase, Phase::Header) {
            Phase::Payload(inbound) | Phase::Trailer(inbound) => Some(inbound),
            _ => None,
        }
    }

    /// Takes what has arrived, up to about `budget` bytes. Returns how many bytes that was.
    pub fn run(
        &mut self,
        channel: &Channel,
        sink: &mut impl Sink,
        budget: usize,
    ) -> Result<(usize, Stopped)> {
        STAGING.with_borrow_mut(|staging| self.run_in(staging, channel, sink, budget))
    }

    fn run_in(
        &mut self,
        staging: &mut [u8],
        channel: &Channel,
        sink: &mut impl Sink,
        budget: usize,
    ) -> Result<(usize, Stopped)> {
        let mut filled = self.kept.len();
        if let Some(start) = staging.get_mut(..filled) {
            start.copy_from_slice(&self.kept);
        }
        self.kept.clear();
        self.kept.shrink_to(KEPT_BYTES);
        let mut total = 0;
        let mut drained = false;
        let stopped = loop {
            let used = self.parse(staging.get(..filled).unwrap_or_default(), sink)?;
            staging.copy_within(used..filled, 0);
            filled -= used;
            if sink.is_paused() {
                break Stopped::Paused;
            }
            if drained {
                break Stopped::Drained;
            }
            if total >= budget {
                break Stopped::Budget;
            }
            let (moved, staged, all) = self.receive(channel, staging, filled, sink)?;
            let Some(moved) = moved else {
                break Stopped::Drained;
            };
            if moved == 0 {
                return Err(Error::new(
                    ErrorKind::Unavailable,
                    "the peer closed the connection",
                ));
            }
            total += moved;
            filled += staged;
            drained = !all && channel.short_is_empty();
        };
        self.kept
            .extend_from_slice(staging.get(..filled).unwrap_or_default());
        Ok((total, stopped))
    }

    /// One call. Returns how many bytes arrived, how many of them are staged, and whether there was room for no more.
    fn receive(
        &mut self,
        channel: &Channel,
        staging: &mut [u8],
        filled: usize,
        sink: &impl Sink,
    ) -> Result<(Option<usize>, usize, bool)> {
        let limit = match sink.expects_large() {
            Some(body) => self.exactly(body).max(filled + 1),
            None => staging.len(),
        };
        let room = staging
            .get_mut(filled..limit.min(STAGING_BYTES))
            .unwrap_or_default();
        let Phase::Payload(inbound) = &mut self.phase else {
            let asked = room.len();
            let moved = channel.receive(None, room).map_err(failed)?;
            return Ok((moved, moved.unwrap_or(0), moved == Some(asked)));
        };
        inbound.heed();
        let left = inbound.left();
        let Some(span) = &inbound.span else {
            let moved = channel.discard(left).map_err(failed)?;
            inbound.received += moved.unwrap_or(0);
            let all = moved == Some(left);
            self.end_payload();
            return Ok((moved, 0, all));
        };
        let asked = left + room.len();
        match channel.receive(Some((span, inbound.received, left)), room) {
            Ok(moved) => {
                let arrived = moved.unwrap_or(0);
                inbound.received += arrived.min(left);
                self.end_payload();
                Ok((moved, arrived.saturating_sub(left), moved == Some(asked)))
            }
            // whoever registered this memory broke the promise to keep it
            Err(error) if error.raw_os_error() == Some(libc::EFAULT) => {
                inbound.span = None;
                inbound.error = Some(Error::new(ErrorKind::Io, "registered memory is not there"));
                Ok((Some(1), 0, true))
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// Bytes that are still needed to see the whole next header and its body.
    fn exactly(&self, body: usize) -> usize {
        match &self.phase {
            Phase::Handshake => HANDSHAKE_BYTES,
            Phase::Header => HEADER_BYTES + body,
            Phase::Body(header) => header.body_bytes as usize,
            Phase::Payload(_) | Phase::Trailer(_) => TRAILER_BYTES + HEADER_BYTES + body,
        }
    }

    fn end_payload(&mut self) {
        let phase = std::mem::replace(&mut self.phase, Phase::Header);
        self.phase = match phase {
            Phase::Payload(inbound) if inbound.left() == 0 => Phase::Trailer(inbound),
            other => other,
        };
    }

    /// Uses up staged bytes, as far as they make whole parts. Returns how many it used.
    fn parse(&mut self, staged: &[u8], sink: &mut impl Sink) -> Result<usize> {
        let mut rest = staged;
        while !rest.is_empty() && !sink.is_paused() {
            let before = rest.len();
            rest = self.step(rest, sink)?;
            if rest.len() == before {
                break;
            }
        }
        Ok(staged.len() - rest.len())
    }

    fn step<'a>(&mut self, staged: &'a [u8], sink: &mut impl Sink) -> Result<&'a [u8]> {
        match &mut self.phase {
            Phase::Handshake => {
                let Some((frame, rest)) = staged.split_first_chunk() else {
                    return Ok(staged);
                };
                if sink.handshake(frame)? {
                    self.phase = Phase::Header;
                }
                Ok(rest)
            }
            Phase::Header => {
                let Some((header, rest)) = staged.split_first_chunk() else {
                    return Ok(staged);
                };
                let header = Header::decode(header)?;
                if header.body_bytes > 0 {
                    self.phase = Phase::Body(header);
                } else {
                    self.begin(&header, &[], sink)?;
                }
                Ok(rest)
            }
            Phase::Body(header) => {
                let header = *header;
                let Some((body, rest)) = staged.split_at_checked(header.body_bytes as usize) else {
                    return Ok(staged);
                };
                self.begin(&header, body, sink)?;
                Ok(rest)
            }
            Phase::Payload(inbound) => {
                inbound.heed();
                let (part, rest) = staged.split_at(inbound.left().min(staged.len()));
                if let Some(span) = &inbound.span {
                    copy_in(span, inbound.received, part);
                }
                inbound.received += part.len();
                self.end_payload();
                Ok(rest)
            }
            Phase::Trailer(_) => {
                let Some((trailer, rest)) = staged.split_first_chunk::<TRAILER_BYTES>() else {
                    return Ok(staged);
                };
                let trailer = Trailer::decode(trailer)?;
                let Some(mut inbound) = self.take_inbound() else {
                    return Ok(rest);
                };
                if trailer.id != inbound.header.id {
                    return Err(Error::new(ErrorKind::Corrupt, "a trailer of another frame"));
                }
                if let Some(kind) = trailer.error {
                    let sender = || Error::new(kind, "the sender gave the payload up");
                    inbound.error.get_or_insert_with(sender);
                }
                sink.ended(inbound)?;
                Ok(rest)
            }
        }
    }

    fn begin(&mut self, header: &Header, body: &[u8], sink: &mut impl Sink) -> Result<()> {
        self.phase = match sink.frame(header, body)? {
            Some(inbound) => Phase::Payload(inbound),
            None => Phase::Header,
        };
        Ok(())
    }
}
