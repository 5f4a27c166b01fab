//! What an administrator asks of the engine: evict, purge, list, verify, drain.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};

use crate::block::{BlockHash, BlockKey, Namespace};
use crate::error::{Error, ErrorKind, Result};
use crate::tier::{Action, NamespaceInfo, Operation, Tier};

use super::Engine;

/// What a scrub found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyReport {
    /// Blocks read and checked.
    pub checked_blocks: u64,
    /// Blocks that failed and were quarantined.
    pub corrupt_blocks: u64,
    /// Blocks that went away meanwhile.
    pub vanished_blocks: u64,
    /// Blocks that couldn't be read for another reason; they may be checked again later.
    pub unread_blocks: u64,
}

/// Called once with what a batch of a scrub found, and the key to go on behind (`None` at the end).
pub type VerifyDone = Box<dyn FnOnce(VerifyReport, Option<BlockKey>) + Send>;

impl Engine {
    /// Every tier, memory first.
    pub(super) fn all_tiers(&self) -> impl Iterator<Item = &dyn Tier> {
        let memory: &dyn Tier = &*self.memory;
        std::iter::once(memory).chain(self.lower.iter().map(|tier| &**tier))
    }

    pub(crate) fn keeps_memory(&self) -> bool {
        self.memory_in_pipeline
    }

    /// The namespaces that were opened.
    pub fn open_namespaces(&self) -> Vec<Arc<NamespaceInfo>> {
        self.namespaces.read().values().cloned().collect()
    }

    /// Drops blocks from one tier by name, or from all. Returns how many places a block was dropped from.
    pub fn evict(&self, namespace: &NamespaceInfo, hashes: &[BlockHash], tier: Option<&str>) -> Result<u64> {
        let names = self.tier_names();
        if let Some(wanted) = tier
            && !names.iter().any(|name| name == wanted)
        {
            return Err(Error::invalid(format!(
                "tier \"{wanted}\" is not one of {}",
                names.join(", ")
            )));
        }
        let chosen = self
            .all_tiers()
            .zip(&names)
            .filter(|(_, name)| tier.is_none_or(|wanted| wanted == *name));
        Ok(chosen.map(|(tier, _)| tier.remove(namespace, hashes)).sum())
    }

    /// Forgets a namespace in every tier, also for later restarts. Returns how many blocks were dropped.
    pub fn purge(&self, namespace: &Namespace) -> Result<u64> {
        let mut dropped = 0;
        for tier in self.all_tiers() {
            dropped += tier
                .purge(namespace)
                .map_err(|error| error.with("tier", tier.name()))?;
        }
        tracing::info!(%namespace, dropped, "namespace purged");
        Ok(dropped)
    }

    /// The namespaces that have blocks somewhere: digest, identity where known, and blocks by tier.
    pub fn list_namespaces(&self) -> Vec<(Namespace, Option<Arc<NamespaceInfo>>, Vec<u64>)> {
        let mut rows: Vec<(Namespace, Option<Arc<NamespaceInfo>>, Vec<u64>)> = Vec::new();
        let tiers = 1 + self.lower.len();
        for (index, tier) in self.all_tiers().enumerate() {
            for (namespace, blocks) in tier.namespaces() {
                let at = rows.iter().position(|row| row.0 == namespace).unwrap_or_else(|| {
                    rows.push((
                        namespace,
                        self.namespace_or_stored(&namespace).ok(),
                        vec![0; tiers],
                    ));
                    rows.len() - 1
                });
                if let Some(count) = rows.get_mut(at).and_then(|row| row.2.get_mut(index)) {
                    *count = blocks;
                }
            }
        }
        rows
    }

    /// Up to `limit` keys of a tier, behind `after`. Fails with `InvalidInput` for a tier that isn't there.
    pub fn list(
        &self,
        tier: usize,
        namespace: Option<&Namespace>,
        after: Option<&BlockKey>,
        limit: usize,
    ) -> Result<Vec<BlockKey>> {
        let tier = self.all_tiers().nth(tier).ok_or_else(|| {
            Error::invalid(format!(
                "tier index {tier} is outside the pipeline's {} tiers",
                1 + self.lower.len()
            ))
        })?;
        Ok(tier.list(namespace, after, limit))
    }

