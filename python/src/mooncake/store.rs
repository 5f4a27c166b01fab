//! A member of a pool as Mooncake's callers know it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kvstored_core::{Error, ErrorKind, Result};
use kvstored_pool::{GetRequest, PutOptions, PutRequest};
use parking_lot::RwLock;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::codes::{INVALID_PARAMETERS, OK, told};
use super::counters::moved;
use super::member::{Joining, OpenPool, join, place};
use super::objects::{Scattered, fetch, groups, sizes};
use crate::arguments::seconds;
use crate::engine_settings::{Plugged, engine_settings};
use crate::failure::{Outcome, detached};
use crate::home::Home;
use crate::logging;

/// How long it takes to see that no master answers.
const HEALTH: Duration = Duration::from_secs(1);
/// How long a put waits for room that is being made.
const ROOM: Duration = Duration::from_secs(1);

/// A pool's member. Private: `kvstored.mooncake.store.MooncakeDistributedStore` wraps it.
#[pyclass(frozen, module = "kvstored._native")]
pub struct PoolStore {
    home: Home,
    open: RwLock<Option<Arc<OpenPool>>>,
    #[pyo3(get)]
    hostname: String,
}

impl PoolStore {
    /// Fails with `Cancelled` when it's closed, and with `Unsupported` in a fork.
    fn open(&self) -> Result<Arc<OpenPool>> {
        self.home.check()?;
        let open = self.open.read().clone();
        open.ok_or_else(|| Error::new(ErrorKind::Cancelled, "the store is closed"))
    }

    fn leave(&self) {
        if let Some(open) = self.open.write().take() {
            open.client.close();
        }
    }
}

impl Drop for PoolStore {
    fn drop(&mut self) {
        if self.home.is_left() {
            std::mem::forget(self.open.get_mut().take());
            return;
        }
        let leave = || self.leave();
        Python::try_attach(|py| py.detach(leave)).unwrap_or_else(leave);
    }
}

#[pymethods]
impl PoolStore {
    /// Joins the pool of a master, or of several that stand in for each other, and lends it memory.
    #[staticmethod]
    #[pyo3(signature = (listen, transports, token, certificate, key, authority, masters, lent_bytes, buffer_bytes, tenant, timeout, ascend=None))]
    #[allow(clippy::too_many_arguments)] // Mooncake's own, and who may take part
    fn start(
        py: Python<'_>,
        listen: &str,
        transports: Vec<String>,
        token: Option<Vec<u8>>,
        certificate: Option<PathBuf>,
        key: Option<PathBuf>,
        authority: Option<PathBuf>,
        masters: Vec<String>,
        lent_bytes: u64,
        buffer_bytes: usize,
        tenant: String,
        timeout: f64,
        ascend: Option<Plugged>,
    ) -> Outcome<Self> {
        logging::start();
        let timeout = seconds(timeout)?;
        detached(py, || {
            let open = join(Joining {
                engine: engine_settings(listen, &transports, token, certificate, key, authority, ascend)?,
                masters,
                lent_bytes,
                buffer_bytes,
                tenant,
                timeout,
            })?;
            let address = open.client.engine().address();
            Ok(Self {
                home: Home::here(),
                hostname: address.map(|address| address.to_string()).unwrap_or_default(),
                open: RwLock::new(Some(Arc::new(open))),
            })
        })
    }

    /// Lets bytes go straight from and to memory, which the caller vouches for until `unregister` has returned.
    fn register(&self, py: Python<'_>, address: usize, length: usize) -> Outcome<()> {
        detached(py, || {
            let open = self.open()?;
            open.registered.register(&open.client, address, length)
        })
    }

    /// Ends that within `timeout` seconds.
    fn unregister(&self, py: Python<'_>, address: usize, timeout: f64) -> Outcome<()> {
        let timeout = seconds(timeout)?;
        detached(py, || {
            let open = self.open()?;
            open.registered
                .unregister(&open.client, address, open.runtime.deadline(timeout))
        })
    }

    /// Stores objects whose bytes lie at those addresses; each one's number.
    #[allow(clippy::too_many_arguments)] // what Mooncake's configuration of replicas says
    fn put_from(
        &self,
        py: Python<'_>,
        keys: Vec<String>,
        addresses: Vec<Vec<usize>>,
        lengths: Vec<Vec<usize>>,
        replicas: u32,
        pinned: bool,
        preferred: Vec<String>,
        near: bool,
    ) -> Outcome<Vec<i64>> {
        detached(py, || {
            let open = self.open()?;
            let options = PutOptions {
                replicas,
                soft_pin: pinned,
                prefer: open.preferred(&preferred).or_else(|| open.own().filter(|_| near)),
                wait: ROOM,
                ..PutOptions::default()
            };
            Ok(put(&open, &keys, &addresses, &lengths, &options))
        })
    }

    /// Fetches objects to those addresses; each one's bytes, or its number.
    fn get_into(
        &self,
        py: Python<'_>,
        keys: Vec<String>,
        addresses: Vec<Vec<usize>>,
        lengths: Vec<Vec<usize>>,
    ) -> Outcome<Vec<i64>> {
        detached(py, || Ok(get(&*self.open()?, &keys, &addresses, &lengths)))
    }

