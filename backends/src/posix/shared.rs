//! What all parts of the tier share.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kvstored_core::{Error, ErrorKind, Result, Runtime};
use parking_lot::{Condvar, Mutex};

use super::index::Index;
use super::quota::Quotas;
use super::segments::SegmentTable;
use super::settings::PosixSettings;

/// Counters of [`kvstored_core::TierStatistics`].
#[derive(Default)]
pub struct Counters {
    /// Bytes read from the medium.
    pub read_bytes: AtomicU64,
    /// Bytes written to the medium.
    pub written_bytes: AtomicU64,
    /// Blocks evicted.
    pub evicted_blocks: AtomicU64,
    /// Blocks written again during eviction.
    pub reinserted_blocks: AtomicU64,
    /// Blocks that failed verification.
    pub quarantined_blocks: AtomicU64,
    /// Writes refused.
    pub refused_writes: AtomicU64,
}

/// Adds to a counter.
pub fn count(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}

/// Who this process is, in owner files and journals.
#[derive(Clone, Debug)]
pub struct Host {
    /// Changes with every boot of the machine.
    pub boot_id: [u8; 16],
    /// The machine's name.
    pub name: String,
    /// This process.
    pub process_id: u32,
}

impl Host {
    /// Asks the operating system.
    pub fn current() -> Self {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let digits: String = boot.chars().filter(char::is_ascii_hexdigit).collect();
        let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Self {
            boot_id: u128::from_str_radix(&digits, 16)
                .unwrap_or_default()
                .to_be_bytes(),
            name,
            process_id: std::process::id(),
        }
    }
}

/// Operations accepted and not yet completed.
#[derive(Default)]
pub struct Outstanding {
    count: Mutex<u64>,
    changed: Condvar,
}

impl Outstanding {
    /// One more.
    pub fn add(&self) {
        *self.count.lock() += 1;
    }

    /// One less.
    pub fn done(&self) {
        let mut count = self.count.lock();
        *count = count.saturating_sub(1);
        if *count == 0 {
            self.changed.notify_all();
        }
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        *self.count.lock()
    }

    /// Waits until there are none. Fails with `TimedOut`.
    pub fn wait(&self, runtime: &Runtime, deadline: Instant) -> Result<()> {
        let mut count = self.count.lock();
        while *count > 0 {
            let left = deadline.saturating_duration_since(runtime.clock.now());
            if left.is_zero() {
                return Err(Error::new(
                    ErrorKind::TimedOut,
                    format!("{} operations are still under way", *count),
                ));
            }
            self.changed
                .wait_for(&mut count, left.min(Duration::from_millis(200)));
        }
        Ok(())
    }
}

/// What all parts of the tier share.
pub struct Shared {
    /// Settings as given.
    pub settings: PosixSettings,
    /// Clock, randomness, threads.
    pub runtime: Runtime,
    /// Quotas, if there are any.
    pub quotas: Quotas,
    /// Where every block lies.
    pub index: Index,
    /// The segments behind the index.
    pub segments: SegmentTable,
    /// Counters.
    pub counters: Counters,
    /// This process.
    pub host: Host,
    /// Operations under way.
    pub outstanding: Outstanding,
}

impl Shared {
    /// Microseconds since the Unix epoch.
    pub fn unix_us(&self) -> u64 {
        self.runtime.clock.unix_ms().saturating_mul(1000)
    }
}
