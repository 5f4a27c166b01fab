//! Which blocks are in which object: a lookup is a hash probe and asks nobody.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use kvstored_core::index::BlockIndex;
use kvstored_core::{BlockHash, EventSink, Namespace, NamespaceInfo};
use parking_lot::RwLock;

/// Where a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// Handle of the object.
    pub object: u32,
    /// Which of the object's images it is.
    pub position: u32,
}

/// One namespace's blocks.
pub struct NamespaceIndex {
    /// The namespace.
    pub namespace: Namespace,
    /// Bytes of a block's image.
    pub image_bytes: u64,
    info: RwLock<Option<Arc<NamespaceInfo>>>,
    blocks: RwLock<BlockIndex<Location>>,
    purged: AtomicU64,
    events: Arc<OnceLock<EventSink>>,
}

impl NamespaceIndex {
    /// Identity and layout, if they are known.
    pub fn info(&self) -> Option<Arc<NamespaceInfo>> {
        self.info.read().clone()
    }

    /// Makes identity and layout known.
    pub fn learn(&self, info: &Arc<NamespaceInfo>) {
        self.info.write().get_or_insert_with(|| Arc::clone(info));
    }

    /// Objects up to this generation don't count.
    pub fn purged(&self) -> u64 {
        self.purged.load(Ordering::Acquire)
    }

    /// Raises the bound of a purge.
    pub fn raise_purged(&self, bound: u64) {
        self.purged.fetch_max(bound, Ordering::AcqRel);
    }

    /// Where a block is.
    pub fn get(&self, hash: &BlockHash) -> Option<Location> {
        self.blocks.read().get(hash)
    }

    /// Which blocks are here.
    pub fn lookup(&self, hashes: &[BlockHash], present: &mut [bool]) {
        self.blocks.read().lookup(hashes, present);
    }

    /// How many at the start are here.
    pub fn lookup_on_prefix(&self, hashes: &[BlockHash]) -> usize {
        self.blocks.read().lookup_on_prefix(hashes)
    }

    /// Makes an object's blocks visible; those that are here already stay where they are.
    pub fn place(&self, object: u32, hashes: &[BlockHash]) {
        let mut blocks = self.blocks.write();
        for (position, hash) in hashes.iter().enumerate() {
            if blocks.get(hash).is_some() {
                continue;
            }
            let position = position as u32;
            blocks.insert(*hash, Location { object, position });
            if let Some(events) = self.events.get() {
                events.stored(&self.namespace, hash);
            }
        }
    }

    /// Forgets a block. Returns whether it was here.
    pub fn remove(&self, hash: &BlockHash) -> bool {
        self.remove_if(hash, |_| true)
    }

    /// Forgets a block if it's there. Returns whether it was.
    pub fn remove_at(&self, hash: &BlockHash, location: Location) -> bool {
        self.remove_if(hash, |found| *found == location)
    }

    fn remove_if(&self, hash: &BlockHash, condition: impl Fn(&Location) -> bool) -> bool {
        let mut blocks = self.blocks.write();
        let removed = blocks.remove_if(hash, condition).is_some();
        if removed && let Some(events) = self.events.get() {
            events.removed(&self.namespace, hash);
        }
        removed
    }

    /// Forgets every block in those objects; returns how many there were.
    pub fn drop_objects(&self, objects: &HashSet<u32>) -> u64 {
        let mut dropped = 0;
        self.blocks.write().retain(|hash, location| {
            let gone = objects.contains(&location.object);
            if gone {
                dropped += 1;
                if let Some(events) = self.events.get() {
                    events.removed(&self.namespace, hash);
                }
            }
            !gone
        });
        dropped
    }

    /// Visible blocks.
    pub fn len(&self) -> u64 {
        self.blocks.read().len() as u64
    }

    fn memory_bytes(&self) -> u64 {
        self.blocks.read().memory_bytes() as u64
    }

    /// Up to `limit` blocks behind `after`.
    pub fn list_after(&self, after: Option<&BlockHash>, limit: usize) -> Vec<BlockHash> {
        self.blocks.read().list_after(after, limit)
    }
}

#[derive(Default)]
struct Tables {
    namespaces: HashMap<Namespace, Arc<NamespaceIndex>>,
    /// Bounds of purges of namespaces of which no block was seen yet.
    bounds: HashMap<Namespace, u64>,
}

/// All namespaces.
#[derive(Default)]
pub struct Index {
    tables: RwLock<Tables>,
    events: Arc<OnceLock<EventSink>>,
}

impl Index {
    /// Sets where to tell of blocks that become visible or leave.
    pub fn observe(&self, events: EventSink) {
        if self.events.set(events).is_err() {
            tracing::error!("the tier has two engines; the second one hears of no events");
        }
    }

    /// A namespace that has been seen.
    pub fn get(&self, namespace: &Namespace) -> Option<Arc<NamespaceIndex>> {
        self.tables.read().namespaces.get(namespace).cloned()
    }

    /// The namespace with images of that size; `None` if it's known with another.
    pub fn ensure(&self, namespace: &Namespace, image_bytes: u64) -> Option<Arc<NamespaceIndex>> {
        if let Some(known) = self.get(namespace) {
            return (known.image_bytes == image_bytes).then_some(known);
        }
        let mut tables = self.tables.write();
        let purged = tables.bounds.get(namespace).copied().unwrap_or(0);
        let known = tables.namespaces.entry(*namespace).or_insert_with(|| {
            Arc::new(NamespaceIndex {
                namespace: *namespace,
                image_bytes,
                info: RwLock::default(),
                blocks: RwLock::new(BlockIndex::new()),
                purged: AtomicU64::new(purged),
                events: Arc::clone(&self.events),
            })
        });
        (known.image_bytes == image_bytes).then(|| Arc::clone(known))
    }

    /// Remembers a purge. Returns the namespace if it was seen and the bound is news.
    pub fn purge(&self, namespace: &Namespace, bound: u64) -> Option<Arc<NamespaceIndex>> {
        let mut tables = self.tables.write();
        let known = tables.bounds.entry(*namespace).or_default();
        if bound <= *known {
            return None;
        }
        *known = bound;
        let index = tables.namespaces.get(namespace).cloned();
        if let Some(index) = &index {
            index.raise_purged(bound);
        }
        index
    }

    /// Every namespace that has been seen, in order.
    pub fn all(&self) -> Vec<Arc<NamespaceIndex>> {
        let mut all: Vec<_> = self.tables.read().namespaces.values().cloned().collect();
        all.sort_unstable_by_key(|index| index.namespace);
        all
    }

    /// Visible blocks, and bytes of memory that the index takes.
    pub fn totals(&self) -> (u64, u64) {
        self.all().iter().fold((0, 0), |(blocks, bytes), index| {
            (blocks + index.len(), bytes + index.memory_bytes())
        })
    }
}
