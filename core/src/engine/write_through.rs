//! Writing dumped blocks to the tiers below, one tier after the other, with a bounded depth per tier.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::block::BlockHash;
use crate::error::Result;
use crate::memory::SlotGuard;
use crate::tier::{Action, Durability, NamespaceInfo, Operation};

use super::{CommitDone, Engine};

struct PendingWrite {
    namespace: Arc<NamespaceInfo>,
    hash: BlockHash,
    slot: SlotGuard,
    durability: Durability,
    acknowledge: Option<CommitDone>,
    /// Whether the tiers further down get it afterwards.
    onward: bool,
}

/// Writes that wait for a tier. Each holds a slot, so the pool bounds the queue.
#[derive(Default)]
pub(crate) struct WriteQueue {
    pending: VecDeque<PendingWrite>,
    in_flight: usize,
    in_flight_bytes: u64,
}

impl WriteQueue {
    pub(crate) fn depth(&self) -> usize {
        self.pending.len() + self.in_flight
    }
}

impl Engine {
    pub(crate) fn write_through(
        &self,
        namespace: &Arc<NamespaceInfo>,
        hash: BlockHash,
        slot: SlotGuard,
        durability: Durability,
        done: CommitDone,
    ) {
        let mut acknowledge = Some(done);
        let in_memory_is_enough =
            (durability == Durability::Memory && self.keeps_memory()) || self.lower.is_empty();
        if in_memory_is_enough && let Some(done) = acknowledge.take() {
            done(Ok(Durability::Memory));
        }
        let pending = PendingWrite {
            namespace: namespace.clone(),
            hash,
            slot,
            durability,
            acknowledge,
            onward: true,
        };
        self.enqueue_write(0, pending);
    }

    /// Offers a block that was found in a lower tier to those in front of it that want such blocks. Nobody waits for it, and
    /// a tier that has enough to do isn't asked: the block is safe where it was found.
    pub(super) fn offer(
        &self,
        namespace: &Arc<NamespaceInfo>,
        hash: BlockHash,
        slot: &SlotGuard,
        found: usize,
    ) {
        for (lower, tier) in self.lower.iter().enumerate().take(found) {
            let depth = tier.write_depth().unwrap_or(self.settings.write_depth);
            let waiting = self.writes.get(lower).map_or(0, |queue| queue.lock().depth());
            if tier.takes_promotions() && waiting < depth {
                let offered = PendingWrite {
                    namespace: namespace.clone(),
                    hash,
                    slot: slot.clone(),
                    durability: Durability::Memory,
                    acknowledge: None,
                    onward: false,
                };
                self.enqueue_write(lower, offered);
            }
        }
    }

    fn enqueue_write(&self, lower: usize, write: PendingWrite) {
        if let Some(queue) = self.writes.get(lower) {
            queue.lock().pending.push_back(write);
            self.pump_writes(lower);
        }
    }

    /// Hands waiting writes to the tier as far as its depth allows.
    fn pump_writes(&self, lower: usize) {
        let (Some(queue), Some(tier)) = (self.writes.get(lower), self.lower.get(lower)) else {
            return;
        };
        let depth = tier.write_depth().unwrap_or(self.settings.write_depth);
        let mut batch = Vec::new();
        {
            let mut queue = queue.lock();
            while let Some(write) = queue.pending.front() {
                let bytes = write.slot.length() as u64;
                let full = queue.in_flight >= depth
                    || queue.in_flight_bytes + bytes > self.settings.write_depth_bytes;
                if full && queue.in_flight > 0 {
                    break;
                }
                let Some(write) = queue.pending.pop_front() else {
                    break;
                };
                queue.in_flight += 1;
                queue.in_flight_bytes += bytes;
                batch.push(write);
            }
        }
        if batch.is_empty() {
            return;
        }
        let operations = batch
            .into_iter()
            .map(|write| self.write_operation(lower, write))
            .collect();
        tier.submit(operations);
    }

    fn write_operation(&self, lower: usize, write: PendingWrite) -> Operation {
        let PendingWrite {
            namespace,
            hash,
            slot,
            durability,
            acknowledge,
            onward,
        } = write;
        let (engine, info) = (self.this.clone(), namespace.clone());
        Operation {
            namespace,
            hash,
            // a caller who is content with DRAM still gets a block that survives the process
            action: Action::Write(durability.max(Durability::Tier)),
            buffer: slot,
            completion: Box::new(move |slot, result| {
                let Some(engine) = engine.upgrade() else { return };
                engine.written(
                    lower,
                    PendingWrite {
                        namespace: info,
                        hash,
                        slot,
                        durability,
                        acknowledge,
                        onward,
                    },
                    result,
                );
            }),
        }
    }

    fn written(&self, lower: usize, mut write: PendingWrite, result: Result<()>) {
        if let Some(queue) = self.writes.get(lower) {
            let mut queue = queue.lock();
            queue.in_flight = queue.in_flight.saturating_sub(1);
            queue.in_flight_bytes = queue.in_flight_bytes.saturating_sub(write.slot.length() as u64);
        }
        let error = result.err();
        match (&error, write.acknowledge.take()) {
            (None, Some(done)) => match self.reached(lower, &write) {
                Some(level) => done(Ok(level)),
                None => write.acknowledge = Some(done),
            },
            // a tier that was only to keep a copy nearer is left out
            (Some(error), acknowledge) if self.is_only_memory(lower) && lower + 1 < self.lower.len() => {
                write.acknowledge = acknowledge;
                self.counters.error(error.kind());
                tracing::debug!(tier = self.lower_name(lower), hash = %write.hash, %error, "block left out of a tier");
            }
            (Some(error), Some(done)) => done(Err(error.clone().with("tier", self.lower_name(lower)))),
            (Some(error), None) => {
                // nobody waits for this one any more: here is where the error ends
                self.counters.error(error.kind());
                tracing::debug!(tier = self.lower_name(lower), hash = %write.hash, %error, "block not written through");
            }
            (None, None) => {}
        }
        let goes_on = write.onward && (error.is_none() || self.is_only_memory(lower));
        if goes_on && lower + 1 < self.lower.len() {
            self.enqueue_write(lower + 1, write);
        } else {
            drop(write);
        }
        self.pump_writes(lower);
    }

    fn keeps(&self, lower: usize) -> Durability {
        self.lower
            .get(lower)
            .map_or(Durability::Memory, |tier| tier.keeps())
    }

    /// Whether what is written to that tier doesn't outlive processes, so that no dump depends on it.
    fn is_only_memory(&self, lower: usize) -> bool {
        self.keeps(lower) < Durability::Tier
    }

    /// The level that a write has reached with that tier; `None` when one further down must acknowledge it.
    fn reached(&self, lower: usize, write: &PendingWrite) -> Option<Durability> {
        let asked = write.durability.max(Durability::Tier);
        let keeps = self.keeps(lower);
        if keeps >= asked {
            return Some(asked);
        }
        // the last tier says truthfully what was reached
        (lower + 1 >= self.lower.len()).then_some(keeps)
    }

    fn lower_name(&self, lower: usize) -> &str {
        self.lower.get(lower).map_or("", |tier| tier.name())
    }
}
