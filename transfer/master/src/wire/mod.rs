//! The generated messages, what they stand for, and how they go outside of gRPC.

mod convert;
mod errors;
#[allow(clippy::all, clippy::pedantic, missing_docs, unreachable_pub)]
#[path = "../generated/etcdserverpb.rs"]
pub(crate) mod etcd;
pub(crate) mod lane;
#[allow(clippy::all, clippy::pedantic, missing_docs, unreachable_pub)]
#[path = "../generated/kvstored.master.v1.rs"]
pub(crate) mod proto;

pub(crate) use convert::*;
pub(crate) use errors::*;

/// The largest message that is taken.
pub(crate) const MAX_MESSAGE_BYTES: usize = 8 << 20;