    /// Objects' bytes; none for each that isn't there.
    fn get_bytes<'py>(&self, py: Python<'py>, keys: Vec<String>) -> Outcome<Vec<Bound<'py, PyBytes>>> {
        let open = self.open()?;
        let wanted = py.detach(|| sizes(&open, &keys));
        let mut all = Vec::with_capacity(keys.len());
        for group in groups(&wanted) {
            let fetched = py.detach(|| fetch(&open, wanted.get(group).unwrap_or_default()));
            for (position, bytes) in fetched.lengths().enumerate() {
                all.push(PyBytes::new_with(py, bytes, |target| {
                    py.detach(|| fetched.copy(position, target));
                    Ok(())
                })?);
            }
        }
        Ok(all)
    }

    /// Which objects are there: 1, 0, or a negative number.
    fn exist(&self, py: Python<'_>, keys: Vec<String>) -> Outcome<Vec<i64>> {
        detached(py, || {
            let open = self.open()?;
            Ok(
                open.for_each(&keys, |wanted| match open.client.exist(wanted, open.deadline()) {
                    Ok(present) => present.into_iter().map(i64::from).collect(),
                    Err(error) => vec![told(&error, "existence"); wanted.len()],
                }),
            )
        })
    }

    /// Objects' bytes in number.
    fn sizes(&self, py: Python<'_>, keys: Vec<String>) -> Outcome<Vec<i64>> {
        detached(py, || {
            let open = self.open()?;
            let number =
                |size: Result<u64>| size.map_or_else(|error| told(&error, "a size"), |size| size as i64);
            Ok(open.for_each(&keys, |wanted| {
                open.client
                    .sizes(wanted, open.deadline())
                    .into_iter()
                    .map(number)
                    .collect()
            }))
        })
    }

    /// Removes objects; each one's number.
    fn remove(&self, py: Python<'_>, keys: Vec<String>, force: bool) -> Outcome<Vec<i64>> {
        detached(py, || {
            let open = self.open()?;
            let number = |done: Result<()>| done.map_or_else(|error| told(&error, "a removal"), |()| OK);
            Ok(open.for_each(&keys, |wanted| {
                match open.client.remove(wanted, force, open.deadline()) {
                    Ok(done) => done.into_iter().map(number).collect(),
                    Err(error) => vec![told(&error, "removals"); wanted.len()],
                }
            }))
        })
    }

    /// Removes all objects of the tenant's; how many, or a negative number.
    fn remove_all(&self, py: Python<'_>, force: bool) -> Outcome<i64> {
        detached(py, || {
            let open = self.open()?;
            let removed = open.client.remove_all(Some(&open.tenant), force, open.deadline());
            Ok(removed.map_or_else(|error| told(&error, "removing all"), |count| count as i64))
        })
    }

    /// Whether a master answers.
    fn is_healthy(&self, py: Python<'_>) -> Outcome<bool> {
        detached(py, || {
            let open = self.open()?;
            Ok(open.client.ping(open.runtime.deadline(HEALTH)).is_ok())
        })
    }

    /// What was moved, by peer and transport, as JSON.
    fn counters(&self, py: Python<'_>) -> Outcome<String> {
        detached(py, || moved(self.open()?.client.engine()))
    }

    /// Leaves the pool.
    fn close(&self, py: Python<'_>) {
        if !self.home.is_left() {
            py.detach(|| self.leave());
        }
    }
}

/// Puts objects; each one's number.
fn put(
    open: &OpenPool,
    keys: &[String],
    addresses: &[Vec<usize>],
    lengths: &[Vec<usize>],
    options: &PutOptions,
) -> Vec<i64> {
    let mut outcomes = vec![INVALID_PARAMETERS; keys.len()];
    let whole = open.keys(keys, &mut outcomes);
    let scattered = Scattered::of(&whole, addresses, lengths, &mut outcomes);
    let indices: Vec<usize> = scattered.indices().collect();
    let deadline = open.deadline();
    let answers = match scattered.stage(open, true, deadline) {
        Ok(staged) => {
            let requests = staged.objects().map(|(key, pieces)| PutRequest { key, pieces });
            let done = open
                .client
                .put_batch(&requests.collect::<Vec<_>>(), options, deadline);
            done.into_iter().map(put_number).collect()
        }
        Err(error) => vec![told(&error, "puts"); indices.len()],
    };
    place(indices, answers, &mut outcomes);
    outcomes
}

fn put_number(done: Result<()>) -> i64 {
    match done {
        Ok(()) => OK,
        // Mooncake's callers put without looking first
        Err(error) if error.kind() == ErrorKind::AlreadyExists => OK,
        Err(error) => told(&error, "a put"),
    }
}

/// Fetches objects; each one's bytes, or its number.
fn get(open: &OpenPool, keys: &[String], addresses: &[Vec<usize>], lengths: &[Vec<usize>]) -> Vec<i64> {
    let mut outcomes = vec![INVALID_PARAMETERS; keys.len()];
    let whole = open.keys(keys, &mut outcomes);
    let scattered = Scattered::of(&whole, addresses, lengths, &mut outcomes);
    let indices: Vec<usize> = scattered.indices().collect();
    let deadline = open.deadline();
    let answers = match scattered.stage(open, false, deadline) {
        Ok(staged) => {
            let requests = staged.objects().map(|(key, pieces)| GetRequest { key, pieces });
            let done = open.client.get_batch(&requests.collect::<Vec<_>>(), deadline);
            let number = |(position, done): (usize, Result<u64>)| match done {
                Ok(bytes) => {
                    staged.copy_out(position, bytes as usize);
                    bytes as i64
                }
                Err(error) => told(&error, "a get"),
            };
            done.into_iter().enumerate().map(number).collect()
        }
        Err(error) => vec![told(&error, "gets"); indices.len()],
    };
    place(indices, answers, &mut outcomes);
    outcomes
}
