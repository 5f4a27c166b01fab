//! An open namespace: lookups, loads and dumps.

use std::sync::Arc;

use kvstored_client::{DumpRequest, LoadOrder, LoadRequest, NamespaceHandle};
use kvstored_core::Result;
use numpy::{IntoPyArray, PyArray1};
use pyo3::prelude::*;

use crate::addresses::{self, Addresses};
use crate::arguments;
use crate::device::{After, Device, Place};
use crate::dump_session::DumpSession;
use crate::failure::{Outcome, detached};
use crate::hashes::Hashes;
use crate::store::OpenStore;
use crate::task::{Needed, Running, Task};

/// An open namespace. Private: `kvstored.Namespace` wraps it.
#[pyclass(frozen, module = "kvstored._native")]
pub struct Namespace {
    store: Arc<OpenStore>,
    handle: NamespaceHandle,
}

impl Namespace {
    pub fn new(store: Arc<OpenStore>, handle: NamespaceHandle) -> Self {
        Self { store, handle }
    }

    fn started(
        &self,
        task: kvstored_client::Task,
        blocks: usize,
        timeout_ms: Option<u64>,
        tensors: Option<Py<PyAny>>,
        place: Option<Place>,
    ) -> Task {
        let timeout = arguments::milliseconds(timeout_ms).unwrap_or(self.store.timeout);
        let needed = Needed {
            store: self.store.clone(),
            tensors,
            event: place.and_then(|place| place.event),
        };
        let deadline = self.store.runtime.deadline(timeout);
        Task::new(blocks, Running::new(task, deadline, needed))
    }
}

#[pymethods]
impl Namespace {
    /// The namespace's digest, 32 bytes.
    #[getter]
    fn digest(&self) -> [u8; 32] {
        self.handle.info().namespace.0
    }

    /// Which blocks some tier has.
    fn lookup<'py>(&self, py: Python<'py>, hashes: Hashes) -> Outcome<Bound<'py, PyArray1<bool>>> {
        let present = detached(py, || self.store.client()?.lookup(&self.handle, &hashes.0))?;
        Ok(present.into_pyarray(py))
    }

    /// How many blocks at the start are there without a gap.
    fn lookup_on_prefix(&self, py: Python<'_>, hashes: Hashes) -> Outcome<usize> {
        detached(py, || {
            self.store.client()?.lookup_on_prefix(&self.handle, &hashes.0)
        })
    }

    /// For each block at the start that is there without a gap: index of the fastest tier that has it.
    fn locate_prefix<'py>(&self, py: Python<'py>, hashes: Hashes) -> Outcome<Bound<'py, PyArray1<u8>>> {
        let tiers = detached(py, || self.store.client()?.locate_prefix(&self.handle, &hashes.0))?;
        Ok(tiers.into_pyarray(py))
    }

    /// Brings blocks into the first tier ahead of use.
    fn prefetch(&self, py: Python<'_>, hashes: Hashes) -> Outcome<()> {
        detached(py, || self.store.client()?.prefetch(&self.handle, &hashes.0))
    }

    /// Drops blocks from one tier, or from all.
    #[pyo3(signature = (hashes, tier))]
    fn evict(&self, py: Python<'_>, hashes: Hashes, tier: Option<&str>) -> Outcome<u64> {
        detached(py, || self.store.client()?.evict(&self.handle, &hashes.0, tier))
    }

    /// Drops every block of the namespace, also after a restart.
    fn purge(&self, py: Python<'_>) -> Outcome<u64> {
        detached(py, || self.store.client()?.purge(&self.handle.info().namespace))
    }

    /// Begins to fill memory from the store. `tensors` lives until the task has ended.
    #[pyo3(signature = (hashes, addresses, shards, shard_major, timeout_ms, tensors, pieces, device, after))]
    #[allow(clippy::too_many_arguments)] // keywords in Python
    fn load(
        &self,
        py: Python<'_>,
        hashes: Hashes,
        addresses: Addresses,
        shards: Option<(usize, usize)>,
        shard_major: bool,
        timeout_ms: Option<u64>,
        tensors: Option<Py<PyAny>>,
        pieces: Option<Vec<u32>>,
        device: Option<Py<Device>>,
        after: Option<After>,
    ) -> Outcome<Task> {
        let layout = &self.handle.info().layout;
        let shards = arguments::shards(shards, layout.shards().len())?;
        let blocks = hashes.0.len();
        let place = Place::of(device.as_ref().map(Py::get), after)?;
        let task = detached(py, || {
            let request = LoadRequest {
                tensors: addresses.tensors(layout, blocks, shards.clone(), pieces)?,
                hashes: hashes.0,
                shards,
                order: if shard_major {
                    LoadOrder::ShardMajor
                } else {
                    LoadOrder::BlockMajor
                },
                timeout: arguments::milliseconds(timeout_ms),
            };
            addresses::load(&*self.store.client()?, &self.handle, request, place.as_ref())
        })?;
        Ok(self.started(task, blocks, timeout_ms, tensors, place))
    }

    /// Begins to store blocks from memory. `tensors` lives until the task has ended.
    #[pyo3(signature = (hashes, addresses, parent, durability, timeout_ms, tensors, pieces, device, after))]
    #[allow(clippy::too_many_arguments)] // keywords in Python
    fn dump(
        &self,
        py: Python<'_>,
        hashes: Hashes,
        addresses: Addresses,
        parent: Option<&[u8]>,
        durability: &str,
        timeout_ms: Option<u64>,
        tensors: Option<Py<PyAny>>,
        pieces: Option<Vec<u32>>,
        device: Option<Py<Device>>,
        after: Option<After>,
    ) -> Outcome<Task> {
        let layout = &self.handle.info().layout;
        let blocks = hashes.0.len();
        let (parent, durability) = (arguments::parent(parent)?, arguments::durability(durability)?);
        let place = Place::of(device.as_ref().map(Py::get), after)?;
        let task = detached(py, || {
            let request = DumpRequest {
                tensors: addresses.tensors(layout, blocks, 0..layout.shards().len(), pieces)?,
                hashes: hashes.0,
                parent,
                durability,
                timeout: arguments::milliseconds(timeout_ms),
            };
            addresses::dump(&*self.store.client()?, &self.handle, request, place.as_ref())
        })?;
        Ok(self.started(task, blocks, timeout_ms, tensors, place))
    }

    /// Reserves room for blocks whose shards are put one after the other.
    #[pyo3(signature = (hashes, parent, durability, timeout_ms))]
    fn begin_dump(
        &self,
        py: Python<'_>,
        hashes: Hashes,
        parent: Option<&[u8]>,
        durability: &str,
        timeout_ms: Option<u64>,
    ) -> Outcome<DumpSession> {
        let blocks = hashes.0.len();
        let (parent, durability) = (arguments::parent(parent)?, arguments::durability(durability)?);
        let session = detached(py, || -> Result<_> {
            let client = self.store.client()?;
            let timeout = arguments::milliseconds(timeout_ms);
            client.begin_dump(&self.handle, hashes.0, parent, durability, timeout)
        })?;
        let whole = self.started(session.task().clone(), blocks, timeout_ms, None, None);
        Ok(DumpSession::new(
            self.store.clone(),
            self.handle.clone(),
            blocks,
            session,
            Py::new(py, whole)?,
        ))
    }
}
