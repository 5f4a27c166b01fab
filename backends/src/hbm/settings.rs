//! Settings of the Hbm tier. Plain data.

use std::time::Duration;

use kvstored_core::eviction::PolicyKind;

/// Settings of the Hbm tier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HbmSettings {
    /// Device memory that the tier takes, all of it at the start.
    pub capacity_bytes: u64,
    /// Which block goes first.
    pub policy: PolicyKind,
    /// Streams, each with a thread that waits for it.
    pub streams: usize,
    /// A batch of operations goes to one stream in one call, unless it has more bytes than this.
    pub call_bytes: u64,
    /// Operations that may wait or be under way; more are refused as busy.
    pub queue_depth: usize,
    /// How long a batch of copies may take.
    pub timeout: Duration,
}

impl Default for HbmSettings {
    fn default() -> Self {
        Self {
            capacity_bytes: 1 << 30,
            policy: PolicyKind::default(),
            streams: 4,
            call_bytes: 256 << 20,
            queue_depth: 8192,
            timeout: Duration::from_secs(5),
        }
    }
}
