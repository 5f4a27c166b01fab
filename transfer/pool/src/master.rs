//! A real master as a [`Directory`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvstored_core::{Result, Runtime};
use kvstored_master::client::ClientSettings;
use kvstored_master::client::blocking::MasterClient;
use kvstored_master::{
    Drained, Finished, Found, Holding, Lender, Location, Mounted, Moves, NewObject, NodeId, NodeStatus,
    ObjectPage, Orders, PutOptions, Ticket,
};

use crate::directory::Directory;

/// Asks a master, or whichever of several leads.
pub struct MasterDirectory {
    client: MasterClient,
    /// For what a node says and waits for: a call that waits long would have the others wait for its thread.
    node_side: MasterClient,
}

impl MasterDirectory {
    /// Connects when it's first asked. What it remembers of objects is the pool's own part, so the client below keeps
    /// nothing.
    pub fn new(settings: ClientSettings, runtime: Runtime) -> Result<Arc<Self>> {
        let settings = ClientSettings {
            known_objects: 0,
            ..settings
        };
        Ok(Arc::new(Self {
            node_side: MasterClient::new(settings.clone(), runtime.clone())?,
            client: MasterClient::new(settings, runtime)?,
        }))
    }
}

impl Directory for MasterDirectory {
    fn start_puts(
        &self,
        puts: &[NewObject<'_>],
        options: &PutOptions,
        deadline: Instant,
    ) -> Result<Vec<Result<Ticket>>> {
        self.client.start_puts(puts, options, deadline)
    }

    fn end_puts(&self, puts: &[Finished<'_>], deadline: Instant) -> Result<Vec<Result<()>>> {
        self.client.end_puts(puts, deadline)
    }

    fn revoke_puts(&self, puts: &[(&[u8], u64)], deadline: Instant) -> Result<()> {
        self.client.revoke_puts(puts, deadline)
    }

    fn locate(&self, keys: &[&[u8]], deadline: Instant) -> Result<Vec<Result<Found>>> {
        self.client.locate(keys, deadline)
    }

    fn exist(&self, keys: &[&[u8]], deadline: Instant) -> Result<Vec<Option<Duration>>> {
        self.client.exist(keys, true, deadline)
    }

    fn remove(&self, keys: &[&[u8]], force: bool, deadline: Instant) -> Result<Vec<Result<()>>> {
        self.client.remove(keys, force, deadline)
    }

    fn remove_all(&self, tenant: Option<&str>, force: bool, deadline: Instant) -> Result<u64> {
        self.client.remove_all(tenant, force, deadline)
    }

    fn list(&self, after: u64, limit: u32, deadline: Instant) -> Result<ObjectPage> {
        self.client.objects(after, limit, None, deadline)
    }

    fn nodes(&self, deadline: Instant) -> Result<(Vec<Location>, bool)> {
        let (nodes, all) = self.client.known_nodes(deadline)?;
        Ok((nodes.iter().filter_map(location_of).collect(), all))
    }

    fn ping(&self, deadline: Instant) -> Result<()> {
        self.client.status(deadline).map(drop)
    }

    fn mount(&self, lender: &Lender, deadline: Instant) -> Result<Mounted> {
        self.node_side.mount(lender, deadline)
    }

    fn announce(&self, node: &NodeId, epoch: u64, holdings: &[Holding], deadline: Instant) -> Result<()> {
        self.node_side.announce(node, epoch, holdings, deadline)
    }

    fn heartbeat(
        &self,
        node: &NodeId,
        epoch: u64,
        released: &[u64],
        wait: Duration,
        deadline: Instant,
    ) -> Result<Orders> {
        self.node_side.heartbeat(node, epoch, released, wait, deadline)
    }

    fn start_moves(&self, node: &NodeId, epoch: u64, avoid: &[NodeId], deadline: Instant) -> Result<Moves> {
        self.client.start_moves(node, epoch, avoid, deadline)
    }

    fn drain(&self, node: &NodeId, deadline: Instant) -> Result<Drained> {
        self.client.drain(node, false, false, deadline)
    }

    fn unmount(&self, node: &NodeId, deadline: Instant) -> Result<()> {
        self.node_side.unmount(node, deadline)
    }
}

/// How to reach a node; `None` for one without a proper name.
fn location_of(status: &NodeStatus) -> Option<Location> {
    let digits = status.node.as_bytes();
    let mut node = NodeId::default();
    if digits.len() != 2 * node.len() {
        return None;
    }
    for (byte, pair) in node.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(Location {
        node,
        control: status.control.as_str().into(),
        engine: status.engine.as_str().into(),
        put: 0,
        offset: 0,
        token: Box::default(),
    })
}
