//! Clock, randomness and thread spawning, injected so that a simulation can own them.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};

/// Where time comes from.
pub trait Clock: Send + Sync + 'static {
    /// Monotonic time.
    fn now(&self) -> Instant;
    /// Milliseconds since the Unix epoch; for labels in files and logs, never for deadlines.
    fn unix_ms(&self) -> u64;
}

/// Where random numbers come from (identifiers and jitter, never keys).
pub trait Random: Send + Sync + 'static {
    /// 64 random bits.
    fn next_u64(&self) -> u64;
}

/// How threads are started.
pub trait Spawner: Send + Sync + 'static {
    /// Starts a named thread that runs `body` to its end.
    fn spawn(&self, name: &str, body: Box<dyn FnOnce() + Send>) -> Result<ThreadHandle>;
}

/// A started thread, to be joined at shutdown.
pub struct ThreadHandle {
    join: Box<dyn FnOnce() + Send>,
}

impl ThreadHandle {
    /// Wraps whatever waits for the thread's end.
    pub fn new(join: impl FnOnce() + Send + 'static) -> Self {
        Self { join: Box::new(join) }
    }

    /// Waits for the thread's end.
    pub fn join(self) {
        (self.join)();
    }
}

/// Clock, randomness and spawner together.
#[derive(Clone)]
pub struct Runtime {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub random: Arc<dyn Random>,
    /// Threads.
    pub spawner: Arc<dyn Spawner>,
}

/// Where a deadline lies that the clock can't express.
const FAR: Duration = Duration::from_hours(365 * 24);

impl Runtime {
    /// The operating system's clock, randomness and threads.
    pub fn system() -> Self {
        Self {
            clock: Arc::new(SystemClock),
            random: Arc::new(SystemRandom::new()),
            spawner: Arc::new(SystemSpawner),
        }
    }

    /// The moment `timeout` from now.
    pub fn deadline(&self, timeout: Duration) -> Instant {
        let now = self.clock.now();
        now.checked_add(timeout).unwrap_or(now + FAR)
    }
}

/// The operating system's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

#[allow(clippy::disallowed_methods)] // the one place that asks the operating system
impl Clock for SystemClock {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn unix_ms(&self) -> u64 {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_millis() as u64)
    }
}

/// SplitMix64 seeded from the operating system (through the standard library's hash seeds).
pub struct SystemRandom {
    state: AtomicU64,
}

impl SystemRandom {
    /// Seeds from the operating system.
    pub fn new() -> Self {
        Self::seeded(RandomState::new().build_hasher().finish())
    }

    /// A repeatable sequence.
    pub fn seeded(seed: u64) -> Self {
        Self {
            state: AtomicU64::new(seed),
        }
    }
}

impl Default for SystemRandom {
    fn default() -> Self {
        Self::new()
    }
}

impl Random for SystemRandom {
    fn next_u64(&self) -> u64 {
        const STEP: u64 = 0x9E37_79B9_7F4A_7C15;
        let mut z = self.state.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

/// Threads of the operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemSpawner;

impl Spawner for SystemSpawner {
    fn spawn(&self, name: &str, body: Box<dyn FnOnce() + Send>) -> Result<ThreadHandle> {
        let handle = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(body)
            .map_err(|error| Error::from_io(error, format!("can't start thread {name}")))?;
        Ok(ThreadHandle::new(move || {
            if handle.join().is_err() {
                tracing::error!("a worker thread panicked");
            }
        }))
    }
}
