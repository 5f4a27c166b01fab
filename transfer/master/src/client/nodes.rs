//! What nodes that lend memory say.

use std::time::{Duration, Instant};

use kvstored_core::Result;

use super::MasterClient;
use super::calls::Patience;
use crate::types::{Holding, Lender, MAX_ITEMS, Mounted, Moves, NodeId, Orders};
use crate::wire::{self, id_bytes, millis, proto};

/// Bytes of keys in one part of an announcement.
const PART_BYTES: usize = 1 << 20;

impl MasterClient {
    /// A node lends memory. Nothing is placed there before it has announced what it holds.
    ///
    /// Fails with `Fenced` when the node obeys a later master than the one that answers.
    pub async fn mount(&self, lender: &Lender, deadline: Instant) -> Result<Mounted> {
        let answer = self
            .calls
            .call(
                wire::from_lender(lender),
                always(deadline),
                |mut client, request| async move { client.mount(request).await },
            )
            .await?;
        wire::to_mounted(&answer)
    }

    /// A node that obeys the master with that epoch announces everything that it holds.
    ///
    /// Fails with `Fenced` or `NotFound` when it must mount again, and with `InvalidInput` for what can't be true.
    pub async fn announce(
        &self,
        node: &NodeId,
        epoch: u64,
        holdings: &[Holding],
        deadline: Instant,
    ) -> Result<()> {
        let mut left = holdings;
        loop {
            let mut bytes = 0;
            let fitting = left.iter().take(MAX_ITEMS).take_while(|holding| {
                bytes += holding.key.len();
                bytes <= PART_BYTES
            });
            let count = fitting.count();
            let (part, rest) = left.split_at(count);
            let message = proto::AnnounceRequest {
                node: id_bytes(node),
                master_epoch: epoch,
                holdings: part.iter().map(wire::from_holding).collect(),
                last: rest.is_empty(),
            };
            self.calls
                .call(message, always(deadline), |mut client, request| async move {
                    client.announce(request).await
                })
                .await?;
            left = rest;
            if left.is_empty() {
                return Ok(());
            }
        }
    }

    /// A node shows that it's alive, confirms ranges as free, and takes orders: at once if there are any, else when there
    /// are or after `wait`.
    pub async fn heartbeat(
        &self,
        node: &NodeId,
        epoch: u64,
        released: &[u64],
        wait: Duration,
        deadline: Instant,
    ) -> Result<Orders> {
        let message = proto::HeartbeatRequest {
            node: id_bytes(node),
            master_epoch: epoch,
            released: released.to_vec(),
            wait_ms: millis(wait),
        };
        let patience = Patience {
            wait,
            ..always(deadline)
        };
        let answer = self
            .calls
            .call(message, patience, |mut client, request| async move {
                client.heartbeat(request).await
            })
            .await?;
        Ok(wire::to_orders(answer))
    }

    /// What a node that is being emptied is to copy where. Fails with `NotFound` when it must mount again.
    pub async fn start_moves(
        &self,
        node: &NodeId,
        epoch: u64,
        avoid: &[NodeId],
        deadline: Instant,
    ) -> Result<Moves> {
        let message = proto::MoveStartRequest {
            node: id_bytes(node),
            master_epoch: epoch,
            avoid: avoid.iter().map(id_bytes).collect(),
        };
        let answer = self
            .calls
            .call(message, always(deadline), |mut client, request| async move {
                client.move_start(request).await
            })
            .await?;
        wire::to_moves(answer)
    }

    /// A node takes its memory back.
    pub async fn unmount(&self, node: &NodeId, deadline: Instant) -> Result<()> {
        let message = proto::UnmountRequest { node: id_bytes(node) };
        self.calls
            .call(message, always(deadline), |mut client, request| async move {
                client.unmount(request).await
            })
            .await?;
        Ok(())
    }
}

/// Nodes ask even when no master answered lately.
fn always(deadline: Instant) -> Patience {
    Patience {
        always: true,
        ..Patience::until(deadline)
    }
}
