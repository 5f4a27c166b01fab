//! The `Cache` tier: blocks in host DRAM that every process of the node maps.
//!
//! One arena is cut into slots, each holding a block's whole image. A slot has one writer until it's published
//! and is never written afterwards; guards pin it while somebody copies from it or a device reads it.

mod mapping;
mod settings;
#[cfg(test)]
mod tests;

use std::os::fd::BorrowedFd;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Instant;

use kvstored_core::block::{BlockHash, BlockKey, Namespace};
use kvstored_core::error::{Error, ErrorKind, Result};
use kvstored_core::events::EventSink;
use kvstored_core::eviction::{PolicyKind, ShadowCaches};
use kvstored_core::layout::PAGE_BYTES;
use kvstored_core::memory::{Arena, SlotGuard, SlotOwner};
use kvstored_core::quota::QuotaLedger;
use kvstored_core::tier::{Action, MemoryTier, NamespaceInfo, Operation, Tier, TierStatistics};
use parking_lot::Mutex;

pub use mapping::{Mapping, PageKind, map_arena, map_linkable};
pub use settings::CacheSettings;

use crate::slots::{Cut, Indexes, State, TableBudget};

/// Blocks in shared host DRAM.
pub struct CacheTier {
    this: Weak<CacheTier>,
    settings: CacheSettings,
    mapping: Mapping,
    indexes: Indexes,
    state: Mutex<State>,
    notify: OnceLock<Arc<dyn Fn() + Send + Sync>>,
}

impl CacheTier {
    /// Maps the arena. Fails with `InvalidInput` for a capacity below one page, and as the system does.
    pub fn open(settings: CacheSettings, quotas: Option<Arc<QuotaLedger>>) -> Result<Arc<Self>> {
        let tables = settings.kept_for_tables();
        let length = settings.capacity_bytes.saturating_sub(tables) as usize / PAGE_BYTES * PAGE_BYTES;
        if length < 2 * PAGE_BYTES {
            return Err(Error::invalid(format!(
                "cache_buffer_capacity {} bytes is smaller than one block",
                settings.capacity_bytes
            )));
        }
        let mapping = if settings.shared && settings.linkable {
            map_linkable(length, settings.huge_pages).or_else(|error| {
                tracing::warn!(%error, "the cache buffer isn't in /dev/shm: every block is copied once more");
                map_arena(length, settings.shared, settings.huge_pages)
            })?
        } else {
            map_arena(length, settings.shared, settings.huge_pages)?
        };
        tracing::info!(
            capacity_bytes = settings.capacity_bytes,
            arena_bytes = length,
            pages = mapping.pages.name(),
            shared = settings.shared,
            policy = settings.policy.name(),
            "cache buffer mapped"
        );
        let indexes = Indexes::default();
        let shadow = (settings.keep && settings.shadow_sample_one_in > 0)
            .then(|| ShadowCaches::new(1, settings.shadow_sample_one_in));
        let policy = settings.policy.build();
        let mut state = State::new(
            "cache buffer",
            length,
            policy,
            settings.keep,
            indexes.clone(),
            quotas,
            shadow,
        );
        state.bound_tables(TableBudget {
            capacity: settings.capacity_bytes as usize,
            arena: mapping.arena.clone(),
        });
        Ok(Arc::new_cyclic(|this| Self {
            this: this.clone(),
            settings,
            mapping,
            indexes,
            state: Mutex::new(state),
            notify: OnceLock::new(),
        }))
    }

    /// The memfd behind the arena, for clients to map; `None` when it's private.
    pub fn arena_fd(&self) -> Option<BorrowedFd<'_>> {
        self.mapping.file()
    }

    /// Which pages back the arena.
    pub fn pages(&self) -> PageKind {
        self.mapping.pages
    }

    /// Hits and lookups that each policy would have had, by sampled shadow caches.
    pub fn shadow_results(&self) -> Vec<(PolicyKind, u64, u64)> {
        self.state
            .lock()
            .shadow
            .as_ref()
            .map(ShadowCaches::results)
            .unwrap_or_default()
    }

    fn guard(&self, (slot, offset, length): Cut) -> Result<SlotGuard> {
        let owner = self
            .this
            .upgrade()
            .ok_or_else(|| Error::new(ErrorKind::Cancelled, "the cache is closed"))?;
        Ok(SlotGuard::new(
            self.mapping.arena.clone(),
            owner,
            slot,
            offset,
            length,
        ))
    }
}

impl SlotOwner for CacheTier {
    fn release(&self, slot: u32) {
        let notify = self.state.lock().release(slot);
        if notify && let Some(notify) = self.notify.get() {
            notify();
        }
    }
}

impl MemoryTier for CacheTier {
    fn arena(&self) -> &Arc<Arena> {
        &self.mapping.arena
    }

    fn pin(&self, namespace: &NamespaceInfo, hashes: &[BlockHash]) -> Vec<Option<SlotGuard>> {
        if !self.settings.keep {
            return vec![None; hashes.len()];
        }
        let pinned = self.state.lock().pin(namespace, hashes);
        pinned
            .into_iter()
            .map(|cut| cut.and_then(|cut| self.guard(cut).ok()))
            .collect()
    }

