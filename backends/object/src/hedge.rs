//! Asking twice where an answer is late, within a budget.

use std::ops::Range;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use kvstored_core::runtime::Clock;
use object_store::path::Path;
use object_store::{GetOptions, GetResult, ObjectStore};
use parking_lot::Mutex;

/// Latest latencies that are remembered.
const REMEMBERED: usize = 256;
/// Latencies between two looks at them.
const REVIEW_INTERVAL: usize = 32;
/// Asked again after this long while nothing is known.
const FIRST_DELAY: Duration = Duration::from_secs(1);
/// Never asked again sooner.
const LEAST_DELAY: Duration = Duration::from_millis(10);
/// A second request costs this much of the budget.
const PRICE: i64 = 100;
/// Second requests that may be saved up.
const MOST_SAVED: i64 = 10 * PRICE;

#[derive(Default)]
struct Recent {
    micros: Vec<u64>,
    next: usize,
}

/// When and how often a request is repeated.
pub struct Hedging {
    percent: i64,
    budget: AtomicI64,
    delay_us: AtomicU64,
    recent: Mutex<Recent>,
    /// Second requests so far.
    pub hedges: AtomicU64,
}

impl Hedging {
    /// At most that part of the requests is repeated.
    pub fn new(percent: u32) -> Self {
        Self {
            percent: i64::from(percent),
            budget: AtomicI64::new(0),
            delay_us: AtomicU64::new(FIRST_DELAY.as_micros() as u64),
            recent: Mutex::default(),
            hedges: AtomicU64::new(0),
        }
    }

    /// How long an answer is waited for before it's asked for again: what nineteen in twenty take at most.
    pub fn delay(&self) -> Duration {
        Duration::from_micros(self.delay_us.load(Ordering::Relaxed)).max(LEAST_DELAY)
    }

    fn note(&self, latency: Duration) {
        let mut recent = self.recent.lock();
        let (micros, at) = (latency.as_micros() as u64, recent.next % REMEMBERED);
        match recent.micros.get_mut(at) {
            Some(old) => *old = micros,
            None => recent.micros.push(micros),
        }
        recent.next += 1;
        if recent.next.is_multiple_of(REVIEW_INTERVAL) {
            let mut sorted = recent.micros.clone();
            drop(recent);
            sorted.sort_unstable();
            if let Some(late) = sorted.get(sorted.len() * 95 / 100) {
                self.delay_us.store(*late, Ordering::Relaxed);
            }
        }
    }

    fn earn(&self) {
        let earned = |saved: i64| Some((saved + self.percent).min(MOST_SAVED));
        let _ = self
            .budget
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, earned);
    }

    fn spend(&self) -> bool {
        let spent = |saved: i64| (saved >= PRICE).then_some(saved - PRICE);
        self.budget
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, spent)
            .is_ok()
    }

    /// Gets a range; the answer's body is still to be read. Whichever of two requests answers first is taken.
    pub async fn get(
        &self,
        store: &dyn ObjectStore,
        clock: &dyn Clock,
        path: &Path,
        range: Range<u64>,
    ) -> object_store::Result<GetResult> {
        let request = || store.get_opts(path, GetOptions::new().with_range(Some(range.clone())));
        self.earn();
        let started = clock.now();
        let mut first = request();
        let early = tokio::select! {
            biased;
            result = &mut first => Some(result),
            () = tokio::time::sleep(self.delay()) => None,
        };
        let result = match early {
            Some(result) => result,
            None if self.spend() => {
                self.hedges.fetch_add(1, Ordering::Relaxed);
                let mut second = request();
                tokio::select! {
                    result = &mut first => match result {
                        Ok(result) => Ok(result),
                        Err(_) => second.await,
                    },
                    result = &mut second => match result {
                        Ok(result) => Ok(result),
                        Err(_) => first.await,
                    },
                }
            }
            None => first.await,
        };
        if result.is_ok() {
            self.note(clock.now().saturating_duration_since(started));
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_follows_the_late_answers() {
        let hedging = Hedging::new(5);
        assert_eq!(hedging.delay(), FIRST_DELAY);
        for number in 0..REVIEW_INTERVAL as u64 {
            hedging.note(Duration::from_millis(20 + number));
        }
        assert_eq!(hedging.delay(), Duration::from_millis(50));
        for _ in 0..2 * REMEMBERED {
            hedging.note(Duration::from_millis(1));
        }
        assert_eq!(hedging.delay(), LEAST_DELAY);
    }

    #[test]
    fn at_most_the_allowed_part_is_asked_for_twice() {
        let hedging = Hedging::new(5);
        let mut spent = 0;
        for _ in 0..1000 {
            hedging.earn();
            spent += u32::from(hedging.spend());
        }
        assert_eq!(spent, 50);
    }
}
