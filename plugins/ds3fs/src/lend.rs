//! A host's buffer as memory that the Posix tier reads and writes.
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::Arc;

use kvstored_core::memory::SlotOwner;
use kvstored_core::{Arena, SlotGuard};
use kvstored_plugin::{Memory, Operation};
use parking_lot::RwLock;

use crate::engine::{Region, Regions};

/// Mappings that are known at most; a host has one for its blocks.
const MOST_MAPPINGS: usize = 16;

/// What an arena over a host's memory keeps: where 3FS knows it.
pub(crate) struct Lent {
    /// The host's memory that the buffer lies in.
    pub region: Option<Arc<Region>>,
}

struct Nobody;

impl SlotOwner for Nobody {
    fn release(&self, _slot: u32) {}
}

struct Mapping {
    id: u64,
    base: usize,
    arena: Arc<Arena>,
}

/// The host's mappings that buffers lay in: one arena for each, so that an engine that registers memory with the kernel
/// does it once, and for as long as the tier is open.
pub(crate) struct Lending {
    /// None where nothing goes through USRBIO without a copy.
    regions: Option<Regions>,
    mappings: RwLock<Vec<Mapping>>,
}

impl Lending {
    /// Knows no mapping yet.
    pub fn new(regions: Option<Regions>) -> Self {
        Self {
            regions,
            mappings: RwLock::default(),
        }
    }

    /// A guard over an operation's buffer, to be called while the host lends the mapping's descriptor. None for a buffer
    /// that is nowhere.
    ///
    /// # Safety
    /// The guard and its clones must be gone when the operation ends.
    pub unsafe fn lend(&self, operation: &Operation) -> Option<SlotGuard> {
        let base = NonNull::new(operation.address())?;
        let length = operation.length();
        let mapped = operation.memory().and_then(|memory| {
            let offset = (base.as_ptr() as usize).checked_sub(memory.base)?;
            let inside = offset.checked_add(length)? <= memory.length;
            // SAFETY: as this function's.
            inside
                .then(|| unsafe { self.arena(memory) })
                .flatten()
                .map(|arena| (arena, offset))
        });
        let (arena, offset) = mapped.unwrap_or_else(|| {
            // SAFETY: the buffer is valid until the operation ends, which the caller vouches for; nobody forms references
            // to it.
            let arena = unsafe { Arena::from_mapping(base, length, Box::new(Lent { region: None })) };
            (Arc::new(arena), 0)
        });
        Some(SlotGuard::new(arena, Arc::new(Nobody), 0, offset, length))
    }

    /// The arena over a mapping; none where there are too many.
    ///
    /// # Safety
    /// Only buffers that the host lends may be accessed through it.
    unsafe fn arena(&self, memory: &Memory) -> Option<Arc<Arena>> {
        let find = |mappings: &[Mapping]| {
            let known = mappings.iter().find(|mapping| mapping.id == memory.id);
            known.map(|known| (known.base == memory.base).then(|| known.arena.clone()))
        };
        if let Some(found) = find(&self.mappings.read()) {
            return found;
        }
        let mut mappings = self.mappings.write();
        if let Some(found) = find(&mappings) {
            return found;
        }
        if mappings.len() >= MOST_MAPPINGS {
            return None;
        }
        let base = NonNull::new(memory.base as *mut u8)?;
        let region = self.regions.as_ref().map(|regions| regions.begin(memory));
        // SAFETY: the host keeps the mapping for as long as it lends buffers in it, and the caller vouches that nothing else
        // is accessed. What an engine registers of it, the kernel keeps.
        let arena = unsafe { Arena::from_mapping(base, memory.length, Box::new(Lent { region })) };
        let arena = Arc::new(arena);
        mappings.push(Mapping {
            id: memory.id,
            base: memory.base,
            arena: arena.clone(),
        });
        Some(arena)
    }
}
