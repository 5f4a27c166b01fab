//! What the endpoints report: the daemon's phase, and its parts once they are there.

use std::fmt;
use std::sync::{Arc, OnceLock};

use kvstored_core::engine::EngineStatistics;
use kvstored_core::eviction::PolicyKind;
use parking_lot::Mutex;

/// How far the daemon is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Opening tiers; clients can't connect yet.
    Starting,
    /// Serving.
    Ready,
    /// Told to stop: finishing what was accepted.
    Draining,
}

impl Phase {
    /// For bodies and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Draining => "draining",
        }
    }
}

type StatisticsSource = Box<dyn Fn() -> EngineStatistics + Send + Sync>;
type ShadowSource = Box<dyn Fn() -> Vec<(PolicyKind, u64, u64)> + Send + Sync>;

/// Where the numbers come from. Memory only: a scrape never waits for I/O.
pub struct Parts {
    /// The engine's numbers.
    pub statistics: StatisticsSource,
    /// Hits and lookups of each policy's shadow cache; empty where there are none.
    pub shadows: ShadowSource,
}

/// Shared by the daemon, which sets it, and the endpoints, which report it.
pub struct AdminState {
    phase: Mutex<Phase>,
    parts: OnceLock<Parts>,
    start_unix_ms: u64,
}

impl AdminState {
    /// A daemon that is starting.
    pub fn new(start_unix_ms: u64) -> Arc<Self> {
        Arc::new(Self {
            phase: Mutex::new(Phase::Starting),
            parts: OnceLock::new(),
            start_unix_ms,
        })
    }

    /// Sets the phase.
    pub fn set_phase(&self, phase: Phase) {
        *self.phase.lock() = phase;
    }

    /// The phase.
    pub fn phase(&self) -> Phase {
        *self.phase.lock()
    }

    /// Says where the numbers come from; the first call counts.
    pub fn set_parts(&self, parts: Parts) {
        let _ = self.parts.set(parts);
    }

    /// The parts, once they are there.
    pub fn parts(&self) -> Option<&Parts> {
        self.parts.get()
    }

    /// When the process started, in milliseconds since the Unix epoch.
    pub fn start_unix_ms(&self) -> u64 {
        self.start_unix_ms
    }
}

impl fmt::Debug for AdminState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("AdminState")
            .field("phase", &self.phase())
            .finish_non_exhaustive()
    }
}
