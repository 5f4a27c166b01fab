//! What all measurements have in common.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kvstored_client::ClientSettings;
use kvstored_core::eviction::PolicyKind;
use kvstored_core::{Error, Identity, Pipeline, Result, Runtime};
use tempfile::TempDir;

use super::geometry::Geometry;
use crate::tools::embedded::{Embedded, EmbeddedSettings};

/// What all measurements have in common.
pub struct Setup {
    /// Clock and threads.
    pub runtime: Runtime,
    /// How often each figure is measured.
    pub rounds: usize,
    /// Whether to take the time for the long ones.
    pub full: bool,
    only: Vec<String>,
    geometry: Option<Geometry>,
    directory: TempDir,
    next: AtomicU64,
}

impl Setup {
    /// Makes a temporary directory in `directory`, or in the current one.
    pub fn new(
        runtime: Runtime,
        geometry: Option<&str>,
        directory: Option<&Path>,
        rounds: usize,
        full: bool,
        only: Vec<String>,
    ) -> Result<Self> {
        let parent = directory.unwrap_or(Path::new("."));
        let failed = |error| Error::from_io(error, format!("no temporary directory in {}", parent.display()));
        let parent = parent.canonicalize().map_err(failed)?;
        Ok(Self {
            runtime,
            rounds,
            full,
            only,
            geometry: geometry.map(Geometry::named).transpose()?,
            directory: tempfile::Builder::new()
                .prefix(".kvstored-bench-")
                .tempdir_in(parent)
                .map_err(failed)?,
            next: AtomicU64::new(0),
        })
    }

    /// Whether a figure is asked for.
    pub fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }

    /// Whether a figure that takes long is asked for.
    pub fn wants_long(&self, name: &str) -> bool {
        (self.full || !self.only.is_empty()) && self.wants(name)
    }

    /// The geometry asked for, or the figure's own.
    pub fn geometry(&self, name: &str) -> Result<Geometry> {
        self.geometry.map_or_else(|| Geometry::named(name), Ok)
    }

    /// A directory of its own for one measurement; removed with the guard.
    pub fn directory(&self) -> Result<TempDir> {
        let name = format!("{}-", self.number());
        tempfile::Builder::new()
            .prefix(&name)
            .tempdir_in(self.directory.path())
            .map_err(|error| Error::from_io(error, "no directory for a measurement"))
    }

    /// Where a socket may be: sockets' paths are short, directories' aren't always.
    pub fn socket() -> Result<(TempDir, PathBuf)> {
        let directory = tempfile::Builder::new()
            .prefix("kvstored-bench-")
            .tempdir()
            .map_err(|error| Error::from_io(error, "no directory for a socket"))?;
        let path = directory.path().join("socket");
        Ok((directory, path))
    }

    /// A number that no other call gave.
    pub fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// An engine in this process, with so many copying threads.
    pub fn embedded(
        &self,
        pipeline: &str,
        directory: Option<&Path>,
        cache_bytes: u64,
        posix_bytes: u64,
        streams: usize,
    ) -> Result<Embedded> {
        let settings = EmbeddedSettings {
            pipeline: pipeline.parse::<Pipeline>()?,
            directories: directory.map(Path::to_owned).into_iter().collect(),
            cache_capacity_bytes: cache_bytes,
            posix_capacity_bytes: posix_bytes,
            hbm_capacity_bytes: None,
            policy: PolicyKind::default(),
        };
        let client = ClientSettings {
            streams,
            timeout: Duration::from_mins(2),
            ..ClientSettings::default()
        };
        Embedded::open(settings, client, &self.runtime)
    }

    /// The identity that benchmarks dump under.
    pub fn identity() -> Identity {
        Identity {
            model: "kvstored bench".into(),
            ..Identity::default()
        }
    }

    /// The moment.
    pub fn now(&self) -> Instant {
        self.runtime.clock.now()
    }

    /// Seconds since then.
    pub fn since(&self, started: Instant) -> f64 {
        self.now().saturating_duration_since(started).as_secs_f64()
    }

    /// Waits.
    pub fn pause(&self, duration: Duration) {
        pause(&self.runtime, duration);
    }
}

/// Waits.
pub fn pause(runtime: &Runtime, duration: Duration) {
    let until = runtime.deadline(duration);
    loop {
        let left = until.saturating_duration_since(runtime.clock.now());
        if left.is_zero() {
            return;
        }
        std::thread::park_timeout(left);
    }
}

/// Bytes in so many seconds, in GB/s.
pub fn gigabytes_per_second(bytes: usize, seconds: f64) -> f64 {
    bytes as f64 / 1e9 / seconds.max(1e-9)
}

/// CPU seconds that this process has used, all its threads and the kernel's work for it.
pub fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
