//! Where every visible block lies: one index per namespace, over all writers of all directories.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use kvstored_core::index::BlockIndex;
use kvstored_core::{BlockHash, EventSink, Namespace, NamespaceInfo, PAGE_BYTES};
use parking_lot::RwLock;

use super::format::NamespaceShape;

const REFERENCED: u32 = 1 << 31;
const COARSE_SHIFT: u32 = 20;

/// Generations are compared in units of about a second, so that a location fits twelve bytes.
pub const fn coarse(generation: u64) -> u32 {
    let units = generation >> COARSE_SHIFT;
    if units > (REFERENCED - 1) as u64 {
        REFERENCED - 1
    } else {
        units as u32
    }
}

/// The last generation in the same unit: purge bounds are rounded up to it, which makes coarse comparison exact.
pub const fn end_of_unit(generation: u64) -> u64 {
    generation | ((1 << COARSE_SHIFT) - 1)
}

/// The last generation of a coarse unit.
pub const fn last_generation(coarse: u32) -> u64 {
    end_of_unit((coarse as u64) << COARSE_SHIFT)
}

/// Where a block lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// Handle of the segment.
    pub segment: u32,
    /// First page of the image.
    pub page: u32,
    bits: u32,
}

impl Location {
    /// A location with its commit order; not referenced yet.
    pub fn new(segment: u32, page: u32, generation: u64) -> Self {
        Self {
            segment,
            page,
            bits: coarse(generation),
        }
    }

    /// Whether the block was read since it was placed.
    pub fn is_referenced(self) -> bool {
        self.bits & REFERENCED != 0
    }

    /// Commit order in coarse units.
    pub fn coarse(self) -> u32 {
        self.bits & !REFERENCED
    }

    /// Whether it's that very place.
    pub fn is_at(self, segment: u32, page: u32) -> bool {
        self.segment == segment && self.page == page
    }
}

/// One namespace's blocks.
pub struct NamespaceIndex {
    /// What names it in journals and footers.
    pub shape: NamespaceShape,
    info: RwLock<Option<Arc<NamespaceInfo>>>,
    blocks: RwLock<BlockIndex<Location>>,
    purged: AtomicU64,
    events: Arc<OnceLock<EventSink>>,
}

impl NamespaceIndex {
    /// Bytes of a block image.
    pub fn image_bytes(&self) -> usize {
        self.shape.image_pages as usize * PAGE_BYTES
    }

    /// Identity and layout, if they are known.
    pub fn info(&self) -> Option<Arc<NamespaceInfo>> {
        self.info.read().clone()
    }

    /// Blocks up to this generation don't exist.
    pub fn purged(&self) -> u64 {
        self.purged.load(Ordering::Acquire)
    }

    /// The location of a block.
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

    /// Places many blocks under one lock. With `replace` they win over what is there.
    pub fn place(&self, blocks: impl Iterator<Item = (BlockHash, Location)>, replace: bool) {
        let bound = match self.purged() {
            0 => None,
            bound => Some(coarse(bound)),
        };
        let mut index = self.blocks.write();
        for (hash, location) in blocks {
            if bound.is_some_and(|bound| location.coarse() <= bound) {
                continue;
            }
            if (replace || index.get(&hash).is_none())
                && index.insert(hash, location).is_none()
                && let Some(events) = self.events.get()
            {
                events.stored(&self.shape.namespace, &hash);
            }
        }
    }

    /// Counts a block as used; says whether that was news.
    pub fn mark_referenced(&self, hash: &BlockHash, location: Location) {
        if !location.is_referenced() {
            self.blocks.write().update(hash, |current| {
                if current.is_at(location.segment, location.page) {
                    current.bits |= REFERENCED;
                }
            });
        }
    }

    /// Forgets a block, wherever it lies.
    pub fn remove(&self, hash: &BlockHash) -> Option<Location> {
        self.remove_if(hash, |_| true)
    }

    fn remove_if(&self, hash: &BlockHash, condition: impl Fn(&Location) -> bool) -> Option<Location> {
        let mut index = self.blocks.write();
        let removed = index.remove_if(hash, condition)?;
        self.tell_removed(hash);
        Some(removed)
    }

    /// Tells of a block that left; with the index locked, so that events come in order.
    fn tell_removed(&self, hash: &BlockHash) {
        if let Some(events) = self.events.get() {
            events.removed(&self.shape.namespace, hash);
        }
    }

    /// Forgets a block if it lies there.
    pub fn remove_at(&self, hash: &BlockHash, segment: u32, page: u32) -> bool {
        self.remove_if(hash, |location| location.is_at(segment, page))
            .is_some()
    }

