//! Settings of a client. Plain data.

use std::time::Duration;

/// Settings of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientSettings {
    /// Threads that copy between engine memory and the arena.
    pub streams: usize,
    /// Deadline of tasks that name none.
    pub timeout: Duration,
    /// How long a call may wait for its answer; a call moves no blocks.
    pub call_timeout: Duration,
    /// Blocks acquired or reserved in one request; each stream has a few requests under way.
    pub window_blocks: usize,
    /// Bytes of blocks acquired or reserved in one request; a request has at least one block.
    pub window_bytes: u64,
    /// Tasks that may wait for a stream; one more is refused with `Busy`.
    pub queue_depth: usize,
}

impl ClientSettings {
    /// Windows are small enough for a commit with every checksum to fit in one message.
    pub const MAX_WINDOW_BLOCKS: usize = 1024;

    /// Blocks of this size in one window.
    pub(crate) fn window(&self, block_bytes: usize) -> usize {
        let by_bytes = self.window_bytes / (block_bytes as u64).max(1);
        (by_bytes as usize)
            .min(self.window_blocks)
            .clamp(1, Self::MAX_WINDOW_BLOCKS)
    }
}

impl Default for ClientSettings {
    fn default() -> Self {
        Self {
            streams: 2,
            timeout: Duration::from_secs(30),
            call_timeout: Duration::from_secs(30),
            window_blocks: 64,
            window_bytes: 16 << 20,
            queue_depth: 1024,
        }
    }
}
