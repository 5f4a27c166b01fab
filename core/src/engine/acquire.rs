//! Finding blocks and bringing them into memory.

use std::sync::Arc;

use crate::block::BlockHash;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::SlotGuard;
use crate::tier::{Action, NamespaceInfo, Operation};

use super::flights::{Gather, Waiter};
use super::{AcquireDone, Acquired, Engine};

impl Engine {
    /// Pins each block in memory, reading it from a lower tier where needed, and calls `done` once with the
    /// outcomes. `hashes` is a run of one prompt in prefix order.
    ///
    /// Per block: `NotFound` when no tier has it (or what a tier had failed verification), `Busy` when memory
    /// has no room now because everything is pinned.
    pub fn acquire(&self, namespace: &Arc<NamespaceInfo>, hashes: &[BlockHash], done: AcquireDone) {
        if let Err(error) = self.check_request(hashes.len()) {
            self.counters.error(error.kind());
            done(hashes.iter().map(|_| Err(error.clone())).collect());
            return;
        }
        if hashes.is_empty() {
            done(Vec::new());
            return;
        }
        let started = self.runtime.clock.now();
        let engine = self.this.clone();
        let image_bytes = namespace.layout.payload_bytes() as u64;
        let gather = Gather::new(
            hashes.len(),
            Box::new(move |outcomes| {
                if let Some(engine) = engine.upgrade() {
                    engine.counters.acquired(&outcomes, image_bytes);
                    engine
                        .counters
                        .acquire
                        .record(engine.runtime.clock.now().saturating_duration_since(started));
                }
                done(outcomes);
            }),
        );
        let pinned = self.memory.pin(namespace, hashes);
        let mut absent = Vec::new();
        for (index, slot) in pinned.into_iter().enumerate() {
            match slot {
                Some(slot) => gather.set(index, Ok(Acquired { slot, tier: 0 })),
                None => absent.push(index),
            }
        }
        if !absent.is_empty() {
            self.promote(namespace, hashes, &absent, &gather);
        }
    }

    /// Brings blocks into memory ahead of use; nobody waits for it.
    pub fn prefetch(&self, namespace: &Arc<NamespaceInfo>, hashes: &[BlockHash]) {
        self.acquire(namespace, hashes, Box::new(drop));
    }

    fn promote(
        &self,
        namespace: &Arc<NamespaceInfo>,
        hashes: &[BlockHash],
        absent: &[usize],
        gather: &Arc<Gather>,
    ) {
        let wanted: Vec<BlockHash> = absent
            .iter()
            .filter_map(|index| hashes.get(*index).copied())
            .collect();
        let sources = self.sources(namespace, &wanted, 0);
        let (mut starting, mut starting_sources) = (Vec::new(), Vec::new());
        let mut parent = None;
        for ((index, hash), source) in absent.iter().zip(&wanted).zip(sources) {
            let Some(source) = source else {
                gather.set(*index, Err(not_found()));
                continue;
            };
            if self.flights.join(
                namespace.key(*hash),
                Waiter {
                    gather: gather.clone(),
                    index: *index,
                },
            ) {
                if starting.is_empty() {
                    parent = index.checked_sub(1).and_then(|before| hashes.get(before));
                }
                starting.push(*hash);
                starting_sources.push(source);
            }
        }
        if starting.is_empty() {
            return;
        }
        let slots = self.memory.allocate(namespace, parent, &starting);
        let mut batches: Vec<Vec<Operation>> = self.lower.iter().map(|_| Vec::new()).collect();
        for ((hash, source), slot) in starting.into_iter().zip(starting_sources).zip(slots) {
            match slot {
                Ok(slot) => {
                    if let Some(batch) = batches.get_mut(source) {
                        batch.push(self.read_operation(namespace, hash, source, slot));
                    }
                }
                Err(error) => {
                    // it became visible meanwhile, or somebody is dumping it at this moment (then: a miss)
                    let outcome = if error.kind() == ErrorKind::AlreadyExists {
                        let slot = self.memory.pin(namespace, &[hash]).pop().flatten();
                        slot.map(|slot| Acquired { slot, tier: 0 }).ok_or_else(not_found)
                    } else {
                        Err(error)
                    };
                    self.flights.land(&namespace.key(hash), &outcome);
                }
            }
        }
        for (tier, batch) in self.lower.iter().zip(batches) {
            if !batch.is_empty() {
                tier.submit(batch);
            }
        }
    }

