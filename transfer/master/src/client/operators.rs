//! What operators ask for.

use std::time::Instant;

use kvstored_core::Result;

use super::MasterClient;
use super::calls::Patience;
use crate::types::{Drained, NodeId, NodeStatus, ObjectPage};
use crate::wire::{self, id_bytes, proto};

impl MasterClient {
    /// The nodes.
    pub async fn nodes(&self, deadline: Instant) -> Result<Vec<NodeStatus>> {
        let (nodes, _) = self.known_nodes(deadline).await?;
        Ok(nodes)
    }

    /// The nodes, and whether those are all: a master that has just begun to lead learns of them one by one.
    pub async fn known_nodes(&self, deadline: Instant) -> Result<(Vec<NodeStatus>, bool)> {
        let answer = self
            .calls
            .call(
                proto::ListNodesRequest {},
                Patience::until(deadline),
                |mut client, request| async move { client.list_nodes(request).await },
            )
            .await?;
        let nodes = answer.nodes.into_iter().map(wire::to_node_status);
        Ok((nodes.collect::<Result<_>>()?, !answer.recovering))
    }

    /// A page of objects, from a position on that begins at 0.
    pub async fn objects(
        &self,
        after: u64,
        limit: u32,
        tenant: Option<&str>,
        deadline: Instant,
    ) -> Result<ObjectPage> {
        let message = proto::ListObjectsRequest {
            after,
            limit,
            tenant: tenant.map(str::to_owned),
        };
        let answer = self
            .calls
            .call(
                message,
                Patience::until(deadline),
                |mut client, request| async move { client.list_objects(request).await },
            )
            .await?;
        wire::to_page(answer)
    }

    /// Empties a node: nothing more is placed there, and it copies what it holds to others; with `evict` nothing is copied,
    /// and all goes as leases and pins run out. `undo` ends it. Fails with `NotFound`.
    pub async fn drain(&self, node: &NodeId, evict: bool, undo: bool, deadline: Instant) -> Result<Drained> {
        let message = proto::DrainRequest {
            node: id_bytes(node),
            evict,
            undo,
        };
        let answer = self
            .calls
            .call(
                message,
                Patience::until(deadline),
                |mut client, request| async move { client.drain(request).await },
            )
            .await?;
        Ok(wire::to_drained(answer))
    }
}
