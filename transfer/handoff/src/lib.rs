//! Fenced hand-off of KV blocks from prefill to decode engines.
//!
//! Every worker rank has one [`Handoff`]. It describes the rank's KV memory, *holds* blocks of finished prefills for
//! consumers to pull, and *pulls* blocks of other engines' requests into its own memory, head by head where the two sides
//! are divided otherwise. A hold is fenced: what [`Handoff::take_released`] tells is read by nobody any more, so its blocks
//! may be reused, and what is pulled later fails.
//!
//! The questions on the wire and the rules are fixed in `docs/handoff.md`.

mod consumer;
mod geometry;
mod handoff;
mod limits;
mod memory;
mod plan;
mod producer;
mod queue;
mod settings;
mod statistics;
pub mod wire;

#[cfg(test)]
mod tests;

pub use consumer::{Pulled, RemoteRequest};
pub use geometry::{Description, Layer, Piece, Rank, Shape};
pub use handoff::Handoff;
pub use producer::{Reason, Released};
pub use settings::HandoffSettings;
pub use statistics::Statistics;
