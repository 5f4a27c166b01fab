//! Names of objects and the footer at an object's end. `docs/object-format.md` gives the byte-exact layout.

use std::fmt;

use bytes::{Buf, BufMut};
use kvstored_core::envelope::header_checksum;
use kvstored_core::{BlockHash, Error, ErrorKind, Layout, Namespace, PAGE_BYTES, Result};

/// First bytes of a footer.
pub const FOOTER_MAGIC: [u8; 8] = *b"KVSOFOOT";
/// Last bytes of an object.
pub const TRAILER_MAGIC: [u8; 8] = *b"KVSOTAIL";
/// The format's version.
pub const VERSION: u16 = 1;
/// Most blocks of one object.
pub const MAX_BLOCKS: usize = 65_536;
/// Bytes of a footer before its entries.
pub const FIXED_BYTES: usize = 96;
/// Bytes of an entry.
pub const ENTRY_BYTES: usize = 40;
/// Bytes at the end of every object that say where its footer begins.
pub const TRAILER_BYTES: usize = 24;
/// The largest footer.
pub const MAX_FOOTER_BYTES: usize = FIXED_BYTES + MAX_BLOCKS * ENTRY_BYTES + TRAILER_BYTES;
const NAME_CHARACTERS: usize = 16 + 1 + 32 + 1 + 8;

fn corrupt(what: impl fmt::Display) -> Error {
    Error::new(ErrorKind::Corrupt, format!("object footer: {what}"))
}

/// An object's name. Its order is the order of age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    /// When its first block was accepted, in microseconds since the Unix epoch by its writer's clock; unique and growing
    /// per writer. Purges compare it.
    pub generation: u64,
    /// Who wrote it: a random number that one process claimed for itself.
    pub writer: u128,
    /// Its number among the writer's objects.
    pub sequence: u32,
}

impl fmt::Display for ObjectName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            generation,
            writer,
            sequence,
        } = self;
        write!(formatter, "{generation:016x}-{writer:032x}-{sequence:08x}")
    }
}

impl ObjectName {
    /// Reads a name; `None` for anything that this format doesn't write.
    pub fn parse(text: &str) -> Option<Self> {
        let lower_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte) || byte == b'-';
        if text.len() != NAME_CHARACTERS || !text.bytes().all(lower_hex) {
            return None;
        }
        let mut parts = text.split('-');
        let (generation, writer, sequence) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() || generation.len() != 16 || writer.len() != 32 {
            return None;
        }
        Some(Self {
            generation: u64::from_str_radix(generation, 16).ok()?,
            writer: u128::from_str_radix(writer, 16).ok()?,
            sequence: u32::from_str_radix(sequence, 16).ok()?,
        })
    }
}

/// What an object holds: blocks of one namespace, whose images lie one behind the other from its first byte on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footer {
    /// The object's own name.
    pub name: ObjectName,
    /// The blocks' namespace.
    pub namespace: Namespace,
    /// Bytes of each image.
    pub image_bytes: u64,
    /// When it was written, in milliseconds since the Unix epoch.
    pub created_unix_ms: u64,
    /// The blocks in the order of their images.
    pub hashes: Vec<BlockHash>,
}

impl Footer {
    /// Bytes of the footer of so many blocks, trailer included.
    pub fn length(blocks: usize) -> u64 {
        (FIXED_BYTES + blocks * ENTRY_BYTES + TRAILER_BYTES) as u64
    }

    /// Bytes of the whole object.
    pub fn object_bytes(&self) -> u64 {
        self.hashes.len() as u64 * self.image_bytes + Self::length(self.hashes.len())
    }

