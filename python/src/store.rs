//! The store: a daemon's client, or an engine in this process.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kvstored_client::{Client, ClientSettings};
use kvstored_core::{Error, ErrorKind, Identity, Layout, ParallelShape, Result, Runtime, Shard};
use kvstored_host::config::Environment;
use parking_lot::{Mutex, RwLock};
use pyo3::prelude::*;
use serde::Serialize;

use crate::arguments::seconds;
use crate::configuration::{resolve, socket};
use crate::embedded::Embedded;
use crate::events::Events;
use crate::failure::{Outcome, detached};
use crate::home::Home;
use crate::logging;
use crate::namespace::Namespace;

/// How long a store that nobody closed may take to write what it accepted.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a drain goes without asking whether a signal came in.
const DRAIN_SLICE: Duration = Duration::from_millis(500);

/// A store as long as it is open; shared by everything that was made from it.
pub struct OpenStore {
    pub runtime: Runtime,
    pub home: Home,
    /// Deadline of tasks and calls that name none.
    pub timeout: Duration,
    client: RwLock<Option<Arc<Client>>>,
    embedded: Mutex<Option<Embedded>>,
}

impl OpenStore {
    fn new(client: Client, embedded: Option<Embedded>, timeout: Duration, runtime: Runtime) -> Arc<Self> {
        Arc::new(Self {
            runtime,
            home: Home::here(),
            timeout,
            client: RwLock::new(Some(Arc::new(client))),
            embedded: Mutex::new(embedded),
        })
    }

    /// The client; fails with `Cancelled` when the store is closed, and with `Unsupported` in a fork.
    pub fn client(&self) -> Result<Arc<Client>> {
        self.home.check()?;
        let client = self.client.read();
        client
            .clone()
            .ok_or_else(|| Error::new(ErrorKind::Cancelled, "the store is closed"))
    }

    /// Ends what is under way, writes what was accepted and stops every thread. Later calls do nothing.
    fn close(&self, timeout: Duration) -> Result<()> {
        if self.home.is_left() {
            // neither the threads to wait for nor the files to write belong to this process
            return Ok(());
        }
        let client = self.client.write().take();
        let embedded = self.embedded.lock().take();
        drop(client);
        match embedded {
            Some(embedded) => embedded.close(timeout, &self.runtime),
            None => Ok(()),
        }
    }
}

impl Drop for OpenStore {
    fn drop(&mut self) {
        if self.home.is_left() {
            std::mem::forget((self.client.get_mut().take(), self.embedded.get_mut().take()));
            return;
        }
        if self.client.get_mut().is_none() && self.embedded.get_mut().is_none() {
            return;
        }
        let close = || self.close(CLOSE_TIMEOUT);
        let closed = Python::try_attach(|py| py.detach(close)).unwrap_or_else(close);
        if let Err(error) = closed {
            tracing::warn!(%error, "the store was closed before everything was written");
        }
    }
}

/// What makes KV bytes meaningful, as the package's dataclass has it.
#[derive(FromPyObject)]
pub struct IdentityFields {
    tenant: String,
    model: String,
    weights_digest: String,
    lora: String,
    dtype: String,
    layout_version: u32,
    block_tokens: u32,
    tensor_parallel_size: u32,
    tensor_parallel_rank: u32,
    pipeline_parallel_size: u32,
    pipeline_parallel_rank: u32,
    cache_salt: String,
}

impl From<IdentityFields> for Identity {
    fn from(fields: IdentityFields) -> Self {
        Self {
            tenant: fields.tenant,
            model: fields.model,
            weights_digest: fields.weights_digest,
            lora: fields.lora,
            dtype: fields.dtype,
            layout_version: fields.layout_version,
            block_tokens: fields.block_tokens,
            parallel: ParallelShape {
                tensor_parallel_size: fields.tensor_parallel_size,
                tensor_parallel_rank: fields.tensor_parallel_rank,
                pipeline_parallel_size: fields.pipeline_parallel_size,
                pipeline_parallel_rank: fields.pipeline_parallel_rank,
            },
            cache_salt: fields.cache_salt,
        }
    }
}

/// A store. Private: `kvstored.Store` wraps it.
#[pyclass(frozen, module = "kvstored._native")]
pub struct Store {
    open: Arc<OpenStore>,
    #[pyo3(get)]
    tier_names: Vec<String>,
    #[pyo3(get)]
    is_embedded: bool,
    /// Keys of the configuration that nobody knows.
    #[pyo3(get)]
    warnings: Vec<String>,
    /// What else to know about the configuration.
    #[pyo3(get)]
    remarks: Vec<String>,
}

fn client_settings(streams: usize, timeout_ms: u64, call_timeout_ms: u64) -> Result<ClientSettings> {
    if !(1..=256).contains(&streams) {
        return Err(Error::invalid(format!(
            "streams {streams}; 1 to 256 are accepted"
        )));
    }
    for (name, value) in [("timeout_ms", timeout_ms), ("call_timeout_ms", call_timeout_ms)] {
        if value == 0 {
            return Err(Error::invalid(format!("{name} 0; at least 1 is accepted")));
        }
    }
    Ok(ClientSettings {
        streams,
        timeout: Duration::from_millis(timeout_ms),
        call_timeout: Duration::from_millis(call_timeout_ms),
        ..ClientSettings::default()
    })
}