    /// Checks up to `limit` blocks of a lower tier (index in the pipeline, from 1), behind `after`, payload and all;
    /// bad ones are quarantined. `done` says how to go on.
    pub fn verify(
        &self,
        tier: usize,
        namespace: Option<&Namespace>,
        after: Option<&BlockKey>,
        limit: usize,
        done: VerifyDone,
    ) -> Result<()> {
        let source = tier
            .checked_sub(1)
            .and_then(|index| self.lower.get(index))
            .cloned()
            .ok_or_else(|| Error::invalid(format!("tier index {tier} has no stored blocks to verify")))?;
        let keys = source.list(namespace, after, limit);
        let Some(last) = keys.last().copied() else {
            done(VerifyReport::default(), None);
            return Ok(());
        };
        let scrub = Arc::new(Scrub {
            left: AtomicU64::new(keys.len() as u64),
            done: Mutex::new(Some((done, last))),
            ..Scrub::default()
        });
        let mut batch = Vec::new();
        for key in keys {
            let info = self.namespace_or_stored(&key.namespace);
            let slot = info.and_then(|info| {
                let slot = self.memory.allocate_scratch(&info)?;
                Ok((info, slot))
            });
            match slot {
                Ok((namespace, buffer)) => {
                    let (scrub, memory) = (scrub.clone(), self.memory.clone());
                    batch.push(Operation {
                        namespace,
                        hash: key.hash,
                        action: Action::Verify,
                        buffer,
                        completion: Box::new(move |slot, result| {
                            memory.discard(&slot);
                            drop(slot);
                            scrub.count(result);
                        }),
                    });
                }
                Err(error) => scrub.count(Err(error)),
            }
        }
        source.submit(batch);
        Ok(())
    }

    /// Waits until every accepted dump has reached every tier and is durable, or fails with `TimedOut`.
    pub fn drain(&self, deadline: Instant) -> Result<()> {
        let idle = (Mutex::new(()), Condvar::new());
        loop {
            let waiting: usize = self.writes.iter().map(|queue| queue.lock().depth()).sum();
            if waiting == 0 {
                break;
            }
            let now = self.runtime.clock.now();
            if now >= deadline {
                return Err(Error::new(
                    ErrorKind::TimedOut,
                    format!("{waiting} writes are not finished"),
                ));
            }
            // nobody notifies: draining is rare and may look again every few milliseconds
            let pause = Duration::from_millis(5).min(deadline.saturating_duration_since(now));
            idle.1.wait_for(&mut idle.0.lock(), pause);
        }
        for tier in &self.lower {
            tier.drain(deadline)
                .map_err(|error| error.with("tier", tier.name()))?;
        }
        Ok(())
    }

    /// Stops every tier's threads.
    pub fn shutdown(&self) {
        for tier in &self.lower {
            tier.shutdown();
        }
        self.memory.shutdown();
    }
}

#[derive(Default)]
struct Scrub {
    left: AtomicU64,
    checked: AtomicU64,
    corrupt: AtomicU64,
    vanished: AtomicU64,
    unread: AtomicU64,
    done: Mutex<Option<(VerifyDone, BlockKey)>>,
}

impl Scrub {
    fn count(&self, result: Result<()>) {
        let counter = match result.map_err(|error| error.kind()) {
            Ok(()) => &self.checked,
            Err(ErrorKind::Corrupt) => {
                self.checked.fetch_add(1, Ordering::Relaxed);
                &self.corrupt
            }
            Err(ErrorKind::NotFound) => &self.vanished,
            Err(_) => &self.unread,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1
            && let Some((done, last)) = self.done.lock().take()
        {
            let report = VerifyReport {
                checked_blocks: self.checked.load(Ordering::Relaxed),
                corrupt_blocks: self.corrupt.load(Ordering::Relaxed),
                vanished_blocks: self.vanished.load(Ordering::Relaxed),
                unread_blocks: self.unread.load(Ordering::Relaxed),
            };
            done(report, Some(last));
        }
    }
}
