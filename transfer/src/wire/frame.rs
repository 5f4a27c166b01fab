//! Headers and trailers.

use kvstored_core::checksum::Checksum;
use kvstored_core::{Error, ErrorKind, Result};
use kvstored_verbs::LINK_ADDRESS_BYTES;
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::messages::{MAX_MESSAGE_BYTES, RANGE_BYTES, WANTED_BYTES};
use super::moves::{MOST_ATTACH_BYTES, MOVES_HEAD_BYTES};
use super::{MAX_BODY_BYTES, MAX_PAYLOAD_BYTES, error_of, status_of};
use crate::grant::GRANT_BYTES;

/// Bytes of a header.
pub const HEADER_BYTES: usize = 64;
/// Bytes of what follows a payload.
pub const TRAILER_BYTES: usize = 16;
const MAGIC: U32 = U32::from_bytes(*b"KVTF");
const CHECKED_BYTES: usize = HEADER_BYTES - 8;
const ANSWER: u8 = 0x80;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Read granted memory. Body: the grant. The answer has the payload.
    Read,
    /// Write granted memory. Body: the grant; the payload follows.
    Write,
    /// Take a message. Body: the message.
    Notify,
    /// Show that you live.
    Ping,
    /// Grant this peer registered memory by its address. Body: [`super::Wanted`]. The answer's body is a grant.
    Want,
    /// Name the region that was registered first. The answer's body is a [`super::Range`].
    First,
    /// Offer to share memory with a process of the same host. The answer's body is a [`super::Offer`].
    Share,
    /// Answer a question of whoever uses this engine. Body: the question. The answer's body is theirs.
    Ask,
    /// Connect an RDMA queue pair with the one that the body names. The answer's body names the other.
    Rdma,
    /// Connect a plugged-in transport with the one that the body names ([`super::Attach`]). Answered out of turn.
    Attach,
    /// Move granted memory over it: body [`super::Moves`]. Answered out of turn, when it's done.
    Move,
}

impl Kind {
    const ALL: [Self; 11] = [
        Self::Read,
        Self::Write,
        Self::Notify,
        Self::Ping,
        Self::Want,
        Self::First,
        Self::Share,
        Self::Ask,
        Self::Rdma,
        Self::Attach,
        Self::Move,
    ];

    const fn code(self) -> u8 {
        match self {
            Self::Read => 1,
            Self::Write => 2,
            Self::Notify => 3,
            Self::Ping => 4,
            Self::Want => 5,
            Self::First => 6,
            Self::Share => 7,
            Self::Ask => 8,
            Self::Rdma => 9,
            Self::Attach => 10,
            Self::Move => 11,
        }
    }

    /// Whether its answer comes when it's done, whatever was asked before or after.
    pub const fn is_late(self) -> bool {
        matches!(self, Self::Attach | Self::Move)
    }

    fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: U32,
    kind: u8,
    status: u8,
    zero: [u8; 2],
    id: U64,
    offset: U64,
    length: U64,
    body: U32,
    spare: [u8; 20],
    check: U64,
}

const _: () = assert!(size_of::<RawHeader>() == HEADER_BYTES);

/// What begins a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What is asked, or answered.
    pub kind: Kind,
    /// Whether this is the answer.
    pub answer: bool,
    /// What went wrong; answers only.
    pub error: Option<ErrorKind>,
    /// The asker's number of the request; its answer carries the same.
    pub id: u64,
    /// Where to read or write, counted from the beginning of the grant's range.
    pub offset: u64,
    /// Bytes to read or write.
    pub length: u64,
    /// Bytes of the body.
    pub body_bytes: u32,
}

impl Header {
    /// A request.
    pub fn request(kind: Kind, id: u64, body_bytes: usize) -> Self {
        Self {
            kind,
            answer: false,
            error: None,
            id,
            offset: 0,
            length: 0,
            body_bytes: body_bytes as u32,
        }
    }

    /// The answer to this request: what it says of the range is the request's own.
    pub fn answered(&self, error: Option<ErrorKind>, body_bytes: usize) -> Self {
        Self {
            answer: true,
            error,
            body_bytes: body_bytes as u32,
            ..*self
        }
    }

