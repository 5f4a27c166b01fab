//! The vocabulary and the engine of kvstored: blocks, identity, envelope, layouts, tiers, pipelines, eviction
//! policies, quotas and errors. No sockets, no file I/O.

pub mod block;
pub mod checksum;
pub mod device;
pub mod engine;
pub mod envelope;
pub mod error;
pub mod events;
pub mod eviction;
pub mod identity;
pub mod image;
pub mod index;
pub mod layout;
pub mod memory;
pub mod pipeline;
pub mod quota;
pub mod runtime;
pub mod size;
pub mod tier;
pub mod transport;

pub use block::{BlockHash, BlockKey, Namespace};
pub use device::Device;
pub use engine::{Acquired, Engine, EngineSettings, EngineStatistics, Reservation, Reserved};
pub use envelope::Envelope;
pub use error::{Error, ErrorKind, Result};
pub use events::{Event, EventKind, EventSink, Events};
pub use identity::{Identity, ParallelShape};
pub use image::ImageWriter;
pub use layout::{Layout, PAGE_BYTES, Shard};
pub use memory::{Arena, SlotGuard};
pub use pipeline::{Pipeline, TierKind};
pub use runtime::Runtime;
pub use tier::{
    Action, Durability, MemoryTier, NamespaceInfo, Operation, Tier, TierStatistics, TransportStatistics,
};
pub use transport::{MemoryTransport, TransportFactory};
