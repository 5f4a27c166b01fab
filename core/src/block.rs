//! Block hashes, namespaces and block keys.

use std::fmt;

use crate::error::{Error, Result};

/// What the engine calls a block: 16 to 32 bytes, prefix-chained by the engine.
///
/// Bytes past [`BlockHash::len`] are zero, so that derived equality compares whole hashes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BlockHash {
    bytes: [u8; BlockHash::MAX_BYTES],
    length: u8,
}

impl BlockHash {
    /// The shortest accepted hash: 128 bits.
    pub const MIN_BYTES: usize = 16;
    /// The longest accepted hash: 256 bits.
    pub const MAX_BYTES: usize = 32;

    /// Takes the engine's bytes. Fails with `InvalidInput` outside 16 to 32 bytes.
    pub fn new(bytes: &[u8]) -> Result<Self> {
        if let Ok(whole) = <[u8; Self::MAX_BYTES]>::try_from(bytes) {
            return Ok(Self {
                bytes: whole,
                length: Self::MAX_BYTES as u8,
            });
        }
        if !(Self::MIN_BYTES..=Self::MAX_BYTES).contains(&bytes.len()) {
            return Err(Error::invalid(format!(
                "a block hash has {} bytes; {} to {} are accepted",
                bytes.len(),
                Self::MIN_BYTES,
                Self::MAX_BYTES
            )));
        }
        let mut hash = Self {
            bytes: [0; Self::MAX_BYTES],
            length: bytes.len() as u8,
        };
        hash.bytes[..bytes.len()].copy_from_slice(bytes);
        Ok(hash)
    }

    /// The hash's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    /// The hash's bytes, padded with zeros to 32.
    pub fn padded(&self) -> &[u8; Self::MAX_BYTES] {
        &self.bytes
    }

    /// Length in bytes, 16 to 32.
    #[allow(clippy::len_without_is_empty)] // never empty
    pub fn len(&self) -> usize {
        usize::from(self.length)
    }

    /// A 64-bit fingerprint for in-memory tables. Hashes are uniform already when they come from a
    /// cryptographic function; the multiplication keeps tables balanced when they don't.
    pub fn fingerprint(&self) -> u64 {
        const ODD: u64 = 0x9E37_79B9_7F4A_7C15;
        let mut folded = u64::from(self.length);
        for word in self.bytes.chunks_exact(8) {
            let mut value = [0u8; 8];
            value.copy_from_slice(word);
            folded = (folded.rotate_left(23) ^ u64::from_le_bytes(value)).wrapping_mul(ODD);
        }
        folded ^ (folded >> 32)
    }
}

impl std::hash::Hash for BlockHash {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        state.write_u64(self.fingerprint());
    }
}

impl fmt::Display for BlockHash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(formatter, self.as_bytes())
    }
}

impl fmt::Debug for BlockHash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// The digest of an identity: 32 bytes of BLAKE3 (see [`crate::identity::Identity::namespace`]).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Namespace(pub [u8; 32]);

impl Namespace {
    /// Parses 64 hexadecimal digits.
    pub fn from_hex(text: &str) -> Result<Self> {
        let mut bytes = [0u8; 32];
        let wrong = || Error::invalid(format!("namespace \"{text}\" is not 64 hexadecimal digits"));
        if text.len() != 64 || !text.is_ascii() {
            return Err(wrong());
        }
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).map_err(|_| wrong())?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(formatter, &self.0)
    }
}

impl fmt::Debug for Namespace {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// The whole name of a block: compared whole, stored whole.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BlockKey {
    /// Digest of the identity that gives the bytes their meaning.
    pub namespace: Namespace,
    /// The engine's hash of the block.
    pub hash: BlockHash,
}

impl fmt::Display for BlockKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.namespace, self.hash)
    }
}

fn write_hex(formatter: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    for byte in bytes {
        write!(formatter, "{byte:02x}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_outside_16_to_32_are_refused() {
        for length in [0, 1, 15, 33, 64] {
            let error = BlockHash::new(&vec![1; length]).unwrap_err();
            assert!(
                error.to_string().contains(&format!("has {length} bytes")),
                "{error}"
            );
        }
        for length in 16..=32 {
            assert_eq!(BlockHash::new(&vec![1; length]).unwrap().len(), length);
        }
    }

    #[test]
    fn a_shorter_hash_never_equals_its_padded_form() {
        let short = BlockHash::new(&[7; 16]).unwrap();
        let mut padded = [0; 32];
        padded[..16].copy_from_slice(&[7; 16]);
        assert_ne!(short, BlockHash::new(&padded).unwrap());
    }

    #[test]
    fn namespace_hex_round_trips() {
        let namespace = Namespace([0xA5; 32]);
        assert_eq!(Namespace::from_hex(&namespace.to_string()).unwrap(), namespace);
        assert!(Namespace::from_hex("zz").is_err());
        assert!(Namespace::from_hex(&"é".repeat(32)).is_err());
    }
}