    /// The footer's bytes, trailer included. Fails with `InvalidInput` outside 1 to [`MAX_BLOCKS`] blocks.
    pub fn encode(&self) -> Result<Vec<u8>> {
        if self.hashes.is_empty() || self.hashes.len() > MAX_BLOCKS {
            return Err(Error::invalid(format!(
                "an object of {} blocks",
                self.hashes.len()
            )));
        }
        let length = Self::length(self.hashes.len()) as usize;
        let mut bytes = Vec::with_capacity(length);
        bytes.put_slice(&FOOTER_MAGIC);
        bytes.put_u16_le(VERSION);
        bytes.put_u16_le(0);
        bytes.put_u32_le(self.hashes.len() as u32);
        bytes.put_u64_le(self.name.generation);
        bytes.put_u128_le(self.name.writer);
        bytes.put_u32_le(self.name.sequence);
        bytes.put_u32_le(0);
        bytes.put_u64_le(self.image_bytes);
        bytes.put_u64_le(self.created_unix_ms);
        bytes.put_slice(&self.namespace.0);
        for hash in &self.hashes {
            bytes.put_slice(hash.padded());
            bytes.put_u8(hash.len() as u8);
            bytes.put_bytes(0, 7);
        }
        let checksum = header_checksum(&[&bytes]);
        bytes.put_u32_le(length as u32);
        bytes.put_u32_le(checksum);
        bytes.put_u64_le(self.object_bytes());
        bytes.put_slice(&TRAILER_MAGIC);
        Ok(bytes)
    }

    /// Bytes of the footer, from the end of an object of `object_bytes`. Fails with `Corrupt`.
    pub fn length_from(tail: &[u8], object_bytes: u64) -> Result<usize> {
        let Some(mut trailer) = tail.last_chunk::<TRAILER_BYTES>().map(|bytes| &bytes[..]) else {
            return Err(corrupt("the object is shorter than a trailer"));
        };
        let length = trailer.get_u32_le() as usize;
        let _checksum = trailer.get_u32_le();
        let recorded = trailer.get_u64_le();
        if *trailer != TRAILER_MAGIC {
            return Err(corrupt("wrong magic at the end"));
        }
        if recorded != object_bytes {
            return Err(corrupt(format_args!(
                "the object has {object_bytes} bytes instead of {recorded}"
            )));
        }
        let least = FIXED_BYTES + ENTRY_BYTES + TRAILER_BYTES;
        if !(least..=MAX_FOOTER_BYTES).contains(&length) || length as u64 > object_bytes {
            return Err(corrupt(format_args!("a footer of {length} bytes")));
        }
        Ok(length)
    }