    /// Bytes of payload behind the body; a trailer follows if there are any.
    pub fn payload_bytes(&self) -> usize {
        let carries = match self.kind {
            Kind::Read => self.answer && self.error.is_none(),
            Kind::Write => !self.answer,
            _ => false,
        };
        if carries { self.length as usize } else { 0 }
    }

    /// Its bytes.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut raw = RawHeader {
            magic: MAGIC,
            kind: self.kind.code() | if self.answer { ANSWER } else { 0 },
            status: status_of(self.error),
            zero: [0; 2],
            id: self.id.into(),
            offset: self.offset.into(),
            length: self.length.into(),
            body: self.body_bytes.into(),
            spare: [0; 20],
            check: 0.into(),
        };
        raw.check = check(&raw).into();
        zerocopy::transmute!(raw)
    }

    /// Reads a header. Fails with `Corrupt` for bytes that are none, with `Unsupported` for a kind that isn't known, and
    /// with `InvalidInput` for lengths that no such frame has.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self> {
        let raw: RawHeader = zerocopy::transmute!(*bytes);
        if raw.magic != MAGIC || check(&raw) != raw.check.get() || raw.zero != [0; 2] || raw.spare != [0; 20]
        {
            return Err(Error::new(
                ErrorKind::Corrupt,
                "these bytes are no frame's header",
            ));
        }
        let kind = Kind::from_code(raw.kind & !ANSWER)
            .ok_or_else(|| Error::new(ErrorKind::Unsupported, format!("frame of kind {:#x}", raw.kind)))?;
        let header = Self {
            kind,
            answer: raw.kind & ANSWER != 0,
            error: error_of(raw.status),
            id: raw.id.get(),
            offset: raw.offset.get(),
            length: raw.length.get(),
            body_bytes: raw.body.get(),
        };
        if status_of(header.error) != raw.status || !header.makes_sense() {
            return Err(
                Error::invalid("a frame's lengths or status are not those of its kind")
                    .with("kind", raw.kind),
            );
        }
        Ok(header)
    }

    fn makes_sense(&self) -> bool {
        let moves = matches!(self.kind, Kind::Read | Kind::Write);
        let lengths = if moves {
            (1..=MAX_PAYLOAD_BYTES).contains(&self.length)
        } else {
            self.length == 0 && self.offset == 0
        };
        let body = self.body_bytes as usize;
        lengths
            && self.body_bytes <= MAX_BODY_BYTES
            && match (self.answer, self.error) {
                (false, Some(_)) => false,
                (false, None) => match self.kind {
                    Kind::Read | Kind::Write => body == GRANT_BYTES,
                    Kind::Notify | Kind::Ask => true,
                    Kind::Ping | Kind::First | Kind::Share => body == 0,
                    Kind::Want => body == WANTED_BYTES,
                    Kind::Rdma => body == LINK_ADDRESS_BYTES,
                    Kind::Attach => (1..=MOST_ATTACH_BYTES).contains(&body),
                    Kind::Move => body >= MOVES_HEAD_BYTES,
                },
                (true, Some(_)) => body <= MAX_MESSAGE_BYTES,
                (true, None) => match self.kind {
                    Kind::Read | Kind::Write | Kind::Notify | Kind::Ping | Kind::Attach | Kind::Move => {
                        body == 0
                    }
                    Kind::Want => body == GRANT_BYTES,
                    Kind::First => body == RANGE_BYTES,
                    Kind::Rdma => body == LINK_ADDRESS_BYTES,
                    Kind::Share | Kind::Ask => true,
                },
            }
    }
}

fn check(raw: &RawHeader) -> u64 {
    let mut checksum = Checksum::new();
    checksum.update(raw.as_bytes().get(..CHECKED_BYTES).unwrap_or_default());
    checksum.value()
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawTrailer {
    id: U64,
    status: u8,
    zero: [u8; 7],
}

const _: () = assert!(size_of::<RawTrailer>() == TRAILER_BYTES);

/// What ends a payload: whether all of it is what it should be. A sender whose memory went away in the middle fills the
/// rest with zeros and says so here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trailer {
    /// As in the header.
    pub id: u64,
    /// Why the payload is worthless.
    pub error: Option<ErrorKind>,
}

