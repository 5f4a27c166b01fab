//! Between the plain types and the generated messages. Whatever comes from outside is checked here or by the state machine.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kvstored_core::{Error, Result};
use prost::bytes::Bytes;

use super::moves::{from_progress, to_progress};
use super::proto;
use crate::types::{
    Found, Holding, HoldingState, Lender, Location, Mounted, NodeId, NodeStatus, ObjectPage, ObjectStatus,
    Orders, Status, TenantStatus, Ticket, TokenKey,
};

/// A node's identity. Fails with `InvalidInput`.
pub(crate) fn node_id(bytes: &[u8]) -> Result<NodeId> {
    let wrong = |_| Error::invalid(format!("a node's identity of {} bytes, not 16", bytes.len()));
    bytes.try_into().map_err(wrong)
}

/// Bytes of an identity.
pub(crate) fn id_bytes(id: &NodeId) -> Bytes {
    Bytes::copy_from_slice(id)
}

/// Milliseconds that fit the wire.
pub(crate) fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

/// Each node once, however many locations name it.
#[derive(Default)]
pub(crate) struct NodeTable {
    nodes: Vec<proto::NodeAddress>,
    by_id: HashMap<NodeId, u32>,
}

impl NodeTable {
    /// Locations of what that put wrote, or copies of it.
    pub fn locations(&mut self, locations: Vec<Location>, put: u64) -> Vec<proto::Location> {
        let one = |location: Location| proto::Location {
            node: self.number(&location),
            offset: location.offset,
            token: Bytes::from(location.token.into_vec()),
            put: if location.put == put { 0 } else { location.put },
        };
        locations.into_iter().map(one).collect()
    }

    pub fn ticket(&mut self, ticket: Ticket) -> proto::Ticket {
        proto::Ticket {
            put: ticket.put,
            locations: self.locations(ticket.locations, ticket.put),
        }
    }

    pub fn into_nodes(self) -> Vec<proto::NodeAddress> {
        self.nodes
    }

    fn number(&mut self, location: &Location) -> u32 {
        if let Some(number) = self.by_id.get(&location.node) {
            return *number;
        }
        let number = self.nodes.len() as u32;
        self.nodes.push(proto::NodeAddress {
            node: id_bytes(&location.node),
            control: location.control.to_string(),
            engine: location.engine.to_string(),
        });
        self.by_id.insert(location.node, number);
        number
    }
}

/// The nodes of an answer, for making locations.
pub(crate) struct Nodes(Vec<(NodeId, Arc<str>, Arc<str>)>);

impl Nodes {
    pub fn new(nodes: Vec<proto::NodeAddress>) -> Result<Self> {
        let one = |node: proto::NodeAddress| {
            let (control, engine) = (node.control.into(), node.engine.into());
            Ok((node_id(&node.node)?, control, engine))
        };
        Ok(Self(nodes.into_iter().map(one).collect::<Result<_>>()?))
    }

    fn locations(&self, locations: Vec<proto::Location>, put: u64) -> Result<Vec<Location>> {
        let one = |location: proto::Location| {
            let (node, control, engine) = self
                .0
                .get(location.node as usize)
                .ok_or_else(|| Error::internal("a location on a node that the answer doesn't name"))?;
            Ok(Location {
                node: *node,
                control: control.clone(),
                engine: engine.clone(),
                put: if location.put == 0 { put } else { location.put },
                offset: location.offset,
                token: location.token.as_ref().into(),
            })
        };
        locations.into_iter().map(one).collect()
    }

    pub fn ticket(&self, ticket: proto::Ticket) -> Result<Ticket> {
        Ok(Ticket {
            put: ticket.put,
            locations: self.locations(ticket.locations, ticket.put)?,
        })
    }

    pub fn found(&self, found: proto::Found) -> Result<Found> {
        Ok(Found {
            put: found.put,
            length: found.length,
            checksum: found.checksum,
            lease: Duration::from_millis(u64::from(found.lease_ms)),
            locations: self.locations(found.locations, found.put)?,
            stale: false,
        })
    }
}

pub(crate) fn from_lender(lender: &Lender) -> proto::MountRequest {
    proto::MountRequest {
        node: id_bytes(&lender.node),
        name: lender.name.clone(),
        control: lender.control.clone(),
        engine: lender.engine.clone(),
        segment_bytes: lender.segment_bytes,
        obeyed_epoch: lender.obeyed_epoch,
        highest_put: lender.highest_put,
        draining: lender.draining,
    }
}

pub(crate) fn to_lender(request: proto::MountRequest) -> Result<Lender> {
    Ok(Lender {
        node: node_id(&request.node)?,
        name: request.name,
        control: request.control,
        engine: request.engine,
        segment_bytes: request.segment_bytes,
        obeyed_epoch: request.obeyed_epoch,
        highest_put: request.highest_put,
        draining: request.draining,
    })
}

pub(crate) fn from_mounted(mounted: &Mounted) -> proto::MountResponse {
    proto::MountResponse {
        master_epoch: mounted.epoch,
        token_key: Bytes::copy_from_slice(mounted.token_key.expose()),
        ttl_ms: millis(mounted.ttl),
    }
}

pub(crate) fn to_mounted(response: &proto::MountResponse) -> Result<Mounted> {
    let key: [u8; 32] = response
        .token_key
        .as_ref()
        .try_into()
        .map_err(|_| Error::internal("a token key that isn't 32 bytes"))?;
    Ok(Mounted {
        epoch: response.master_epoch,
        token_key: TokenKey::from_bytes(key),
        ttl: Duration::from_millis(u64::from(response.ttl_ms)),
    })
}