    /// Forgets those blocks as far as they lie in that segment; returns how many did.
    pub fn remove_in<'a>(&self, hashes: impl Iterator<Item = &'a BlockHash>, segment: u32) -> u64 {
        let mut index = self.blocks.write();
        hashes
            .filter(|hash| {
                index
                    .remove_if(hash, |location| location.segment == segment)
                    .inspect(|_| self.tell_removed(hash))
                    .is_some()
            })
            .count() as u64
    }

    /// Keeps the blocks for which `keep` holds; returns how many went.
    pub fn retain(&self, mut keep: impl FnMut(&Location) -> bool) -> u64 {
        let mut index = self.blocks.write();
        let before = index.len();
        index.retain(|hash, location| {
            let keep = keep(location);
            if !keep {
                self.tell_removed(hash);
            }
            keep
        });
        (before - index.len()) as u64
    }

    /// Visible blocks.
    pub fn len(&self) -> u64 {
        self.blocks.read().len() as u64
    }

    /// The latest commit order among the visible blocks, in coarse units.
    pub fn latest(&self) -> u32 {
        self.blocks
            .read()
            .iter()
            .map(|(_, location)| location.coarse())
            .max()
            .unwrap_or(0)
    }

    fn memory_bytes(&self) -> u64 {
        self.blocks.read().memory_bytes() as u64
    }

    /// Hashes behind `after`.
    pub fn list_after(&self, after: Option<&BlockHash>, limit: usize) -> Vec<BlockHash> {
        self.blocks.read().list_after(after, limit)
    }
}

#[derive(Default)]
struct Tables {
    namespaces: HashMap<Namespace, Arc<NamespaceIndex>>,
    /// Bounds and manifests of namespaces of which no block was seen yet.
    bounds: HashMap<Namespace, u64>,
    infos: HashMap<Namespace, Arc<NamespaceInfo>>,
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

    /// The namespace with that shape; `None` if it's known with another.
    pub fn ensure(&self, shape: NamespaceShape) -> Option<Arc<NamespaceIndex>> {
        if let Some(known) = self.get(&shape.namespace) {
            return (known.shape == shape).then_some(known);
        }
        if shape.image_pages < 2 {
            return None;
        }
        let mut tables = self.tables.write();
        let info = tables.infos.get(&shape.namespace).cloned();
        if info
            .as_ref()
            .is_some_and(|info| NamespaceShape::of(info) != shape)
        {
            return None;
        }
        let purged = tables.bounds.get(&shape.namespace).copied().unwrap_or(0);
        let known = tables.namespaces.entry(shape.namespace).or_insert_with(|| {
            Arc::new(NamespaceIndex {
                shape,
                info: RwLock::new(info),
                blocks: RwLock::new(BlockIndex::new()),
                purged: AtomicU64::new(purged),
                events: Arc::clone(&self.events),
            })
        });
        (known.shape == shape).then(|| Arc::clone(known))
    }

    /// Makes identity and layout known; `None` if the namespace is known with another layout.
    pub fn open(&self, info: &Arc<NamespaceInfo>) -> Option<Arc<NamespaceIndex>> {
        {
            let mut tables = self.tables.write();
            let known = tables
                .infos
                .entry(info.namespace)
                .or_insert_with(|| Arc::clone(info));
            if known.layout.digest() != info.layout.digest() {
                return None;
            }
        }
        let index = self.ensure(NamespaceShape::of(info))?;
        index.info.write().get_or_insert_with(|| Arc::clone(info));
        Some(index)
    }

    /// Identity and layout of a namespace, if they are known.
    pub fn info(&self, namespace: &Namespace) -> Option<Arc<NamespaceInfo>> {
        self.tables.read().infos.get(namespace).cloned()
    }

    /// Raises the purge bound and forgets what is up to it, telling `gone` the places. Returns how many went.
    pub fn purge(&self, namespace: &Namespace, bound: u64, mut gone: impl FnMut(&Location)) -> u64 {
        let index = {
            let mut tables = self.tables.write();
            let known = tables.bounds.entry(*namespace).or_default();
            *known = bound.max(*known);
            tables.namespaces.get(namespace).cloned()
        };
        let Some(index) = index else { return 0 };
        index.purged.fetch_max(bound, Ordering::AcqRel);
        let limit = coarse(bound);
        index.retain(|location| {
            let keep = location.coarse() > limit;
            if !keep {
                gone(location);
            }
            keep
        })
    }

    /// Every namespace that has been seen, in order.
    pub fn all(&self) -> Vec<Arc<NamespaceIndex>> {
        let mut all: Vec<_> = self.tables.read().namespaces.values().cloned().collect();
        all.sort_unstable_by_key(|index| index.shape.namespace);
        all
    }

    /// Visible blocks, and bytes of memory that the index takes.
    pub fn totals(&self) -> (u64, u64) {
        self.all().iter().fold((0, 0), |(blocks, bytes), index| {
            (blocks + index.len(), bytes + index.memory_bytes())
        })
    }

    /// Forgets every block in those segments, telling `each` namespace how many; returns how many in all.
    pub fn drop_segments(&self, gone: &dyn Fn(u32) -> bool, each: &dyn Fn(&NamespaceIndex, u64)) -> u64 {
        let mut total = 0;
        for index in self.all() {
            let dropped = index.retain(|location| !gone(location.segment));
            if dropped > 0 {
                each(&index, dropped);
            }
            total += dropped;
        }
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coarse_comparison_is_exact_at_rounded_bounds() {
        let bound = end_of_unit(1_700_000_000_123_456);
        for generation in [bound - (1 << 20), bound - 1, bound, bound + 1, bound + (1 << 20)] {
            assert_eq!(
                generation <= bound,
                coarse(generation) <= coarse(bound),
                "{generation}"
            );
        }
        assert_eq!(coarse(u64::MAX), REFERENCED - 1);
    }

    #[test]
    fn a_location_takes_twelve_bytes() {
        assert_eq!(size_of::<Location>(), 12);
    }
}