    /// For each block the first lower tier, from `first` on, that has it.
    fn sources(&self, namespace: &NamespaceInfo, hashes: &[BlockHash], first: usize) -> Vec<Option<usize>> {
        let mut sources = vec![None; hashes.len()];
        for (index, tier) in self.lower.iter().enumerate().skip(first) {
            let mut present = vec![false; hashes.len()];
            tier.lookup(namespace, hashes, &mut present);
            for (source, found) in sources.iter_mut().zip(present) {
                if found && source.is_none() {
                    *source = Some(index);
                }
            }
        }
        sources
    }

    fn read_operation(
        &self,
        namespace: &Arc<NamespaceInfo>,
        hash: BlockHash,
        source: usize,
        slot: SlotGuard,
    ) -> Operation {
        let (engine, info) = (self.this.clone(), namespace.clone());
        Operation {
            namespace: namespace.clone(),
            hash,
            action: Action::Read,
            buffer: slot,
            completion: Box::new(move |slot, result| {
                if let Some(engine) = engine.upgrade() {
                    engine.landed(&info, hash, source, slot, result);
                }
            }),
        }
    }

    fn landed(
        &self,
        namespace: &Arc<NamespaceInfo>,
        hash: BlockHash,
        source: usize,
        slot: SlotGuard,
        result: Result<()>,
    ) {
        let key = namespace.key(hash);
        match result {
            Ok(()) => {
                self.memory.publish(&slot);
                self.flights.land(
                    &key,
                    &Ok(Acquired {
                        slot: slot.clone(),
                        tier: source + 1,
                    }),
                );
                self.offer(namespace, hash, &slot, source);
            }
            Err(error) => {
                // a tier further down may still have it
                let next = self.sources(namespace, &[hash], source + 1).pop().flatten();
                if let Some((next, tier)) = next.and_then(|next| Some((next, self.lower.get(next)?))) {
                    self.note(&error, source, &key);
                    if let Some(slot) = self.slot_after(&error, namespace, hash, slot) {
                        tier.submit(vec![self.read_operation(namespace, hash, next, slot)]);
                    } else {
                        self.flights.land(&key, &Err(error));
                    }
                    return;
                }
                self.memory.discard(&slot);
                drop(slot);
                self.flights.land(&key, &Err(error));
            }
        }
    }

    /// The slot for another attempt: the same one, unless the tier gave up in the middle and somebody, like a plugin, may
    /// still be writing to it.
    fn slot_after(
        &self,
        error: &Error,
        namespace: &Arc<NamespaceInfo>,
        hash: BlockHash,
        slot: SlotGuard,
    ) -> Option<SlotGuard> {
        if !matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::Cancelled) {
            return Some(slot);
        }
        self.memory.discard(&slot);
        drop(slot);
        self.memory.allocate(namespace, None, &[hash]).pop()?.ok()
    }

    /// Tells the engine that a pinned block failed verification while it was copied out: it's dropped from
    /// memory, and the tiers below check their own copies and quarantine what is bad.
    pub fn report_corrupt(&self, namespace: &Arc<NamespaceInfo>, hash: BlockHash, slot: &SlotGuard) {
        let key = namespace.key(hash);
        self.counters.error(ErrorKind::Corrupt);
        tracing::error!(%key, "block failed verification on its way out of memory; dropped");
        self.memory.discard(slot);
        for tier in &self.lower {
            let mut present = [false];
            tier.lookup(namespace, &[hash], &mut present);
            if !present[0] {
                continue;
            }
            match self.memory.allocate_scratch(namespace) {
                Ok(scratch) => {
                    let memory = self.memory.clone();
                    tier.submit(vec![Operation {
                        namespace: namespace.clone(),
                        hash,
                        action: Action::Verify,
                        buffer: scratch,
                        completion: Box::new(move |scratch, _| memory.discard(&scratch)),
                    }]);
                }
                // no room to check it: better a miss than a doubtful block
                Err(_) => {
                    tier.remove(namespace, &[hash]);
                }
            }
        }
    }

    pub(crate) fn note(&self, error: &Error, lower: usize, key: &crate::block::BlockKey) {
        self.counters.error(error.kind());
        let tier = self.lower.get(lower).map_or("", |tier| tier.name());
        tracing::warn!(tier, %key, %error, "block not read from tier");
    }
}

fn not_found() -> Error {
    Error::new(ErrorKind::NotFound, "no tier has the block")
}
