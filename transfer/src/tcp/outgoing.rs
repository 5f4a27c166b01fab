//! Frames that wait to be sent, in order.

use std::collections::VecDeque;
use std::sync::Arc;

use kvstored_core::{ErrorKind, Result};

use super::channel::Channel;
use super::failed;
use super::io::Gather;
use crate::counters::Tally;
use crate::memory::Span;
use crate::transfer::TransferState;
use crate::wire::{HEADER_BYTES, Header, MAX_PAYLOAD_BYTES, TRAILER_BYTES, Trailer};

/// Bytes of one send call.
const SEND_BYTES: usize = MAX_PAYLOAD_BYTES as usize;
/// Bytes that are sent on one connection before others have their turn: a peer that reads as fast as this process sends
/// would hold up everybody else's answers, whose askers would take this process for dead.
const TURN_BYTES: usize = 4 << 20;
/// Headers and trailers don't make a call too long.
const SLACK_BYTES: usize = 16 << 10;
/// Parts that one frame may take: header, body, payload, trailer.
const FRAME_PARTS: usize = 4;
/// More frames don't fit into one call.
const FRAMES_AT_ONCE: usize = 64;
/// Stands in for memory that went away.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// What follows a frame's body.
#[derive(Debug)]
enum Payload {
    None,
    Memory(Span),
    /// That many bytes that say nothing.
    Zeros(usize),
}

/// A frame.
#[derive(Debug)]
pub(crate) struct Outgoing {
    header: Header,
    head: [u8; HEADER_BYTES],
    body: Vec<u8>,
    payload: Payload,
    trailer: [u8; TRAILER_BYTES],
    sent: usize,
    /// Whose transfer it's part of, on the opener's side.
    pub owner: Option<Arc<TransferState>>,
    /// Where a read that was answered counts, on the acceptor's side.
    pub tally: Option<Arc<Tally>>,
}

impl Outgoing {
    pub fn new(header: Header, body: Vec<u8>) -> Self {
        Self {
            head: header.encode(),
            header,
            body,
            payload: Payload::None,
            trailer: [0; TRAILER_BYTES],
            sent: 0,
            owner: None,
            tally: None,
        }
    }

    /// A frame with a payload from memory.
    pub fn with_payload(header: Header, body: Vec<u8>, span: Span) -> Self {
        Self {
            payload: Payload::Memory(span),
            trailer: trailer(&header, None),
            ..Self::new(header, body)
        }
    }

    /// Bytes of a handshake, which has no headers.
    pub fn raw(bytes: &[u8]) -> Self {
        // all of it counts as sent but the body
        let header = Header::request(crate::wire::Kind::Ping, 0, 0);
        Self {
            sent: HEADER_BYTES,
            ..Self::new(header, bytes.to_vec())
        }
    }

    pub fn header(&self) -> &Header {
        &self.header
    }

    pub fn has_begun(&self) -> bool {
        self.sent > 0
    }

    fn payload_bytes(&self) -> usize {
        match &self.payload {
            Payload::None => 0,
            Payload::Memory(span) => span.length(),
            Payload::Zeros(length) => *length,
        }
    }

    fn bytes(&self) -> usize {
        let payload = self.payload_bytes();
        let trailer = if payload > 0 { TRAILER_BYTES } else { 0 };
        HEADER_BYTES + self.body.len() + payload + trailer
    }

    /// Whether its memory must not be touched any more.
    pub fn is_closed(&self) -> bool {
        matches!(&self.payload, Payload::Memory(span) if span.is_closed())
    }

    /// Lets go of the memory. An answer that hasn't begun becomes a failure; what has begun goes on with zeros, and its
    /// trailer says that they are none.
    pub fn void(&mut self, kind: ErrorKind) {
        if !matches!(self.payload, Payload::Memory(_)) {
            return;
        }
        if let Some(tally) = self.tally.take() {
            tally.failed();
        }
        if self.header.answer && !self.has_begun() {
            *self = Self {
                owner: self.owner.take(),
                ..Self::new(self.header.answered(Some(kind), 0), Vec::new())
            };
        } else {
            self.payload = Payload::Zeros(self.payload_bytes());
            self.trailer = trailer(&self.header, Some(kind));
        }
    }

