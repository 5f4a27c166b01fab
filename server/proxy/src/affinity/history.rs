//! Affinity from the proxy's own past: which cache was last asked to compute which chunk.

use quick_cache::sync::Cache;

use super::{PrefixChain, PrefixMatches, PrefixSource};

/// Caches remembered for one chunk; the one that computed it longest ago gives way.
const HOLDERS: usize = 4;

/// Cache ids, the latest first; 0 is nobody.
type Holders = [u32; HOLDERS];

/// A bounded map from a chunk's hash to the caches that computed it. What is seldom asked for falls out first.
pub struct History {
    chunks: Cache<u64, Holders>,
}

impl History {
    /// Of at most that many chunks.
    pub fn new(capacity_chunks: usize) -> Self {
        Self {
            chunks: Cache::new(capacity_chunks),
        }
    }
}

impl PrefixSource for History {
    fn matches(&self, chain: &PrefixChain) -> PrefixMatches {
        let mut matches = PrefixMatches::default();
        // only caches that had every chunk so far can use the next one
        let mut unbroken: Option<Holders> = None;
        for (index, hash) in chain.hashes().iter().enumerate() {
            let Some(holders) = self.chunks.get(hash) else {
                break;
            };
            let mut still = [0; HOLDERS];
            let mut any = false;
            for (slot, cache_id) in still.iter_mut().zip(holders) {
                let continues = unbroken.is_none_or(|before| before.contains(&cache_id));
                if cache_id != 0 && continues {
                    *slot = cache_id;
                    any = true;
                    matches.note(cache_id, index + 1);
                }
            }
            if !any {
                break;
            }
            unbroken = Some(still);
        }
        matches
    }

    fn computed(&self, chain: &PrefixChain, cache_id: u32) {
        for hash in chain.hashes() {
            let before = self.chunks.get(hash).unwrap_or_default();
            if before[0] == cache_id {
                continue;
            }
            let mut after = [0; HOLDERS];
            after[0] = cache_id;
            let others = before.into_iter().filter(|other| *other != cache_id);
            for (slot, other) in after.iter_mut().skip(1).zip(others) {
                *slot = other;
            }
            self.chunks.insert(*hash, after);
        }
    }

    fn clear(&self) {
        self.chunks.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(text: &[(u8, usize)]) -> PrefixChain {
        let prompt: Vec<u8> = text
            .iter()
            .flat_map(|(byte, chunks)| std::iter::repeat_n(*byte, chunks * super::super::CHUNK_BYTES))
            .collect();
        PrefixChain::new(&[], &prompt)
    }

    #[test]
    fn the_longest_common_beginning_is_found_for_each_cache() {
        let history = History::new(1000);
        history.computed(&chain(&[(b'a', 4), (b'b', 4)]), 1);
        history.computed(&chain(&[(b'a', 4), (b'c', 2)]), 2);
        let matches = history.matches(&chain(&[(b'a', 4), (b'b', 9)]));
        assert_eq!(
            (matches.chunks(1), matches.chunks(2), matches.chunks(3)),
            (8, 4, 0)
        );
        assert_eq!(matches.tokens(2), 512);
        assert_eq!(history.matches(&chain(&[(b'z', 4)])), PrefixMatches::default());
        history.clear();
        assert_eq!(history.matches(&chain(&[(b'a', 4)])), PrefixMatches::default());
    }

    #[test]
    fn a_cache_that_lacks_the_beginning_gets_nothing_for_the_rest() {
        let history = History::new(1000);
        let long = chain(&[(b'a', 1), (b'b', 1)]);
        history.computed(&long, 1);
        // the second chunk alone, as if the first had fallen out and been computed elsewhere
        let first = PrefixChain {
            hashes: long.hashes()[..1].to_vec(),
        };
        let second = PrefixChain {
            hashes: long.hashes()[1..].to_vec(),
        };
        history.computed(&second, 2);
        history.computed(&first, 3);
        let matches = history.matches(&long);
        assert_eq!(
            (matches.chunks(1), matches.chunks(2), matches.chunks(3)),
            (2, 0, 1)
        );
    }

    #[test]
    fn memory_is_bounded_by_chunks_and_by_holders() {
        let history = History::new(64);
        for byte in 0..=255 {
            history.computed(&chain(&[(byte, 8)]), 7);
        }
        assert!(history.chunks.len() <= 64, "{}", history.chunks.len());
        for cache_id in 1..=9 {
            history.computed(&chain(&[(b'x', 1)]), cache_id);
        }
        let matches = history.matches(&chain(&[(b'x', 1)]));
        assert_eq!(
            (matches.chunks(9), matches.chunks(6), matches.chunks(5)),
            (1, 1, 0)
        );
    }
}
