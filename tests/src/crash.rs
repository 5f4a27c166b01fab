//! What crash writer and crash verifier agree on.

use kvstored_core::{Durability, Layout};

/// Names the namespace.
pub const MODEL: &str = "crash";
/// Bounds what a round writes, so that no block is evicted before it's verified.
pub const BLOCKS_PER_ROUND: u64 = 4000;

const SHARDS: usize = 3;
const TENSORS: usize = 2;
const TENSOR_BYTES: u32 = 2048;

/// Small blocks of several shards and tensors.
pub fn layout() -> Layout {
    Layout::uniform(SHARDS, TENSORS, TENSOR_BYTES).unwrap_or_else(|error| unreachable!("{error}"))
}

/// A level of acknowledgement as it stands in a record.
pub fn level_name(level: Durability) -> &'static str {
    match level {
        Durability::Memory => "memory",
        Durability::Tier => "tier",
        Durability::Durable => "durable",
    }
}

/// The level of that name.
pub fn level_from_name(name: &str) -> Option<Durability> {
    [Durability::Memory, Durability::Tier, Durability::Durable]
        .into_iter()
        .find(|level| level_name(*level) == name)
}
