//! What grants are worth to a process of the same host.

use kvstored_core::{ErrorKind, Result};
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::sharing::{ANSWER, head, split_head, wrong};
use super::{error_of, status_of};
use crate::grant::Rights;

const OWN: u8 = 1;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawWorth {
    status: u8,
    flags: u8,
    rights: u8,
    zero: [u8; 5],
    region: U64,
    region_bytes: U64,
    offset: U64,
    slot: U32,
    zero_too: [u8; 4],
    epoch: U64,
    lasts: U64,
    address: U64,
}

const WORTH_BYTES: usize = size_of::<RawWorth>();

/// What a grant is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Worth {
    /// Whether the region is the engine's own memory: then its descriptor comes along, for reading only unless the rights
    /// include writing.
    pub own: bool,
    /// What may be done.
    pub rights: Rights,
    /// The region's number.
    pub region: u64,
    /// Its bytes.
    pub region_bytes: u64,
    /// Where the grant's range begins in it.
    pub offset: u64,
    /// The slot of the control page to be counted in at.
    pub slot: u32,
    /// The slot's epoch.
    pub epoch: u64,
    /// Nanoseconds until the grant expires.
    pub lasts: u64,
    /// The region's address in its process.
    pub address: u64,
}

/// The answer to a [`Question`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Worths {
    /// The question's.
    pub number: u32,
    /// What each of its grants is worth, or why it's worth nothing.
    pub worths: Vec<std::result::Result<Worth, ErrorKind>>,
}

impl Worths {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = head(ANSWER, self.worths.len(), self.number);
        for worth in &self.worths {
            bytes.extend_from_slice(encode_worth(worth).as_bytes());
        }
        bytes
    }

    /// Reads an answer. Fails with `Corrupt`.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let wrong = || wrong("answer about grants");
        let (number, count, rest) = split_head(ANSWER, bytes).ok_or_else(wrong)?;
        if rest.len() != count * WORTH_BYTES {
            return Err(wrong());
        }
        let worths = rest
            .chunks(WORTH_BYTES)
            .map(decode_worth)
            .collect::<Result<_>>()?;
        Ok(Self { number, worths })
    }
}

fn encode_worth(worth: &std::result::Result<Worth, ErrorKind>) -> RawWorth {
    let mut raw = RawWorth {
        status: status_of(worth.as_ref().err().copied()),
        flags: 0,
        rights: 0,
        zero: [0; 5],
        region: 0.into(),
        region_bytes: 0.into(),
        offset: 0.into(),
        slot: 0.into(),
        zero_too: [0; 4],
        epoch: 0.into(),
        lasts: 0.into(),
        address: 0.into(),
    };
    if let Ok(worth) = worth {
        raw.flags = if worth.own { OWN } else { 0 };
        raw.rights = worth.rights.code();
        raw.region = worth.region.into();
        raw.region_bytes = worth.region_bytes.into();
        raw.offset = worth.offset.into();
        raw.slot = worth.slot.into();
        raw.epoch = worth.epoch.into();
        raw.lasts = worth.lasts.into();
        raw.address = worth.address.into();
    }
    raw
}

fn decode_worth(bytes: &[u8]) -> Result<std::result::Result<Worth, ErrorKind>> {
    let wrong = || wrong("answer about grants");
    let raw = RawWorth::read_from_bytes(bytes).map_err(|_| wrong())?;
    let worth = match error_of(raw.status) {
        Some(kind) => Err(kind),
        None => Ok(Worth {
            own: raw.flags == OWN,
            rights: Rights::from_bits(raw.rights).ok_or_else(wrong)?,
            region: raw.region.get(),
            region_bytes: raw.region_bytes.get(),
            offset: raw.offset.get(),
            slot: raw.slot.get(),
            epoch: raw.epoch.get(),
            lasts: raw.lasts.get(),
            address: raw.address.get(),
        }),
    };
    // what has no place in the answer must be zero
    if encode_worth(&worth).as_bytes() != bytes {
        return Err(wrong());
    }
    Ok(worth)
}
