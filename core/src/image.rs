//! Images that come in order, from a network or a file, and are verified on their way into their slot.

use crate::block::BlockHash;
use crate::checksum::Checksum;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::SlotGuard;
use crate::tier::NamespaceInfo;

/// Fills a slot with a block's image piece by piece and sums the shards while they are copied, so that verifying needs no
/// second pass over memory.
pub struct ImageWriter {
    filled: usize,
    /// The shard that is being filled, or is next.
    shard: usize,
    checksum: Checksum,
    /// Of the shards before.
    checksums: Vec<u64>,
}

impl ImageWriter {
    /// Begins an image.
    #[must_use]
    pub fn new() -> Self {
        Self {
            filled: 0,
            shard: 0,
            checksum: Checksum::new(),
            checksums: Vec::new(),
        }
    }

    /// Bytes that have come.
    pub fn filled(&self) -> usize {
        self.filled
    }

    /// Puts the next bytes where they belong. Fails with `InvalidInput` for more than the slot holds.
    pub fn write(&mut self, namespace: &NamespaceInfo, slot: &SlotGuard, mut bytes: &[u8]) -> Result<()> {
        let end = self.filled.checked_add(bytes.len());
        if end.is_none_or(|end| end > slot.length()) {
            return Err(Error::invalid(format!(
                "{} bytes behind the first {} of a slot of {}",
                bytes.len(),
                self.filled,
                slot.length()
            )));
        }
        while !bytes.is_empty() {
            let shard = namespace.layout.shard(self.shard).ok();
            let start = namespace.layout.shard_offset(self.shard);
            let place = slot.offset() + self.filled;
            let length = match (shard, start) {
                (Some(shard), Some(start)) if self.filled >= start => {
                    let length = (start + shard.payload_bytes() - self.filled).min(bytes.len());
                    let piece = bytes.get(..length).unwrap_or_default();
                    slot.arena().write_summed(place, piece, &mut self.checksum)?;
                    if self.filled + length == start + shard.payload_bytes() {
                        self.checksums.push(std::mem::take(&mut self.checksum).value());
                        self.shard += 1;
                    }
                    length
                }
                // the descriptor page, and what fills pages up
                (_, start) => {
                    let before_shard = start.map_or(usize::MAX, |start| start - self.filled);
                    let length = before_shard.min(bytes.len());
                    slot.arena()
                        .write(place, bytes.get(..length).unwrap_or_default())?;
                    length
                }
            };
            self.filled += length;
            bytes = bytes.get(length..).unwrap_or_default();
        }
        Ok(())
    }

    /// Checks the whole image, as [`NamespaceInfo::verify_image`] does. Fails with `Corrupt`.
    pub fn verify(&self, namespace: &NamespaceInfo, hash: BlockHash, slot: &SlotGuard) -> Result<()> {
        let envelope = namespace.check_descriptor(hash, slot)?;
        let wrong = |number: usize, expected: &u64| self.checksums.get(number) != Some(expected);
        let mut shards = envelope.shard_checksums.iter().enumerate();
        match shards.find(|(number, expected)| wrong(*number, expected)) {
            Some((number, _)) => {
                let what = format!("shard {number} has a wrong checksum");
                Err(Error::new(ErrorKind::Corrupt, what).with("key", namespace.key(hash)))
            }
            None => Ok(()),
        }
    }
}

impl Default for ImageWriter {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::envelope::Envelope;
    use crate::identity::Identity;
    use crate::layout::{Layout, PAGE_BYTES, Shard};
    use crate::memory::{Arena, SlotOwner};

    struct NoOwner;

    impl SlotOwner for NoOwner {
        fn release(&self, _slot: u32) {}
    }

    fn namespace() -> NamespaceInfo {
        let shard = |tensor_bytes: &[u32]| Shard {
            tensor_bytes: tensor_bytes.to_vec(),
        };
        let layout = Layout::new(vec![shard(&[100, 5000]), shard(&[4096]), shard(&[1])]).unwrap();
        NamespaceInfo::new(Identity::default(), layout).unwrap()
    }

    fn slot(namespace: &NamespaceInfo) -> SlotGuard {
        let length = namespace.layout.image_bytes() + PAGE_BYTES;
        let arena = Arc::new(Arena::heap(length).unwrap());
        SlotGuard::new(arena, Arc::new(NoOwner), 0, PAGE_BYTES, length - PAGE_BYTES)
    }

    fn hash() -> BlockHash {
        BlockHash::new(&[7; 16]).unwrap()
    }

    /// A whole image.
    fn image(namespace: &NamespaceInfo) -> Vec<u8> {
        let mut image: Vec<u8> = (0..namespace.layout.image_bytes())
            .map(|at| (at * 7) as u8)
            .collect();
        let mut checksums = Vec::new();
        for (number, shard) in namespace.layout.shards().iter().enumerate() {
            let start = namespace.layout.shard_offset(number).unwrap();
            let mut checksum = Checksum::new();
            checksum.update(&image[start..start + shard.payload_bytes()]);
            checksums.push(checksum.value());
        }
        let envelope = Envelope::new(namespace.key(hash()), &namespace.layout, 1, 1, checksums);
        image[..PAGE_BYTES].copy_from_slice(&envelope.encode().unwrap()[..]);
        image
    }

    fn written(namespace: &NamespaceInfo, bytes: &[u8], cuts: &[usize]) -> (ImageWriter, SlotGuard) {
        let (mut writer, slot) = (ImageWriter::new(), slot(namespace));
        let mut start = 0;
        for cut in cuts.iter().copied().chain([bytes.len()]) {
            let end = cut.clamp(start, bytes.len());
            writer.write(namespace, &slot, &bytes[start..end]).unwrap();
            start = end;
        }
        assert_eq!(writer.filled(), bytes.len());
        (writer, slot)
    }

    proptest! {
        #[test]
        fn pieces_of_any_size_make_the_image_and_damage_shows(
            mut cuts in proptest::collection::vec(0_usize..24_000, 0..12),
            damaged in proptest::option::of(0_usize..24_000),
        ) {
            cuts.sort_unstable();
            let namespace = namespace();
            let mut bytes = image(&namespace);
            if let Some(place) = damaged {
                let place = place % bytes.len();
                bytes[place] ^= 0x10;
            }
            let (writer, slot) = written(&namespace, &bytes, &cuts);
            let mut found = vec![0; bytes.len()];
            slot.arena().read(slot.offset(), &mut found).unwrap();
            prop_assert_eq!(found, bytes);
            let whole = namespace.verify_image(hash(), &slot).map_err(|error| error.kind());
            let verdict = writer.verify(&namespace, hash(), &slot).map_err(|error| error.kind());
            prop_assert_eq!(verdict, whole);
            prop_assert!(damaged.is_some() || verdict.is_ok());
        }
    }

    #[test]
    fn an_image_that_is_cut_off_is_corrupt_and_one_too_long_is_refused() {
        let namespace = namespace();
        let bytes = image(&namespace);
        let cut = bytes.len() - PAGE_BYTES;
        let (mut writer, slot) = written(&namespace, &bytes[..cut], &[]);
        let verdict = writer.verify(&namespace, hash(), &slot).unwrap_err();
        assert_eq!(verdict.kind(), ErrorKind::Corrupt);
        let refused = writer
            .write(&namespace, &slot, &vec![0; 2 * PAGE_BYTES])
            .unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidInput);
    }
}
