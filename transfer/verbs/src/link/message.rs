//! The messages of a link, byte for byte. `docs/wire.md` describes them too.

use kvstored_core::{Error, ErrorKind, Result};

use super::Direction;

/// The largest message: what every posted receive has room for.
pub const MESSAGE_BYTES: usize = 256;
/// The fixed part.
pub const HEADER_BYTES: usize = 64;
/// The longest grant.
pub const MOST_GRANT_BYTES: usize = MESSAGE_BYTES - HEADER_BYTES;
const VERSION: u8 = 1;

const REQUEST: u8 = 1;
const ANSWER: u8 = 2;
const CANCEL: u8 = 3;
const PROBE: u8 = 4;
const CREDITS: u8 = 5;

/// What one end tells the other.
///
/// Every message begins with 64 bytes, little-endian: version (1) at 0, kind at 1, receives posted again at 2–3, length of
/// the grant at 4–5, direction or status at 6, number of the request at 8–15, offset at 16–23, length at 24–31, the
/// requester's address at 32–39 and its key at 40–43. What a kind doesn't use is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// Move bytes between the requester's memory and the granted range.
    Request {
        /// The requester's number of it.
        id: u64,
        /// Which way.
        direction: Direction,
        /// Where in the granted range.
        offset: u64,
        /// How many bytes.
        length: u64,
        /// Where in the requester's process.
        address: u64,
        /// The key that opens the requester's memory.
        key: u32,
        /// The right to the range.
        grant: &'a [u8],
    },
    /// A request is over.
    Answer {
        /// Which.
        id: u64,
        /// Why it failed.
        failure: Option<ErrorKind>,
    },
    /// The requester doesn't want it any more, and waits for the answer.
    Cancel {
        /// Which.
        id: u64,
    },
    /// Say something.
    Probe,
    /// Nothing but the receives posted again.
    Credits,
}

impl Message<'_> {
    /// Writes it, with the number of receives that were posted again, and returns its length.
    pub fn encode(&self, credits: u16, into: &mut [u8; MESSAGE_BYTES]) -> Result<usize> {
        into.fill(0);
        let mut put = |at: usize, value: &[u8]| {
            if let Some(place) = into.get_mut(at..at + value.len()) {
                place.copy_from_slice(value);
            }
        };
        put(0, &[VERSION]);
        put(2, &credits.to_le_bytes());
        let (kind, id, grant): (u8, u64, &[u8]) = match *self {
            Self::Request {
                id,
                direction,
                offset,
                length,
                address,
                key,
                grant,
            } => {
                if grant.len() > MOST_GRANT_BYTES {
                    return Err(Error::invalid(format!("a grant of {} bytes", grant.len())));
                }
                put(4, &(grant.len() as u16).to_le_bytes());
                put(6, &[direction.code()]);
                put(16, &offset.to_le_bytes());
                put(24, &length.to_le_bytes());
                put(32, &address.to_le_bytes());
                put(40, &key.to_le_bytes());
                put(HEADER_BYTES, grant);
                (REQUEST, id, grant)
            }
            Self::Answer { id, failure } => {
                put(6, &[failure.map_or(0, |kind| kind.code().saturating_add(1))]);
                (ANSWER, id, &[])
            }
            Self::Cancel { id } => (CANCEL, id, &[]),
            Self::Probe => (PROBE, 0, &[]),
            Self::Credits => (CREDITS, 0, &[]),
        };
        put(1, &[kind]);
        put(8, &id.to_le_bytes());
        Ok(HEADER_BYTES + grant.len())
    }
}

