//! The list of shards and tensor sizes of a block, and where each lies in a block's image.

use crate::error::{Error, Result};

/// Alignment of everything in a block's image: the physical sector of today's drives.
pub const PAGE_BYTES: usize = 4096;

/// Sizes of the tensors of one shard, in the order in which they are stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Bytes of each tensor.
    pub tensor_bytes: Vec<u32>,
}

impl Shard {
    /// Bytes of all tensors together, without padding.
    pub fn payload_bytes(&self) -> usize {
        self.tensor_bytes.iter().map(|bytes| *bytes as usize).sum()
    }
}

/// The shards and tensor sizes of a block; fixed per namespace.
///
/// A block's *image*, the same bytes in a DRAM slot and in an extent on disk, is one descriptor page (the
/// envelope) and then the shards in order, each aligned to [`PAGE_BYTES`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    shards: Vec<Shard>,
    offsets: Vec<u32>,
    image_bytes: usize,
    payload_bytes: usize,
    digest: [u8; 32],
}

impl Layout {
    /// The most shards a block may have: their checksums must fit in the descriptor page.
    pub const MAX_SHARDS: usize = 480;
    /// The most tensors a shard may have.
    pub const MAX_TENSORS_PER_SHARD: usize = 4096;
    /// The largest image of a block.
    pub const MAX_IMAGE_BYTES: usize = 1 << 30;

    /// Builds a layout from its shards. Fails with `InvalidInput` when there is none, one is empty, or a limit
    /// is exceeded.
    pub fn new(shards: Vec<Shard>) -> Result<Self> {
        if shards.is_empty() || shards.len() > Self::MAX_SHARDS {
            return Err(Error::invalid(format!(
                "a layout has {} shards; 1 to {} are accepted",
                shards.len(),
                Self::MAX_SHARDS
            )));
        }
        let mut hasher = blake3::Hasher::new_derive_key("kvstored layout v1");
        hasher.update(&(shards.len() as u32).to_le_bytes());
        let mut offsets = Vec::with_capacity(shards.len());
        let (mut offset, mut payload_bytes) = (PAGE_BYTES as u64, 0u64);
        for (index, shard) in shards.iter().enumerate() {
            let tensors = shard.tensor_bytes.len();
            if tensors == 0 || tensors > Self::MAX_TENSORS_PER_SHARD {
                return Err(Error::invalid(format!(
                    "shard {index} has {tensors} tensors; 1 to {} are accepted",
                    Self::MAX_TENSORS_PER_SHARD
                )));
            }
            if let Some(tensor) = shard.tensor_bytes.iter().position(|bytes| *bytes == 0) {
                return Err(Error::invalid(format!(
                    "tensor {tensor} of shard {index} has 0 bytes"
                )));
            }
            hasher.update(&(tensors as u32).to_le_bytes());
            for bytes in &shard.tensor_bytes {
                hasher.update(&bytes.to_le_bytes());
            }
            let shard_bytes: u64 = shard.tensor_bytes.iter().map(|bytes| u64::from(*bytes)).sum();
            offsets.push(offset as u32);
            offset += shard_bytes.next_multiple_of(PAGE_BYTES as u64);
            payload_bytes += shard_bytes;
            if offset > Self::MAX_IMAGE_BYTES as u64 {
                return Err(Error::invalid(format!(
                    "a block has more than {} bytes (at shard {index})",
                    Self::MAX_IMAGE_BYTES
                )));
            }
        }
        Ok(Self {
            shards,
            offsets,
            image_bytes: offset as usize,
            payload_bytes: payload_bytes as usize,
            digest: *hasher.finalize().as_bytes(),
        })
    }

    /// A layout of `shards` equal shards of `tensors` tensors of `tensor_bytes` each.
    pub fn uniform(shards: usize, tensors: usize, tensor_bytes: u32) -> Result<Self> {
        if shards > Self::MAX_SHARDS || tensors > Self::MAX_TENSORS_PER_SHARD {
            return Err(Error::invalid(format!(
                "{shards} shards of {tensors} tensors; at most {} of {} are accepted",
                Self::MAX_SHARDS,
                Self::MAX_TENSORS_PER_SHARD
            )));
        }
        Self::new(vec![
            Shard {
                tensor_bytes: vec![tensor_bytes; tensors]
            };
            shards
        ])
    }

    /// The shards in order.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// The shard with that index; fails with `InvalidInput` outside the layout.
    pub fn shard(&self, index: usize) -> Result<&Shard> {
        self.shards.get(index).ok_or_else(|| {
            Error::invalid(format!(
                "shard index {index} is outside the layout's {} shards",
                self.shards.len()
            ))
        })
    }

    /// Where a shard begins in the image, in bytes.
    pub fn shard_offset(&self, index: usize) -> Option<usize> {
        self.offsets.get(index).map(|offset| *offset as usize)
    }

    /// Bytes of the image: descriptor page, shards and padding. A multiple of [`PAGE_BYTES`].
    pub fn image_bytes(&self) -> usize {
        self.image_bytes
    }

    /// Bytes of KV in a block, without descriptor and padding.
    pub fn payload_bytes(&self) -> usize {
        self.payload_bytes
    }

    /// Digest of shard count, tensor counts and tensor sizes (BLAKE3).
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_page_aligned_behind_the_descriptor() {
        let layout = Layout::uniform(3, 2, 5000).unwrap();
        assert_eq!(layout.shard_offset(0), Some(4096));
        assert_eq!(layout.shard_offset(1), Some(4096 + 12288));
        assert_eq!(layout.shard_offset(3), None);
        assert_eq!(layout.image_bytes(), 4096 + 3 * 12288);
        assert_eq!(layout.payload_bytes(), 30_000);
    }

    #[test]
    fn the_digest_tells_shapes_of_equal_size_apart() {
        let a = Layout::uniform(2, 1, 8192).unwrap();
        let b = Layout::uniform(1, 2, 8192).unwrap();
        let c = Layout::uniform(1, 4, 4096).unwrap();
        assert_ne!(a.digest(), b.digest());
        assert_ne!(b.digest(), c.digest());
    }

    #[test]
    fn limits_are_named() {
        for (shards, tensors, bytes, word) in [
            (0, 1, 1, "0 shards"),
            (481, 1, 1, "481"),
            (1, 0, 1, "0 tensors"),
            (1, 1, 0, "0 bytes"),
            (4, 1, u32::MAX, "more than"),
        ] {
            let error = Layout::uniform(shards, tensors, bytes).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
