//! Latency histograms that threads share without locks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

const BUCKETS: usize = 40;

/// Counts of durations in buckets that double from 1 µs, half-steps included.
#[derive(Debug)]
pub struct Histogram {
    counts: [AtomicU64; BUCKETS],
    sum_ns: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: [const { AtomicU64::new(0) }; BUCKETS],
            sum_ns: AtomicU64::new(0),
        }
    }
}

/// The upper bound of a bucket in microseconds: 1, 1.5, 2, 3, 4, 6, 8, …; the last one is open.
fn bound_us(index: usize) -> f64 {
    let base = (1u64 << (index / 2).min(62)) as f64;
    if index.is_multiple_of(2) { base } else { base * 1.5 }
}

impl Histogram {
    /// Counts one duration.
    pub fn record(&self, duration: Duration) {
        let us = duration.as_secs_f64() * 1e6;
        let mut index = 0;
        while index < BUCKETS - 1 && us > bound_us(index) {
            index += 1;
        }
        if let Some(count) = self.counts.get(index) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.sum_ns
            .fetch_add(duration.as_nanos() as u64, Ordering::Relaxed);
    }

    /// The counts at this moment.
    pub fn snapshot(&self) -> HistogramSnapshot {
        HistogramSnapshot {
            buckets: self
                .counts
                .iter()
                .enumerate()
                .map(|(index, count)| (bound_us(index), count.load(Ordering::Relaxed)))
                .collect(),
            sum_us: self.sum_ns.load(Ordering::Relaxed) as f64 / 1e3,
        }
    }
}

/// A histogram's counts at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HistogramSnapshot {
    /// Upper bound of each bucket in microseconds (the last one is open), and its count (not cumulative).
    pub buckets: Vec<(f64, u64)>,
    /// Sum of all durations in microseconds.
    pub sum_us: f64,
}

impl HistogramSnapshot {
    /// How many durations were counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|(_, count)| count).sum()
    }

    /// The upper bound of the bucket in which that quantile (0 to 1) lies, in microseconds; 0 when empty.
    pub fn quantile_us(&self, quantile: f64) -> f64 {
        let target = (self.count() as f64 * quantile).ceil() as u64;
        let mut seen = 0;
        for (bound, count) in &self.buckets {
            seen += count;
            if seen >= target && seen > 0 {
                return *bound;
            }
        }
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_bucket_bounds() {
        let histogram = Histogram::default();
        for us in 1..=100 {
            histogram.record(Duration::from_micros(us));
        }
        histogram.record(Duration::from_secs(1000));
        let snapshot = histogram.snapshot();
        assert_eq!(snapshot.count(), 101);
        assert!(
            (48.0..=64.0).contains(&snapshot.quantile_us(0.5)),
            "{}",
            snapshot.quantile_us(0.5)
        );
        assert!((snapshot.sum_us - 1_000_005_050.0).abs() < 1.0);
    }

    #[test]
    fn an_empty_histogram_says_zero() {
        assert!(Histogram::default().snapshot().quantile_us(0.99).abs() < f64::EPSILON);
    }
}
