//! Grants: rights on ranges, as fixed-size bytes with a MAC that only the serving engine can make and check.

use std::fmt;
use std::time::Duration;

use kvstored_core::{Error, ErrorKind, Result};
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::identity::{EngineId, PublicationId};

/// Bytes of an encoded grant.
pub const GRANT_BYTES: usize = 128;
const MAGIC: U32 = U32::from_bytes(*b"KVGR");
const VERSION: u8 = 1;
const MAC_BYTES: usize = 32;
const SIGNED_BYTES: usize = GRANT_BYTES - MAC_BYTES;

/// What a peer may do with a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rights {
    /// Read it.
    Read,
    /// Write it.
    Write,
    /// Both.
    ReadWrite,
}

impl Rights {
    const fn bits(self) -> u8 {
        match self {
            Self::Read => 1,
            Self::Write => 2,
            Self::ReadWrite => 3,
        }
    }

    pub(crate) const fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            1 => Some(Self::Read),
            2 => Some(Self::Write),
            3 => Some(Self::ReadWrite),
            _ => None,
        }
    }

    /// The number on the wire.
    pub(crate) const fn code(self) -> u8 {
        self.bits()
    }

    /// Whether it's allowed to read.
    pub const fn may_read(self) -> bool {
        self.bits() & 1 != 0
    }

    /// Whether it's allowed to write.
    pub const fn may_write(self) -> bool {
        self.bits() & 2 != 0
    }
}

/// What to grant, and to whom.
#[derive(Clone, Copy, Debug)]
pub struct GrantRequest {
    /// The engine that may use it.
    pub peer: EngineId,
    /// The publication that the range lies in.
    pub publication: PublicationId,
    /// Where the range begins in the publication.
    pub offset: u64,
    /// Bytes of the range.
    pub length: u64,
    /// What may be done with it.
    pub rights: Rights,
    /// For how long, by the serving engine's steady clock.
    pub expires_in: Duration,
}

/// The encoded form; every field is little-endian and unaligned.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    magic: U32,
    version: u8,
    rights: u8,
    zero: [u8; 2],
    server: [u8; 16],
    peer: [u8; 16],
    publication: U64,
    epoch: U64,
    offset: U64,
    length: U64,
    expiry: U64,
    serial: U64,
    spare: U64,
    mac: [u8; MAC_BYTES],
}

const _: () = assert!(size_of::<Raw>() == GRANT_BYTES);

/// A right on one range for one peer: bytes to be handed to that peer by whatever way. Only the engine that made it can
/// tell whether it's genuine, and does so at every use.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    raw: Raw,
}

impl Grant {
    /// Its bytes.
    pub fn encode(&self) -> [u8; GRANT_BYTES] {
        zerocopy::transmute!(self.raw)
    }

    /// Takes bytes for a grant if they have its form; whether it's genuine only the serving engine can tell.
    ///
    /// Fails with `InvalidInput`, or with `Unsupported` for a version that isn't known here.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let raw = Raw::read_from_bytes(bytes)
            .map_err(|_| Error::invalid(format!("a grant has {GRANT_BYTES} bytes, not {}", bytes.len())))?;
        if raw.magic != MAGIC {
            return Err(Error::invalid("these bytes are no grant"));
        }
        if raw.version != VERSION {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("a grant of version {}, not {VERSION}", raw.version),
            ));
        }
        if Rights::from_bits(raw.rights).is_none() || raw.zero != [0; 2] || raw.spare.get() != 0 {
            return Err(Error::invalid("a grant's rights or spare bytes are wrong"));
        }
        if raw.offset.get().checked_add(raw.length.get()).is_none() {
            return Err(Error::invalid("a grant's range goes past the end of numbers"));
        }
        Ok(Self { raw })
    }

    /// The engine whose memory it's for.
    pub fn server(&self) -> EngineId {
        EngineId::from_bytes(self.raw.server)
    }

    /// The engine that may use it.
    pub fn peer(&self) -> EngineId {
        EngineId::from_bytes(self.raw.peer)
    }

    /// The publication at the serving engine.
    pub fn publication(&self) -> PublicationId {
        PublicationId(self.raw.publication.get())
    }

    /// The publication's epoch.
    pub fn epoch(&self) -> u64 {
        self.raw.epoch.get()
    }

    /// Bytes that it covers.
    pub fn length(&self) -> u64 {
        self.raw.length.get()
    }

    /// What may be done with them.
    pub fn rights(&self) -> Rights {
        // decoded and made with valid rights only
        Rights::from_bits(self.raw.rights).unwrap_or(Rights::Read)
    }

    /// Where the range begins in the publication.
    pub(crate) fn offset(&self) -> u64 {
        self.raw.offset.get()
    }

    /// Nanoseconds since the serving engine's start.
    pub(crate) fn expiry(&self) -> u64 {
        self.raw.expiry.get()
    }

    /// The serving engine's number of it.
    pub(crate) fn serial(&self) -> u64 {
        self.raw.serial.get()
    }
}

