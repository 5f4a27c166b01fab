//! The generated messages, what they stand for, and how they go outside of gRPC.

mod convert;
mod errors;
#[allow(clippy::all, clippy::pedantic, missing_docs, unreachable_pub)]
#[path = "../generated/etcdserverpb.rs"]
pub(crate) mod etcd;
pub(crate) mod lane;
mod moves;
#[allow(clippy::all, clippy::pedantic, missing_docs, unreachable_pub)]
#[path = "../generated/kvstored.master.v1.rs"]
pub(crate) mod proto;

pub(crate) use convert::*;
pub(crate) use errors::*;
pub(crate) use moves::{from_drained, from_moves, to_drained, to_moves};

/// The largest message that is taken.
pub(crate) const MAX_MESSAGE_BYTES: usize = 8 << 20;
