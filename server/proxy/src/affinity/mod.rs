//! Prefix affinity: prompts that begin alike go where that beginning was computed before.
//!
//! A prompt is cut into chunks of bytes, and each chunk's hash covers all before it, so two prompts share a hash exactly
//! if they begin with the same bytes. [`PrefixSource`] says who has which chunks; [`History`] answers from what this proxy
//! sent where. Where an instance's own KV events are followed and a prompt is a list of token ids, they decide instead
//! ([`crate::events`]).

mod history;

use twox_hash::XxHash3_64;

pub use history::History;

use crate::choice::BYTES_PER_TOKEN;

/// Bytes of prompt in a chunk: about 128 tokens of text.
const CHUNK_BYTES: usize = 512;
/// Chunks looked at; what follows in a longer prompt doesn't change where it goes.
const MAX_CHUNKS: usize = 512;

/// A prompt's chunks, each hash covering all bytes before it as well.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrefixChain {
    hashes: Vec<u64>,
}

impl PrefixChain {
    /// Of a prompt. `context` is what else decides the KV (the model, its tools, a cache salt); prompts with another
    /// context share nothing.
    pub fn new(context: &[&[u8]], prompt: &[u8]) -> Self {
        let mut hash = 0;
        for part in context {
            // the length keeps ("ab", "c") apart from ("a", "bc")
            hash = XxHash3_64::oneshot_with_seed(hash ^ part.len() as u64, part);
        }
        let hashes = prompt
            .chunks_exact(CHUNK_BYTES)
            .take(MAX_CHUNKS)
            .map(|chunk| {
                hash = XxHash3_64::oneshot_with_seed(hash, chunk);
                hash
            })
            .collect();
        Self { hashes }
    }

    /// The hashes, from the beginning.
    pub fn hashes(&self) -> &[u64] {
        &self.hashes
    }
}

/// How much of a prompt's beginning is where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrefixMatches {
    found: Vec<(u32, usize)>,
}

impl PrefixMatches {
    /// Notes that a cache has the first `chunks` chunks.
    pub fn note(&mut self, cache_id: u32, chunks: usize) {
        match self.found.iter_mut().find(|(known, _)| *known == cache_id) {
            Some((_, longest)) => *longest = chunks.max(*longest),
            None => self.found.push((cache_id, chunks)),
        }
    }

    /// Chunks from the beginning that a cache has.
    pub fn chunks(&self, cache_id: u32) -> usize {
        self.found
            .iter()
            .find(|(known, _)| *known == cache_id)
            .map_or(0, |(_, chunks)| *chunks)
    }

    /// Tokens from the beginning that a cache has, estimated.
    pub fn tokens(&self, cache_id: u32) -> u64 {
        (self.chunks(cache_id) * CHUNK_BYTES / BYTES_PER_TOKEN) as u64
    }
}

/// Who has which beginnings of prompts. An answer may be wrong; it costs time then, never correctness.
pub trait PrefixSource: Send + Sync + 'static {
    /// How much of the prompt's beginning each cache has.
    fn matches(&self, chain: &PrefixChain) -> PrefixMatches;

    /// A cache has computed that prompt.
    fn computed(&self, chain: &PrefixChain, cache_id: u32);

    /// All caches were emptied.
    fn clear(&self);
}

/// Knows nothing: instances are chosen by load alone.
#[derive(Clone, Copy, Debug)]
pub struct NoAffinity;

impl PrefixSource for NoAffinity {
    fn matches(&self, _: &PrefixChain) -> PrefixMatches {
        PrefixMatches::default()
    }

    fn computed(&self, _: &PrefixChain, _: u32) {}

    fn clear(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_equal_as_far_as_the_prompts_are() {
        let one = vec![b'a'; CHUNK_BYTES * 3 + 100];
        let mut other = one.clone();
        other[CHUNK_BYTES * 2 + 5] = b'b';
        let (one, other) = (PrefixChain::new(&[], &one), PrefixChain::new(&[], &other));
        assert_eq!(one.hashes().len(), 3, "a chunk that isn't full doesn't count");
        assert_eq!(one.hashes()[..2], other.hashes()[..2]);
        assert_ne!(one.hashes()[2], other.hashes()[2]);
        assert_ne!(one.hashes()[0], one.hashes()[1], "the same bytes after others");
    }

    #[test]
    fn another_context_shares_nothing() {
        let prompt = vec![b'a'; CHUNK_BYTES];
        let chains: Vec<PrefixChain> = [&[&b"ab"[..], b"c"][..], &[b"a", b"bc"], &[b"abc"], &[]]
            .iter()
            .map(|context| PrefixChain::new(context, &prompt))
            .collect();
        for (index, chain) in chains.iter().enumerate() {
            assert!(!chains[..index].contains(chain));
        }
    }

    #[test]
    fn a_long_prompt_has_a_bounded_chain() {
        let prompt = vec![0; CHUNK_BYTES * (MAX_CHUNKS + 9)];
        assert_eq!(PrefixChain::new(&[], &prompt).hashes().len(), MAX_CHUNKS);
    }
}
