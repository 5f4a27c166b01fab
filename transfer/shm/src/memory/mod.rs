//! Memory that can be shared with other processes, and memory of theirs.
//!
//! Bytes here may change under one's hands, so nothing forms a Rust reference to them: they are copied from
//! and to through raw pointers, or accessed as atomics.

mod mapping;
mod peer;
mod shared;

pub(crate) use mapping::Mapping;
pub use peer::PeerMemory;
pub use shared::{SharedMemory, Sharing};

/// Bytes of a page; lengths are rounded up to whole ones.
pub const PAGE_BYTES: usize = 4096;