/// Reads a message and the number of receives that the peer posted again. Fails with `Corrupt` for anything that no peer
/// sends.
pub fn decode(bytes: &[u8]) -> Result<(u16, Message<'_>)> {
    let (header, grant) = bytes
        .split_first_chunk::<HEADER_BYTES>()
        .ok_or_else(|| corrupt("that is too short"))?;
    let [version, kind, c0, c1, g0, g1, detail, zero, rest @ ..] = *header;
    let field = |at: usize| {
        let bytes: Option<&[u8; 8]> = rest.get(at..).and_then(|tail| tail.first_chunk());
        bytes.copied().map_or(0, u64::from_le_bytes)
    };
    let (id, offset, length, address) = (field(0), field(8), field(16), field(24));
    let key = field(32) as u32;
    let zeros = rest.get(36..).unwrap_or_default();
    if version != VERSION || zero != 0 || zeros.iter().any(|byte| *byte != 0) {
        return Err(corrupt("of another version"));
    }
    if grant.len() != usize::from(u16::from_le_bytes([g0, g1])) || grant.len() > MOST_GRANT_BYTES {
        return Err(corrupt("whose grant has another length"));
    }
    let bare = grant.is_empty() && offset == 0 && length == 0 && address == 0 && key == 0;
    let message = match kind {
        REQUEST => Message::Request {
            id,
            direction: Direction::from_code(detail).ok_or_else(|| corrupt("of an unknown direction"))?,
            offset,
            length,
            address,
            key,
            grant,
        },
        ANSWER if bare => Message::Answer {
            id,
            failure: detail.checked_sub(1).map(ErrorKind::from_code),
        },
        CANCEL if bare && detail == 0 => Message::Cancel { id },
        PROBE if bare && detail == 0 && id == 0 => Message::Probe,
        CREDITS if bare && detail == 0 && id == 0 => Message::Credits,
        _ => return Err(corrupt("of an unknown kind")),
    };
    Ok((u16::from_le_bytes([c0, c1]), message))
}

fn corrupt(what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("a message {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRANT: [u8; 130] = [9; 130];

    fn all() -> [Message<'static>; 7] {
        [
            Message::Request {
                id: u64::MAX,
                direction: Direction::Write,
                offset: 1 << 40,
                length: u64::MAX,
                address: 0xdead_beef_0000,
                key: 0x1234_5678,
                grant: &GRANT,
            },
            Message::Answer { id: 7, failure: None },
            Message::Answer {
                id: 8,
                failure: Some(ErrorKind::Internal),
            },
            Message::Answer {
                id: 9,
                failure: Some(ErrorKind::InvalidInput),
            },
            Message::Cancel { id: 1 },
            Message::Probe,
            Message::Credits,
        ]
    }

    #[test]
    fn every_message_is_read_back() {
        for message in all() {
            let mut bytes = [0xff; MESSAGE_BYTES];
            let length = message.encode(300, &mut bytes).unwrap();
            assert_eq!(decode(&bytes[..length]).unwrap(), (300, message));
        }
    }

    #[test]
    fn other_lengths_are_refused() {
        for message in all() {
            let mut bytes = [0; MESSAGE_BYTES];
            let length = message.encode(0, &mut bytes).unwrap();
            for wrong in (0..=MESSAGE_BYTES).filter(|wrong| *wrong != length) {
                assert!(decode(&bytes[..wrong]).is_err(), "{message:?} in {wrong} bytes");
            }
        }
    }

    #[test]
    fn no_byte_may_be_what_no_peer_sends() {
        let mut bytes = [0; MESSAGE_BYTES];
        let length = Message::Answer { id: 7, failure: None }
            .encode(0, &mut bytes)
            .unwrap();
        for at in [0, 1, 4, 7, 16, 24, 32, 40, 44, 63] {
            let mut wrong = bytes;
            wrong[at] ^= 0x40;
            assert!(decode(&wrong[..length]).is_err(), "byte {at}");
        }
    }

    #[test]
    fn random_bytes_are_refused_or_read_back_the_same() {
        let random = kvstored_core::runtime::SystemRandom::seeded(1);
        let mut understood = 0;
        for round in 0..200_000_u64 {
            let mut bytes = [0; MESSAGE_BYTES];
            let base = all()[(round % 7) as usize];
            let length = base.encode(round as u16, &mut bytes).unwrap();
            for _ in 0..round % 4 {
                let word = kvstored_core::runtime::Random::next_u64(&random);
                bytes[word as usize % length] = (word >> 32) as u8;
            }
            if let Ok((credits, message)) = decode(&bytes[..length]) {
                let mut again = [0; MESSAGE_BYTES];
                let same = message.encode(credits, &mut again).unwrap();
                // an unknown kind of error becomes a known one
                let failed = matches!(message, Message::Answer { failure: Some(_), .. });
                assert!(failed || again[..same] == bytes[..length]);
                understood += 1;
            }
        }
        assert!(understood > 50_000);
    }

    #[test]
    fn a_grant_that_is_too_long_is_not_sent() {
        let grant = [0; MOST_GRANT_BYTES + 1];
        let message = Message::Request {
            id: 1,
            direction: Direction::Read,
            offset: 0,
            length: 1,
            address: 1,
            key: 1,
            grant: &grant,
        };
        let error = message.encode(0, &mut [0; MESSAGE_BYTES]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
}
