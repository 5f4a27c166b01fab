//! A worker rank's part in hand-offs.
#![allow(unsafe_code)]

use std::path::PathBuf;
use std::sync::Arc;

use kvstored_core::{Error, ErrorKind, Result, Runtime};
use kvstored_handoff::{Description, HandoffSettings, Rank, RemoteRequest, Statistics};
use parking_lot::RwLock;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::blocks::Blocks;
use super::describe::{GivenLayer, layers};
use crate::arguments::seconds;
use crate::engine_settings::{Plugged, engine_settings};
use crate::failure::{Outcome, detached};
use crate::home::Home;
use crate::logging;

/// How long an object that is dropped without having been closed waits for what is under way.
const DROP_SECONDS: f64 = 1.0;

/// One rank's holds and pulls.
#[pyclass(frozen, module = "kvstored._native")]
pub struct Handoff {
    home: Home,
    inner: RwLock<Option<Arc<kvstored_handoff::Handoff>>>,
    runtime: Runtime,
    #[pyo3(get)]
    address: String,
    #[pyo3(get)]
    port: u16,
}

impl Handoff {
    /// Fails with `Cancelled` when it's closed, and with `Unsupported` in a fork.
    fn inner(&self) -> Result<Arc<kvstored_handoff::Handoff>> {
        self.home.check()?;
        let inner = self.inner.read().clone();
        inner.ok_or_else(|| Error::new(ErrorKind::Cancelled, "the hand-off is closed"))
    }

    /// Fails with `Busy` when the memory is still in use; then it stays open, and may be closed again.
    fn stop(&self, timeout: f64) -> Result<()> {
        let timeout = seconds(timeout)?;
        let Some(inner) = self.inner.read().clone() else {
            return Ok(());
        };
        inner.close(self.runtime.deadline(timeout))?;
        *self.inner.write() = None;
        Ok(())
    }
}

impl Drop for Handoff {
    fn drop(&mut self) {
        if self.home.is_left() {
            // its threads and locks are the parent's
            std::mem::forget(self.inner.get_mut().take());
            return;
        }
        let stop = || {
            if let Err(error) = self.stop(DROP_SECONDS) {
                tracing::error!(%error, "a hand-off that was dropped still uses its memory");
            }
        };
        Python::try_attach(|py| py.detach(stop)).unwrap_or_else(stop);
    }
}

#[pymethods]
impl Handoff {
    /// One that listens at a name and port, serves consumers, and can pull.
    #[staticmethod]
    #[pyo3(signature = (listen, transports, token, certificate, key, authority, verify=true, pull_threads=4, ascend=None))]
    #[allow(clippy::too_many_arguments)] // each is a setting of its own
    fn start(
        py: Python<'_>,
        listen: &str,
        transports: Vec<String>,
        token: Option<Vec<u8>>,
        certificate: Option<PathBuf>,
        key: Option<PathBuf>,
        authority: Option<PathBuf>,
        verify: bool,
        pull_threads: usize,
        ascend: Option<Plugged>,
    ) -> Outcome<Self> {
        logging::start();
        detached(py, || {
            let settings = HandoffSettings {
                engine: engine_settings(listen, &transports, token, certificate, key, authority, ascend)?,
                verify,
                pull_threads,
                ..HandoffSettings::default()
            };
            let runtime = Runtime::system();
            let inner = kvstored_handoff::Handoff::start(settings, runtime.clone())?;
            let address = inner
                .address()
                .ok_or_else(|| Error::internal("the hand-off doesn't listen"))?;
            Ok(Self {
                home: Home::here(),
                address: address.to_string(),
                port: address.port(),
                runtime,
                inner: RwLock::new(Some(Arc::new(inner))),
            })
        })
    }