    /// Parses exactly the bytes of a footer and checks all of it against the object's name and length.
    ///
    /// Fails with `Unsupported` for a newer version and with `Corrupt` for anything else that is wrong.
    pub fn decode(name: &ObjectName, bytes: &[u8], object_bytes: u64) -> Result<Self> {
        let length = Self::length_from(bytes, object_bytes)?;
        let (Some((body, trailer)), true) =
            (bytes.split_last_chunk::<TRAILER_BYTES>(), length == bytes.len())
        else {
            return Err(corrupt("wrong length"));
        };
        let mut expected = trailer.get(4..8).unwrap_or_default();
        if expected.len() < 4 || expected.get_u32_le() != header_checksum(&[body]) {
            return Err(corrupt("wrong checksum"));
        }
        let mut fields = body;
        let mut magic = [0u8; 8];
        fields.copy_to_slice(&mut magic);
        if magic != FOOTER_MAGIC {
            return Err(corrupt("wrong magic"));
        }
        let version = fields.get_u16_le();
        if version != VERSION {
            let what = format!("object footer has version {version}, this build reads {VERSION}");
            return Err(Error::new(ErrorKind::Unsupported, what));
        }
        fields.advance(2);
        let blocks = fields.get_u32_le() as usize;
        let found = ObjectName {
            generation: fields.get_u64_le(),
            writer: fields.get_u128_le(),
            sequence: fields.get_u32_le(),
        };
        fields.advance(4);
        let image_bytes = fields.get_u64_le();
        let created_unix_ms = fields.get_u64_le();
        let mut namespace = [0u8; 32];
        fields.copy_to_slice(&mut namespace);
        if found != *name {
            return Err(corrupt(format_args!("it belongs to the object {found}")));
        }
        let page = PAGE_BYTES as u64;
        let sizes = 2 * page..=Layout::MAX_IMAGE_BYTES as u64;
        if !sizes.contains(&image_bytes) || !image_bytes.is_multiple_of(page) {
            return Err(corrupt(format_args!("images of {image_bytes} bytes")));
        }
        if blocks == 0 || blocks > MAX_BLOCKS || fields.remaining() != blocks * ENTRY_BYTES {
            return Err(corrupt(format_args!("{blocks} blocks in {length} bytes")));
        }
        let mut hashes = Vec::with_capacity(blocks);
        for entry in fields.chunks_exact(ENTRY_BYTES) {
            let length = usize::from(entry.get(BlockHash::MAX_BYTES).copied().unwrap_or_default());
            let hash = entry.get(..length).and_then(|bytes| BlockHash::new(bytes).ok());
            hashes.push(hash.ok_or_else(|| corrupt(format_args!("a hash of {length} bytes")))?);
        }
        let footer = Self {
            name: found,
            namespace: Namespace(namespace),
            image_bytes,
            created_unix_ms,
            hashes,
        };
        if footer.object_bytes() != object_bytes {
            return Err(corrupt("blocks and length contradict each other"));
        }
        Ok(footer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample(blocks: usize) -> Footer {
        Footer {
            name: ObjectName {
                generation: 1_764_000_000_123_456,
                writer: 0x0123_4567_89ab_cdef_0011_2233_4455_6677,
                sequence: 7,
            },
            namespace: Namespace([5; 32]),
            image_bytes: 3 * PAGE_BYTES as u64,
            created_unix_ms: 1_764_000_000_200,
            hashes: (0..blocks)
                .map(|number| BlockHash::new(&vec![number as u8; 16 + number % 17]).unwrap())
                .collect(),
        }
    }

    #[test]
    fn names_round_trip_and_sort_by_age() {
        let name = sample(1).name;
        assert_eq!(ObjectName::parse(&name.to_string()), Some(name));
        let later = ObjectName {
            generation: name.generation + 1,
            writer: 0,
            sequence: 0,
        };
        assert!(later > name && later.to_string() > name.to_string());
        for wrong in ["", "x", &name.to_string()[1..], &name.to_string().to_uppercase()] {
            assert_eq!(ObjectName::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn footers_round_trip() {
        for blocks in [1, 2, 300] {
            let footer = sample(blocks);
            let bytes = footer.encode().unwrap();
            assert_eq!(bytes.len() as u64, Footer::length(blocks));
            let length = Footer::length_from(&bytes, footer.object_bytes()).unwrap();
            assert_eq!(length, bytes.len());
            let decoded = Footer::decode(&footer.name, &bytes, footer.object_bytes()).unwrap();
            assert_eq!(decoded, footer);
        }
    }

    #[test]
    fn a_footer_of_another_object_or_length_is_refused() {
        let footer = sample(3);
        let bytes = footer.encode().unwrap();
        let mut other = footer.name;
        other.sequence += 1;
        let error = Footer::decode(&other, &bytes, footer.object_bytes()).unwrap_err();
        assert!(error.to_string().contains("belongs to"), "{error}");
        assert!(Footer::decode(&footer.name, &bytes, footer.object_bytes() + 1).is_err());
    }

    proptest! {
        #[test]
        fn any_flipped_bit_is_noticed(bit in 0usize..(FIXED_BYTES + 3 * ENTRY_BYTES + TRAILER_BYTES) * 8) {
            let footer = sample(3);
            let mut bytes = footer.encode().unwrap();
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Footer::decode(&footer.name, &bytes, footer.object_bytes()).is_err());
        }

        #[test]
        fn rubbish_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..500), size in any::<u64>()) {
            let _ = Footer::length_from(&bytes, size);
            let _ = Footer::decode(&sample(1).name, &bytes, size);
        }
    }
}
