//! The store over the pool: objects by key, put from and got into registered memory without a copy in between.

mod copies;
mod finish;
mod get;
mod known;
mod locate;
mod peers;
mod put;
mod reads;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use kvstored_core::{Result, Runtime};
use kvstored_master::{Location, NodeId, PutOptions};
use kvstored_transfer::TransferEngine;
use parking_lot::Mutex;

use crate::directory::Directory;
use crate::memory::{Memory, Piece, Registry};
use crate::node::{Segment, StorageNode};
use crate::settings::ClientSettings;
pub(crate) use copies::CopyRequest;
use known::Known;
use peers::{Node, Nodes};

/// Keys in one question to the master.
const MOST_KEYS: usize = kvstored_master::MAX_ITEMS;

/// An object to put.
#[derive(Clone, Copy, Debug)]
pub struct PutRequest<'a> {
    /// Its whole key: see [`crate::whole_key`].
    pub key: &'a [u8],
    /// Its bytes, in order, in registered memory.
    pub pieces: &'a [Piece],
}

/// An object to get.
#[derive(Clone, Copy, Debug)]
pub struct GetRequest<'a> {
    /// Its whole key.
    pub key: &'a [u8],
    /// Where its bytes go, in order, in registered memory; may be longer than the object.
    pub pieces: &'a [Piece],
}

/// What a client has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientStatistics {
    /// Objects put.
    pub puts: u64,
    /// Bytes of them.
    pub put_bytes: u64,
    /// Objects got.
    pub gets: u64,
    /// Bytes of them.
    pub got_bytes: u64,
    /// Gets served from this process's own lent memory.
    pub local_gets: u64,
    /// Replicas that failed before another one served.
    pub failovers: u64,
    /// Replicas whose bytes failed verification.
    pub corrupt: u64,
    /// Existence answered without asking the master.
    pub remembered: u64,
}

#[derive(Default)]
struct Counters {
    puts: AtomicU64,
    put_bytes: AtomicU64,
    gets: AtomicU64,
    got_bytes: AtomicU64,
    local_gets: AtomicU64,
    failovers: AtomicU64,
    corrupt: AtomicU64,
    remembered: AtomicU64,
}

/// A client of the pool. All calls block until done or until their deadline; any thread may call. Keys are whole keys, with
/// the tenant that they belong to: see [`crate::whole_key`].
pub struct PoolClient {
    settings: ClientSettings,
    engine: Arc<TransferEngine>,
    directory: Arc<dyn Directory>,
    /// The memory that this very process lends, if it does.
    node: Option<Arc<StorageNode>>,
    registry: Registry,
    nodes: Nodes,
    known: Known,
    /// Until then a master that didn't answer isn't asked for what is known.
    master_away_until: Mutex<Option<Instant>>,
    counters: Counters,
    runtime: Runtime,
}

impl PoolClient {
    /// A client over an engine and a master; `node` is the memory that this process lends, which is preferred for its
    /// own puts.
    pub fn new(
        settings: ClientSettings,
        engine: Arc<TransferEngine>,
        directory: Arc<dyn Directory>,
        node: Option<Arc<StorageNode>>,
        runtime: Runtime,
    ) -> Arc<Self> {
        Arc::new(Self {
            registry: Registry::new(engine.clone()),
            nodes: Nodes::new(engine.clone(), runtime.clone(), settings.shun),
            known: Known::new(settings.known_objects),
            master_away_until: Mutex::default(),
            counters: Counters::default(),
            settings,
            engine,
            directory,
            node,
            runtime,
        })
    }

    /// Registers memory that objects are put from and got into.
    ///
    /// # Safety
    /// The bytes must stay valid for reads and writes until [`PoolClient::unregister`] has returned `Ok`. Nobody may
    /// write bytes while a put reads them, or use bytes while a get writes them.
    #[allow(unsafe_code)]
    pub unsafe fn register(&self, address: usize, length: usize) -> Result<()> {
        // SAFETY: the caller's promise is the one that is asked for.
        unsafe { self.registry.register(address, length) }
    }

    /// Allocates registered memory of this client's own.
    pub fn allocate(&self, length: usize) -> Result<Piece> {
        self.registry.allocate(length)
    }

    /// Ends a registration, or frees allocated memory; nothing touches it any more when this returns `Ok`. Fails with
    /// `NotFound`, and with `Busy` or `TimedOut` when a transfer couldn't be ended.
    pub fn unregister(&self, address: usize, deadline: Instant) -> Result<()> {
        self.registry.unregister(address, deadline)
    }

