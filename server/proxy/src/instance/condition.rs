//! Whether an instance may be given work: its phase, what health checks say, and a pause after failures in a row.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// Failed requests in a row after which an instance rests.
const FAILURES_TO_REST: u32 = 3;
/// The first rest; each further one is twice as long.
const FIRST_REST: Duration = Duration::from_secs(1);
/// Doublings of the rest at most.
const MAX_DOUBLINGS: u32 = 5;

/// How far an instance's life is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Added at run time and not seen alive yet.
    Waiting,
    /// Takes requests.
    Active,
    /// Takes no further ones.
    Draining,
    /// Takes no further ones and goes when the last has ended.
    Leaving,
}

impl Phase {
    const ALL: [Self; 4] = [Self::Waiting, Self::Active, Self::Draining, Self::Leaving];

    /// The phase's name in answers and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Leaving => "leaving",
        }
    }
}

/// How well an instance can be used, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fitness {
    /// Nothing speaks against it.
    Fit,
    /// It failed several times in a row and rests.
    Resting,
    /// It can't be reached, or takes no requests.
    Unusable,
}

/// See the module's page.
#[derive(Debug)]
pub struct Condition {
    phase: AtomicU8,
    reachable: AtomicBool,
    failures: AtomicU32,
    rest_until_ms: AtomicU64,
    origin: Instant,
}

impl Condition {
    /// In that phase, reachable until a check or a request says otherwise.
    pub fn new(phase: Phase) -> Self {
        Self {
            phase: AtomicU8::new(phase as u8),
            reachable: AtomicBool::new(true),
            failures: AtomicU32::new(0),
            rest_until_ms: AtomicU64::new(0),
            origin: Instant::now(),
        }
    }

    /// The phase.
    pub fn phase(&self) -> Phase {
        let stored = usize::from(self.phase.load(Ordering::Relaxed));
        Phase::ALL.get(stored).copied().unwrap_or(Phase::Leaving)
    }

    /// Moves to that phase.
    pub fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// Whether the last check or connection reached it.
    pub fn reachable(&self) -> bool {
        self.reachable.load(Ordering::Relaxed)
    }

    /// Notes that; true if it is news.
    pub fn set_reachable(&self, reachable: bool) -> bool {
        self.reachable.swap(reachable, Ordering::Relaxed) != reachable
    }

    /// How well it can be used now.
    pub fn fitness(&self) -> Fitness {
        if self.phase() != Phase::Active || !self.reachable() {
            return Fitness::Unusable;
        }
        let until = self.rest_until_ms.load(Ordering::Relaxed);
        if until != 0 && self.now_ms() < until {
            Fitness::Resting
        } else {
            Fitness::Fit
        }
    }

    /// A request succeeded.
    pub fn succeeded(&self) {
        // reading first keeps the cache line shared while all is well
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
            self.rest_until_ms.store(0, Ordering::Relaxed);
        }
    }

    /// A request failed for the instance's sake.
    pub fn failed(&self) {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if failures >= FAILURES_TO_REST {
            let doublings = (failures - FAILURES_TO_REST).min(MAX_DOUBLINGS);
            let rest = FIRST_REST * 2_u32.pow(doublings);
            self.rest_until_ms
                .store(self.now_ms() + rest.as_millis() as u64, Ordering::Relaxed);
        }
    }

    fn now_ms(&self) -> u64 {
        self.origin.elapsed().as_millis() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_in_a_row_bring_rest_and_a_success_ends_it() {
        let condition = Condition::new(Phase::Active);
        condition.failed();
        condition.failed();
        assert_eq!(condition.fitness(), Fitness::Fit);
        condition.failed();
        assert_eq!(condition.fitness(), Fitness::Resting);
        condition.succeeded();
        assert_eq!(condition.fitness(), Fitness::Fit);
    }

    #[test]
    fn only_the_active_and_reachable_are_usable() {
        let condition = Condition::new(Phase::Waiting);
        assert_eq!(condition.fitness(), Fitness::Unusable);
        condition.set_phase(Phase::Active);
        assert_eq!(condition.fitness(), Fitness::Fit);
        assert!(condition.set_reachable(false));
        assert!(!condition.set_reachable(false), "no news");
        assert_eq!(condition.fitness(), Fitness::Unusable);
        condition.set_reachable(true);
        for phase in [Phase::Draining, Phase::Leaving] {
            condition.set_phase(phase);
            assert_eq!(condition.phase(), phase);
            assert_eq!(condition.fitness(), Fitness::Unusable);
        }
    }
}
