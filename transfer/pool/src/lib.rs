//! Pooled memory of several nodes as a store and as a tier.
//!
//! A [`StorageNode`] lends memory and alone decides who touches it. A [`PoolClient`] puts objects into the pool and gets
//! them by key, asking a master (any [`Directory`]) where they are and the nodes for the right to read or write; bytes
//! move by one-sided transfers straight from and into registered memory, and every get verifies the checksum that the
//! put published. A [`PoolTier`] makes a pipeline's level of it.
//!
//! The rules of the hand-off, and what each of them prevents, are those of the model in `tests/model`.

mod assembly;
mod client;
mod directory;
mod master;
mod memory;
mod node;
mod settings;
#[cfg(test)]
mod tests;
mod tier;
pub mod wire;

pub use assembly::Membership;
pub use client::{ClientStatistics, GetRequest, PoolClient, PutRequest};
pub use directory::Directory;
pub use kvstored_master::{NodeId, PutOptions, whole_key};
pub use master::MasterDirectory;
pub use memory::Piece;
pub use node::{NodeStatistics, StorageNode};
pub use settings::{ClientSettings, NodeSettings};
pub use tier::{PoolTier, TierSettings};
