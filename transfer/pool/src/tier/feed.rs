//! Keeps the index up to date: asks every node of the pool, this one included, what it took and released.
//!
//! One small question per node and interval. A node that doesn't answer keeps its blocks in the index as long as the
//! master counts it as alive; loads that go there fail over or miss.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvstored_core::{Error, ErrorKind, EventSink, Result, Runtime};
use kvstored_master::{Location, NodeId};
use parking_lot::{Condvar, Mutex, RwLock};

use super::index::{Index, block_key};
use crate::client::PoolClient;
use crate::wire::{Change, Changes, Listing};

/// How often the master is asked which nodes there are.
const NODES_INTERVAL: Duration = Duration::from_secs(2);
/// How long one question may take.
const PATIENCE: Duration = Duration::from_millis(250);
/// The shortest time between two questions to nodes on average, so that a large pool costs no more than a small one.
const PER_NODE: Duration = Duration::from_millis(20);
/// Questions to one node in a row, so that others have their turn.
const MOST_IN_A_ROW: usize = 64;

/// The index and the thread that feeds it.
pub(crate) struct Feed {
    client: Arc<PoolClient>,
    index: Arc<Index>,
    interval: Duration,
    runtime: Runtime,
    events: RwLock<Option<EventSink>>,
    stopping: Mutex<bool>,
    stopped: Condvar,
}

/// How far a node's changes are known.
#[derive(Default)]
struct Positions {
    by_node: HashMap<NodeId, u64>,
    nodes: Vec<Location>,
    asked_at: Option<Instant>,
}

impl Feed {
    pub fn new(client: Arc<PoolClient>, index: Arc<Index>, interval: Duration, runtime: Runtime) -> Self {
        Self {
            client,
            index,
            interval,
            runtime,
            events: RwLock::default(),
            stopping: Mutex::new(false),
            stopped: Condvar::new(),
        }
    }

    pub fn observe(&self, events: EventSink) {
        *self.events.write() = Some(events);
    }

    pub fn stop(&self) {
        *self.stopping.lock() = true;
        self.stopped.notify_all();
    }

    /// A block is on that node. Tells those who listen if it's news.
    pub fn stored(&self, node: NodeId, key: &kvstored_core::BlockKey) {
        if self.index.stored(node, key)
            && let Some(events) = &*self.events.read()
        {
            events.stored(&key.namespace, &key.hash);
        }
    }

    /// No node has the block. Returns whether it was thought to be there.
    pub fn forget(&self, key: &kvstored_core::BlockKey) -> bool {
        let known = self.index.forget(key);
        if known && let Some(events) = &*self.events.read() {
            events.removed(&key.namespace, &key.hash);
        }
        known
    }

    /// Runs until [`Feed::stop`].
    pub fn run(&self) {
        let mut positions = Positions::default();
        loop {
            self.refresh_nodes(&mut positions);
            for node in positions.nodes.clone() {
                if let Err(error) = self.follow(&node, &mut positions.by_node) {
                    tracing::debug!(%error, "a node doesn't tell its changes");
                }
            }
            if self.pause(positions.nodes.len()) {
                return;
            }
        }
    }

    fn refresh_nodes(&self, positions: &mut Positions) {
        let now = self.runtime.clock.now();
        let due = positions
            .asked_at
            .is_none_or(|asked| now >= asked + NODES_INTERVAL);
        if !due {
            return;
        }
        positions.asked_at = Some(now);
        // while no master answers, the nodes that it named last are asked on
        let Ok((mut nodes, all)) = self.client.pool_nodes(self.runtime.deadline(PATIENCE)) else {
            return;
        };
        let alive: HashSet<NodeId> = nodes.iter().map(|node| node.node).collect();
        if !all {
            // a new leader hears of nodes one by one: those that it doesn't know yet hold what they held
            let before = std::mem::take(&mut positions.nodes);
            nodes.extend(before.into_iter().filter(|node| !alive.contains(&node.node)));
            positions.nodes = nodes;
            return;
        }
        positions.by_node.retain(|node, _| {
            let stays = alive.contains(node);
            if !stays {
                self.index.forget_node(node);
            }
            stays
        });
        positions.nodes = nodes;
    }

    fn follow(&self, node: &Location, positions: &mut HashMap<NodeId, u64>) -> Result<()> {
        if self.client.is_shunned(node) {
            return Ok(());
        }
        for _ in 0..MOST_IN_A_ROW {
            let known = positions.get(&node.node).copied();
            // what a node never told us is listed
            let changes = self.changes(node, known.unwrap_or(u64::MAX))?;
            if changes.lost {
                self.index.forget_node(&node.node);
                self.list(node)?;
                positions.insert(node.node, changes.next);
                continue;
            }
            for change in &changes.changes {
                self.apply(node.node, change);
            }
            positions.insert(node.node, changes.next);
            if changes.changes.is_empty() {
                break;
            }
        }
        Ok(())
    }

    fn list(&self, node: &Location) -> Result<()> {
        let mut after = 0;
        loop {
            let listing = self.listing(node, after)?;
            for key in listing.keys.iter().filter_map(|key| block_key(key)) {
                self.stored(node.node, &key);
            }
            if listing.next == u64::MAX {
                return Ok(());
            }
            if listing.next <= after && after > 0 {
                return Err(Error::new(ErrorKind::Corrupt, "a node's listing doesn't end"));
            }
            after = listing.next;
        }
    }

    fn apply(&self, node: NodeId, change: &Change) {
        let Some(key) = block_key(&change.key) else { return };
        if change.stored {
            self.stored(node, &key);
        } else if self.index.removed(&node, &key)
            && let Some(events) = &*self.events.read()
        {
            events.removed(&key.namespace, &key.hash);
        }
    }

    fn changes(&self, node: &Location, since: u64) -> Result<Changes> {
        if let Some(segment) = self.client.own_segment(&node.node) {
            return Ok(segment.changes(since));
        }
        let remote = self.client.node_at(node);
        let changes = remote.changes(since, self.runtime.deadline(PATIENCE));
        changes.inspect_err(|error| remote.failed(error))
    }

    fn listing(&self, node: &Location, after: u64) -> Result<Listing> {
        match self.client.own_segment(&node.node) {
            Some(segment) => Ok(segment.list(after)),
            None => self
                .client
                .node_at(node)
                .list(after, self.runtime.deadline(PATIENCE)),
        }
    }

    /// Waits for the next round. Returns whether to stop.
    fn pause(&self, nodes: usize) -> bool {
        let least = PER_NODE.saturating_mul(u32::try_from(nodes).unwrap_or(u32::MAX));
        let until = self.runtime.deadline(self.interval.max(least));
        let mut stopping = self.stopping.lock();
        while !*stopping {
            if self.stopped.wait_until(&mut stopping, until).timed_out() {
                break;
            }
        }
        *stopping
    }
}
