//! Reading and writing the fields of a message.

use kvstored_core::block::{BlockHash, BlockKey, Namespace};
use kvstored_core::error::{Error, Result};

use super::{HEADER_BYTES, MAX_BLOCKS, MAX_TEXT_BYTES};

/// A message being written, with room for the header in front.
pub(super) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub(super) fn with_header() -> Self {
        Self {
            bytes: vec![0; HEADER_BYTES],
        }
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    pub(super) fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }

    pub(super) fn u16(&mut self, value: u16) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// A length and as many bytes, at most `limit`.
    pub(super) fn blob(&mut self, what: &str, bytes: &[u8], limit: usize) -> Result<()> {
        if bytes.len() > limit {
            return Err(Error::invalid(format!(
                "{what} has {} bytes; at most {limit} are accepted",
                bytes.len()
            )));
        }
        self.u32(bytes.len() as u32);
        self.raw(bytes);
        Ok(())
    }

    pub(super) fn text(&mut self, what: &str, text: &str) -> Result<()> {
        self.blob(what, text.as_bytes(), MAX_TEXT_BYTES)
    }

    /// How many elements follow, at most [`MAX_BLOCKS`].
    pub(super) fn count(&mut self, what: &str, count: usize) -> Result<()> {
        if count > MAX_BLOCKS {
            return Err(Error::invalid(format!(
                "a message has {count} {what}; at most {MAX_BLOCKS} are accepted"
            )));
        }
        self.u32(count as u32);
        Ok(())
    }

    /// A count, the common length or 0 for mixed lengths, and the hashes (each behind its length if mixed).
    pub(super) fn hashes(&mut self, hashes: &[BlockHash]) -> Result<()> {
        self.count("hashes", hashes.len())?;
        let length = hashes.first().map_or(BlockHash::MAX_BYTES, BlockHash::len);
        let uniform = hashes.iter().all(|hash| hash.len() == length);
        self.u8(if uniform { length as u8 } else { 0 });
        self.bytes.reserve(hashes.len() * (length + 1));
        for hash in hashes {
            if !uniform {
                self.u8(hash.len() as u8);
            }
            self.raw(hash.as_bytes());
        }
        Ok(())
    }

    /// A hash behind its length; length 0 says none.
    pub(super) fn optional_hash(&mut self, hash: Option<&BlockHash>) {
        self.u8(hash.map_or(0, BlockHash::len) as u8);
        self.raw(hash.map_or(&[], BlockHash::as_bytes));
    }

    pub(super) fn optional_namespace(&mut self, namespace: Option<&Namespace>) {
        self.u8(u8::from(namespace.is_some()));
        self.raw(namespace.map_or(&[], |namespace| &namespace.0));
    }

    pub(super) fn optional_key(&mut self, key: Option<&BlockKey>) {
        self.optional_namespace(key.map(|key| &key.namespace));
        if let Some(key) = key {
            self.optional_hash(Some(&key.hash));
        }
    }

    pub(super) fn numbers(&mut self, what: &str, numbers: &[u64]) -> Result<()> {
        self.count(what, numbers.len())?;
        for number in numbers {
            self.u64(*number);
        }
        Ok(())
    }
}

