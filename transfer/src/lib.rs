//! One-sided reads and writes between processes and nodes: regions, grants, transports.
//!
//! A [`TransferEngine`] owns *regions* of memory. What a peer may touch is *published* as a range with an epoch of its
//! own, and a peer needs a [`Grant`] on it: fixed-size bytes that carry a MAC which only the serving engine can make, for
//! one peer, one range, one direction, until a time. The serving side checks every request before a byte moves. When a
//! publication is released, or a region unregistered, operations under way are ended and late ones fail with `Fenced`.
//!
//! The frames on the wire are fixed in `docs/wire.md`.

mod ascend;
mod authority;
mod choice;
mod counters;
mod descriptors;
mod engine;
mod grant;
mod handshake;
mod identity;
mod link;
mod memory;
mod notification;
mod peer;
mod rdma;
mod settings;
mod shared;
mod shm;
mod tcp;
mod transfer;
pub mod wire;

#[cfg(test)]
mod tests;

pub use counters::{PeerCounters, Side};
pub use descriptors::reserve_descriptors;
pub use engine::TransferEngine;
pub use grant::{GRANT_BYTES, Grant, GrantRequest, Rights};
pub use identity::{EngineId, PublicationId, RegionId};
pub use memory::{Publication, Region};
pub use notification::{MAX_NOTIFICATION_BYTES, Notification};
pub use peer::Peer;
pub use settings::{EngineSettings, Secret, TlsSettings, TransportKind};
pub use shared::Responder;
pub use transfer::{Transfer, TransferEntry, TransferKind};