    /// Removes objects. `NotFound`, or `Busy` for one that somebody has leased unless forced.
    pub fn remove(&self, keys: &[&[u8]], force: bool, deadline: Instant) -> Result<Vec<Result<()>>> {
        for key in keys {
            self.known.forget(key);
        }
        let outcomes = self.directory.remove(keys, force, deadline)?;
        if let Some(node) = &self.node {
            let gone = keys.iter().zip(&outcomes).filter(|(_, outcome)| outcome.is_ok());
            let gone: Vec<&[u8]> = gone.map(|(key, _)| *key).collect();
            node.segment().hide(&gone);
        }
        Ok(outcomes)
    }

    /// Removes all objects of a tenant, or of all tenants, that nobody has leased; leased ones too if forced. Returns how
    /// many.
    pub fn remove_all(&self, tenant: Option<&str>, force: bool, deadline: Instant) -> Result<u64> {
        self.known.clear();
        let removed = self.directory.remove_all(tenant, force, deadline)?;
        if let Some(node) = &self.node {
            node.segment().hide_all();
        }
        Ok(removed)
    }

    /// Removes every object whose whole key is chosen, leased or not. Returns how many.
    pub fn remove_where(&self, choose: impl Fn(&[u8]) -> bool, deadline: Instant) -> Result<u64> {
        const PAGE: u32 = 1024;
        let (mut removed, mut after) = (0, 0);
        loop {
            let page = self.directory.list(after, PAGE, deadline)?;
            let objects = page.objects.iter().filter(|object| choose(&object.key));
            let keys: Vec<&[u8]> = objects.map(|object| &*object.key).collect();
            if !keys.is_empty() {
                let outcomes = self.remove(&keys, true, deadline)?;
                removed += outcomes.iter().filter(|outcome| outcome.is_ok()).count() as u64;
            }
            if page.next == 0 {
                return Ok(removed);
            }
            after = page.next;
        }
    }

    /// The nodes of the pool, and whether those are all.
    pub(crate) fn pool_nodes(&self, deadline: Instant) -> Result<(Vec<Location>, bool)> {
        self.directory.nodes(deadline)
    }

    /// Nodes that are passed over at the moment.
    pub(crate) fn shunned(&self) -> Vec<NodeId> {
        self.nodes.shunned()
    }

    /// Takes memory in that is registered with this client's engine already.
    pub(crate) fn adopt(&self, memory: Arc<Memory>) -> Result<()> {
        self.registry.adopt(memory)
    }

    /// One node of the pool.
    pub(crate) fn node_at(&self, location: &Location) -> Arc<Node> {
        self.nodes.get(location)
    }

    /// Whether the node failed just now.
    pub(crate) fn is_shunned(&self, location: &Location) -> bool {
        self.node_at(location).is_shunned(self.runtime.clock.now())
    }

    /// The memory of that node, if it's this process's own.
    pub(crate) fn own_segment(&self, node: &NodeId) -> Option<&Arc<Segment>> {
        let own = self.node.as_ref()?;
        (own.id() == *node).then(|| own.segment())
    }

    /// Forgets what it knows of objects.
    #[cfg(test)]
    pub(crate) fn forget_all(&self) {
        self.known.clear();
        if let Some(node) = &self.node {
            node.segment().hide_all();
        }
    }

    /// The engine's name of registered memory.
    #[cfg(test)]
    pub(crate) fn locate_memory(&self, piece: Piece) -> Result<(kvstored_transfer::RegionId, u64)> {
        self.registry.locate(piece)
    }

    /// Whether a master answers.
    pub fn ping(&self, deadline: Instant) -> Result<()> {
        self.directory.ping(deadline)
    }

    /// The memory that this process lends.
    pub fn node(&self) -> Option<&Arc<StorageNode>> {
        self.node.as_ref()
    }

    /// The transfer engine below.
    pub fn engine(&self) -> &Arc<TransferEngine> {
        &self.engine
    }

    /// Takes the lent memory back and ends all connections. Idempotent; calls that come later fail.
    pub fn close(&self) {
        if let Some(node) = &self.node {
            node.shutdown();
        }
        self.engine.shutdown();
    }

    /// What it has done so far.
    pub fn statistics(&self) -> ClientStatistics {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        ClientStatistics {
            puts: value(&counters.puts),
            put_bytes: value(&counters.put_bytes),
            gets: value(&counters.gets),
            got_bytes: value(&counters.got_bytes),
            local_gets: value(&counters.local_gets),
            failovers: value(&counters.failovers),
            corrupt: value(&counters.corrupt),
            remembered: value(&counters.remembered),
        }
    }

    fn own_node(&self) -> Option<NodeId> {
        self.node.as_ref().map(|node| node.id())
    }

    fn put_options(&self, options: &PutOptions) -> PutOptions {
        let mut options = options.clone();
        options.replicas = options.replicas.max(self.settings.replicas).max(1);
        options.prefer = options.prefer.or(self.own_node());
        options.avoid.extend(self.nodes.shunned());
        if options.wait.is_zero() {
            options.wait = self.settings.room;
        }
        options
    }
}