    /// Says what the rank's KV memory looks like, which must live until `close` has returned.
    #[pyo3(signature = (*, engine_id, fingerprint, block_tokens, total_heads, first_head, heads, tp_rank, tp_size, pp_rank, pp_size, layers))]
    #[allow(clippy::too_many_arguments)] // named ones
    fn describe(
        &self,
        py: Python<'_>,
        engine_id: String,
        fingerprint: Vec<u8>,
        block_tokens: u32,
        total_heads: u32,
        first_head: u32,
        heads: u32,
        tp_rank: u32,
        tp_size: u32,
        pp_rank: u32,
        pp_size: u32,
        layers: Vec<GivenLayer>,
    ) -> Outcome<()> {
        let inner = self.inner()?;
        detached(py, || {
            let description = Description {
                engine_id,
                fingerprint,
                block_tokens,
                rank: Rank {
                    total_heads,
                    first_head,
                    heads,
                    tp_rank,
                    tp_size,
                    pp_rank,
                    pp_size,
                },
                layers: self::layers(layers)?,
            };
            // SAFETY: the caller promises to keep the memory until `close` has returned, and to leave blocks alone while they
            // are held or pulled; `_native` is private to the package, whose connector does so.
            unsafe { inner.describe(&description) }
        })
    }

    /// Lets consumers pull blocks of a request for `lease` seconds at most.
    fn hold(&self, py: Python<'_>, request: &str, blocks: Blocks, lease: f64) -> Outcome<()> {
        let (inner, lease) = (self.inner()?, seconds(lease)?);
        detached(py, || inner.hold(request, &blocks.0, lease))
    }

    /// Lets consumers follow a request that is computed from now on, for `lease` seconds at most.
    fn announce(&self, py: Python<'_>, request: &str, lease: f64) -> Outcome<()> {
        let (inner, lease) = (self.inner()?, seconds(lease)?);
        detached(py, || inner.announce(request, lease))
    }

    /// Where further blocks of an announced request lie. Whether it's held still.
    fn extend(&self, py: Python<'_>, request: &str, blocks: Blocks) -> Outcome<bool> {
        let inner = self.inner()?;
        detached(py, || inner.extend(request, &blocks.0))
    }

    /// How many blocks of announced requests are good: in one layer, or in all.
    fn advance(&self, py: Python<'_>, requests: Vec<(String, u32)>, layer: Option<usize>) -> Outcome<()> {
        let inner = self.inner()?;
        py.detach(|| {
            for (request, blocks) in &requests {
                inner.advance(request, layer, *blocks);
            }
        });
        Ok(())
    }

    /// All blocks of an announced request are good, and kept for `lease` seconds at most. Whether it's held still.
    fn complete(&self, py: Python<'_>, request: &str, lease: f64) -> Outcome<bool> {
        let (inner, lease) = (self.inner()?, seconds(lease)?);
        Ok(py.detach(|| inner.complete(request, lease)))
    }

    /// Ends holds, and waits `timeout` seconds at most until nobody reads their blocks.
    fn withdraw(&self, py: Python<'_>, requests: Vec<String>, timeout: f64) -> Outcome<()> {
        let (inner, timeout) = (self.inner()?, seconds(timeout)?);
        let deadline = self.runtime.deadline(timeout);
        detached(py, || inner.withdraw(&requests, deadline))
    }

    /// Ends a hold, if there is one.
    fn drop(&self, py: Python<'_>, request: &str) -> Outcome<()> {
        let inner = self.inner()?;
        py.detach(|| inner.drop_request(request));
        Ok(())
    }

    /// Requests whose blocks may be reused, and why each ended.
    fn take_released(&self, py: Python<'_>) -> Outcome<Vec<(String, &'static str)>> {
        let inner = self.inner()?;
        let released = py.detach(|| inner.take_released());
        let row = |one: kvstored_handoff::Released| (one.request, one.reason.name());
        Ok(released.into_iter().map(row).collect())
    }

