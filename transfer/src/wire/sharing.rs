//! What two processes of one host say to each other to share memory: over the connection first, then over a Unix socket
//! that carries descriptors.

use kvstored_core::{Error, ErrorKind, Result};
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{error_of, status_of};
use crate::grant::{GRANT_BYTES, Grant};

/// Bytes of a ticket.
pub const TICKET_BYTES: usize = 32;
/// Grants that are asked about at once.
pub const MOST_ASKED: usize = 16;
const MOST_ADDRESS_BYTES: usize = 128;
const INTRODUCTION: u8 = 1;
const QUESTION: u8 = 2;
pub(super) const ANSWER: u8 = 3;

pub(super) fn wrong(what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("these bytes are no {what}"))
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawOffer {
    ticket: [u8; TICKET_BYTES],
    slots: U32,
    zero: [u8; 4],
}

/// Where the Unix socket is: the answer to `share`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Shows at the socket who it is that was authenticated.
    pub ticket: [u8; TICKET_BYTES],
    /// Slots of the control page.
    pub slots: u32,
    /// The socket: a path, or `@` and an abstract name.
    pub address: String,
}

impl Offer {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let raw = RawOffer {
            ticket: self.ticket,
            slots: self.slots.into(),
            zero: [0; 4],
        };
        [raw.as_bytes(), self.address.as_bytes()].concat()
    }

    /// Reads one. Fails with `Corrupt`.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let (raw, address) = RawOffer::read_from_prefix(bytes).map_err(|_| wrong("offer"))?;
        let address = std::str::from_utf8(address).ok();
        let address = address.filter(|text| !text.is_empty() && text.len() <= MOST_ADDRESS_BYTES);
        match address {
            Some(address) if raw.zero == [0; 4] => Ok(Self {
                ticket: raw.ticket,
                slots: raw.slots.get(),
                address: address.to_owned(),
            }),
            _ => Err(wrong("offer")),
        }
    }
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawIntroduction {
    kind: u8,
    zero: [u8; 7],
    started: U64,
    ticket: [u8; TICKET_BYTES],
}

/// The first message over the socket, from the opener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Introduction {
    /// When its process started, in ticks since the system's boot.
    pub started: u64,
    /// The offer's.
    pub ticket: [u8; TICKET_BYTES],
}

impl Introduction {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let raw = RawIntroduction {
            kind: INTRODUCTION,
            zero: [0; 7],
            started: self.started.into(),
            ticket: self.ticket,
        };
        raw.as_bytes().to_vec()
    }

    /// Reads one. Fails with `Corrupt`.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let raw = RawIntroduction::read_from_bytes(bytes).map_err(|_| wrong("introduction"))?;
        if raw.kind != INTRODUCTION || raw.zero != [0; 7] {
            return Err(wrong("introduction"));
        }
        Ok(Self {
            started: raw.started.get(),
            ticket: raw.ticket,
        })
    }
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawWelcome {
    status: u8,
    zero: [u8; 7],
    probe: U64,
    expected: [u8; 16],
}

/// Its answer. The descriptors of the epochs and of the opener's counts come along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// Why it's none.
    pub error: Option<ErrorKind>,
    /// An address in the acceptor's process, for finding out whether its memory can be read …
    pub probe: u64,
    /// … and what is there.
    pub expected: [u8; 16],
}

impl Welcome {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let raw = RawWelcome {
            status: status_of(self.error),
            zero: [0; 7],
            probe: self.probe.into(),
            expected: self.expected,
        };
        raw.as_bytes().to_vec()
    }

    /// Reads one. Fails with `Corrupt`.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let raw = RawWelcome::read_from_bytes(bytes).map_err(|_| wrong("welcome"))?;
        let error = error_of(raw.status);
        if raw.zero != [0; 7] || status_of(error) != raw.status {
            return Err(wrong("welcome"));
        }
        Ok(Self {
            error,
            probe: raw.probe.get(),
            expected: raw.expected,
        })
    }
}

