//! Settings of the cache tier. Plain data.

use kvstored_core::eviction::PolicyKind;
use serde::{Deserialize, Serialize};

/// Settings of the cache tier.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CacheSettings {
    /// Bound of the DRAM the tier takes, its own tables included.
    pub capacity_bytes: u64,
    /// Which block goes first.
    pub policy: PolicyKind,
    /// Whether published blocks stay for later hits. `false` makes a staging area for pipelines without `Cache`.
    pub keep: bool,
    /// Whether other processes can map the arena (a memfd); private memory is faster to fault in.
    pub shared: bool,
    /// Whether to ask for huge pages.
    pub huge_pages: bool,
    /// One in how many blocks the shadow caches follow; 0 switches them off.
    pub shadow_sample_one_in: u32,
}

impl Default for CacheSettings {
    fn default() -> Self {
        Self {
            capacity_bytes: 1 << 30,
            policy: PolicyKind::default(),
            keep: true,
            shared: true,
            huge_pages: true,
            shadow_sample_one_in: 64,
        }
    }
}