#[pymethods]
impl Store {
    /// An engine in this process; `options` is a JSON object.
    #[staticmethod]
    #[pyo3(signature = (options, config_file, streams, timeout_ms, call_timeout_ms, listen))]
    fn embedded(
        py: Python<'_>,
        options: Option<&str>,
        config_file: Option<PathBuf>,
        streams: usize,
        timeout_ms: u64,
        call_timeout_ms: u64,
        listen: Option<&str>,
    ) -> Outcome<Self> {
        logging::start();
        detached(py, || {
            let client_settings = client_settings(streams, timeout_ms, call_timeout_ms)?;
            let (timeout, runtime) = (client_settings.timeout, Runtime::system());
            let listen = listen.map(socket).transpose()?;
            let resolved = resolve(options, config_file.as_deref())?;
            let embedded = Embedded::open(&resolved.settings, listen.as_deref(), &runtime)?;
            let client = embedded
                .client(client_settings, &runtime)
                .inspect_err(|_| drop(embedded.close(Duration::ZERO, &runtime)))?;
            Ok(Self {
                tier_names: client.tier_names().to_vec(),
                open: OpenStore::new(client, Some(embedded), timeout, runtime),
                is_embedded: true,
                warnings: resolved.warnings,
                remarks: resolved.remarks,
            })
        })
    }

    /// The daemon behind a socket.
    #[staticmethod]
    #[pyo3(signature = (path, streams, timeout_ms, call_timeout_ms))]
    fn connect(
        py: Python<'_>,
        path: Option<&str>,
        streams: usize,
        timeout_ms: u64,
        call_timeout_ms: u64,
    ) -> Outcome<Self> {
        logging::start();
        detached(py, || {
            let settings = client_settings(streams, timeout_ms, call_timeout_ms)?;
            let (timeout, runtime) = (settings.timeout, Runtime::system());
            let path = path
                .map(socket)
                .transpose()?
                .unwrap_or_else(|| Environment::current().default_socket());
            let client = Client::connect(&path, settings, runtime.clone())?;
            Ok(Self {
                tier_names: client.tier_names().to_vec(),
                open: OpenStore::new(client, None, timeout, runtime),
                is_embedded: false,
                warnings: Vec::new(),
                remarks: Vec::new(),
            })
        })
    }

    /// Opens a namespace; `layout` has the bytes of each tensor of each shard.
    fn open_namespace(
        &self,
        py: Python<'_>,
        identity: IdentityFields,
        layout: Vec<Vec<u32>>,
    ) -> Outcome<Namespace> {
        let handle = detached(py, || {
            let shards = layout.into_iter().map(|tensor_bytes| Shard { tensor_bytes });
            let layout = Layout::new(shards.collect())?;
            self.open.client()?.open_namespace(&identity.into(), &layout)
        })?;
        Ok(Namespace::new(self.open.clone(), handle))
    }

    /// The engine's numbers as JSON.
    fn statistics(&self, py: Python<'_>) -> Outcome<String> {
        detached(py, || text(&self.open.client()?.statistics()?))
    }

    /// The namespaces that have blocks somewhere, as JSON.
    fn namespaces(&self, py: Python<'_>) -> Outcome<String> {
        detached(py, || text(&self.open.client()?.namespaces()?))
    }

    /// The smallest round trip.
    fn ping(&self, py: Python<'_>) -> Outcome<()> {
        detached(py, || self.open.client()?.ping())
    }

    /// Up to `limit` events after the one numbered `after`.
    fn take_events(&self, py: Python<'_>, after: u64, limit: usize) -> Outcome<Events> {
        let events = detached(py, || self.open.client()?.take_events(after, limit))?;
        Ok(Events::new(py, &events)?)
    }

    /// Waits until every accepted dump has reached every tier, at most `timeout` seconds.
    fn drain(&self, py: Python<'_>, timeout: f64) -> Outcome<()> {
        let runtime = &self.open.runtime;
        let until = runtime.deadline(seconds(timeout)?);
        loop {
            let left = until.saturating_duration_since(runtime.clock.now());
            let slice = left.min(DRAIN_SLICE);
            match py.detach(|| self.open.client()?.drain(slice)) {
                Err(error) if error.kind() == ErrorKind::TimedOut && left > slice => py.check_signals()?,
                result => return Ok(result?),
            }
        }
    }

    /// Ends what is under way, writes what was accepted within `timeout` seconds and stops every thread.
    fn close(&self, py: Python<'_>, timeout: f64) -> Outcome<()> {
        let timeout = seconds(timeout)?;
        detached(py, || self.open.close(timeout))
    }
}

fn text(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|error| Error::internal(format!("a report can't be told: {error}")))
}
