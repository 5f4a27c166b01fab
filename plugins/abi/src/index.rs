//! Which blocks a plugged-in tier has, as far as the host knows: lookups ask it and never the plugin.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use kvstored_core::index::BlockIndex;
use kvstored_core::{BlockHash, BlockKey, EventSink, Namespace};
use parking_lot::RwLock;

use crate::quota::Quotas;

/// The blocks of a namespace.
pub(crate) type Blocks = Arc<RwLock<BlockIndex<()>>>;

/// The blocks of a tier, by namespace.
pub(crate) struct Index {
    namespaces: RwLock<HashMap<Namespace, Blocks>>,
    quotas: Arc<Quotas>,
    events: OnceLock<EventSink>,
    /// Blocks of all namespaces.
    count: AtomicU64,
}

impl Index {
    /// Most namespaces that a plugin may make known.
    pub const MOST_NAMESPACES: usize = 65_536;
    /// Most blocks that are kept track of: a few GiB of memory.
    pub const MOST_BLOCKS: u64 = 64 << 20;

    /// No blocks yet; what comes and goes is told to those books.
    pub fn new(quotas: Arc<Quotas>) -> Self {
        Self {
            namespaces: RwLock::default(),
            quotas,
            events: OnceLock::new(),
            count: AtomicU64::new(0),
        }
    }

    pub fn observe(&self, events: EventSink) {
        let _ = self.events.set(events);
    }

    pub fn get(&self, namespace: &Namespace) -> Option<Blocks> {
        self.namespaces.read().get(namespace).cloned()
    }

    /// Adds a block. Returns whether there was room for it and its namespace.
    pub fn insert(&self, key: &BlockKey) -> bool {
        if self.count.load(Ordering::Relaxed) >= Self::MOST_BLOCKS {
            return false;
        }
        let blocks = self.get(&key.namespace).or_else(|| {
            let mut namespaces = self.namespaces.write();
            (namespaces.len() < Self::MOST_NAMESPACES)
                .then(|| namespaces.entry(key.namespace).or_default().clone())
        });
        let Some(blocks) = blocks else { return false };
        let mut blocks = blocks.write();
        if blocks.insert(key.hash, ()).is_none() {
            self.count.fetch_add(1, Ordering::Relaxed);
            self.quotas.came(key);
            if let Some(events) = self.events.get() {
                events.stored(&key.namespace, &key.hash);
            }
        }
        true
    }

    /// Removes a block. Returns whether it was there.
    pub fn remove(&self, namespace: &Namespace, hash: &BlockHash) -> bool {
        let Some(blocks) = self.get(namespace) else {
            return false;
        };
        let mut blocks = blocks.write();
        let there = blocks.remove(hash).is_some();
        if there {
            self.count.fetch_sub(1, Ordering::Relaxed);
            self.quotas.left(&BlockKey {
                namespace: *namespace,
                hash: *hash,
            });
            if let Some(events) = self.events.get() {
                events.removed(namespace, hash);
            }
        }
        there
    }

    /// Removes all blocks of a namespace, or all there are. Returns how many.
    pub fn clear(&self, namespace: Option<&Namespace>) -> u64 {
        let chosen: Vec<(Namespace, Blocks)> = {
            let namespaces = self.namespaces.read();
            let chosen = namespaces
                .iter()
                .filter(|(digest, _)| namespace.is_none_or(|wanted| *digest == wanted));
            chosen.map(|(digest, blocks)| (*digest, blocks.clone())).collect()
        };
        let mut dropped = 0;
        for (digest, blocks) in chosen {
            let mut blocks = blocks.write();
            dropped += blocks.len() as u64;
            if let Some(events) = self.events.get() {
                blocks.iter().for_each(|(hash, ())| events.removed(&digest, hash));
            }
            self.count.fetch_sub(blocks.len() as u64, Ordering::Relaxed);
            self.quotas.left_all(&digest, blocks.len() as u64);
            blocks.clear();
        }
        dropped
    }

    /// Blocks, and bytes that the index takes.
    pub fn totals(&self) -> (u64, u64) {
        let namespaces = self.namespaces.read();
        namespaces.values().fold((0, 0), |(count, bytes), blocks| {
            let blocks = blocks.read();
            (count + blocks.len() as u64, bytes + blocks.memory_bytes() as u64)
        })
    }

    /// Namespaces with blocks, in order.
    pub fn namespaces(&self) -> Vec<(Namespace, u64)> {
        let namespaces = self.namespaces.read();
        let mut all: Vec<(Namespace, u64)> = namespaces
            .iter()
            .map(|(digest, blocks)| (*digest, blocks.read().len() as u64))
            .filter(|(_, blocks)| *blocks > 0)
            .collect();
        all.sort_unstable();
        all
    }

    /// Up to `limit` keys behind `after`.
    pub fn list(
        &self,
        namespace: Option<&Namespace>,
        after: Option<&BlockKey>,
        limit: usize,
    ) -> Vec<BlockKey> {
        let mut keys: Vec<BlockKey> = Vec::new();
        for (digest, _) in self.namespaces() {
            if namespace.is_some_and(|wanted| *wanted != digest)
                || after.is_some_and(|after| after.namespace > digest)
            {
                continue;
            }
            let behind = after
                .filter(|after| after.namespace == digest)
                .map(|after| &after.hash);
            let left = limit.saturating_sub(keys.len());
            let hashes = self
                .get(&digest)
                .map(|blocks| blocks.read().list_after(behind, left))
                .unwrap_or_default();
            keys.extend(hashes.into_iter().map(|hash| BlockKey {
                namespace: digest,
                hash,
            }));
            if keys.len() >= limit {
                break;
            }
        }
        keys
    }
}
