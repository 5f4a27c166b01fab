//! Bodies of the rarer frames.

use kvstored_core::{Error, Result};
use zerocopy::byteorder::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::grant::Rights;

/// The longest text of a failed answer.
pub const MAX_MESSAGE_BYTES: usize = 512;
/// Bytes of a [`Wanted`].
pub const WANTED_BYTES: usize = 24;
/// Bytes of a [`Range`].
pub const RANGE_BYTES: usize = 16;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawWanted {
    address: U64,
    length: U64,
    rights: u8,
    zero: [u8; 7],
}

/// Registered memory that a peer wants a grant on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Address in the serving process.
    pub address: u64,
    /// Bytes.
    pub length: u64,
    /// For what.
    pub rights: Rights,
}

impl Wanted {
    /// Its bytes.
    pub fn encode(&self) -> [u8; WANTED_BYTES] {
        zerocopy::transmute!(RawWanted {
            address: self.address.into(),
            length: self.length.into(),
            rights: self.rights.code(),
            zero: [0; 7],
        })
    }

    /// Reads one. Fails with `InvalidInput`.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let wrong = || Error::invalid("these bytes ask for no memory");
        let raw = RawWanted::read_from_bytes(bytes).map_err(|_| wrong())?;
        let rights = Rights::from_bits(raw.rights).filter(|_| raw.zero == [0; 7]);
        Ok(Self {
            address: raw.address.get(),
            length: raw.length.get(),
            rights: rights.ok_or_else(wrong)?,
        })
    }
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawRange {
    address: U64,
    length: U64,
}

/// Memory in the serving process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Address of the first byte.
    pub address: u64,
    /// Bytes.
    pub length: u64,
}

impl Range {
    /// Its bytes.
    pub fn encode(&self) -> [u8; RANGE_BYTES] {
        zerocopy::transmute!(RawRange {
            address: self.address.into(),
            length: self.length.into(),
        })
    }

    /// Reads one. Fails with `InvalidInput`.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let raw = RawRange::read_from_bytes(bytes).map_err(|_| Error::invalid("these bytes are no range"))?;
        Ok(Self {
            address: raw.address.get(),
            length: raw.length.get(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_wire() {
        let wanted = Wanted {
            address: u64::MAX,
            length: 3,
            rights: Rights::ReadWrite,
        };
        assert_eq!(Wanted::decode(&wanted.encode()).unwrap(), wanted);
        let mut altered = wanted.encode();
        altered[16] = 4;
        assert!(Wanted::decode(&altered).is_err());
        assert!(Wanted::decode(&altered[1..]).is_err());
        let range = Range {
            address: 1,
            length: u64::MAX,
        };
        assert_eq!(Range::decode(&range.encode()).unwrap(), range);
        assert!(Range::decode(&[0; 15]).is_err());
    }
}