    fn allocate(
        &self,
        namespace: &Arc<NamespaceInfo>,
        parent: Option<&BlockHash>,
        hashes: &[BlockHash],
    ) -> Vec<Result<SlotGuard>> {
        let cut = self.state.lock().allocate(namespace, parent, hashes);
        cut.into_iter()
            .map(|cut| cut.and_then(|cut| self.guard(cut)))
            .collect()
    }

    fn allocate_scratch(&self, namespace: &Arc<NamespaceInfo>) -> Result<SlotGuard> {
        let cut = self.state.lock().cut(namespace, None, None)?;
        self.guard(cut)
    }

    fn publish(&self, slot: &SlotGuard) {
        self.state.lock().publish(slot.slot());
    }

    fn discard(&self, slot: &SlotGuard) {
        self.state.lock().discard(slot.slot());
    }

    fn on_room(&self, notify: Arc<dyn Fn() + Send + Sync>) {
        if self.notify.set(notify).is_err() {
            tracing::error!("the cache has two engines; the second one hears of no room");
        }
    }
}

impl Tier for CacheTier {
    fn name(&self) -> &'static str {
        "Cache"
    }

    fn open_namespace(&self, namespace: &Arc<NamespaceInfo>) -> Result<()> {
        self.state.lock().open_namespace(&namespace.namespace)
    }

    fn lookup(&self, namespace: &NamespaceInfo, hashes: &[BlockHash], present: &mut [bool]) {
        self.indexes.lookup(namespace, hashes, present);
    }

    fn lookup_on_prefix(&self, namespace: &NamespaceInfo, hashes: &[BlockHash]) -> usize {
        self.indexes.lookup_on_prefix(namespace, hashes)
    }

    /// Copies between the arena's slots and foreign buffers: what a faster tier in front would ask for.
    fn submit(&self, batch: Vec<Operation>) {
        for operation in batch {
            let result = match operation.action {
                Action::Read | Action::Verify => self.copy_to(&operation),
                Action::Write(_) => self.copy_from(&operation),
            };
            operation.complete(result);
        }
    }

    fn remove(&self, namespace: &NamespaceInfo, hashes: &[BlockHash]) -> u64 {
        self.state.lock().remove(&namespace.namespace, hashes)
    }

    fn purge(&self, namespace: &Namespace) -> Result<u64> {
        let Some(index) = self.indexes.get(namespace) else {
            return Ok(0);
        };
        let mut dropped = 0;
        loop {
            let some = index.read().list_after(None, 4096);
            if some.is_empty() {
                return Ok(dropped);
            }
            dropped += self.state.lock().remove(namespace, &some);
        }
    }

    fn statistics(&self) -> TierStatistics {
        let blocks = self.indexes.blocks();
        let state = self.state.lock();
        let index_bytes = state.table_bytes() as u64;
        TierStatistics {
            allocated_bytes: state.used_bytes() + index_bytes,
            capacity_bytes: self.settings.capacity_bytes,
            blocks,
            index_bytes,
            evicted_blocks: state.counts.evicted_blocks,
            refused_writes: state.counts.refused_writes,
            ..TierStatistics::default()
        }
        .with_quotas(state.quotas())
    }

    fn list(&self, namespace: Option<&Namespace>, after: Option<&BlockKey>, limit: usize) -> Vec<BlockKey> {
        self.indexes.list(namespace, after, limit)
    }

    fn namespaces(&self) -> Vec<(Namespace, u64)> {
        self.indexes.namespaces()
    }

    fn observe(&self, events: EventSink) {
        self.state.lock().events = Some(events);
    }

    fn drain(&self, _deadline: Instant) -> Result<()> {
        Ok(())
    }

    fn shutdown(&self) {}
}

impl CacheTier {
    fn copy_to(&self, operation: &Operation) -> Result<()> {
        let slot = self.pin(&operation.namespace, &[operation.hash]).pop().flatten();
        let slot = slot.ok_or_else(|| Error::new(ErrorKind::NotFound, "block is not in the cache"))?;
        operation.namespace.check_size(&operation.buffer)?;
        copy_image(&slot, &operation.buffer)?;
        if operation.action == Action::Verify {
            let verified = operation
                .namespace
                .verify_image(operation.hash, &operation.buffer);
            verified.inspect_err(|_| self.discard(&slot))?;
        }
        Ok(())
    }

    fn copy_from(&self, operation: &Operation) -> Result<()> {
        operation.namespace.check_size(&operation.buffer)?;
        match self.allocate(&operation.namespace, None, &[operation.hash]).pop() {
            Some(Ok(slot)) => {
                copy_image(&operation.buffer, &slot).inspect_err(|_| self.discard(&slot))?;
                self.publish(&slot);
                Ok(())
            }
            Some(Err(error)) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            Some(Err(error)) => Err(error),
            None => Err(Error::internal("allocate gave no outcome")),
        }
    }
}

fn copy_image(from: &SlotGuard, to: &SlotGuard) -> Result<()> {
    let mut page = vec![0u8; 64 * PAGE_BYTES];
    let length = from.length().min(to.length());
    let mut done = 0;
    while done < length {
        let piece = page.len().min(length - done);
        let piece = page
            .get_mut(..piece)
            .ok_or_else(|| Error::internal("copy buffer"))?;
        from.arena().read(from.offset() + done, piece)?;
        to.arena().write(to.offset() + done, piece)?;
        done += piece.len();
    }
    Ok(())
}
