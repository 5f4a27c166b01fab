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
            policy: PolicyKind::default(),
            keep: true,
            shared: true,
            huge_pages: true,
            linkable: false,
            shadow_sample_one_in: 64,
        }
    }
}
