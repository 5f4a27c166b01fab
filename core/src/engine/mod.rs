//! The engine: one memory tier in front, any number of tiers below, and the verbs over them.
//!
//! It moves whole images between the memory tier's slots and the tiers below and says who may use which slot;
//! copying between slots and engine memory is the client's part. Everything completes by callback, so that a
//! daemon connection, an embedded client and a test drive the same code.

mod acquire;
mod admin;
mod flights;
mod histogram;
mod lookup;
mod reserve;
mod statistics;
mod write_through;

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock};

use crate::block::Namespace;
use crate::error::{Error, ErrorKind, Result};
use crate::events::{EventLog, EventSink, Events};
use crate::identity::Identity;
use crate::layout::Layout;
use crate::memory::{Arena, SlotGuard};
use crate::runtime::Runtime;
use crate::tier::{MemoryTier, NamespaceInfo, Tier};

pub use admin::{VerifyDone, VerifyReport};
pub use histogram::{Histogram, HistogramSnapshot};
pub use reserve::{CommitDone, Reservation, ReserveDone, Reserved};
pub use statistics::{EngineStatistics, TierCounts, TierReport};

use flights::Flights;
use reserve::Parking;
use statistics::Counters;
use write_through::WriteQueue;

/// Limits of the engine's own queues. Plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineSettings {
    /// Most hashes in one request.
    pub max_request_blocks: usize,
    /// Writes handed to one tier at a time, in operations, unless the tier wants another number.
    pub write_depth: usize,
    /// Writes handed to one tier at a time, in bytes (one operation is always allowed).
    pub write_depth_bytes: u64,
    /// Reservations that may wait for room.
    pub max_parked_requests: usize,
    /// Most namespaces open at once.
    pub max_namespaces: usize,
    /// Latest events that are kept for whoever asks for them.
    pub event_capacity: usize,
}

impl Default for EngineSettings {
    fn default() -> Self {
        Self {
            max_request_blocks: 65_536,
            write_depth: 64,
            write_depth_bytes: 128 << 20,
            max_parked_requests: 4096,
            max_namespaces: 65_536,
            event_capacity: 65_536,
        }
    }
}

/// A block that was found: its image in memory, pinned.
#[derive(Clone, Debug)]
pub struct Acquired {
    /// The pinned slot with the block's image. The envelope was checked; shard checksums are verified by
    /// whoever copies the payload out.
    pub slot: SlotGuard,
    /// Index in the pipeline of the tier that had it (0 is memory).
    pub tier: usize,
}

/// Called once with the outcome of each block, in order.
pub type AcquireDone = Box<dyn FnOnce(Vec<Result<Acquired>>) + Send>;

/// The storage engine of one node.
pub struct Engine {
    pub(crate) this: Weak<Engine>,
    pub(crate) settings: EngineSettings,
    pub(crate) runtime: Runtime,
    pub(crate) memory: Arc<dyn MemoryTier>,
    /// Whether the pipeline names the memory tier; otherwise it's a staging area that keeps nothing.
    memory_in_pipeline: bool,
    pub(crate) lower: Vec<Arc<dyn Tier>>,
    namespaces: RwLock<HashMap<Namespace, Arc<NamespaceInfo>>>,
    pub(crate) flights: Flights,
    pub(crate) writes: Vec<Mutex<WriteQueue>>,
    pub(crate) parking: Parking,
    pub(crate) counters: Counters,
    events: Arc<EventLog>,
}

impl Engine {
    /// An engine over a memory tier and the tiers below it. `memory_in_pipeline` says whether memory keeps
    /// blocks (`Cache|…`) or only stages them (`Posix`).
    pub fn new(
        settings: EngineSettings,
        runtime: Runtime,
        memory: Arc<dyn MemoryTier>,
        memory_in_pipeline: bool,
        lower: Vec<Arc<dyn Tier>>,
    ) -> Arc<Self> {
        let events = EventLog::new(&runtime, settings.event_capacity);
        memory.observe(EventSink::new(events.clone(), 0));
        for (index, tier) in lower.iter().enumerate() {
            tier.observe(EventSink::new(events.clone(), index as u8 + 1));
        }
        let engine = Arc::new_cyclic(|this| Self {
            this: this.clone(),
            settings,
            runtime,
            memory_in_pipeline,
            namespaces: RwLock::default(),
            flights: Flights::default(),
            writes: lower.iter().map(|_| Mutex::default()).collect(),
            parking: Parking::default(),
            counters: Counters::new(1 + lower.len()),
            memory,
            lower,
            events,
        });
        let weak = engine.this.clone();
        engine.memory.on_room(Arc::new(move || {
            if let Some(engine) = weak.upgrade() {
                engine.retry_parked();
            }
        }));
        engine
    }

