//! Shadow caches: which policy would have hit more, told from a sample of the blocks.

use std::fmt;

use super::ghost::{FingerprintMap, map_bytes};
use super::{EvictionPolicy, PolicyKind, most_array_bytes, most_map_bytes};

/// A miniature cache for each policy, over the same spatial sample of blocks.
///
/// A block is sampled by its fingerprint, always or never, and the miniature capacity shrinks by the same factor,
/// so that hit ratios approximate those of the whole cache (SHARDS: Waldspurger et al., FAST 2015). A few very hot
/// blocks, sampled or not, would tip the ratios, so they are adjusted as in that paper: the sampled lookups that are
/// missing or in excess are taken for hits.
#[derive(Debug)]
pub struct ShadowCaches {
    /// Blocks looked up, sampled or not.
    lookups: u64,
    /// Sampled blocks looked up.
    sampled_lookups: u64,
    sample_one_in: u64,
    caches: Vec<MiniatureCache>,
    sampled: Vec<u64>,
}

impl ShadowCaches {
    /// Shadows of a cache of `capacity_blocks`, each over one in `sample_one_in` blocks (0 counts as 1).
    pub fn new(capacity_blocks: usize, sample_one_in: u32) -> Self {
        let mut shadows = Self {
            lookups: 0,
            sampled_lookups: 0,
            sample_one_in: u64::from(sample_one_in.max(1)),
            caches: PolicyKind::ALL.into_iter().map(MiniatureCache::new).collect(),
            sampled: Vec::new(),
        };
        shadows.set_capacity(capacity_blocks);
        shadows
    }

    /// One request for a run of blocks, prefix first: its longest present prefix hits, the rest is inserted.
    pub fn access_run(&mut self, fingerprints: &[u64]) {
        let threshold = u64::MAX / self.sample_one_in;
        self.sampled.clear();
        self.sampled.extend(
            fingerprints
                .iter()
                .copied()
                .filter(|value| spread(*value) <= threshold),
        );
        self.lookups += fingerprints.len() as u64;
        self.sampled_lookups += self.sampled.len() as u64;
        if self.sampled.is_empty() {
            return;
        }
        for cache in &mut self.caches {
            cache.access_run(&self.sampled);
        }
    }

    /// The whole cache's capacity changed.
    pub fn set_capacity(&mut self, capacity_blocks: usize) {
        let blocks = self.share(capacity_blocks);
        for cache in &mut self.caches {
            cache.set_capacity(blocks);
        }
    }

    /// For each policy its hits and lookups since the start, scaled down by the sampling. They are estimates, to be
    /// compared with one another: hits may fall a little when the sample turns out to be off.
    pub fn results(&self) -> Vec<(PolicyKind, u64, u64)> {
        let lookups = self.lookups / self.sample_one_in;
        let adjusted = |hits: u64| (hits + lookups).saturating_sub(self.sampled_lookups).min(lookups);
        self.caches
            .iter()
            .map(|cache| (cache.kind, adjusted(cache.hits), lookups))
            .collect()
    }

    /// Bytes of memory.
    pub fn memory_bytes(&self) -> usize {
        self.caches
            .iter()
            .map(MiniatureCache::memory_bytes)
            .sum::<usize>()
            + self.sampled.capacity() * size_of::<u64>()
    }

    /// The most bytes of memory while the whole cache's capacity is never more than that.
    pub fn most_bytes(&self, capacity_blocks: usize) -> usize {
        // one that has been larger keeps what it took
        let caches = self.caches.iter();
        let each = caches.map(|cache| {
            cache
                .most_bytes(self.share(capacity_blocks))
                .max(cache.memory_bytes())
        });
        each.sum::<usize>() + self.sampled.capacity() * size_of::<u64>()
    }

    fn share(&self, capacity_blocks: usize) -> usize {
        (capacity_blocks / self.sample_one_in as usize).max(1)
    }
}

/// Uniform bits that the fingerprint's other uses don't depend on.
fn spread(fingerprint: u64) -> u64 {
    let mixed = (fingerprint ^ (fingerprint >> 31)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    (mixed ^ (mixed >> 29)).wrapping_mul(0x94D0_49BB_1331_11EB)
}

struct MiniatureCache {
    kind: PolicyKind,
    policy: Box<dyn EvictionPolicy>,
    capacity: usize,
    slots: FingerprintMap<u32>,
    fingerprints: Vec<u64>,
    free: Vec<u32>,
    hits: u64,
}

impl MiniatureCache {
    fn new(kind: PolicyKind) -> Self {
        Self {
            kind,
            policy: kind.build(),
            capacity: 1,
            slots: FingerprintMap::default(),
            fingerprints: Vec::new(),
            free: Vec::new(),
            hits: 0,
        }
    }

    fn set_capacity(&mut self, blocks: usize) {
        self.capacity = blocks;
        while self.slots.len() > blocks && self.evict() {}
        self.policy.set_capacity(blocks);
    }

    fn access_run(&mut self, run: &[u64]) {
        let present = run
            .iter()
            .take_while(|fingerprint| self.slots.contains_key(*fingerprint))
            .count();
        self.hits += present as u64;
        let (prefix, rest) = run.split_at(present);
        for fingerprint in prefix.iter().rev() {
            if let Some(slot) = self.slots.get(fingerprint) {
                self.policy.hit(*slot);
            }
        }
        for fingerprint in rest.iter().rev() {
            match self.slots.get(fingerprint) {
                Some(slot) => self.policy.hit(*slot),
                None => self.insert(*fingerprint),
            }
        }
        for fingerprint in prefix.iter().rev() {
            if let Some(slot) = self.slots.get(fingerprint) {
                self.policy.refresh(*slot);
            }
        }
    }

    fn insert(&mut self, fingerprint: u64) {
        if self.slots.len() >= self.capacity && !self.evict() {
            return;
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.fingerprints.push(0);
            (self.fingerprints.len() - 1) as u32
        });
        self.fingerprints[slot as usize] = fingerprint;
        self.slots.insert(fingerprint, slot);
        self.policy.insert(slot, fingerprint);
    }

    fn evict(&mut self) -> bool {
        let Some(slot) = self.policy.evict(&mut |_| true) else {
            return false;
        };
        self.slots.remove(&self.fingerprints[slot as usize]);
        self.free.push(slot);
        true
    }

    fn memory_bytes(&self) -> usize {
        self.policy.memory_bytes()
            + map_bytes(&self.slots)
            + self.fingerprints.capacity() * size_of::<u64>()
            + self.free.capacity() * size_of::<u32>()
    }

    fn most_bytes(&self, blocks: usize) -> usize {
        self.policy.most_bytes(blocks)
            + most_map_bytes(blocks, size_of::<(u64, u32)>() + 1)
            + most_array_bytes::<u64>(blocks)
            + most_array_bytes::<u32>(blocks)
    }
}

impl fmt::Debug for MiniatureCache {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("MiniatureCache")
            .field("kind", &self.kind)
            .field("capacity", &self.capacity)
            .field("blocks", &self.slots.len())
            .field("hits", &self.hits)
            .finish_non_exhaustive()
    }
}
