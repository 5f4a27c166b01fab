//! Block contents as a function of the trace's hash ids, so that every loaded byte can be checked.

use kvstored_core::{BlockHash, Result};

/// Words compared at a time: enough for the compiler to use vector registers, few enough to stop early.
const GROUP_WORDS: usize = 64;
const WORD_BYTES: usize = 8;
const GROUP_BYTES: usize = GROUP_WORDS * WORD_BYTES;

/// SplitMix64's finaliser: every bit of the input changes half of the output's.
pub fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The block hash of a trace's hash id: 32 bytes, different for every id.
pub fn block_hash(id: u64) -> Result<BlockHash> {
    let mut bytes = [0u8; BlockHash::MAX_BYTES];
    for (lane, part) in bytes.chunks_exact_mut(WORD_BYTES).enumerate() {
        // one lane is a bijection of the id already; the others fill the hash up
        part.copy_from_slice(&mix(id ^ mix(lane as u64)).to_le_bytes());
    }
    BlockHash::new(&bytes)
}

/// The content of one block: word `i` is a cheap function of two numbers drawn from the id, different in every
/// word and in every block, and made faster than memory is read.
#[derive(Clone, Copy, Debug)]
pub struct Content {
    start: u64,
    step: u64,
}

impl Content {
    /// The content that belongs to a hash id.
    pub fn of(id: u64) -> Self {
        Self {
            start: mix(id),
            step: mix(!id) | 1,
        }
    }

    #[inline]
    fn word(self, index: usize) -> u64 {
        let value = self.start.wrapping_add(self.step.wrapping_mul(index as u64));
        value ^ (value >> 31)
    }

    /// Writes the block's bytes from its beginning.
    pub fn fill(self, bytes: &mut [u8]) {
        for (index, part) in bytes.chunks_mut(WORD_BYTES).enumerate() {
            let word = self.word(index).to_le_bytes();
            let length = part.len();
            part.copy_from_slice(&word[..length]);
        }
    }

    /// Whether these are the block's bytes, every one of them.
    pub fn matches(self, bytes: &[u8]) -> bool {
        let mut groups = bytes.chunks_exact(GROUP_BYTES);
        let mut index = 0;
        for group in groups.by_ref() {
            let mut difference = 0;
            for (place, part) in group.chunks_exact(WORD_BYTES).enumerate() {
                let mut word = [0u8; WORD_BYTES];
                word.copy_from_slice(part);
                difference |= u64::from_le_bytes(word) ^ self.word(index + place);
            }
            if difference != 0 {
                return false;
            }
            index += GROUP_WORDS;
        }
        groups
            .remainder()
            .chunks(WORD_BYTES)
            .enumerate()
            .all(|(place, part)| {
                let word = self.word(index + place).to_le_bytes();
                *part == word[..part.len()]
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn what_is_filled_matches_at_every_length() {
        for length in [0, 1, 7, 8, 9, 511, 512, 513, 4096, 4099] {
            let mut bytes = vec![0; length];
            Content::of(42).fill(&mut bytes);
            assert!(Content::of(42).matches(&bytes), "{length}");
        }
    }

    #[test]
    fn any_flipped_bit_is_noticed() {
        let mut bytes = vec![0; 1024 + 13];
        Content::of(7).fill(&mut bytes);
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(!Content::of(7).matches(&bytes), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        assert!(Content::of(7).matches(&bytes));
    }

    #[test]
    fn another_block_a_shift_or_a_hole_is_noticed() {
        let mut bytes = vec![0; 8192];
        Content::of(1).fill(&mut bytes);
        assert!((2..2000).all(|id| !Content::of(id).matches(&bytes[..8])));
        assert!(!Content::of(1).matches(&bytes[8..]));
        bytes.swap(4096, 0);
        let mut holed = bytes.clone();
        holed[4096..].fill(0);
        assert!(!Content::of(1).matches(&holed));
    }

    #[test]
    fn ids_have_different_hashes_in_both_halves() {
        let hashes: Vec<BlockHash> = (0..10_000).map(|id| block_hash(id).unwrap()).collect();
        for half in [0..16, 16..32] {
            let halves: HashSet<&[u8]> = hashes.iter().map(|hash| &hash.as_bytes()[half.clone()]).collect();
            assert_eq!(halves.len(), hashes.len());
        }
    }
}
