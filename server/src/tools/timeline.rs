//! What happened when, in a bounded number of intervals.

use std::time::Duration;

/// What happened in one interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interval {
    /// Blocks asked for.
    pub prompt_blocks: u64,
    /// Blocks found.
    pub hit_blocks: u64,
    /// Payload bytes loaded.
    pub loaded_bytes: u64,
    /// Payload bytes dumped.
    pub dumped_bytes: u64,
}

impl Interval {
    fn add(&mut self, other: &Self) {
        self.prompt_blocks += other.prompt_blocks;
        self.hit_blocks += other.hit_blocks;
        self.loaded_bytes += other.loaded_bytes;
        self.dumped_bytes += other.dumped_bytes;
    }
}

/// Equal intervals from the beginning on; when there are too many, each two become one.
#[derive(Clone, Debug)]
pub struct Timeline {
    interval_ms: u64,
    intervals: Vec<Interval>,
}

impl Timeline {
    const MAX_INTERVALS: usize = 256;

    /// An empty one.
    pub fn new() -> Self {
        Self {
            interval_ms: 10,
            intervals: Vec::new(),
        }
    }

    /// Length of an interval in seconds.
    pub fn interval_seconds(&self) -> f64 {
        self.interval_ms as f64 / 1e3
    }

    /// The intervals in order.
    pub fn intervals(&self) -> &[Interval] {
        &self.intervals
    }

    /// Counts what happened `at` that time since the beginning.
    pub fn record(&mut self, at: Duration, happened: &Interval) {
        let at_ms = at.as_millis().min(u128::from(u64::MAX)) as u64;
        while at_ms / self.interval_ms >= Self::MAX_INTERVALS as u64 {
            self.halve();
        }
        let index = (at_ms / self.interval_ms) as usize;
        if index >= self.intervals.len() {
            self.intervals.resize(index + 1, Interval::default());
        }
        if let Some(interval) = self.intervals.get_mut(index) {
            interval.add(happened);
        }
    }

    fn halve(&mut self) {
        self.interval_ms = self.interval_ms.saturating_mul(2);
        self.intervals = self
            .intervals
            .chunks(2)
            .map(|pair| {
                let mut sum = Interval::default();
                for interval in pair {
                    sum.add(interval);
                }
                sum
            })
            .collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_however_long_it_takes() {
        let mut timeline = Timeline::new();
        for second in 0..10_000 {
            let happened = Interval {
                prompt_blocks: 2,
                hit_blocks: 1,
                loaded_bytes: 10,
                dumped_bytes: second,
            };
            timeline.record(Duration::from_secs(second), &happened);
        }
        assert!(timeline.intervals().len() <= Timeline::MAX_INTERVALS);
        assert!(timeline.interval_seconds() * timeline.intervals().len() as f64 >= 9_999.0);
        let blocks: u64 = timeline
            .intervals()
            .iter()
            .map(|interval| interval.prompt_blocks)
            .sum();
        assert_eq!(blocks, 20_000);
        let dumped: u64 = timeline
            .intervals()
            .iter()
            .map(|interval| interval.dumped_bytes)
            .sum();
        assert_eq!(dumped, 9_999 * 10_000 / 2);
    }
}
