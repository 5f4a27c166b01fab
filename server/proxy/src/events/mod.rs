//! What prefill instances have in their prefix caches, from their own KV events.
//!
//! vLLM publishes, over ZeroMQ, which blocks it stored and removed. [`follow`] listens to one instance, fills gaps by asking
//! for a replay, and begins anew whenever it can't know what it missed. [`BlockIndex`] is what comes of it: for a prompt
//! of token ids, how many of the first tokens the instance has.

mod batch;
mod blocks;
mod follow;
mod zmtp;

pub use blocks::{BlockIndex, PromptBlocks};
pub use follow::follow;

use crate::address::Address;

/// Where an instance publishes its events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventSource {
    /// The socket with the events.
    pub events: Address,
    /// The socket that sends past ones again, if there is one.
    pub replay: Option<Address>,
}
