//! An I/O engine over USRBIO: rings for each direction, each with a thread that prepares and one that waits.
//!
//! A request goes through a ring in one I/O where its buffer lies in memory that 3FS knows ([`Regions`]), and in pieces
//! through memory of the ring's own otherwise, with one copy. What a ring can't take goes to an ordinary engine, on the
//! mount: files that 3FS doesn't know, and everything while an I/O doesn't come back.

mod files;
mod lane;
mod queue;
mod regions;

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kvstored_backends::io::{Direction, IoEngine, IoRequest};
use kvstored_core::runtime::ThreadHandle;
use kvstored_core::{Error, Result, Runtime};
use parking_lot::Mutex;

use crate::usrbio::{Mount, Ring};
use files::Files;
use lane::Lane;
use queue::Queue;

pub use regions::{Region, Regions};

/// How an engine uses USRBIO. Plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RingSettings {
    /// Rings for reading, 1 to 64.
    pub read_rings: usize,
    /// Rings for writing, 1 to 64.
    pub write_rings: usize,
    /// Places in each, 1 to 4,096.
    pub ring_entries: usize,
    /// The largest piece that is copied at once, 4 KiB to 64 MiB.
    pub bounce_bytes: usize,
    /// How long an I/O may take before its ring is left alone.
    pub io_timeout: Duration,
    /// Requests of each direction that may wait, 1 to 1,048,576.
    pub queue_limit: usize,
}

impl Default for RingSettings {
    fn default() -> Self {
        Self {
            read_rings: 2,
            write_rings: 1,
            ring_entries: 32,
            bounce_bytes: 1 << 20,
            io_timeout: Duration::from_secs(4),
            queue_limit: 8192,
        }
    }
}

impl RingSettings {
    /// Fails with `InvalidInput`, naming the setting, if a number is out of its range.
    pub fn validate(&self) -> Result<()> {
        let ranges = [
            ("read_rings", self.read_rings, 1, 64),
            ("write_rings", self.write_rings, 1, 64),
            ("ring_entries", self.ring_entries, 1, 4096),
            ("bounce_bytes", self.bounce_bytes, 4096, 64 << 20),
            ("io_timeout_ms", self.io_timeout.as_millis() as usize, 1, 600_000),
            ("queue_limit", self.queue_limit, 1, 1 << 20),
        ];
        for (name, value, least, most) in ranges {
            if !(least..=most).contains(&value) {
                return Err(Error::invalid(format!(
                    "{name} is {value}, must be {least} to {most}"
                )));
            }
        }
        Ok(())
    }
}

thread_local! {
    /// The engine that this thread works for, as a number.
    static SERVED: Cell<usize> = const { Cell::new(0) };
}

/// The USRBIO engine.
pub struct UsrbioEngine {
    reads: Arc<Queue>,
    writes: Arc<Queue>,
    /// Those for reading first.
    lanes: Vec<Arc<Lane>>,
    reading: usize,
    turns: AtomicUsize,
    posix: Arc<dyn IoEngine>,
    runtime: Runtime,
    io_timeout: Duration,
    threads: Mutex<Vec<ThreadHandle>>,
}

