//! The tier `Pool`: the pooled memory of all nodes as a level of a pipeline.
//!
//! A block is an object of the pool: its whole image, under a key that begins with the namespace. Lookups ask the local
//! index and nobody else; a hit is confirmed at the load, and one that turns out to be a miss leaves the index.

mod feed;
mod images;
mod index;
mod work;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvstored_core::runtime::ThreadHandle;
use kvstored_core::{
    BlockHash, BlockKey, Durability, Error, EventSink, Namespace, NamespaceInfo, Operation, Result, Runtime,
    Tier, TierStatistics, TransportStatistics,
};
use kvstored_master::HoldingState;
use kvstored_transfer::{PeerCounters, Side};
use parking_lot::Mutex;

use crate::client::PoolClient;
use crate::node::StorageNode;
use feed::Feed;
use index::Index;
use work::Work;

#[cfg(test)]
pub(crate) use index::object_key;

/// How the tier works. Plain data.
#[derive(Clone, Debug)]
pub struct TierSettings {
    /// How often nodes are asked what they took and released.
    pub feed_interval: Duration,
    /// Operations that may wait; more are refused as busy.
    pub queue_depth: usize,
    /// Threads that read.
    pub readers: usize,
    /// Threads that write.
    pub writers: usize,
    /// How long a load may take, whatever happens to nodes.
    pub read_timeout: Duration,
    /// How long a dump may take.
    pub write_timeout: Duration,
    /// How long copying what this process's lent memory holds to other nodes may take when the tier stops; zero for not
    /// copying at all.
    pub drain_timeout: Duration,
}

impl Default for TierSettings {
    fn default() -> Self {
        Self {
            feed_interval: Duration::from_millis(200),
            queue_depth: 8192,
            readers: 2,
            writers: 1,
            read_timeout: Duration::from_millis(900),
            write_timeout: Duration::from_secs(5),
            drain_timeout: Duration::ZERO,
        }
    }
}

/// The pooled memory of all nodes as a tier.
pub struct PoolTier {
    client: Arc<PoolClient>,
    node: Option<Arc<StorageNode>>,
    index: Arc<Index>,
    feed: Arc<Feed>,
    work: Arc<Work>,
    drain_timeout: Duration,
    runtime: Runtime,
    threads: Mutex<Vec<ThreadHandle>>,
}

impl PoolTier {
    /// A tier over a client; the memory that the client's process lends is given back when the tier stops.
    pub fn start(settings: &TierSettings, client: Arc<PoolClient>, runtime: &Runtime) -> Result<Arc<Self>> {
        let index = Arc::new(Index::default());
        let feed = Arc::new(Feed::new(
            client.clone(),
            index.clone(),
            settings.feed_interval,
            runtime.clone(),
        ));
        let work = Arc::new(Work::new(
            settings.clone(),
            client.clone(),
            feed.clone(),
            runtime.clone(),
        ));
        let tier = Arc::new(Self {
            node: client.node().cloned(),
            client,
            index,
            feed,
            work,
            drain_timeout: settings.drain_timeout,
            runtime: runtime.clone(),
            threads: Mutex::default(),
        });
        let start = |name: &str, body: Box<dyn FnOnce() + Send>| -> Result<()> {
            let thread = runtime.spawner.spawn(name, body)?;
            tier.threads.lock().push(thread);
            Ok(())
        };
        let feed = tier.feed.clone();
        start("pool-index", Box::new(move || feed.run()))?;
        for _ in 0..settings.readers.max(1) {
            let work = tier.work.clone();
            start("pool-read", Box::new(move || work.run_reads()))?;
        }
        for _ in 0..settings.writers.max(1) {
            let work = tier.work.clone();
            start("pool-write", Box::new(move || work.run_writes()))?;
        }
        Ok(tier)
    }

    /// The client below.
    pub fn client(&self) -> &Arc<PoolClient> {
        &self.client
    }
}

/// What went over each transport, whichever peers it was.
fn moved(peers: &[PeerCounters]) -> Vec<TransportStatistics> {
    let mut sums = BTreeMap::new();
    for row in peers {
        let served = row.side == Side::Served;
        let sum = sums
            .entry((row.transport, served))
            .or_insert_with(|| TransportStatistics {
                transport: row.transport.name().to_owned(),
                served,
                ..TransportStatistics::default()
            });
        sum.read_bytes += row.read_bytes;
        sum.written_bytes += row.written_bytes;
        sum.failures += row.failures;
    }
    sums.into_values().collect()
}