/// A message being read. Every method fails with `InvalidInput` where the bytes run out.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Ends the message; fails if bytes are left.
    pub(super) fn finish(self) -> Result<()> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "{} bytes too many in a message",
            self.rest.len()
        )))
    }

    pub(super) fn raw(&mut self, length: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or_else(|| {
            Error::invalid(format!(
                "a message ends {} bytes early",
                length - self.rest.len().min(length)
            ))
        })?;
        self.rest = rest;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.raw(N)?);
        Ok(array)
    }

    pub(super) fn u8(&mut self) -> Result<u8> {
        self.array().map(u8::from_le_bytes)
    }

    pub(super) fn u16(&mut self) -> Result<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn flag(&mut self) -> Result<bool> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(Error::invalid(format!("a flag is {other}, neither 0 nor 1"))),
        }
    }

    pub(super) fn blob(&mut self, what: &str, limit: usize) -> Result<&'a [u8]> {
        let length = self.u32()? as usize;
        if length > limit {
            return Err(Error::invalid(format!(
                "{what} has {length} bytes; at most {limit} are accepted"
            )));
        }
        self.raw(length)
    }

    pub(super) fn text(&mut self, what: &str) -> Result<String> {
        let bytes = self.blob(what, MAX_TEXT_BYTES)?;
        std::str::from_utf8(bytes)
            .map(str::to_owned)
            .map_err(|_| Error::invalid(format!("{what} is not UTF-8")))
    }

    /// A count of elements that take at least `element_bytes` each.
    pub(super) fn count(&mut self, what: &str, element_bytes: usize) -> Result<usize> {
        let count = self.u32()? as usize;
        if count > MAX_BLOCKS {
            return Err(Error::invalid(format!(
                "a message has {count} {what}; at most {MAX_BLOCKS} are accepted"
            )));
        }
        self.expect_room(count, element_bytes)?;
        Ok(count)
    }

    /// How many elements an answer may have.
    pub(super) fn limit(&mut self) -> Result<u32> {
        let limit = self.u32()?;
        if limit as usize > MAX_BLOCKS {
            return Err(Error::invalid(format!(
                "limit is {limit}; at most {MAX_BLOCKS} is accepted"
            )));
        }
        Ok(limit)
    }

    /// Fails unless `count` elements of at least `element_bytes` can still follow.
    pub(super) fn expect_room(&self, count: usize, element_bytes: usize) -> Result<()> {
        if count.saturating_mul(element_bytes) > self.rest.len() {
            return Err(Error::invalid(format!(
                "a message announces {count} elements and ends too early"
            )));
        }
        Ok(())
    }

    pub(super) fn hashes(&mut self) -> Result<Vec<BlockHash>> {
        let count = self.u32()? as usize;
        if count > MAX_BLOCKS {
            return Err(Error::invalid(format!(
                "a request has {count} hashes; at most {MAX_BLOCKS} are accepted"
            )));
        }
        let uniform = usize::from(self.u8()?);
        if uniform == 0 {
            self.expect_room(count, 1 + BlockHash::MIN_BYTES)?;
            let mut hashes = Vec::with_capacity(count);
            for _ in 0..count {
                let length = usize::from(self.u8()?);
                hashes.push(self.hash(length)?);
            }
            return Ok(hashes);
        }
        check_hash_length(uniform)?;
        let bytes = self.raw(count * uniform)?;
        // collecting results would grow step by step, and these may be a quarter of a megabyte
        let mut hashes = Vec::with_capacity(count);
        for hash in bytes.chunks_exact(uniform) {
            hashes.push(BlockHash::new(hash)?);
        }
        Ok(hashes)
    }

    fn hash(&mut self, length: usize) -> Result<BlockHash> {
        check_hash_length(length)?;
        BlockHash::new(self.raw(length)?)
    }

    pub(super) fn optional_hash(&mut self) -> Result<Option<BlockHash>> {
        match usize::from(self.u8()?) {
            0 => Ok(None),
            length => self.hash(length).map(Some),
        }
    }

    pub(super) fn optional_namespace(&mut self) -> Result<Option<Namespace>> {
        Ok(if self.flag()? {
            Some(Namespace(self.array()?))
        } else {
            None
        })
    }

    pub(super) fn optional_key(&mut self) -> Result<Option<BlockKey>> {
        let Some(namespace) = self.optional_namespace()? else {
            return Ok(None);
        };
        let length = usize::from(self.u8()?);
        Ok(Some(BlockKey {
            namespace,
            hash: self.hash(length)?,
        }))
    }

    pub(super) fn numbers(&mut self, what: &str) -> Result<Vec<u64>> {
        let count = self.count(what, 8)?;
        (0..count).map(|_| self.u64()).collect()
    }
}

/// Says what's wrong with a hash's length before its bytes are even looked for.
fn check_hash_length(length: usize) -> Result<()> {
    if (BlockHash::MIN_BYTES..=BlockHash::MAX_BYTES).contains(&length) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "a block hash has {length} bytes; {} to {} are accepted",
        BlockHash::MIN_BYTES,
        BlockHash::MAX_BYTES
    )))
}
