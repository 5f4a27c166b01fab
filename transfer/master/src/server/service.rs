//! The service: what gRPC and the fast lane ask for.

use std::sync::Arc;
use std::time::Duration;

use kvstored_core::Result;
use tokio::sync::{Semaphore, SemaphorePermit};
use tonic::{Request, Response, Status};

use super::core::{Core, Refusal};
use super::objects;
use crate::types::{Holding, NodeId};
use crate::wire::proto::master_server::Master;
use crate::wire::{self, node_id, proto};

/// The longest that a heartbeat waits for orders.
const MAX_HEARTBEAT_WAIT: Duration = Duration::from_secs(30);
/// Heartbeats that wait at once.
const MAX_HEARTBEATS: usize = 16_384;
/// Most objects of a page.
const MAX_PAGE: usize = 4096;

pub(crate) struct Service {
    core: Arc<Core>,
    calls: Semaphore,
    heartbeats: Semaphore,
}

type Answer<T> = Result<Response<T>, Status>;

impl Service {
    pub fn new(core: Arc<Core>, max_calls: usize) -> Self {
        Self {
            core,
            calls: Semaphore::new(max_calls),
            heartbeats: Semaphore::new(MAX_HEARTBEATS),
        }
    }

    /// A place among the calls that are worked on. Calls that wait longer than their deadline are dropped by then.
    async fn place(&self) -> Result<SemaphorePermit<'_>, Refusal> {
        // closed only when the master stops
        self.calls.acquire().await.map_err(|_| Refusal::NotLeader(None))
    }

    pub(super) async fn start_puts(
        &self,
        request: proto::PutStartRequest,
    ) -> Result<proto::PutStartResponse, Refusal> {
        // a call that waits for room must not keep others out that make it
        drop(self.place().await?);
        objects::put_start(&self.core, request).await
    }

    pub(super) async fn end_puts(
        &self,
        request: &proto::PutEndRequest,
    ) -> Result<proto::PutEndResponse, Refusal> {
        let _place = self.place().await?;
        objects::put_end(&self.core, request)
    }

    pub(super) async fn locate(&self, request: &proto::GetRequest) -> Result<proto::GetResponse, Refusal> {
        let _place = self.place().await?;
        objects::get(&self.core, request)
    }

    pub(super) async fn look(&self, request: &proto::ExistRequest) -> Result<proto::ExistResponse, Refusal> {
        let _place = self.place().await?;
        objects::exist(&self.core, request)
    }
}

fn answer<T>(outcome: Result<T, Refusal>) -> Answer<T> {
    match outcome {
        Ok(answer) => Ok(Response::new(answer)),
        Err(Refusal::Failed(error)) => Err(wire::to_status(&error)),
        Err(Refusal::NotLeader(leader)) => Err(wire::not_leader(leader.as_deref())),
    }
}

/// No call gets a place any more.
fn stopping(_: Refusal) -> Status {
    wire::not_leader(None)
}

fn named(bytes: &[u8]) -> Result<NodeId, Status> {
    node_id(bytes).map_err(|error| wire::to_status(&error))
}

#[tonic::async_trait]
impl Master for Service {
    async fn put_start(&self, request: Request<proto::PutStartRequest>) -> Answer<proto::PutStartResponse> {
        answer(self.start_puts(request.into_inner()).await)
    }

    async fn put_end(&self, request: Request<proto::PutEndRequest>) -> Answer<proto::PutEndResponse> {
        answer(self.end_puts(request.get_ref()).await)
    }

    async fn put_revoke(
        &self,
        request: Request<proto::PutRevokeRequest>,
    ) -> Answer<proto::PutRevokeResponse> {
        let _place = self.place().await.map_err(stopping)?;
        answer(objects::put_revoke(&self.core, request.get_ref()))
    }

    async fn get(&self, request: Request<proto::GetRequest>) -> Answer<proto::GetResponse> {
        answer(self.locate(request.get_ref()).await)
    }

    async fn exist(&self, request: Request<proto::ExistRequest>) -> Answer<proto::ExistResponse> {
        answer(self.look(request.get_ref()).await)
    }

    async fn remove(&self, request: Request<proto::RemoveRequest>) -> Answer<proto::RemoveResponse> {
        drop(self.place().await.map_err(stopping)?);
        answer(objects::remove(&self.core, request.into_inner()).await)
    }

    async fn remove_all(
        &self,
        request: Request<proto::RemoveAllRequest>,
    ) -> Answer<proto::RemoveAllResponse> {
        drop(self.place().await.map_err(stopping)?);
        answer(objects::remove_all_and_wait(&self.core, request.into_inner()).await)
    }

