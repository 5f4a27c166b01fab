//! What the engine counts.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::error::{ErrorKind, Result};
use crate::tier::TierStatistics;

use super::histogram::{Histogram, HistogramSnapshot};
use super::{Acquired, Engine};

#[derive(Default)]
struct TierAtomics {
    hits: AtomicU64,
    misses: AtomicU64,
    loaded_bytes: AtomicU64,
}

pub(crate) struct Counters {
    tiers: Vec<TierAtomics>,
    errors: [AtomicU64; ErrorKind::ALL.len()],
    dumped_blocks: AtomicU64,
    dumped_bytes: AtomicU64,
    generation: AtomicU64,
    pub(crate) lookup: Histogram,
    pub(crate) acquire: Histogram,
    pub(crate) commit: Histogram,
}

impl Counters {
    pub(crate) fn new(tiers: usize) -> Self {
        Self {
            tiers: (0..tiers).map(|_| TierAtomics::default()).collect(),
            errors: std::array::from_fn(|_| AtomicU64::new(0)),
            dumped_blocks: AtomicU64::new(0),
            dumped_bytes: AtomicU64::new(0),
            generation: AtomicU64::new(0),
            lookup: Histogram::default(),
            acquire: Histogram::default(),
            commit: Histogram::default(),
        }
    }

    pub(crate) fn error(&self, kind: ErrorKind) {
        if let Some(count) = self.errors.get(usize::from(kind.code())) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn dumped(&self, bytes: u64) {
        self.dumped_blocks.fetch_add(1, Ordering::Relaxed);
        self.dumped_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts hits and misses by tier: a block found in tier n was missed by the tiers in front of it.
    pub(crate) fn acquired(&self, outcomes: &[Result<Acquired>], payload_bytes: u64) {
        for outcome in outcomes {
            let hit = outcome.as_ref().ok().map(|acquired| acquired.tier);
            if let Err(error) = outcome
                && error.kind() != ErrorKind::NotFound
            {
                self.error(error.kind());
            }
            for (index, tier) in self.tiers.iter().enumerate() {
                if Some(index) == hit {
                    tier.hits.fetch_add(1, Ordering::Relaxed);
                    tier.loaded_bytes.fetch_add(payload_bytes, Ordering::Relaxed);
                    break;
                }
                tier.misses.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// A generation later than any before: microseconds of the clock, or one more than the last.
    pub(crate) fn next_generation(&self, unix_ms: u64) -> u64 {
        let clock = unix_ms.saturating_mul(1000);
        let mut last = self.generation.load(Ordering::Relaxed);
        loop {
            let next = clock.max(last + 1);
            match self
                .generation
                .compare_exchange_weak(last, next, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => return next,
                Err(seen) => last = seen,
            }
        }
    }
}

/// Hits and misses of one tier.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TierCounts {
    /// Blocks found here by loads.
    pub hits: u64,
    /// Blocks asked for that weren't here.
    pub misses: u64,
    /// Payload bytes of the hits.
    pub loaded_bytes: u64,
}

/// One tier in the engine's report.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TierReport {
    /// The tier's name.
    pub name: String,
    /// Hits and misses of loads.
    pub counts: TierCounts,
    /// The tier's own numbers.
    pub statistics: TierStatistics,
    /// Blocks that wait to be written to this tier, or are being written.
    pub pending_writes: u64,
}

/// The engine's numbers at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EngineStatistics {
    /// From fast to durable.
    pub tiers: Vec<TierReport>,
    /// Blocks dumped by clients.
    pub dumped_blocks: u64,
    /// Payload bytes dumped by clients.
    pub dumped_bytes: u64,
    /// Errors by kind.
    pub errors: Vec<(String, u64)>,
    /// Blocks being read from lower tiers.
    pub promotions_in_flight: u64,
    /// Reservations waiting for room.
    pub parked_requests: u64,
    /// Open namespaces.
    pub namespaces: u64,
    /// Time of lookups.
    pub lookup: HistogramSnapshot,
    /// Time from asking for blocks to having them pinned.
    pub acquire: HistogramSnapshot,
    /// Time from commit to acknowledgement.
    pub commit: HistogramSnapshot,
}

impl Engine {
    /// The engine's numbers.
    pub fn statistics(&self) -> EngineStatistics {
        let counters = &self.counters;
        let mut own = vec![(self.memory.statistics(), 0)];
        for (tier, writes) in self.lower.iter().zip(&self.writes) {
            own.push((tier.statistics(), writes.lock().depth() as u64));
        }
        let tiers = self.tier_names().into_iter().zip(own).zip(&counters.tiers);
        EngineStatistics {
            tiers: tiers
                .map(|((name, (statistics, pending_writes)), atomics)| TierReport {
                    name,
                    counts: TierCounts {
                        hits: atomics.hits.load(Ordering::Relaxed),
                        misses: atomics.misses.load(Ordering::Relaxed),
                        loaded_bytes: atomics.loaded_bytes.load(Ordering::Relaxed),
                    },
                    statistics,
                    pending_writes,
                })
                .collect(),
            dumped_blocks: counters.dumped_blocks.load(Ordering::Relaxed),
            dumped_bytes: counters.dumped_bytes.load(Ordering::Relaxed),
            errors: ErrorKind::ALL
                .iter()
                .zip(&counters.errors)
                .map(|(kind, count)| (kind.name().to_owned(), count.load(Ordering::Relaxed)))
                .collect(),
            promotions_in_flight: self.flights.len() as u64,
            parked_requests: self.parking.waiting() as u64,
            namespaces: self.open_namespaces().len() as u64,
            lookup: counters.lookup.snapshot(),
            acquire: counters.acquire.snapshot(),
            commit: counters.commit.snapshot(),
        }
    }
}