impl fmt::Debug for Grant {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Grant")
            .field("server", &self.server())
            .field("peer", &self.peer())
            .field("publication", &self.publication().value())
            .field("length", &self.length())
            .field("rights", &self.rights())
            .finish_non_exhaustive()
    }
}

/// What goes into a new grant.
pub(crate) struct Terms {
    pub request: GrantRequest,
    pub server: EngineId,
    pub epoch: u64,
    pub expiry: u64,
    pub serial: u64,
}

/// The key under which one engine makes grants for one peer.
#[derive(Clone)]
pub(crate) struct GrantKey([u8; 32]);

impl GrantKey {
    /// The key for that peer, from the engine's own secret.
    pub fn new(secret: &[u8; 32], peer: EngineId) -> Self {
        let mut hasher = blake3::Hasher::new_keyed(secret);
        hasher.update(b"kvstored-transfer 1 grants for ");
        hasher.update(&peer.to_bytes());
        Self(*hasher.finalize().as_bytes())
    }

    pub fn make(&self, terms: &Terms) -> Grant {
        let mut raw = Raw {
            magic: MAGIC,
            version: VERSION,
            rights: terms.request.rights.bits(),
            zero: [0; 2],
            server: terms.server.to_bytes(),
            peer: terms.request.peer.to_bytes(),
            publication: terms.request.publication.0.into(),
            epoch: terms.epoch.into(),
            offset: terms.request.offset.into(),
            length: terms.request.length.into(),
            expiry: terms.expiry.into(),
            serial: terms.serial.into(),
            spare: 0.into(),
            mac: [0; MAC_BYTES],
        };
        raw.mac = *self.mac(&raw).as_bytes();
        Grant { raw }
    }

    /// Whether this key made it, unaltered. Takes the same time whatever differs.
    pub fn made(&self, grant: &Grant) -> bool {
        self.mac(&grant.raw) == blake3::Hash::from_bytes(grant.raw.mac)
    }

    fn mac(&self, raw: &Raw) -> blake3::Hash {
        let signed = raw.as_bytes().get(..SIGNED_BYTES).unwrap_or_default();
        blake3::keyed_hash(&self.0, signed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample(key: &GrantKey) -> Grant {
        key.make(&Terms {
            request: GrantRequest {
                peer: EngineId::from_bytes([7; 16]),
                publication: PublicationId(3),
                offset: 5,
                length: 100,
                rights: Rights::Read,
                expires_in: Duration::ZERO,
            },
            server: EngineId::from_bytes([9; 16]),
            epoch: 4,
            expiry: 1000,
            serial: 6,
        })
    }

    #[test]
    fn a_grant_survives_the_wire_and_no_altered_bit_does() {
        let key = GrantKey::new(&[1; 32], EngineId::from_bytes([7; 16]));
        let grant = sample(&key);
        let bytes = grant.encode();
        assert_eq!(Grant::decode(&bytes).unwrap(), grant);
        assert!(key.made(&grant));
        for bit in 0..GRANT_BYTES * 8 {
            let mut altered = bytes;
            altered[bit / 8] ^= 1 << (bit % 8);
            assert!(
                Grant::decode(&altered)
                    .is_ok_and(|grant| key.made(&grant))
                    .eq(&false),
                "bit {bit}"
            );
        }
    }

    #[test]
    fn another_peers_or_engines_key_did_not_make_it() {
        let grant = sample(&GrantKey::new(&[1; 32], EngineId::from_bytes([7; 16])));
        assert!(!GrantKey::new(&[1; 32], EngineId::from_bytes([8; 16])).made(&grant));
        assert!(!GrantKey::new(&[2; 32], EngineId::from_bytes([7; 16])).made(&grant));
    }

    proptest! {
        #[test]
        fn what_decodes_encodes_the_same(bytes in proptest::collection::vec(any::<u8>(), GRANT_BYTES)) {
            let mut bytes = bytes;
            let rights = bytes[5] % 4;
            bytes[..8].copy_from_slice(&[b'K', b'V', b'G', b'R', 1, rights, 0, 0]);
            bytes[88..96].fill(0);
            if let Ok(grant) = Grant::decode(&bytes) {
                prop_assert_eq!(&grant.encode()[..], &bytes[..]);
                prop_assert!(grant.offset().checked_add(grant.length()).is_some());
            }
        }
    }
}