    /// Adds what of it isn't sent yet, unless that would be too much for one call.
    fn gather<'a>(&'a self, gather: &mut Gather<'a>) -> bool {
        let payload = self.payload_bytes();
        let parts = match self.payload {
            Payload::Zeros(length) => FRAME_PARTS + length / ZEROS.len(),
            _ => FRAME_PARTS,
        };
        let whole = gather.bytes() + self.bytes() - self.sent;
        if gather.room() < parts || (gather.bytes() > 0 && whole > SEND_BYTES + SLACK_BYTES) {
            return false;
        }
        let mut skip = self.sent;
        for part in [&self.head[..], &self.body] {
            gather.push_bytes(part.get(skip..).unwrap_or_default());
            skip = skip.saturating_sub(part.len());
        }
        if payload == 0 {
            return true;
        }
        let left = payload.saturating_sub(skip);
        match &self.payload {
            Payload::Memory(span) => gather.push_span(span, payload - left, left),
            Payload::None | Payload::Zeros(_) => {
                let mut zeros = left;
                while zeros > 0 {
                    let part = zeros.min(ZEROS.len());
                    gather.push_bytes(ZEROS.get(..part).unwrap_or_default());
                    zeros -= part;
                }
            }
        }
        gather.push_bytes(
            self.trailer
                .get(skip.saturating_sub(payload)..)
                .unwrap_or_default(),
        );
        true
    }
}

fn trailer(header: &Header, error: Option<ErrorKind>) -> [u8; TRAILER_BYTES] {
    Trailer { id: header.id, error }.encode()
}

/// What waits on one connection.
#[derive(Debug, Default)]
pub(crate) struct Sending {
    pub queue: VecDeque<Outgoing>,
    /// Whether the connection is over.
    pub closed: bool,
}

impl Sending {
    /// Sends until nothing is left, the socket takes no more, or it's others' turn. Whether something is left.
    pub fn flush(&mut self, channel: &Channel) -> Result<bool> {
        let mut turn = 0;
        while !self.queue.is_empty() {
            if turn >= TURN_BYTES {
                return Ok(true);
            }
            for frame in self.queue.iter_mut().take(FRAMES_AT_ONCE) {
                if frame.is_closed() {
                    frame.void(ErrorKind::Fenced);
                }
            }
            let moved = {
                let mut gather = Gather::new();
                let mut frames = self.queue.iter().take(FRAMES_AT_ONCE);
                while frames.next().is_some_and(|frame| frame.gather(&mut gather)) {}
                let wanted = gather.bytes();
                (channel.send(&gather), wanted)
            };
            match moved {
                (Ok(Some(moved)), wanted) => {
                    turn += moved;
                    self.advance(moved);
                    if moved < wanted && channel.short_is_empty() {
                        return Ok(true);
                    }
                }
                (Ok(None), _) => {
                    return Ok(true);
                }
                (Err(error), _) if error.raw_os_error() == Some(libc::EFAULT) => self.void_first(),
                (Err(error), _) => return Err(failed(error)),
            }
        }
        let flushed = channel.flush().map_err(failed)?;
        Ok(!flushed)
    }

    fn advance(&mut self, mut moved: usize) {
        while let Some(frame) = self.queue.front_mut() {
            let left = frame.bytes() - frame.sent;
            if moved < left {
                frame.sent += moved;
                return;
            }
            moved -= left;
            if let Some(frame) = self.queue.pop_front()
                && let Some(tally) = &frame.tally
            {
                tally.read(frame.header.length);
            }
        }
    }

