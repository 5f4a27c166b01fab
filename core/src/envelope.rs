//! The envelope: a block's descriptor page, which binds its bytes to their identity.
//!
//! `docs/format.md` gives the byte-exact layout. The same page lies in front of a block in a DRAM slot and in an
//! extent on disk, so it never says where it is stored.

use bytes::{Buf, BufMut};

use crate::block::{BlockHash, BlockKey, Namespace};
use crate::error::{Error, ErrorKind, Result};
use crate::layout::{Layout, PAGE_BYTES};

/// First bytes of a descriptor page.
pub const MAGIC: [u8; 8] = *b"KVSBLOCK";
/// The format's version.
pub const VERSION: u16 = 1;
/// Bytes before the shard checksums.
pub const FIXED_BYTES: usize = 192;
const HEADER_CHECKSUM_OFFSET: usize = 188;

/// CRC32C (Castagnoli), the checksum of every header, journal record and footer.
pub fn header_checksum(parts: &[&[u8]]) -> u32 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    for part in parts {
        digest.update(part);
    }
    digest.finalize() as u32
}

fn corrupt(what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("descriptor page: {what}"))
}

/// A decoded descriptor page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// Namespace and block hash, whole.
    pub key: BlockKey,
    /// Digest of the layout of the payload.
    pub layout_digest: [u8; 32],
    /// Order among versions of one block; later is newer.
    pub generation: u64,
    /// Bytes of the whole image.
    pub image_bytes: u64,
    /// Bytes of KV without padding.
    pub payload_bytes: u64,
    /// When the block was dumped, in milliseconds since the Unix epoch.
    pub created_unix_ms: u64,
    /// CRC-64/NVME of each shard's payload.
    pub shard_checksums: Vec<u64>,
}

impl Envelope {
    /// Composes the envelope of a block whose shards have these checksums.
    pub fn new(
        key: BlockKey,
        layout: &Layout,
        generation: u64,
        created_unix_ms: u64,
        shard_checksums: Vec<u64>,
    ) -> Self {
        Self {
            key,
            layout_digest: *layout.digest(),
            generation,
            image_bytes: layout.image_bytes() as u64,
            payload_bytes: layout.payload_bytes() as u64,
            created_unix_ms,
            shard_checksums,
        }
    }

    /// The page's bytes. Fails with `InvalidInput` when there are more checksums than a page holds.
    pub fn encode(&self) -> Result<Box<[u8; PAGE_BYTES]>> {
        if self.shard_checksums.len() > Layout::MAX_SHARDS {
            return Err(Error::invalid(format!(
                "{} shard checksums",
                self.shard_checksums.len()
            )));
        }
        let mut page = Vec::with_capacity(PAGE_BYTES);
        page.put_slice(&MAGIC);
        page.put_u16_le(VERSION);
        page.put_u16_le(self.shard_checksums.len() as u16);
        page.put_u32_le(Self::header_bytes(self.shard_checksums.len()) as u32);
        page.put_slice(&self.key.namespace.0);
        page.put_slice(self.key.hash.padded());
        page.put_u8(self.key.hash.len() as u8);
        page.put_bytes(0, 7);
        page.put_slice(&self.layout_digest);
        page.put_u64_le(self.generation);
        page.put_u64_le(self.image_bytes);
        page.put_u64_le(self.payload_bytes);
        page.put_u64_le(self.created_unix_ms);
        page.put_bytes(0, FIXED_BYTES - page.len());
        for checksum in &self.shard_checksums {
            page.put_u64_le(*checksum);
        }
        let header = header_checksum(&[&page[..HEADER_CHECKSUM_OFFSET], &page[FIXED_BYTES..]]);
        page[HEADER_CHECKSUM_OFFSET..FIXED_BYTES].copy_from_slice(&header.to_le_bytes());
        page.resize(PAGE_BYTES, 0);
        let page: Box<[u8]> = page.into_boxed_slice();
        page.try_into()
            .map_err(|_| Error::internal("a descriptor page has the wrong size"))
    }

    /// Bytes at the start of a page that say something, for a block of so many shards.
    pub const fn header_bytes(shards: usize) -> usize {
        FIXED_BYTES + 8 * shards
    }

    /// Parses a page and checks magic, version and header checksum.
    ///
    /// Fails with `Unsupported` for a newer version and with `Corrupt` for anything else that is wrong.
    pub fn decode(page: &[u8]) -> Result<Self> {
        if page.len() < PAGE_BYTES {
            return Err(corrupt(&format!("{} bytes", page.len())));
        }
        Self::decode_header(page)
    }

