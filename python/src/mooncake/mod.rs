//! What stands below the package `kvstored.mooncake`: a transfer engine that is asked by addresses, and a pool's member.

mod codes;
mod counters;
mod engine;
mod member;
mod memory;
mod numbers;
mod objects;
mod peers;
mod staging;
mod store;
mod transfers;

pub use engine::TransferEngine;
pub use store::PoolStore;
