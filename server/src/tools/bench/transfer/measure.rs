//! One measurement: batches one after the other for a while.

use std::time::Duration;

use kvstored_core::{Result, Runtime};

use crate::tools::bench::setup::cpu_seconds;
use crate::tools::latency::Latencies;

/// How long batches follow one another …
const LONG_ENOUGH: Duration = Duration::from_millis(100);
/// … and how many there are at least.
const BATCHES: u64 = 3;

/// What one measurement gives: GB/s, p50 and p99 of a batch in microseconds, and CPU seconds per GB of both sides
/// together, of the side that asks, and of the side that serves.
pub type Values = [f64; 6];

/// Runs batches of that many bytes. `server_cpu` gives the CPU seconds that the other side has used so far.
pub fn measure(
    runtime: &Runtime,
    batch_bytes: usize,
    mut server_cpu: impl FnMut() -> Result<f64>,
    mut batch: impl FnMut() -> Result<()>,
) -> Result<Values> {
    let mut latencies = Latencies::new()?;
    let server_before = server_cpu()?;
    let before = cpu_seconds();
    let started = runtime.clock.now();
    let mut last = started;
    while latencies.count() < BATCHES || last.saturating_duration_since(started) < LONG_ENOUGH {
        batch()?;
        let now = runtime.clock.now();
        latencies.record(now.saturating_duration_since(last));
        last = now;
    }
    let requester = cpu_seconds() - before;
    let server = server_cpu()? - server_before;
    let gigabytes = (batch_bytes as u64 * latencies.count()) as f64 / 1e9;
    let seconds = last.saturating_duration_since(started).as_secs_f64();
    Ok([
        gigabytes / seconds.max(1e-9),
        latencies.quantile_us(0.5),
        latencies.quantile_us(0.99),
        (requester + server) / gigabytes,
        requester / gigabytes,
        server / gigabytes,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_run_for_a_while_and_the_other_sides_time_counts() {
        let mut calls = 0;
        let mut asked = 0;
        let server_cpu = || {
            asked += 1;
            Ok(f64::from(asked))
        };
        let values = measure(&Runtime::system(), 1_000_000, server_cpu, || {
            std::hint::black_box(vec![1u8; 1_000_000]);
            calls += 1;
            Ok(())
        })
        .unwrap();
        assert!(calls >= BATCHES);
        let gigabytes = f64::from(calls as u32) / 1e3;
        assert!((values[5] - 1.0 / gigabytes).abs() < 1e-9);
        assert!((values[3] - values[4] - values[5]).abs() < 1e-9);
        assert!(values[0] > 0.0 && values[1] > 0.0 && values[2] >= values[1]);
    }

    #[test]
    fn a_failed_batch_ends_it() {
        let failed = measure(
            &Runtime::system(),
            1,
            || Ok(0.0),
            || Err(kvstored_core::Error::internal("x")),
        );
        assert!(failed.is_err());
    }
}
