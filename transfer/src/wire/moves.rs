//! Bodies of the frames about a plugged-in transport.

use kvstored_core::transport::MOST_ADDRESS_BYTES;
use kvstored_core::{Error, ErrorKind, Result};
use zerocopy::byteorder::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::grant::{GRANT_BYTES, Grant};
use crate::transfer::TransferKind;

/// Moves of one frame.
pub const MOST_MOVES: usize = 256;
/// Bytes in front of the moves.
pub(super) const MOVES_HEAD_BYTES: usize = size_of::<RawHead>();
const MOST_NAME_BYTES: usize = 64;
/// Bytes of the longest [`Attach`].
pub(super) const MOST_ATTACH_BYTES: usize = 1 + MOST_NAME_BYTES + MOST_ADDRESS_BYTES;
const READ: u8 = 1;
const WRITE: u8 = 2;

fn wrong(what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("these bytes are no {what}"))
}

/// Where the asker's transport is: a length, the transport's name, and its address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attach {
    /// The transport's name, 1 to 64 bytes: both ends must have the same.
    pub name: String,
    /// What it needs to connect, at most 256 bytes.
    pub address: Vec<u8>,
}

impl Attach {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![self.name.len() as u8];
        bytes.extend_from_slice(self.name.as_bytes());
        bytes.extend_from_slice(&self.address);
        bytes
    }

    /// Reads one. Fails with `Corrupt`.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let wrong = || wrong("address of a transport");
        let (length, rest) = bytes.split_first().ok_or_else(wrong)?;
        let length = usize::from(*length);
        let (name, address) = rest.split_at_checked(length).ok_or_else(wrong)?;
        let name = std::str::from_utf8(name).map_err(|_| wrong())?;
        if !(1..=MOST_NAME_BYTES).contains(&length) || address.len() > MOST_ADDRESS_BYTES {
            return Err(wrong());
        }
        Ok(Self {
            name: name.to_owned(),
            address: address.to_vec(),
        })
    }
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHead {
    generation: U64,
    lasts: U64,
    direction: u8,
    zero: [u8; 7],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawEntry {
    address: U64,
    offset: U64,
    length: U64,
}

const ENTRY_BYTES: usize = size_of::<RawEntry>() + GRANT_BYTES;

/// One run of bytes to move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MoveEntry {
    /// Address in the asker's process.
    pub address: u64,
    /// Where the bytes begin, counted from the beginning of the grant's range.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// The right on them.
    pub grant: Grant,
}

/// What the serving side is to move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moves {
    /// How often the asker has registered memory with its transport: connections made before don't know all of it.
    pub generation: u64,
    /// Nanoseconds until the asker gives it up.
    pub lasts: u64,
    /// Which way, seen from the asker.
    pub kind: TransferKind,
    /// What, 1 to 256.
    pub entries: Vec<MoveEntry>,
}

impl Moves {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let head = RawHead {
            generation: self.generation.into(),
            lasts: self.lasts.into(),
            direction: match self.kind {
                TransferKind::Read => READ,
                TransferKind::Write => WRITE,
            },
            zero: [0; 7],
        };
        let mut bytes = Vec::with_capacity(MOVES_HEAD_BYTES + self.entries.len() * ENTRY_BYTES);
        bytes.extend_from_slice(head.as_bytes());
        for entry in &self.entries {
            let raw = RawEntry {
                address: entry.address.into(),
                offset: entry.offset.into(),
                length: entry.length.into(),
            };
            bytes.extend_from_slice(raw.as_bytes());
            bytes.extend_from_slice(&entry.grant.encode());
        }
        bytes
    }

    /// Reads one. Fails with `Corrupt`, and for grants that are none as [`Grant::decode`] does.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let wrong = || wrong("moves");
        let (head, rest) = RawHead::read_from_prefix(bytes).map_err(|_| wrong())?;
        let kind = match head.direction {
            READ => TransferKind::Read,
            WRITE => TransferKind::Write,
            _ => return Err(wrong()),
        };
        let whole = rest.len() % ENTRY_BYTES == 0;
        if head.zero != [0; 7] || !whole || !(1..=MOST_MOVES).contains(&(rest.len() / ENTRY_BYTES)) {
            return Err(wrong());
        }
        let entries = rest.chunks(ENTRY_BYTES).map(|chunk| {
            let (raw, grant) = RawEntry::read_from_prefix(chunk).map_err(|_| wrong())?;
            let entry = MoveEntry {
                address: raw.address.get(),
                offset: raw.offset.get(),
                length: raw.length.get(),
                grant: Grant::decode(grant)?,
            };
            let fits = entry.length > 0 && entry.address.checked_add(entry.length).is_some();
            if fits { Ok(entry) } else { Err(wrong()) }
        });
        Ok(Self {
            generation: head.generation.get(),
            lasts: head.lasts.get(),
            kind,
            entries: entries.collect::<Result<_>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_address_survives_the_wire() {
        let attach = Attach {
            name: "hixl".to_owned(),
            address: vec![7; MOST_ADDRESS_BYTES],
        };
        let bytes = attach.encode();
        assert_eq!(bytes[..5], *b"\x04hixl");
        assert_eq!(Attach::decode(&bytes).unwrap(), attach);
        assert!(Attach::decode(&[bytes, vec![0]].concat()).is_err());
        for wrong in [&b""[..], b"\0", b"\x05hixl", b"\x01\xff"] {
            assert!(Attach::decode(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn moves_without_a_grant_or_past_the_end_of_addresses_are_none() {
        let head = [&[1, 0, 0, 0, 0, 0, 0, 0][..], &[9; 8], &[1], &[0; 7]].concat();
        assert!(Moves::decode(&head).is_err());
        assert!(Moves::decode(&[&head[..], &[0; ENTRY_BYTES]].concat()).is_err());
        assert!(Moves::decode(&[&head[..], &[0; ENTRY_BYTES - 1]].concat()).is_err());
    }

    proptest! {
        #[test]
        fn what_decodes_encodes_the_same(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            if let Ok(attach) = Attach::decode(&bytes) {
                prop_assert_eq!(attach.encode(), &bytes[..]);
            }
            if let Ok(moves) = Moves::decode(&bytes) {
                prop_assert_eq!(moves.encode(), &bytes[..]);
            }
        }
    }
}
