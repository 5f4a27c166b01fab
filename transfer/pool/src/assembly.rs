//! From settings to a pool's client: engine, master, lent memory.

use std::sync::Arc;

use kvstored_core::{Result, Runtime};
use kvstored_transfer::{EngineSettings, TransferEngine};

use crate::client::PoolClient;
use crate::directory::Directory;
use crate::node::StorageNode;
use crate::settings::{ClientSettings, NodeSettings};

/// How a process takes part in a pool. Plain data.
#[derive(Clone, Debug, Default)]
pub struct Membership {
    /// The transfer engine; it must listen where memory is lent.
    pub engine: EngineSettings,
    /// The memory to lend; none where its segment has no bytes.
    pub node: NodeSettings,
    /// The client.
    pub client: ClientSettings,
}

impl Membership {
    /// Starts the engine and, where memory is lent, the node; both outlive the master, so neither waits for it.
    pub fn join(self, directory: Arc<dyn Directory>, runtime: Runtime) -> Result<Arc<PoolClient>> {
        let engine = TransferEngine::start(self.engine, runtime.clone())?;
        let node = if self.node.segment_bytes > 0 {
            let (engine, directory) = (engine.clone(), directory.clone());
            Some(StorageNode::start(self.node, engine, directory, runtime.clone())?)
        } else {
            None
        };
        Ok(PoolClient::new(self.client, engine, directory, node, runtime))
    }
}