    /// The memory that slots lie in.
    pub fn arena(&self) -> &Arc<Arena> {
        self.memory.arena()
    }

    /// The clock, randomness and threads the engine was given.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// The names of the tiers, fast to durable; index 0 is the memory tier even where the pipeline doesn't name it.
    pub fn tier_names(&self) -> Vec<String> {
        let mut names = vec![if self.memory_in_pipeline {
            self.memory.name().to_owned()
        } else {
            "Staging".to_owned()
        }];
        names.extend(self.lower.iter().map(|tier| tier.name().to_owned()));
        names
    }

    /// Makes a namespace known to every tier. Idempotent.
    ///
    /// Fails with `InvalidInput` for a wrong identity, `TooLarge` when not even one block fits in memory, and
    /// `Mismatch` when a tier holds the namespace under another layout.
    pub fn open_namespace(&self, identity: Identity, layout: Layout) -> Result<Arc<NamespaceInfo>> {
        let info = NamespaceInfo::new(identity, layout)?;
        if let Some(known) = self.namespaces.read().get(&info.namespace) {
            return Ok(known.clone());
        }
        let capacity = self.memory.arena().length();
        if info.layout.image_bytes() > capacity {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!(
                    "a block takes {} bytes but the cache buffer holds {capacity}",
                    info.layout.image_bytes()
                ),
            )
            .with("namespace", info.namespace));
        }
        let info = Arc::new(info);
        self.memory.open_namespace(&info)?;
        for tier in &self.lower {
            // a tier that is down now heals by itself; its blocks are misses until then
            match tier.open_namespace(&info) {
                Err(error) if error.kind() == ErrorKind::Mismatch => {
                    return Err(error.with("tier", tier.name()));
                }
                Err(error) => {
                    self.counters.error(error.kind());
                    tracing::warn!(tier = tier.name(), namespace = %info.namespace, %error, "namespace not opened in tier");
                }
                Ok(()) => {}
            }
        }
        let mut namespaces = self.namespaces.write();
        if namespaces.len() >= self.settings.max_namespaces {
            return Err(Error::new(
                ErrorKind::Busy,
                format!("{} namespaces are open, the most there may be", namespaces.len()),
            ));
        }
        Ok(namespaces.entry(info.namespace).or_insert(info).clone())
    }

    /// An open namespace. Fails with `NotFound`.
    pub fn namespace(&self, namespace: &Namespace) -> Result<Arc<NamespaceInfo>> {
        self.namespaces.read().get(namespace).cloned().ok_or_else(|| {
            Error::new(ErrorKind::NotFound, "namespace is not open").with("namespace", namespace)
        })
    }

    /// An open namespace, or one that a tier knows from an earlier run, opened now.
    pub fn namespace_or_stored(&self, namespace: &Namespace) -> Result<Arc<NamespaceInfo>> {
        self.namespace(namespace).or_else(|error| {
            let stored = self
                .lower
                .iter()
                .find_map(|tier| tier.stored_namespace(namespace))
                .ok_or(error)?;
            self.open_namespace(stored.identity.clone(), stored.layout.clone())
        })
    }

    /// Up to `limit` events after the one numbered `after`: which blocks became visible in a tier, and which left it.
    /// The first call switches recording on; about a minute after the last it stops. See [`EventLog::take`].
    pub fn take_events(&self, after: u64, limit: usize) -> Events {
        self.events.take(after, limit)
    }

    fn check_request(&self, blocks: usize) -> Result<()> {
        if blocks > self.settings.max_request_blocks {
            return Err(Error::invalid(format!(
                "a request has {blocks} blocks; at most {} are accepted",
                self.settings.max_request_blocks
            )));
        }
        Ok(())
    }
}