impl Trailer {
    /// Its bytes.
    pub fn encode(&self) -> [u8; TRAILER_BYTES] {
        zerocopy::transmute!(RawTrailer {
            id: self.id.into(),
            status: status_of(self.error),
            zero: [0; 7],
        })
    }

    /// Reads a trailer. Fails with `Corrupt`.
    pub fn decode(bytes: &[u8; TRAILER_BYTES]) -> Result<Self> {
        let raw: RawTrailer = zerocopy::transmute!(*bytes);
        let error = error_of(raw.status);
        if raw.zero != [0; 7] || status_of(error) != raw.status {
            return Err(Error::new(
                ErrorKind::Corrupt,
                "these bytes are no frame's trailer",
            ));
        }
        Ok(Self {
            id: raw.id.get(),
            error,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_header_survives_the_wire_and_no_altered_bit_does() {
        let header = Header {
            offset: 77,
            length: 4096,
            ..Header::request(Kind::Read, 9, GRANT_BYTES)
        };
        let bytes = header.encode();
        assert_eq!(Header::decode(&bytes).unwrap(), header);
        for bit in 0..HEADER_BYTES * 8 {
            let mut altered = bytes;
            altered[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(&altered).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn lengths_that_no_frame_has_are_refused() {
        let read = Header::request(Kind::Read, 1, GRANT_BYTES);
        for length in [0, MAX_PAYLOAD_BYTES + 1, u64::MAX, 1 << 63] {
            assert!(
                Header::decode(&Header { length, ..read }.encode()).is_err(),
                "{length}"
            );
        }
        let whole = Header { length: 1, ..read };
        for body_bytes in [0, 127, 129, u32::MAX] {
            assert!(
                Header::decode(&Header { body_bytes, ..whole }.encode()).is_err(),
                "{body_bytes}"
            );
        }
        let note = Header::request(Kind::Notify, 1, MAX_BODY_BYTES as usize + 1);
        assert!(Header::decode(&note.encode()).is_err());
    }

    #[test]
    fn only_reads_answered_well_and_writes_carry_payloads() {
        let read = Header {
            length: 10,
            ..Header::request(Kind::Read, 1, GRANT_BYTES)
        };
        assert_eq!(read.payload_bytes(), 0);
        assert_eq!(read.answered(None, 0).payload_bytes(), 10);
        assert_eq!(read.answered(Some(ErrorKind::Fenced), 0).payload_bytes(), 0);
        let write = Header {
            kind: Kind::Write,
            ..read
        };
        assert_eq!(write.payload_bytes(), 10);
        assert_eq!(write.answered(None, 0).payload_bytes(), 0);
    }

    proptest! {
        #[test]
        fn what_decodes_encodes_the_same(mut bytes in any::<[[u8; 32]; 2]>().prop_map(|halves| {
            let mut all = [0u8; HEADER_BYTES];
            all[..32].copy_from_slice(&halves[0]);
            all[32..].copy_from_slice(&halves[1]);
            all
        })) {
            bytes[..4].copy_from_slice(b"KVTF");
            bytes[4] = (bytes[4] % 13) | (bytes[4] & 0x80);
            bytes[5] %= 20;
            bytes[6..8].fill(0);
            bytes[26..32].fill(0);
            bytes[34..56].fill(0);
            let raw: RawHeader = zerocopy::transmute!(bytes);
            bytes[56..].copy_from_slice(&check(&raw).to_le_bytes());
            if let Ok(header) = Header::decode(&bytes) {
                prop_assert!(header.payload_bytes() as u64 <= MAX_PAYLOAD_BYTES);
                prop_assert_eq!(header.encode(), bytes);
            }
        }

        #[test]
        fn a_trailer_that_decodes_encodes_the_same(id: u64, status: u8, zero in 0u8..2) {
            let mut bytes = [0; TRAILER_BYTES];
            bytes[..8].copy_from_slice(&id.to_le_bytes());
            bytes[8] = status;
            bytes[15] = zero;
            if let Ok(trailer) = Trailer::decode(&bytes) {
                prop_assert_eq!(trailer.encode(), bytes);
            }
        }
    }
}