    async fn mount(&self, request: Request<proto::MountRequest>) -> Answer<proto::MountResponse> {
        let _place = self.place().await.map_err(stopping)?;
        let lender = wire::to_lender(request.into_inner()).map_err(|error| wire::to_status(&error))?;
        answer(
            self.core
                .mount(&lender)
                .map(|mounted| wire::from_mounted(&mounted)),
        )
    }

    async fn announce(&self, request: Request<proto::AnnounceRequest>) -> Answer<proto::AnnounceResponse> {
        let _place = self.place().await.map_err(stopping)?;
        let request = request.into_inner();
        let checked = objects::check_batch(request.holdings.len()).and_then(|()| {
            request
                .holdings
                .into_iter()
                .map(wire::to_holding)
                .collect::<Result<Vec<Holding>>>()
        });
        let holdings = checked.map_err(|error| wire::to_status(&error))?;
        let node = named(&request.node)?;
        let outcome = self
            .core
            .with(|state, now| state.announce(&node, request.master_epoch, &holdings, request.last, now));
        answer(outcome.and_then(|done| done.map(|()| proto::AnnounceResponse {}).map_err(Refusal::from)))
    }

    async fn heartbeat(&self, request: Request<proto::HeartbeatRequest>) -> Answer<proto::HeartbeatResponse> {
        let request = request.into_inner();
        let node = named(&request.node)?;
        let Ok(_place) = self.heartbeats.try_acquire() else {
            return Err(Status::resource_exhausted(
                "as many nodes wait for orders as the master takes",
            ));
        };
        let wait = Duration::from_millis(u64::from(request.wait_ms)).min(MAX_HEARTBEAT_WAIT);
        let orders = self
            .core
            .heartbeat(node, request.master_epoch, &request.released, wait)
            .await;
        answer(orders.map(wire::from_orders))
    }

    async fn move_start(
        &self,
        request: Request<proto::MoveStartRequest>,
    ) -> Answer<proto::MoveStartResponse> {
        let _place = self.place().await.map_err(stopping)?;
        let request = request.get_ref();
        let node = named(&request.node)?;
        let avoid = objects::check_batch(request.avoid.len()).and_then(|()| {
            let avoid = request.avoid.iter().map(|id| node_id(id));
            avoid.collect::<Result<Vec<NodeId>>>()
        });
        let avoid = avoid.map_err(|error| wire::to_status(&error))?;
        let moves = self
            .core
            .with(|state, now| state.start_moves(&node, request.master_epoch, &avoid, now));
        answer(moves.and_then(|moves| Ok(wire::from_moves(moves?))))
    }

    async fn unmount(&self, request: Request<proto::UnmountRequest>) -> Answer<proto::UnmountResponse> {
        let _place = self.place().await.map_err(stopping)?;
        let node = named(&request.get_ref().node)?;
        let done = self.core.with(|state, now| state.unmount(&node, now));
        answer(done.map(|()| proto::UnmountResponse {}))
    }

    async fn status(&self, _: Request<proto::StatusRequest>) -> Answer<proto::StatusResponse> {
        Ok(Response::new(wire::from_status_numbers(self.core.status())))
    }

    async fn list_nodes(&self, _: Request<proto::ListNodesRequest>) -> Answer<proto::ListNodesResponse> {
        let _place = self.place().await.map_err(stopping)?;
        let nodes = self
            .core
            .with(|state, now| (state.node_statuses(now), state.is_recovering(now)));
        answer(nodes.map(|(nodes, recovering)| {
            proto::ListNodesResponse {
                recovering,
                nodes: nodes
                    .into_iter()
                    .map(|(id, node)| wire::from_node_status(node, &id))
                    .collect(),
            }
        }))
    }

    async fn list_objects(
        &self,
        request: Request<proto::ListObjectsRequest>,
    ) -> Answer<proto::ListObjectsResponse> {
        let _place = self.place().await.map_err(stopping)?;
        let request = request.into_inner();
        let limit = (request.limit as usize).clamp(1, MAX_PAGE);
        let page = self
            .core
            .with(|state, now| state.list(request.after, limit, request.tenant.as_deref(), now));
        answer(page.map(wire::from_page))
    }

    async fn drain(&self, request: Request<proto::DrainRequest>) -> Answer<proto::DrainResponse> {
        let _place = self.place().await.map_err(stopping)?;
        let request = request.into_inner();
        let node = named(&request.node)?;
        let drained = self
            .core
            .with(|state, now| state.drain(&node, request.evict, request.undo, now));
        answer(drained.and_then(|done| Ok(wire::from_drained(done?))))
    }
}
