//! Names: of engines, of regions and of publications.

use std::fmt;

/// An engine's name: 16 bytes derived from a signing key that it makes at each start, so that nobody else can answer to
/// it, and what was granted to an engine dies with it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EngineId([u8; EngineId::BYTES]);

impl EngineId {
    /// Bytes of a name.
    pub const BYTES: usize = 16;
    /// Nobody's name.
    pub const NOBODY: Self = Self([0; Self::BYTES]);

    /// A name that somebody told.
    pub const fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }

    /// Its bytes, for telling it to others.
    pub const fn to_bytes(self) -> [u8; Self::BYTES] {
        self.0
    }

    /// The name that belongs to a public signing key.
    pub(crate) fn of_key(public: &[u8; 32]) -> Self {
        let digest = blake3::derive_key("kvstored-transfer 1 engine name", public);
        let mut bytes = [0; Self::BYTES];
        for (byte, from) in bytes.iter_mut().zip(digest) {
            *byte = from;
        }
        Self(bytes)
    }
}

impl fmt::Display for EngineId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl fmt::Debug for EngineId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "EngineId({self})")
    }
}

/// An engine's number of a region; never given out twice by an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RegionId(pub(crate) u64);

impl RegionId {
    /// The number.
    pub const fn value(self) -> u64 {
        self.0
    }
}

/// An engine's number of a publication; never given out twice by an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicationId(pub(crate) u64);

impl PublicationId {
    /// The number.
    pub const fn value(self) -> u64 {
        self.0
    }
}