/// What questions and answers begin with: the kind, how many follow, two zeros, and the question's number.
pub(super) fn head(kind: u8, count: usize, number: u32) -> Vec<u8> {
    let mut bytes = vec![kind, count as u8, 0, 0];
    bytes.extend_from_slice(&number.to_le_bytes());
    bytes
}

pub(super) fn split_head(kind: u8, bytes: &[u8]) -> Option<(u32, usize, &[u8])> {
    let ([told, count, 0, 0, a, b, c, d], rest) = bytes.split_first_chunk()? else {
        return None;
    };
    let count = usize::from(*count);
    let fits = *told == kind && (1..=MOST_ASKED).contains(&count);
    fits.then(|| (u32::from_le_bytes([*a, *b, *c, *d]), count, rest))
}

/// Asks what grants are worth; at most [`MOST_ASKED`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Its answer has the same.
    pub number: u32,
    /// The grants.
    pub grants: Vec<Grant>,
}

impl Question {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = head(QUESTION, self.grants.len(), self.number);
        for grant in &self.grants {
            bytes.extend_from_slice(&grant.encode());
        }
        bytes
    }

    /// Reads one. Fails with `Corrupt`.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let (number, count, rest) = split_head(QUESTION, bytes).ok_or_else(|| wrong("question"))?;
        if rest.len() != count * GRANT_BYTES {
            return Err(wrong("question"));
        }
        let grants = rest.chunks(GRANT_BYTES).map(Grant::decode);
        let grants = grants.collect::<Result<_>>().map_err(|_| wrong("question"))?;
        Ok(Self { number, grants })
    }
}

#[cfg(test)]
mod tests {
    use super::super::worth::{Worth, Worths};
    use super::*;
    use crate::grant::Rights;
    use proptest::prelude::*;

    #[test]
    fn messages_survive_the_wire() {
        let offer = Offer {
            ticket: [7; 32],
            slots: 9,
            address: "@somewhere".to_owned(),
        };
        assert_eq!(Offer::decode(&offer.encode()).unwrap(), offer);
        assert!(Offer::decode(&offer.encode()[..40]).is_err());
        let introduction = Introduction {
            started: 5,
            ticket: [3; 32],
        };
        assert_eq!(
            Introduction::decode(&introduction.encode()).unwrap(),
            introduction
        );
        let welcome = Welcome {
            error: Some(ErrorKind::Busy),
            probe: 1,
            expected: [2; 16],
        };
        assert_eq!(Welcome::decode(&welcome.encode()).unwrap(), welcome);
        let worth = Worth {
            own: true,
            rights: Rights::Write,
            region: 1,
            region_bytes: 2,
            offset: 3,
            slot: 4,
            epoch: 5,
            lasts: u64::MAX,
            address: 6,
        };
        let worths = Worths {
            number: u32::MAX,
            worths: vec![Err(ErrorKind::Fenced), Ok(worth)],
        };
        assert_eq!(Worths::decode(&worths.encode()).unwrap(), worths);
    }

    proptest! {
        #[test]
        fn what_decodes_encodes_the_same(mut bytes in proptest::collection::vec(0u8..6, 0..200), kind in 0u8..4) {
            if let Some(first) = bytes.first_mut() {
                *first = kind;
            }
            if let Ok(offer) = Offer::decode(&bytes) {
                prop_assert_eq!(offer.encode(), &bytes[..]);
            }
            if let Ok(introduction) = Introduction::decode(&bytes) {
                prop_assert_eq!(introduction.encode(), &bytes[..]);
            }
            if let Ok(welcome) = Welcome::decode(&bytes) {
                prop_assert_eq!(welcome.encode(), &bytes[..]);
            }
            if let Ok(question) = Question::decode(&bytes) {
                prop_assert_eq!(question.encode(), &bytes[..]);
            }
            if let Ok(worths) = Worths::decode(&bytes) {
                prop_assert_eq!(worths.encode(), &bytes[..]);
            }
        }
    }
}
