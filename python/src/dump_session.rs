//! Layerwise dumps.

use std::sync::Arc;

use kvstored_client::{DumpSession as StoreSession, NamespaceHandle};
use kvstored_core::{Error, ErrorKind};
use parking_lot::{Mutex, RwLock};
use pyo3::prelude::*;

use crate::addresses::{self, Addresses};
use crate::device::{After, Device, Place};
use crate::failure::{Outcome, detached};
use crate::store::OpenStore;
use crate::task::{Needed, Running, Task};

/// A layerwise dump under way. Dropped before every shard was put, it gives up the blocks that aren't whole.
#[pyclass(frozen, module = "kvstored")]
pub struct DumpSession {
    store: Arc<OpenStore>,
    namespace: NamespaceHandle,
    blocks: usize,
    /// Until it's aborted.
    session: RwLock<Option<StoreSession>>,
    /// The dump as a whole: ends when every block is acknowledged or has failed.
    #[pyo3(get)]
    task: Py<Task>,
    /// Shards under way: nobody has to hold their tasks.
    shards: Mutex<Vec<Arc<Running>>>,
}

impl DumpSession {
    pub fn new(
        store: Arc<OpenStore>,
        namespace: NamespaceHandle,
        blocks: usize,
        session: StoreSession,
        task: Py<Task>,
    ) -> Self {
        Self {
            store,
            namespace,
            blocks,
            session: RwLock::new(Some(session)),
            task,
            shards: Mutex::default(),
        }
    }

    /// Keeps a shard's task, and lets go of those that have ended.
    fn keep(&self, shard: Arc<Running>) {
        let mut shards = self.shards.lock();
        let ended: Vec<_> = shards.extract_if(.., |shard| shard.has_ended()).collect();
        shards.push(shard);
        drop(shards);
        // not under the lock: dropping may run Python code
        drop(ended);
    }
}

#[pymethods]
impl DumpSession {
    /// Begins to copy one shard of all blocks. `tensors` lives until that shard's task has ended.
    #[pyo3(signature = (shard, addresses, tensors, pieces, device, after))]
    #[allow(clippy::too_many_arguments)] // keywords in Python
    fn put_shard(
        &self,
        py: Python<'_>,
        shard: usize,
        addresses: Addresses,
        tensors: Option<Py<PyAny>>,
        pieces: Option<Vec<u32>>,
        device: Option<Py<Device>>,
        after: Option<After>,
    ) -> Outcome<Task> {
        let place = Place::of(device.as_ref().map(Py::get), after)?;
        let task = detached(py, || {
            self.store.home.check()?;
            let layout = &self.namespace.info().layout;
            layout.shard(shard)?;
            let tensors = addresses.tensors(layout, self.blocks, shard..shard + 1, pieces)?;
            let session = self.session.read();
            let aborted = || Error::new(ErrorKind::Cancelled, "the dump was aborted");
            let session = session.as_ref().ok_or_else(aborted)?;
            addresses::put_shard(session, shard, tensors, place.as_ref())
        })?;
        let deadline = self.store.runtime.deadline(self.store.timeout);
        self.task.get().extend(deadline);
        let needed = Needed {
            store: self.store.clone(),
            tensors,
            event: place.and_then(|place| place.event),
        };
        let running = Running::new(task, deadline, needed);
        self.keep(running.clone());
        Ok(Task::new(self.blocks, running))
    }

    /// Gives up every block that isn't whole yet.
    fn abort(&self, py: Python<'_>) {
        if self.store.home.is_left() {
            return;
        }
        py.detach(|| {
            let session = self.session.write().take();
            if let Some(session) = session {
                session.abort();
            }
        });
    }
}

impl Drop for DumpSession {
    fn drop(&mut self) {
        if self.store.home.is_left() {
            std::mem::forget(self.session.get_mut().take());
            std::mem::forget(std::mem::take(self.shards.get_mut()));
        }
    }
}
