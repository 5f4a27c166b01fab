//! Which block goes first: the policy trait and its implementations.
//!
//! A policy orders resident slots; it holds no data and takes no locks. Prefix awareness lies in how it's fed:
//! the blocks of a run are always touched from tail to head, and an insertion refreshes the run's ancestors,
//! so that a block's ancestors are never colder than the block itself.

use serde::{Deserialize, Serialize};

mod arc;
mod fifo;
mod ghost;
mod list;
mod lru;
mod s3fifo;
mod shadow;
#[cfg(test)]
mod tests;

pub use arc::AdaptiveReplacement;
pub use fifo::Fifo;
pub use lru::Lru;
pub use s3fifo::S3Fifo;
pub use shadow::ShadowCaches;

/// How many blocks an eviction looks at, from the cold end of each list, for one that may go.
const PROBES: usize = 256;

/// The order in which resident slots are evicted.
///
/// Slots are small dense numbers; `fingerprint` identifies a block beyond its residence (ghost lists).
pub trait EvictionPolicy: Send {
    /// A block became resident in `slot`.
    fn insert(&mut self, slot: u32, fingerprint: u64);
    /// A resident block was asked for and found.
    fn hit(&mut self, slot: u32);
    /// A descendant of a resident block was inserted: keep it warmer than the descendant, without counting
    /// a use.
    fn refresh(&mut self, slot: u32);
    /// A block left for another reason than [`EvictionPolicy::evict`].
    fn remove(&mut self, slot: u32);
    /// Chooses a victim among the slots for which `evictable` holds and forgets it (a ghost may stay).
    /// `None` if there's none. May give up after a bounded search.
    fn evict(&mut self, evictable: &mut dyn FnMut(u32) -> bool) -> Option<u32>;
    /// How many blocks the cache holds when full, as far as can be told; bounds ghost lists.
    fn set_capacity(&mut self, blocks: usize);
    /// Resident blocks.
    fn len(&self) -> usize;
    /// Whether nothing is resident.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Bytes of memory the policy takes.
    fn memory_bytes(&self) -> usize;
    /// The most bytes of memory it ever takes while its slots are numbers below `slots` and its capacity isn't more.
    fn most_bytes(&self, slots: usize) -> usize;
}

/// The policies by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyKind {
    /// Adaptive replacement: two LRU lists with ghosts (Megiddo and Modha, FAST 2003). The default.
    #[default]
    Arc,
    /// Least recently used.
    Lru,
    /// First in, first out.
    Fifo,
    /// S3-FIFO (Yang et al., SOSP 2023).
    S3Fifo,
}

impl PolicyKind {
    /// Every policy.
    pub const ALL: [PolicyKind; 4] = [Self::Arc, Self::Lru, Self::Fifo, Self::S3Fifo];

    /// The policy's name in settings and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Arc => "arc",
            Self::Lru => "lru",
            Self::Fifo => "fifo",
            Self::S3Fifo => "s3-fifo",
        }
    }

    /// A new policy of that kind.
    pub fn build(self) -> Box<dyn EvictionPolicy> {
        match self {
            Self::Arc => Box::new(AdaptiveReplacement::new()),
            Self::Lru => Box::new(Lru::new()),
            Self::Fifo => Box::new(Fifo::new()),
            Self::S3Fifo => Box::new(S3Fifo::new()),
        }
    }
}

impl std::str::FromStr for PolicyKind {
    type Err = crate::error::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == text)
            .ok_or_else(|| {
                let names: Vec<_> = Self::ALL.iter().map(|kind| kind.name()).collect();
                crate::error::Error::invalid(format!(
                    "eviction policy \"{text}\" is unknown; known are {}",
                    names.join(", ")
                ))
            })
    }
}

/// The most bytes that an array takes which grew one by one to that length.
const fn most_array_bytes<T>(length: usize) -> usize {
    const LEAST: usize = 4;
    let doubled = 2 * length;
    size_of::<T>() * if doubled > LEAST { doubled } else { LEAST }
}

/// The most bytes that a hash map's table takes which never had more than that many entries of that size, the byte that
/// says what each bucket has included.
///
/// A table of `b` buckets grows to twice as many when its free ones are used up, by removals too, if more than half of the
/// `7 / 8 * b` entries that fit are there; otherwise it's tidied in place.
pub const fn most_map_bytes(entries: usize, bucket_bytes: usize) -> usize {
    const LEAST_BUCKETS: usize = 16;
    (entries * 32 / 7 + LEAST_BUCKETS) * bucket_bytes
}

/// Stores a slot's value in an array that grows with the slots.
fn set_at<T: Copy + Default>(values: &mut Vec<T>, slot: u32, value: T) {
    let index = slot as usize;
    if index >= values.len() {
        values.resize(index + 1, T::default());
    }
    values[index] = value;
}