    /// Begins to pull blocks of another engine's request; `follows`: one that may be computed still.
    #[pyo3(signature = (request, *, remote_engine_id, remote_request, producers, blocks, first_block, timeout, follows=false))]
    #[allow(clippy::too_many_arguments)] // named ones
    fn pull(
        &self,
        py: Python<'_>,
        request: &str,
        remote_engine_id: String,
        remote_request: String,
        producers: Vec<String>,
        blocks: Blocks,
        first_block: u32,
        timeout: f64,
        follows: bool,
    ) -> Outcome<()> {
        let (inner, timeout) = (self.inner()?, seconds(timeout)?);
        let remote = RemoteRequest {
            engine_id: remote_engine_id,
            request: remote_request,
            producers,
        };
        detached(py, || {
            if follows {
                inner.follow(request, remote, blocks.0, first_block, timeout)
            } else {
                inner.pull(request, remote, blocks.0, first_block, timeout)
            }
        })
    }

    /// Ends a pull, if there is one.
    fn cancel(&self, py: Python<'_>, request: &str) -> Outcome<()> {
        let inner = self.inner()?;
        py.detach(|| inner.cancel(request));
        Ok(())
    }

    /// Pulls that are over: the request, the blocks that didn't come, and why.
    fn take_pulled(&self, py: Python<'_>) -> Outcome<Vec<(String, Vec<u32>, String)>> {
        let inner = self.inner()?;
        let pulled = py.detach(|| inner.take_pulled());
        let row = |one: kvstored_handoff::Pulled| (one.request, one.failed, one.message);
        Ok(pulled.into_iter().map(row).collect())
    }

    /// Tells a producer that this rank wants nothing of a request.
    #[pyo3(signature = (*, remote_engine_id, remote_request, producers, timeout))]
    fn release_remote(
        &self,
        py: Python<'_>,
        remote_engine_id: String,
        remote_request: String,
        producers: Vec<String>,
        timeout: f64,
    ) -> Outcome<()> {
        let (inner, timeout) = (self.inner()?, seconds(timeout)?);
        let remote = RemoteRequest {
            engine_id: remote_engine_id,
            request: remote_request,
            producers,
        };
        detached(py, || inner.release_remote(remote, timeout))
    }

    /// What happened so far, by name.
    fn statistics<'py>(&self, py: Python<'py>) -> Outcome<Bound<'py, PyDict>> {
        let inner = self.inner()?;
        let statistics = py.detach(|| inner.statistics());
        let dict = PyDict::new(py);
        for (name, value) in rows(&statistics) {
            dict.set_item(name, value)?;
        }
        Ok(dict)
    }

    /// Ends everything within `timeout` seconds, and lets go of the memory.
    fn close(&self, py: Python<'_>, timeout: f64) -> Outcome<()> {
        if self.home.is_left() {
            return Ok(());
        }
        detached(py, || self.stop(timeout))
    }
}

fn rows(statistics: &Statistics) -> [(&'static str, u64); 23] {
    [
        ("pulled_bytes_tcp", statistics.pulled_bytes_tcp),
        ("pulled_bytes_shm", statistics.pulled_bytes_shm),
        ("pulled_bytes_rdma", statistics.pulled_bytes_rdma),
        ("pulled_bytes_ascend", statistics.pulled_bytes_ascend),
        ("served_bytes_tcp", statistics.served_bytes_tcp),
        ("served_bytes_ascend", statistics.served_bytes_ascend),
        ("overlapped_bytes", statistics.overlapped_bytes),
        ("pulls_ok", statistics.pulls_ok),
        ("pulls_gone", statistics.pulls_gone),
        ("pulls_mismatched", statistics.pulls_mismatched),
        ("pulls_timed_out", statistics.pulls_timed_out),
        ("pulls_cancelled", statistics.pulls_cancelled),
        ("pulls_unavailable", statistics.pulls_unavailable),
        ("pulls_corrupt", statistics.pulls_corrupt),
        ("pulls_failed_otherwise", statistics.pulls_failed_otherwise),
        ("holds_taken", statistics.holds_taken),
        ("holds_expired", statistics.holds_expired),
        ("holds_dropped", statistics.holds_dropped),
        ("undelivered_endings", statistics.undelivered_endings),
        ("held_requests", statistics.held_requests),
        ("held_blocks", statistics.held_blocks),
        ("publications", statistics.publications),
        ("pending_pulls", statistics.pending_pulls),
    ]
}
