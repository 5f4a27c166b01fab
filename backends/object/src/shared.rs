//! What all parts of the tier use.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use kvstored_core::quota::QuotaLedger;
use kvstored_core::{Error, ErrorKind, Result, Runtime};
use object_store::ObjectStore;
use parking_lot::{Condvar, Mutex};
use tokio::sync::Semaphore;

use crate::batch::Batches;
use crate::health::Health;
use crate::hedge::Hedging;
use crate::index::Index;
use crate::namespaces::Namespaces;
use crate::objects::Objects;
use crate::paths::Paths;
use crate::settings::S3Settings;
use crate::uploads::Uploads;

/// Numbers that only grow.
#[derive(Default)]
pub struct Counters {
    pub read_bytes: AtomicU64,
    pub written_bytes: AtomicU64,
    pub evicted_blocks: AtomicU64,
    pub quarantined_blocks: AtomicU64,
    pub refused_writes: AtomicU64,
}

/// Adds to a counter.
pub fn count(counter: &AtomicU64, number: u64) {
    counter.fetch_add(number, Ordering::Relaxed);
}

#[derive(Default)]
struct Load {
    operations: u64,
    write_bytes: u64,
    closed: bool,
}

/// Operations that haven't completed, and the bytes of those that store.
#[derive(Default)]
pub struct Outstanding {
    load: Mutex<Load>,
    idle: Condvar,
}

impl Outstanding {
    /// Counts an operation in, unless there are too many already or the tier has stopped.
    pub fn enter(&self, write_bytes: u64, settings: &S3Settings) -> Result<()> {
        let mut load = self.load.lock();
        if load.closed {
            return Err(Error::new(ErrorKind::Cancelled, "the tier has stopped"));
        }
        if load.operations >= settings.queue_depth as u64 {
            return Err(Error::new(ErrorKind::Busy, "the bucket's queue is full"));
        }
        // one block is always taken, however large it is
        let waiting = load.write_bytes;
        if write_bytes > 0 && waiting > 0 && waiting + write_bytes > settings.write_buffer_bytes {
            return Err(Error::new(
                ErrorKind::Busy,
                "too many bytes wait to be stored in the bucket",
            ));
        }
        load.operations += 1;
        load.write_bytes += write_bytes;
        Ok(())
    }

    /// One has completed.
    pub fn leave(&self, write_bytes: u64) {
        let mut load = self.load.lock();
        load.operations = load.operations.saturating_sub(1);
        load.write_bytes = load.write_bytes.saturating_sub(write_bytes);
        if load.operations == 0 {
            self.idle.notify_all();
        }
    }

    /// None is counted in any more.
    pub fn close(&self) {
        self.load.lock().closed = true;
    }

    /// How many there are.
    pub fn depth(&self) -> u64 {
        self.load.lock().operations
    }

    /// Waits until there is none. Returns whether that came about in time.
    pub fn wait_idle(&self, deadline: Instant) -> bool {
        let mut load = self.load.lock();
        while load.operations > 0 {
            if self.idle.wait_until(&mut load, deadline).timed_out() {
                return load.operations == 0;
            }
        }
        true
    }
}

/// What all parts of the tier use.
pub struct Shared {
    pub settings: S3Settings,
    pub store: Arc<dyn ObjectStore>,
    /// What finds uploads that nobody will finish, where the store is an S3 service.
    pub uploads_left: Option<Uploads>,
    pub runtime: Runtime,
    pub paths: Paths,
    pub index: Index,
    pub objects: Objects,
    pub namespaces: Namespaces,
    pub ledger: Option<Arc<QuotaLedger>>,
    pub batches: Batches,
    /// How loads and listings fare.
    pub reading: Health,
    /// How dumps fare.
    pub writing: Health,
    pub hedging: Hedging,
    pub counters: Counters,
    pub outstanding: Outstanding,
    pub reads: Semaphore,
    pub uploads: Semaphore,
    /// Held while room is made, so that two uploads don't count on the same bytes.
    pub room: tokio::sync::Mutex<()>,
    latest_generation: Mutex<u64>,
    writer: Mutex<Writer>,
}

/// Under which number this process writes.
#[derive(Clone, Copy)]
struct Writer {
    number: u128,
    claimed: bool,
    sequence: u32,
}

impl Shared {
    pub fn new(
        settings: S3Settings,
        store: Arc<dyn ObjectStore>,
        uploads_left: Option<Uploads>,
        runtime: Runtime,
        ledger: Option<Arc<QuotaLedger>>,
    ) -> Self {
        let number = random_number(&runtime);
        Self {
            paths: Paths::new(&settings.prefix),
            store,
            uploads_left,
            index: Index::default(),
            objects: Objects::new(ledger.clone()),
            namespaces: Namespaces::default(),
            ledger,
            batches: Batches::default(),
            reading: Health::of("loads"),
            writing: Health::of("dumps"),
            hedging: Hedging::new(settings.hedge_percent),
            counters: Counters::default(),
            outstanding: Outstanding::default(),
            reads: Semaphore::new(settings.most_reads.max(1)),
            uploads: Semaphore::new(settings.most_uploads.max(1)),
            room: tokio::sync::Mutex::new(()),
            latest_generation: Mutex::new(0),
            writer: Mutex::new(Writer {
                number,
                claimed: false,
                sequence: 0,
            }),
            settings,
            runtime,
        }
    }

    /// The clock's time.
    pub fn now(&self) -> Instant {
        self.runtime.clock.now()
    }

    /// The time in microseconds since the Unix epoch.
    pub fn now_us(&self) -> u64 {
        self.runtime.clock.unix_ms().saturating_mul(1000)
    }

    /// A generation after every earlier one of this process.
    pub fn next_generation(&self) -> u64 {
        let mut latest = self.latest_generation.lock();
        *latest = self.now_us().max(latest.saturating_add(1));
        *latest
    }

    /// Makes sure that later generations of this process are above `bound`.
    pub fn pass_generation(&self, bound: u64) {
        let mut latest = self.latest_generation.lock();
        *latest = bound.max(*latest);
    }

    /// The number under which this process writes, and whether it's claimed.
    pub fn writer(&self) -> (u128, bool) {
        let writer = self.writer.lock();
        (writer.number, writer.claimed)
    }

    /// The number is this process's from now on.
    pub fn writer_claimed(&self, number: u128) {
        let mut writer = self.writer.lock();
        writer.claimed = writer.number == number;
    }

    /// Somebody else has the number: another is tried.
    pub fn writer_taken(&self, number: u128) {
        let mut writer = self.writer.lock();
        if writer.number == number {
            writer.number = random_number(&self.runtime);
        }
    }

    /// The next object's number. Fails with `Internal` past four thousand million objects.
    pub fn next_sequence(&self) -> Result<u32> {
        let mut writer = self.writer.lock();
        let sequence = writer.sequence;
        let next = sequence.checked_add(1);
        writer.sequence =
            next.ok_or_else(|| Error::internal("a writer's objects are numbered to the end"))?;
        Ok(sequence)
    }
}

fn random_number(runtime: &Runtime) -> u128 {
    let half = || u128::from(runtime.random.next_u64());
    (half() << 64) | half()
}
