//! Latencies in constant memory.

use std::time::Duration;

use hdrhistogram::Histogram;
use kvstored_core::{Error, Result};
use serde::Serialize;

/// Two quantiles in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Quantiles {
    /// The median.
    pub p50: f64,
    /// 99 of 100 are no slower.
    pub p99: f64,
}

/// Durations from 100 ns to an hour, to three digits.
#[derive(Clone, Debug)]
pub struct Latencies {
    histogram: Histogram<u64>,
}

impl Latencies {
    const STEP_NS: u128 = 100;

    /// Nothing recorded yet.
    pub fn new() -> Result<Self> {
        let histogram = Histogram::new_with_bounds(1, 36_000_000_000, 3)
            .map_err(|error| Error::internal(format!("latency histogram: {error}")))?;
        Ok(Self { histogram })
    }

    /// Counts one duration.
    pub fn record(&mut self, duration: Duration) {
        self.histogram
            .saturating_record((duration.as_nanos() / Self::STEP_NS).max(1) as u64);
    }

    /// Adds everything that another one counted.
    pub fn add(&mut self, other: &Self) {
        // both have the same bounds, the only thing that could fail
        if let Err(error) = self.histogram.add(&other.histogram) {
            tracing::error!(%error, "latencies not added");
        }
    }

    /// How many durations were counted.
    pub fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// A quantile (0 to 1) in microseconds; 0 when nothing was counted.
    pub fn quantile_us(&self, quantile: f64) -> f64 {
        if self.histogram.is_empty() {
            return 0.0;
        }
        self.histogram.value_at_quantile(quantile) as f64 / 10.0
    }

    /// Median and 99th percentile.
    pub fn quantiles(&self) -> Quantiles {
        Quantiles {
            p50: self.quantile_us(0.5),
            p99: self.quantile_us(0.99),
        }
    }

    /// Counts in buckets whose bounds double: upper bound in microseconds and count, without empty ends.
    pub fn distribution(&self) -> Vec<(f64, u64)> {
        let mut buckets: Vec<(f64, u64)> = self
            .histogram
            .iter_log(5, 2.0)
            .map(|step| {
                (
                    (step.value_iterated_to() as f64 + 1.0) / 10.0,
                    step.count_since_last_iteration(),
                )
            })
            .collect();
        let last = buckets
            .iter()
            .rposition(|(_, count)| *count > 0)
            .map_or(0, |index| index + 1);
        buckets.truncate(last);
        let first = buckets.iter().position(|(_, count)| *count > 0).unwrap_or(0);
        buckets.split_off(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_and_distribution_agree_with_what_was_recorded() {
        let mut latencies = Latencies::new().unwrap();
        assert_eq!(latencies.quantiles(), Quantiles::default());
        assert!(latencies.distribution().is_empty());
        for us in 1..=1000 {
            latencies.record(Duration::from_micros(us));
        }
        let mut other = Latencies::new().unwrap();
        other.record(Duration::from_secs(40));
        latencies.add(&other);
        let quantiles = latencies.quantiles();
        assert!((490.0..510.0).contains(&quantiles.p50), "{quantiles:?}");
        assert!((980.0..1010.0).contains(&quantiles.p99), "{quantiles:?}");
        let distribution = latencies.distribution();
        assert_eq!(distribution.iter().map(|(_, count)| count).sum::<u64>(), 1001);
        assert_eq!(
            distribution.len(),
            distribution
                .iter()
                .map(|(bound, _)| *bound as u64)
                .collect::<std::collections::BTreeSet<_>>()
                .len()
        );
        assert!(distribution.first().unwrap().1 > 0 && distribution.last().unwrap().1 == 1);
    }
}