impl UsrbioEngine {
    /// Makes the rings and starts their threads. `posix` does what rings can't, and is shut down with the engine.
    ///
    /// Fails as the library does where a direction gets no ring at all; fewer than asked for are logged.
    pub fn open(
        settings: &RingSettings,
        mount: &Mount,
        runtime: &Runtime,
        posix: Arc<dyn IoEngine>,
    ) -> Result<Self> {
        settings.validate()?;
        let rings = make_rings(settings, mount)?;
        let files = Arc::new(Files::new(mount.clone()));
        let mut engine = Self {
            reads: Arc::new(Queue::new(settings.queue_limit)),
            writes: Arc::new(Queue::new(settings.queue_limit)),
            lanes: Vec::new(),
            reading: rings
                .iter()
                .filter(|(direction, _)| *direction == Direction::Read)
                .count(),
            turns: AtomicUsize::new(0),
            posix,
            runtime: runtime.clone(),
            io_timeout: settings.io_timeout,
            threads: Mutex::default(),
        };
        for (direction, ring) in rings {
            let queue = match direction {
                Direction::Read => &engine.reads,
                Direction::Write => &engine.writes,
            };
            engine.lanes.push(Arc::new(Lane::new(
                ring,
                direction,
                settings,
                mount.clone(),
                Arc::clone(queue),
                Arc::clone(&files),
                Arc::clone(&engine.posix),
                runtime.clone(),
            )));
        }
        let identity = Arc::as_ptr(&engine.reads) as usize;
        for (number, lane) in engine.lanes.iter().enumerate() {
            let (preparing, reaping) = (Arc::clone(lane), Arc::clone(lane));
            let spawn = |name: String, body: Box<dyn FnOnce() + Send>| {
                runtime.spawner.spawn(
                    &name,
                    Box::new(move || {
                        SERVED.set(identity);
                        body();
                    }),
                )
            };
            let prepare = spawn(
                format!("ds3fs-prep-{number}"),
                Box::new(move || preparing.prepare()),
            )?;
            engine.threads.lock().push(prepare);
            let reap = spawn(format!("ds3fs-reap-{number}"), Box::new(move || reaping.reap()))?;
            engine.threads.lock().push(reap);
        }
        Ok(engine)
    }

    /// Rings whose I/O hasn't come back in time.
    pub fn stuck_rings(&self) -> usize {
        self.lanes.iter().filter(|lane| lane.is_stuck()).count()
    }

    /// Requests that went through rings without a copy, with one, and to the other engine.
    pub fn ways(&self) -> [u64; 3] {
        let mut sums = [0; 3];
        for lane in &self.lanes {
            for (sum, count) in sums.iter_mut().zip(lane.ways()) {
                *sum += count;
            }
        }
        sums
    }
}

/// The rings: at least one for each direction, or the library's error.
fn make_rings(settings: &RingSettings, mount: &Mount) -> Result<Vec<(Direction, Ring)>> {
    let kinds = [
        (Direction::Read, settings.read_rings),
        (Direction::Write, settings.write_rings),
    ];
    let mut rings = Vec::new();
    for (direction, wanted) in kinds {
        for number in 0..wanted {
            match Ring::create(mount, settings.ring_entries, direction == Direction::Read, 0) {
                Ok(ring) => rings.push((direction, ring)),
                Err(error) if number == 0 => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, ?direction, rings = number, "fewer rings than asked for");
                    break;
                }
            }
        }
    }
    Ok(rings)
}

impl IoEngine for UsrbioEngine {
    fn name(&self) -> &'static str {
        "usrbio"
    }

    fn submit(&self, batch: Vec<IoRequest>) {
        let (reads, writes): (Vec<_>, Vec<_>) = batch
            .into_iter()
            .partition(|request| request.direction == Direction::Read);
        let (for_reading, for_writing) = self.lanes.split_at(self.reading.min(self.lanes.len()));
        for (queue, lanes, part) in [
            (&self.reads, for_reading, reads),
            (&self.writes, for_writing, writes),
        ] {
            if part.is_empty() {
                continue;
            }
            let turn = self.turns.fetch_add(1, Ordering::Relaxed) % lanes.len().max(1);
            let rest = match lanes.get(turn) {
                Some(lane) => lane.launch_now(part),
                None => part,
            };
            if !rest.is_empty() {
                queue.offer(rest);
            }
        }
    }

    fn queue_depth(&self) -> usize {
        self.reads.held() + self.writes.held() + self.posix.queue_depth()
    }

    fn shutdown(&self) {
        self.reads.close();
        self.writes.close();
        let until = self.runtime.deadline(self.io_timeout);
        for lane in &self.lanes {
            lane.close(until);
        }
        if SERVED.get() == Arc::as_ptr(&self.reads) as usize {
            return;
        }
        // held while joining, so that every caller returns only when the threads are gone
        let mut threads = self.threads.lock();
        for thread in threads.drain(..) {
            thread.join();
        }
        for lane in &self.lanes {
            lane.abandon_if_flying();
        }
        self.posix.shutdown();
    }
}

impl Drop for UsrbioEngine {
    fn drop(&mut self) {
        self.shutdown();
    }
}
