//! What all requests share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kvstored_core::{Result, Runtime};
use tokio::sync::Semaphore;

use crate::affinity::{History, NoAffinity, PrefixSource};
use crate::fleet::Fleet;
use crate::instance::{Phase, Role};
use crate::metrics::Metrics;
use crate::settings::Settings;

/// Messages about abandoned KV under way at once; KV beyond that stays until its lease ends.
const MAX_ABANDONS: usize = 64;

/// See the module's page.
pub struct Proxy {
    /// The settings.
    pub settings: Settings,
    /// The instances.
    pub fleet: Arc<Fleet>,
    /// Who has computed what.
    pub affinity: Box<dyn PrefixSource>,
    /// The numbers.
    pub metrics: Arc<Metrics>,
    /// Randomness for ids.
    pub runtime: Runtime,
    /// Bytes of request bodies that may still be taken in.
    pub body_budget: Arc<Semaphore>,
    /// Messages about abandoned KV that may be under way at once.
    pub abandons: Arc<Semaphore>,
    stopping: AtomicBool,
}

impl Proxy {
    /// With the instances of the settings.
    pub fn new(settings: Settings, runtime: Runtime) -> Result<Arc<Self>> {
        let metrics = Metrics::new();
        let fleet = Fleet::new(metrics.clone(), settings.connect_timeout);
        let mut sources = settings.kv_events.iter().cloned();
        for address in &settings.prefillers {
            fleet.add_with_events(Role::Prefill, address, Phase::Active, sources.next())?;
        }
        for address in &settings.decoders {
            fleet.add(Role::Decode, address, Phase::Active)?;
        }
        let affinity: Box<dyn PrefixSource> = if settings.affinity_chunks == 0 {
            Box::new(NoAffinity)
        } else {
            Box::new(History::new(settings.affinity_chunks))
        };
        let budget = settings.max_held_bytes.min(Semaphore::MAX_PERMITS);
        Ok(Arc::new(Self {
            settings,
            fleet: Arc::new(fleet),
            affinity,
            metrics: Arc::new(metrics),
            runtime,
            body_budget: Arc::new(Semaphore::new(budget)),
            abandons: Arc::new(Semaphore::new(MAX_ABANDONS)),
            stopping: AtomicBool::new(false),
        }))
    }

    /// Whether it was told to stop.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Tells that to whoever asks for its health.
    pub fn set_stopping(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// A new request's id.
    pub fn new_id(&self) -> String {
        let random = &self.runtime.random;
        format!("{:016x}{:016x}", random.next_u64(), random.next_u64())
    }
}
