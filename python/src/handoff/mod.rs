//! What stands below the hand-off of KV blocks between vLLM's engines: one object for each worker rank.

mod blocks;
mod describe;
mod object;

pub use object::Handoff;