    /// The kernel can't read some registered memory: whoever registered it broke the promise to keep it.
    fn void_first(&mut self) {
        let backed = |frame: &&mut Outgoing| matches!(frame.payload, Payload::Memory(_));
        match self.queue.iter_mut().find(backed) {
            Some(frame) => frame.void(ErrorKind::Io),
            // nothing but our own buffers, which can't be
            None => self.queue.clear(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::RegionId;
    use crate::memory::Table;
    use crate::wire::Kind;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    fn span(bytes: &[u8]) -> (Table, RegionId, Span) {
        let table = Table::default();
        let region = table.allocate(bytes.len()).unwrap();
        crate::memory::Region::new(region.clone())
            .write(0, bytes)
            .unwrap();
        let span = Span::local(&region, 0, bytes.len()).unwrap();
        (table, region.id(), span)
    }

    fn read_header(length: u64) -> Header {
        Header {
            length,
            ..Header::request(Kind::Read, 7, 128)
        }
    }

    fn sent(sending: &mut Sending) -> Vec<u8> {
        let (one, mut other) = UnixStream::pair().unwrap();
        let channel = Channel::new(one.into(), None);
        let mut all = Vec::new();
        other.set_nonblocking(true).unwrap();
        loop {
            sending.flush(&channel).unwrap();
            let _ = other.read_to_end(&mut all);
            if sending.queue.is_empty() {
                let _ = other.read_to_end(&mut all);
                return all;
            }
        }
    }

    #[test]
    fn frames_go_out_whole_and_in_order_whatever_the_socket_takes() {
        let bytes: Vec<u8> = (0..1 << 20).map(|index| (index / 7) as u8).collect();
        let mut sending = Sending::default();
        let mut expected = Vec::new();
        for length in [1, 4096, 1 << 20, 100_000] {
            let (_table, _, span) = span(&bytes[..length]);
            let header = read_header(length as u64).answered(None, 0);
            sending
                .queue
                .push_back(Outgoing::with_payload(header, Vec::new(), span));
            expected.extend(header.encode());
            expected.extend(&bytes[..length]);
            expected.extend(Trailer { id: 7, error: None }.encode());
        }
        assert!(sent(&mut sending) == expected);
    }

    #[test]
    fn one_connection_gives_others_their_turn() {
        let (table, id, _) = span(&vec![1; 1 << 20]);
        let region = table.region(id).unwrap();
        let header = read_header(1 << 20).answered(None, 0);
        let mut sending = Sending::default();
        for _ in 0..16 {
            let memory = Span::local(&region, 0, 1 << 20).unwrap();
            let frame = Outgoing::with_payload(header, Vec::new(), memory);
            sending.queue.push_back(frame);
        }
        let (one, mut other) = UnixStream::pair().unwrap();
        // a socket that takes everything at once
        let channel = Channel::new(one.into(), None);
        let before = sending.queue.len();
        std::thread::scope(|scope| {
            scope.spawn(|| std::io::copy(&mut other, &mut std::io::sink()).unwrap());
            assert!(sending.flush(&channel).unwrap());
            assert!(before - sending.queue.len() <= 2 * (TURN_BYTES >> 20));
            while sending.flush(&channel).unwrap() {}
            drop(channel);
        });
    }

    #[test]
    fn an_answer_whose_memory_goes_before_it_begins_is_a_failure() {
        let (table, region, memory) = span(&[1; 100]);
        let mut sending = Sending::default();
        let header = read_header(100).answered(None, 0);
        sending
            .queue
            .push_back(Outgoing::with_payload(header, Vec::new(), memory));
        table.region(region).unwrap().usage.close();
        assert_eq!(
            sent(&mut sending),
            header.answered(Some(ErrorKind::Fenced), 0).encode()
        );
        assert_eq!(table.region(region).unwrap().usage.count(), 0);
    }

    #[test]
    fn an_answer_whose_memory_goes_in_the_middle_says_so_at_its_end() {
        let (table, region, memory) = span(&[1; 100]);
        let mut sending = Sending::default();
        let header = read_header(100).answered(None, 0);
        sending
            .queue
            .push_back(Outgoing::with_payload(header, Vec::new(), memory));
        sending.advance(80);
        table.region(region).unwrap().usage.close();
        let bytes = sent(&mut sending);
        assert_eq!(bytes[..84], [0; 84]);
        let trailer = Trailer::decode(bytes[84..].first_chunk().unwrap()).unwrap();
        assert_eq!(trailer.error, Some(ErrorKind::Fenced));
        assert_eq!(table.region(region).unwrap().usage.count(), 0);
    }
}