pub(crate) fn from_holding(holding: &Holding) -> proto::Holding {
    let state = match holding.state {
        HoldingState::Open => proto::HoldingState::Open,
        HoldingState::Sealed => proto::HoldingState::Sealed,
        HoldingState::Releasing => proto::HoldingState::Releasing,
    };
    proto::Holding {
        key: Bytes::copy_from_slice(&holding.key),
        put: holding.put,
        offset: holding.offset,
        length: holding.length,
        checksum: holding.checksum,
        state: state.into(),
    }
}

pub(crate) fn to_holding(holding: proto::Holding) -> Result<Holding> {
    let state = match proto::HoldingState::try_from(holding.state) {
        Ok(proto::HoldingState::Open) => HoldingState::Open,
        Ok(proto::HoldingState::Sealed) => HoldingState::Sealed,
        Ok(proto::HoldingState::Releasing) => HoldingState::Releasing,
        Err(_) => return Err(Error::invalid(format!("a holding's state {}", holding.state))),
    };
    Ok(Holding {
        key: holding.key.as_ref().into(),
        put: holding.put,
        offset: holding.offset,
        length: holding.length,
        checksum: holding.checksum,
        state,
    })
}

pub(crate) fn from_orders(orders: Orders) -> proto::HeartbeatResponse {
    proto::HeartbeatResponse {
        master_epoch: orders.master_epoch,
        announce: orders.announce,
        release: orders.release,
        draining: orders.draining,
    }
}

pub(crate) fn to_orders(response: proto::HeartbeatResponse) -> Orders {
    Orders {
        master_epoch: response.master_epoch,
        announce: response.announce,
        release: response.release,
        draining: response.draining,
    }
}

pub(crate) fn from_status_numbers(status: Status) -> proto::StatusResponse {
    proto::StatusResponse {
        leader: status.leader,
        leader_address: status.leader_address,
        epoch: status.epoch,
        recovering: status.recovering,
        nodes: status.nodes,
        objects: status.objects,
        pending_puts: status.pending_puts,
        capacity_bytes: status.capacity_bytes,
        used_bytes: status.used_bytes,
        quarantined_bytes: status.quarantined_bytes,
        tenants: status
            .tenants
            .into_iter()
            .map(|tenant| proto::Tenant {
                name: tenant.name,
                used_bytes: tenant.used_bytes,
                objects: tenant.objects,
                quota_bytes: tenant.quota_bytes,
            })
            .collect(),
        counters: status
            .counters
            .into_iter()
            .map(|(name, value)| proto::Counter { name, value })
            .collect(),
    }
}

pub(crate) fn to_status_numbers(response: proto::StatusResponse) -> Status {
    Status {
        leader: response.leader,
        leader_address: response.leader_address,
        epoch: response.epoch,
        recovering: response.recovering,
        nodes: response.nodes,
        objects: response.objects,
        pending_puts: response.pending_puts,
        capacity_bytes: response.capacity_bytes,
        used_bytes: response.used_bytes,
        quarantined_bytes: response.quarantined_bytes,
        tenants: response
            .tenants
            .into_iter()
            .map(|tenant| TenantStatus {
                name: tenant.name,
                used_bytes: tenant.used_bytes,
                objects: tenant.objects,
                quota_bytes: tenant.quota_bytes,
            })
            .collect(),
        counters: response
            .counters
            .into_iter()
            .map(|counter| (counter.name, counter.value))
            .collect(),
    }
}

pub(crate) fn from_node_status(node: NodeStatus, id: &NodeId) -> proto::NodeStatus {
    proto::NodeStatus {
        node: id_bytes(id),
        name: node.name,
        control: node.control,
        engine: node.engine,
        state: node.state,
        segment_bytes: node.segment_bytes,
        used_bytes: node.used_bytes,
        quarantined_bytes: node.quarantined_bytes,
        replicas: node.replicas,
        silent_ms: node.silent_ms,
        drain: node.drain.map(from_progress),
    }
}

pub(crate) fn to_node_status(node: proto::NodeStatus) -> Result<NodeStatus> {
    Ok(NodeStatus {
        node: crate::types::node_name(&node_id(&node.node)?),
        name: node.name,
        control: node.control,
        engine: node.engine,
        state: node.state,
        segment_bytes: node.segment_bytes,
        used_bytes: node.used_bytes,
        quarantined_bytes: node.quarantined_bytes,
        replicas: node.replicas,
        silent_ms: node.silent_ms,
        drain: node.drain.map(to_progress),
    })
}

pub(crate) fn from_page(page: ObjectPage) -> proto::ListObjectsResponse {
    let one = |object: ObjectStatus| proto::ObjectStatus {
        key: Bytes::from(object.key.into_vec()),
        put: object.put,
        length: object.length,
        complete: object.complete,
        lease_ms: millis(object.lease),
        pin_ms: millis(object.pin),
        nodes: object.nodes.iter().map(id_bytes).collect(),
    };
    proto::ListObjectsResponse {
        objects: page.objects.into_iter().map(one).collect(),
        next: page.next,
    }
}

pub(crate) fn to_page(response: proto::ListObjectsResponse) -> Result<ObjectPage> {
    let one = |object: proto::ObjectStatus| {
        Ok(ObjectStatus {
            key: object.key.as_ref().into(),
            put: object.put,
            length: object.length,
            complete: object.complete,
            lease: Duration::from_millis(u64::from(object.lease_ms)),
            pin: Duration::from_millis(u64::from(object.pin_ms)),
            nodes: object.nodes.iter().map(|id| node_id(id)).collect::<Result<_>>()?,
        })
    };
    Ok(ObjectPage {
        objects: response.objects.into_iter().map(one).collect::<Result<_>>()?,
        next: response.next,
    })
}