    /// As [`Envelope::decode`], of at least the page's [`Envelope::header_bytes`].
    pub fn decode_header(page: &[u8]) -> Result<Self> {
        if page.len() < FIXED_BYTES {
            return Err(corrupt(&format!("{} bytes", page.len())));
        }
        let mut fields = page;
        let mut magic = [0u8; 8];
        fields.copy_to_slice(&mut magic);
        if magic != MAGIC {
            return Err(corrupt("wrong magic"));
        }
        let version = fields.get_u16_le();
        if version != VERSION {
            return Err(Error::new(
                if version > VERSION {
                    ErrorKind::Unsupported
                } else {
                    ErrorKind::Corrupt
                },
                format!("descriptor page has version {version}, this build reads {VERSION}"),
            ));
        }
        let shards = usize::from(fields.get_u16_le());
        let header_bytes = fields.get_u32_le() as usize;
        let fits = shards <= Layout::MAX_SHARDS && header_bytes <= page.len();
        if !fits || header_bytes != Self::header_bytes(shards) {
            return Err(corrupt(&format!(
                "{shards} shards in {header_bytes} header bytes"
            )));
        }
        let expected = header_checksum(&[&page[..HEADER_CHECKSUM_OFFSET], &page[FIXED_BYTES..header_bytes]]);
        let mut namespace = [0u8; 32];
        fields.copy_to_slice(&mut namespace);
        let mut hash = [0u8; 32];
        fields.copy_to_slice(&mut hash);
        let hash_length = usize::from(fields.get_u8());
        fields.advance(7);
        let mut layout_digest = [0u8; 32];
        fields.copy_to_slice(&mut layout_digest);
        let generation = fields.get_u64_le();
        let image_bytes = fields.get_u64_le();
        let payload_bytes = fields.get_u64_le();
        let created_unix_ms = fields.get_u64_le();
        let mut stored = &page[HEADER_CHECKSUM_OFFSET..FIXED_BYTES];
        if stored.get_u32_le() != expected {
            return Err(corrupt("wrong header checksum"));
        }
        let hash = hash
            .get(..hash_length)
            .and_then(|bytes| BlockHash::new(bytes).ok())
            .ok_or_else(|| corrupt(&format!("hash length {hash_length}")))?;
        let mut checksums = &page[FIXED_BYTES..header_bytes];
        let mut shard_checksums = Vec::with_capacity(shards);
        while checksums.has_remaining() {
            shard_checksums.push(checksums.get_u64_le());
        }
        Ok(Self {
            key: BlockKey {
                namespace: Namespace(namespace),
                hash,
            },
            layout_digest,
            generation,
            image_bytes,
            payload_bytes,
            created_unix_ms,
            shard_checksums,
        })
    }

    /// Checks that this is the envelope of that very block under that layout. Fails with `Corrupt`.
    pub fn expect(&self, key: &BlockKey, layout: &Layout) -> Result<()> {
        let wrong = |what: &str| {
            Err(Error::new(
                ErrorKind::Corrupt,
                format!("descriptor page belongs to another {what}"),
            )
            .with("key", key))
        };
        if self.key != *key {
            return wrong("block");
        }
        if self.layout_digest != *layout.digest()
            || self.image_bytes != layout.image_bytes() as u64
            || self.shard_checksums.len() != layout.shards().len()
        {
            return wrong("layout");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample(shards: usize) -> (Envelope, Layout) {
        let layout = Layout::uniform(shards, 1, 4096).unwrap();
        let key = BlockKey {
            namespace: Namespace([3; 32]),
            hash: BlockHash::new(&[9; 20]).unwrap(),
        };
        let checksums = (0..shards as u64).map(|i| i.wrapping_mul(0x9E37_79B9)).collect();
        (
            Envelope::new(key, &layout, 77, 1_700_000_000_000, checksums),
            layout,
        )
    }

    #[test]
    fn round_trips_at_every_size() {
        for shards in [1, 2, 94, Layout::MAX_SHARDS] {
            let (envelope, layout) = sample(shards);
            let decoded = Envelope::decode(&envelope.encode().unwrap()[..]).unwrap();
            assert_eq!(decoded, envelope);
            decoded.expect(&envelope.key, &layout).unwrap();
        }
    }

    #[test]
    fn a_newer_version_is_unsupported_and_names_both() {
        let (envelope, _) = sample(1);
        let mut page = envelope.encode().unwrap();
        page[8] = 2;
        let error = Envelope::decode(&page[..]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("version 2"), "{error}");
    }

    #[test]
    fn another_block_or_layout_is_corrupt() {
        let (envelope, layout) = sample(2);
        let other = BlockKey {
            hash: BlockHash::new(&[8; 20]).unwrap(),
            ..envelope.key
        };
        assert_eq!(
            envelope.expect(&other, &layout).unwrap_err().kind(),
            ErrorKind::Corrupt
        );
        let other = Layout::uniform(1, 2, 4096).unwrap();
        assert_eq!(
            envelope.expect(&envelope.key, &other).unwrap_err().kind(),
            ErrorKind::Corrupt
        );
    }

    proptest! {
        #[test]
        fn any_flipped_bit_of_the_header_is_noticed(bit in 0usize..(FIXED_BYTES + 16) * 8) {
            let (envelope, _) = sample(2);
            let mut page = envelope.encode().unwrap();
            page[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Envelope::decode(&page[..]).is_err());
        }

        #[test]
        fn rubbish_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..5000)) {
            let _ = Envelope::decode(&bytes);
        }
    }
}
