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
        let answer = self
            .calls
            .call(
                proto::ListNodesRequest {},
                Patience::until(deadline),
                |mut client, request| async move { client.list_nodes(request).await },
            )
            .await?;
        answer.nodes.into_iter().map(wire::to_node_status).collect()
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

    /// Empties a node: nothing more is placed there, and replicas go that have copies elsewhere; with `evict`, all go as
    /// their leases and pins run out. `undo` ends it. Fails with `NotFound`.
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
        Ok(Drained {
            replicas: answer.replicas,
            used_bytes: answer.used_bytes,
        })
    }
}
