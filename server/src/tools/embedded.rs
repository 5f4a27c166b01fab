//! Engines inside the tool's own process.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kvstored_client::{Client, ClientSettings};
use kvstored_core::eviction::PolicyKind;
use kvstored_core::{Engine, Pipeline, Result, Runtime};

use kvstored_host::config::{
    self, ByteSize, Directories, Environment, HttpAddress, Policy, ServeArguments, ServeOptions,
    ServeSettings, Word,
};

/// How long closing an engine may take.
const CLOSE_TIMEOUT: Duration = Duration::from_mins(1);

/// What an embedded engine is made of. Plain data.
#[derive(Clone, Debug)]
pub struct EmbeddedSettings {
    /// Tiers from fast to durable.
    pub pipeline: Pipeline,
    /// Directories of the Posix tier.
    pub directories: Vec<PathBuf>,
    /// Bound of the cache buffer.
    pub cache_capacity_bytes: u64,
    /// Bound of the storage.
    pub posix_capacity_bytes: u64,
    /// Host memory that stands for a device's, for pipelines with `Hbm`.
    pub hbm_capacity_bytes: Option<u64>,
    /// Which block leaves the cache first.
    pub policy: PolicyKind,
}

impl EmbeddedSettings {
    fn resolve(self) -> Result<ServeSettings> {
        let options = ServeOptions {
            storage_backends: (!self.directories.is_empty()).then_some(Directories(self.directories)),
            pipeline: Some(Word(self.pipeline)),
            cache_buffer_capacity: Some(ByteSize(self.cache_capacity_bytes)),
            posix_capacity: Some(ByteSize(self.posix_capacity_bytes)),
            hbm_capacity: self.hbm_capacity_bytes.map(ByteSize),
            eviction_policy: Some(Word(Policy(self.policy))),
            http: Some(Word(HttpAddress::Off)),
            ..ServeOptions::default()
        };
        let arguments = ServeArguments {
            options,
            ..ServeArguments::default()
        };
        Ok(config::load(arguments, &Environment::current())?.settings)
    }
}

/// An engine and a client of it; closed, as far as possible, when dropped.
pub struct Embedded {
    /// The engine.
    pub engine: Arc<Engine>,
    /// The client.
    pub client: Arc<Client>,
    runtime: Runtime,
}

impl Embedded {
    /// Builds the engine as `serve` would.
    pub fn open(settings: EmbeddedSettings, client: ClientSettings, runtime: &Runtime) -> Result<Self> {
        let engine = kvstored_host::build_engine(&settings.resolve()?, runtime.clone())?;
        let client = Arc::new(Client::embedded(engine.clone(), client, runtime.clone())?);
        Ok(Self {
            engine,
            client,
            runtime: runtime.clone(),
        })
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        if let Err(error) = self.engine.drain(self.runtime.deadline(CLOSE_TIMEOUT)) {
            tracing::warn!(%error, "engine not drained");
        }
        self.engine.shutdown();
    }
}