impl Tier for PoolTier {
    fn name(&self) -> &'static str {
        "Pool"
    }

    fn keeps(&self) -> Durability {
        Durability::Memory
    }

    fn open_namespace(&self, _namespace: &Arc<NamespaceInfo>) -> Result<()> {
        // the envelope of every block names its layout
        Ok(())
    }

    fn lookup(&self, namespace: &NamespaceInfo, hashes: &[BlockHash], present: &mut [bool]) {
        self.index.lookup(&namespace.namespace, hashes, present);
    }

    fn lookup_on_prefix(&self, namespace: &NamespaceInfo, hashes: &[BlockHash]) -> usize {
        self.index.lookup_on_prefix(&namespace.namespace, hashes)
    }

    fn submit(&self, batch: Vec<Operation>) {
        self.work.submit(batch);
    }

    fn remove(&self, namespace: &NamespaceInfo, hashes: &[BlockHash]) -> u64 {
        let known = hashes
            .iter()
            .filter(|hash| self.feed.forget(&namespace.key(**hash)));
        let known = known.count() as u64;
        self.work.remove(namespace, hashes);
        known
    }

    fn purge(&self, namespace: &Namespace) -> Result<u64> {
        let gone = self.index.purge(namespace);
        self.work.purge(namespace)?;
        Ok(gone)
    }

    fn statistics(&self) -> TierStatistics {
        let lent = self
            .node
            .as_ref()
            .map(|node| node.statistics())
            .unwrap_or_default();
        let (blocks, index_bytes) = self.index.totals();
        let counts = self.work.counts();
        TierStatistics {
            allocated_bytes: lent.used_bytes,
            capacity_bytes: lent.segment_bytes,
            blocks,
            index_bytes,
            queue_depth: counts.outstanding,
            read_bytes: counts.read_bytes,
            written_bytes: counts.written_bytes,
            quarantined_blocks: counts.corrupt_blocks,
            refused_writes: counts.refused_writes,
            transports: moved(&self.client.engine().counters()),
            degraded: counts.degraded.is_some(),
            degraded_reason: counts.degraded.unwrap_or_default(),
            ..TierStatistics::default()
        }
    }

    /// Only the blocks that this node lends memory to: others know theirs.
    fn list(&self, namespace: Option<&Namespace>, after: Option<&BlockKey>, limit: usize) -> Vec<BlockKey> {
        let Some(node) = &self.node else { return Vec::new() };
        let mut keys: Vec<BlockKey> = node
            .segment()
            .holdings()
            .iter()
            .filter(|holding| holding.state == HoldingState::Sealed)
            .filter_map(|holding| index::block_key(&holding.key))
            .filter(|key| namespace.is_none_or(|wanted| *wanted == key.namespace))
            .filter(|key| after.is_none_or(|after| key > after))
            .collect();
        keys.sort_unstable();
        keys.truncate(limit);
        keys
    }

    fn namespaces(&self) -> Vec<(Namespace, u64)> {
        self.index.namespaces()
    }

    fn observe(&self, events: EventSink) {
        self.feed.observe(events);
    }

    fn drain(&self, deadline: Instant) -> Result<()> {
        self.work.drain(deadline)
    }

    fn shutdown(&self) {
        let threads = std::mem::take(&mut *self.threads.lock());
        if threads.is_empty() {
            return;
        }
        self.feed.stop();
        self.work.stop();
        for thread in threads {
            thread.join();
        }
        self.work.forget_memory();
        if let Some(node) = &self.node {
            self.hand_over(node);
            node.shutdown();
        }
    }
}

impl PoolTier {
    /// Has other nodes take what the lent memory holds.
    fn hand_over(&self, node: &StorageNode) {
        if self.drain_timeout.is_zero() {
            return;
        }
        match node.drain(self.runtime.deadline(self.drain_timeout)) {
            Ok(left) if left.replicas <= left.progress.leaving_replicas => tracing::info!(
                moved = left.progress.moved_objects,
                "what the lent memory held was copied to other nodes"
            ),
            Ok(left) => tracing::warn!(
                moved = left.progress.moved_objects,
                left = left.replicas - left.progress.leaving_replicas,
                unplaced = left.progress.unplaced_objects,
                "not all that the lent memory holds was copied to other nodes"
            ),
            Err(error) => tracing::warn!(%error, "what the lent memory holds goes with it"),
        }
    }
}

impl Drop for PoolTier {
    fn drop(&mut self) {
        self.shutdown();
    }
}

fn stopped() -> Error {
    Error::new(kvstored_core::ErrorKind::Cancelled, "the tier has stopped").with("tier", "Pool")
}
