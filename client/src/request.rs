//! What a caller asks of a load or a dump.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use kvstored_core::block::BlockHash;
use kvstored_core::tier::{Durability, NamespaceInfo};

use crate::copy::TensorAddress;

/// An open namespace.
#[derive(Clone, Debug)]
pub struct NamespaceHandle {
    pub(crate) info: Arc<NamespaceInfo>,
}

impl NamespaceHandle {
    /// Its digest, identity and layout.
    pub fn info(&self) -> &Arc<NamespaceInfo> {
        &self.info
    }
}

/// In which order a load fills engine memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LoadOrder {
    /// Block by block: the most throughput.
    #[default]
    BlockMajor,
    /// Shard by shard across all blocks: the first layers are there early.
    ShardMajor,
}

/// A load: store to engine memory.
#[derive(Clone, Debug)]
pub struct LoadRequest {
    /// A run of one prompt in prefix order.
    pub hashes: Vec<BlockHash>,
    /// Which shards of each block, by index in the layout.
    pub shards: Range<usize>,
    /// Where to: for each block, each shard of the range, each tensor of the shard, in one piece or several in a row.
    pub tensors: Vec<TensorAddress>,
    /// Which bytes first.
    pub order: LoadOrder,
    /// When to give up; the client's timeout without.
    pub timeout: Option<Duration>,
}

/// A dump: engine memory to store.
#[derive(Clone, Debug)]
pub struct DumpRequest {
    /// A run of one prompt in prefix order.
    pub hashes: Vec<BlockHash>,
    /// The block before the run, if known.
    pub parent: Option<BlockHash>,
    /// Where from: for each block, each shard, each tensor of the shard, in one piece or several in a row.
    pub tensors: Vec<TensorAddress>,
    /// When a block counts as dumped.
    pub durability: Durability,
    /// When to give up; the client's timeout without.
    pub timeout: Option<Duration>,
}
