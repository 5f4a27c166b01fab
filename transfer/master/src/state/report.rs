//! What operators see.

use std::time::Instant;

use super::State;
use super::node::Phase;
use crate::types::{NodeId, NodeStatus, ObjectPage, ObjectStatus, Status, TenantStatus, node_name};

/// Slots that one page looks at, so that no call takes long.
const PAGE_SLOTS: usize = 65_536;

impl State {
    /// The numbers. The caller adds who leads.
    pub fn status(&self, now: Instant) -> Status {
        let complete = self.objects.complete();
        Status {
            leader: true,
            leader_address: String::new(),
            epoch: self.epoch,
            recovering: self.is_recovering(now),
            nodes: self.by_id.len() as u64,
            objects: complete,
            pending_puts: self.objects.len() as u64 - complete,
            capacity_bytes: self.capacity_bytes,
            used_bytes: self.used_bytes,
            quarantined_bytes: self.quarantined_bytes,
            tenants: self
                .tenants
                .iter()
                .map(|(_, tenant)| tenant_status(tenant))
                .collect(),
            counters: self
                .counters
                .list()
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
        }
    }

    /// The nodes, each with its identity.
    pub fn node_statuses(&self, now: Instant) -> Vec<(NodeId, NodeStatus)> {
        let present = self
            .nodes
            .iter()
            .flatten()
            .filter(|node| node.phase != Phase::Gone);
        present
            .map(|node| {
                let status = NodeStatus {
                    node: node_name(&node.id),
                    name: node.name.clone(),
                    control: node.control.to_string(),
                    engine: node.engine.to_string(),
                    state: node.state_name().to_owned(),
                    segment_bytes: node.capacity,
                    used_bytes: node.used_bytes(),
                    quarantined_bytes: node.quarantined_bytes,
                    replicas: node.puts.len() as u64,
                    silent_ms: now.saturating_duration_since(node.last_seen).as_millis() as u64,
                    drain: node.draining.map(|_| node.progress()),
                };
                (node.id, status)
            })
            .collect()
    }

    /// A page of objects, from a position on that begins at 0. Those that come and go meanwhile may be missing.
    pub fn list(&self, after: u64, limit: usize, tenant: Option<&str>, now: Instant) -> ObjectPage {
        let only = tenant.map(|name| self.tenants.find(name));
        let mut page = ObjectPage::default();
        let slots = self.objects.slots();
        let mut slot = usize::try_from(after).unwrap_or(usize::MAX);
        let end = slots.min(slot.saturating_add(PAGE_SLOTS));
        while slot < end && page.objects.len() < limit {
            let object = self.objects.get(slot as u32);
            slot += 1;
            let Some(object) = object.filter(|object| only.is_none_or(|one| one == Some(object.tenant)))
            else {
                continue;
            };
            let readable = object.replicas.iter().filter(|replica| !replica.arrives());
            let nodes = readable.filter_map(|replica| self.node(replica.node));
            page.objects.push(ObjectStatus {
                key: object.key.as_ref().into(),
                put: object.put,
                length: object.length,
                complete: object.is_complete(),
                lease: object.lease_until.saturating_duration_since(now),
                pin: object
                    .pin_until
                    .map(|until| until.saturating_duration_since(now))
                    .unwrap_or_default(),
                nodes: nodes.map(|node| node.id).collect(),
            });
        }
        if slot < slots {
            page.next = slot as u64;
        }
        page
    }
}

fn tenant_status(tenant: &super::tenants::Tenant) -> TenantStatus {
    TenantStatus {
        name: tenant.name.to_string(),
        used_bytes: tenant.used_bytes,
        objects: tenant.objects,
        quota_bytes: tenant.quota.unwrap_or(0),
    }
}
