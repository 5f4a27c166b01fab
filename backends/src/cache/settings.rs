//! Settings of the cache tier. Plain data.

use kvstored_core::eviction::PolicyKind;
use serde::{Deserialize, Serialize};

/// Settings of the cache tier.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[allow(clippy::struct_excessive_bools)] // each is a question of its own
pub struct CacheSettings {
    /// Bound of the DRAM the tier takes, its own tables included.
    pub capacity_bytes: u64,
    /// How much of that is kept for the tables, by default a small share. Where blocks are small they take more, from memory
    /// where no block ever lay and that nobody has pinned.
    pub table_bytes: Option<u64>,
    /// Which block goes first.
    pub policy: PolicyKind,
    /// Whether published blocks stay for later hits. `false` makes a staging area for pipelines without `Cache`.
    pub keep: bool,
    /// Whether other processes can map the arena (a memfd); private memory is faster to fault in.
    pub shared: bool,
    /// Whether to ask for huge pages.
    pub huge_pages: bool,
    /// Whether shared memory is a file in `/dev/shm` without a name, which a plugin can give one: for file systems that
    /// move bytes from and to memory of other processes by its name there. All of it is allocated at once. A memfd
    /// takes its place where there's no room.
    pub linkable: bool,
    /// One in how many blocks the shadow caches follow; 0 switches them off.
    pub shadow_sample_one_in: u32,
}

impl Default for CacheSettings {
    fn default() -> Self {
        Self {
            capacity_bytes: 1 << 30,
            table_bytes: None,
            policy: PolicyKind::default(),
            keep: true,
            shared: true,
            huge_pages: true,
            linkable: false,
            shadow_sample_one_in: 64,
        }
    }
}

/// The share of the capacity kept for the tables, where nothing else is said: one part in this many.
const TABLE_SHARE: u64 = 256;
/// What is kept for them in a small cache, …
const LEAST_TABLE_BYTES: u64 = 256 << 10;
/// … unless that's more than one part in this many.
const LARGEST_SHARE: u64 = 8;

/// The share kept for them where all of the memory is pinned or allocated at once: one part in this many.
const PINNED_TABLE_SHARE: u64 = 64;

impl CacheSettings {
    /// What to keep for the tables of a cache whose memory is all pinned or allocated at the start, so that tables can't take
    /// a part of it later.
    pub fn pinned_table_bytes(capacity_bytes: u64) -> u64 {
        (capacity_bytes / PINNED_TABLE_SHARE).max(least_table_bytes(capacity_bytes))
    }

    /// Bytes that are no memory for blocks from the start.
    pub(super) fn kept_for_tables(&self) -> u64 {
        self.table_bytes.unwrap_or_else(|| {
            (self.capacity_bytes / TABLE_SHARE).max(least_table_bytes(self.capacity_bytes))
        })
    }
}

fn least_table_bytes(capacity_bytes: u64) -> u64 {
    LEAST_TABLE_BYTES.min(capacity_bytes / LARGEST_SHARE)
}
