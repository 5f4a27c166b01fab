//! What a replay counts and reports.

use std::collections::BTreeMap;
use std::time::Duration;

use kvstored_core::size::format_bytes;
use kvstored_core::{Error, Result};
use serde::Serialize;

use crate::tools::latency::{Latencies, Quantiles};
use crate::tools::timeline::Timeline;

/// Everything counted while replaying.
#[derive(Clone, Debug)]
pub struct Tally {
    /// Requests replayed.
    pub requests: u64,
    /// Blocks of all prompts.
    pub prompt_blocks: u64,
    /// Blocks loaded and found right, by tier.
    pub hits: Vec<u64>,
    /// Names of the tiers.
    pub tier_names: Vec<String>,
    /// Blocks dumped, those left out that were there already.
    pub dumped_blocks: u64,
    /// Payload bytes of all hits.
    pub loaded_bytes: u64,
    /// Payload bytes of all dumped blocks.
    pub dumped_bytes: u64,
    /// Blocks that were loaded with wrong bytes.
    pub corrupt_blocks: u64,
    /// Blocks and calls that failed.
    pub errors: u64,
    /// The first few errors.
    pub error_examples: Vec<String>,
    /// Duration of lookups, one a request.
    pub lookup: Latencies,
    /// Duration of loads, one a request with hits.
    pub load: Latencies,
    /// Time spent in loads.
    pub load_time: Duration,
    /// Time spent in dumps.
    pub dump_time: Duration,
    /// Time from beginning to end.
    pub elapsed: Duration,
    /// What happened when.
    pub timeline: Timeline,
}

impl Tally {
    const MAX_EXAMPLES: usize = 5;

    /// Nothing counted yet.
    pub fn new(tier_names: &[String]) -> Result<Self> {
        Ok(Self {
            requests: 0,
            prompt_blocks: 0,
            hits: vec![0; tier_names.len()],
            tier_names: tier_names.to_vec(),
            dumped_blocks: 0,
            loaded_bytes: 0,
            dumped_bytes: 0,
            corrupt_blocks: 0,
            errors: 0,
            error_examples: Vec::new(),
            lookup: Latencies::new()?,
            load: Latencies::new()?,
            load_time: Duration::ZERO,
            dump_time: Duration::ZERO,
            elapsed: Duration::ZERO,
            timeline: Timeline::new(),
        })
    }

    /// Counts an error and keeps the first few.
    pub fn error(&mut self, error: &Error) {
        self.errors += 1;
        if self.error_examples.len() < Self::MAX_EXAMPLES {
            self.error_examples.push(error.to_string());
        }
    }

    /// Adds what another worker counted; its timeline is not added.
    pub fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.prompt_blocks += other.prompt_blocks;
        for (sum, hits) in self.hits.iter_mut().zip(&other.hits) {
            *sum += hits;
        }
        self.dumped_blocks += other.dumped_blocks;
        self.loaded_bytes += other.loaded_bytes;
        self.dumped_bytes += other.dumped_bytes;
        self.corrupt_blocks += other.corrupt_blocks;
        self.errors += other.errors;
        self.error_examples.extend(other.error_examples.iter().cloned());
        self.error_examples.truncate(Self::MAX_EXAMPLES);
        self.lookup.add(&other.lookup);
        self.load.add(&other.load);
        self.load_time += other.load_time;
        self.dump_time += other.dump_time;
    }

    /// The figures to report.
    pub fn results(&self) -> ReplayResults {
        let hit_blocks = self.hits.iter().sum();
        ReplayResults {
            requests: self.requests,
            prompt_blocks: self.prompt_blocks,
            hit_blocks,
            hit_ratio: share(hit_blocks, self.prompt_blocks),
            hits_by_tier: self
                .tier_names
                .iter()
                .cloned()
                .zip(self.hits.iter().copied())
                .collect(),
            dumped_blocks: self.dumped_blocks,
            loaded_bytes: self.loaded_bytes,
            dumped_bytes: self.dumped_bytes,
            corrupt_blocks: self.corrupt_blocks,
            errors: self.errors,
            seconds: self.elapsed.as_secs_f64(),
            load_gbps: gigabytes_per_second(self.loaded_bytes, self.load_time),
            dump_gbps: gigabytes_per_second(self.dumped_bytes, self.dump_time),
            lookup_us: self.lookup.quantiles(),
            load_us: self.load.quantiles(),
        }
    }
}

/// A part of a whole; 0 of nothing.
pub fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}

fn gigabytes_per_second(bytes: u64, time: Duration) -> f64 {
    if time.is_zero() {
        0.0
    } else {
        bytes as f64 / time.as_secs_f64() / 1e9
    }
}

/// The figures of a replay, as `--json` prints them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReplayResults {
    /// Requests replayed.
    pub requests: u64,
    /// Blocks of all prompts.
    pub prompt_blocks: u64,
    /// Blocks loaded and found right.
    pub hit_blocks: u64,
    /// `hit_blocks` of `prompt_blocks`.
    pub hit_ratio: f64,
    /// `hit_blocks` by the tier that had them.
    pub hits_by_tier: BTreeMap<String, u64>,
    /// Blocks dumped.
    pub dumped_blocks: u64,
    /// Payload bytes loaded.
    pub loaded_bytes: u64,
    /// Payload bytes dumped.
    pub dumped_bytes: u64,
    /// Blocks loaded with wrong bytes.
    pub corrupt_blocks: u64,
    /// Failed blocks and calls.
    pub errors: u64,
    /// Time from beginning to end.
    pub seconds: f64,
    /// Loaded bytes by the time that requests spent loading.
    pub load_gbps: f64,
    /// Dumped bytes by the time that requests spent dumping.
    pub dump_gbps: f64,
    /// Duration of a request's lookup.
    pub lookup_us: Quantiles,
    /// Duration of a request's load, where it had hits.
    pub load_us: Quantiles,
}

impl ReplayResults {
    /// Nothing was wrong and nothing failed.
    pub fn is_clean(&self) -> bool {
        self.corrupt_blocks == 0 && self.errors == 0
    }

    /// Names and values for people.
    pub fn rows(&self) -> Vec<(&'static str, String)> {
        let tiers: Vec<String> = self
            .hits_by_tier
            .iter()
            .map(|(tier, hits)| format!("{tier} {hits}"))
            .collect();
        let quantiles =
            |quantiles: &Quantiles| format!("p50 {:.1} us, p99 {:.1} us", quantiles.p50, quantiles.p99);
        vec![
            ("requests", self.requests.to_string()),
            ("prompt blocks", self.prompt_blocks.to_string()),
            ("hit blocks", self.hit_blocks.to_string()),
            ("hit ratio", format!("{:.4}", self.hit_ratio)),
            ("hits by tier", tiers.join(", ")),
            ("dumped blocks", self.dumped_blocks.to_string()),
            (
                "loaded",
                format!(
                    "{} at {:.2} GB/s",
                    format_bytes(self.loaded_bytes),
                    self.load_gbps
                ),
            ),
            (
                "dumped",
                format!(
                    "{} at {:.2} GB/s",
                    format_bytes(self.dumped_bytes),
                    self.dump_gbps
                ),
            ),
            ("lookup", quantiles(&self.lookup_us)),
            ("load", quantiles(&self.load_us)),
            ("seconds", format!("{:.2}", self.seconds)),
            ("corrupt blocks", self.corrupt_blocks.to_string()),
            ("errors", self.errors.to_string()),
        ]
    }
}
