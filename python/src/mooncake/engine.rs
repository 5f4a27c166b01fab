//! The transfer engine as Mooncake's callers know it: peers by name, memory by address.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kvstored_core::{Error, ErrorKind, Result, Runtime};
use kvstored_transfer::{MAX_NOTIFICATION_BYTES, TransferKind};
use parking_lot::RwLock;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::counters::moved;
use super::memory::Memory;
use super::numbers::{Numbers, entries};
use super::peers::Peers;
use super::transfers::{Background, Begun, Parts, Request};
use crate::arguments::seconds;
use crate::engine_settings::{Plugged, engine_settings};
use crate::failure::{Failure, Outcome, detached};
use crate::home::Home;
use crate::logging;

/// Notifications that are taken at once.
const NOTIFICATIONS: usize = 4096;

/// An engine. Private: `kvstored.mooncake.engine.TransferEngine` wraps it.
#[pyclass(frozen, module = "kvstored._native")]
pub struct TransferEngine {
    home: Home,
    parts: RwLock<Option<Arc<Parts>>>,
    background: Background,
    #[pyo3(get)]
    address: String,
    #[pyo3(get)]
    port: u16,
}

impl TransferEngine {
    /// Fails with `Cancelled` when the engine is closed, and with `Unsupported` in a fork.
    fn parts(&self) -> Result<Arc<Parts>> {
        self.home.check()?;
        let parts = self.parts.read().clone();
        parts.ok_or_else(|| Error::new(ErrorKind::Cancelled, "the engine is closed"))
    }

    fn stop(&self) {
        if let Some(parts) = self.parts.write().take() {
            parts.engine.shutdown();
        }
    }
}

impl Drop for TransferEngine {
    fn drop(&mut self) {
        if self.home.is_left() {
            // its threads and locks are the parent's
            std::mem::forget((self.parts.get_mut().take(), std::mem::take(&mut self.background)));
            return;
        }
        let stop = || self.stop();
        Python::try_attach(|py| py.detach(stop)).unwrap_or_else(stop);
    }
}

#[pymethods]
impl TransferEngine {
    /// An engine that listens at a name and port.
    #[staticmethod]
    #[pyo3(signature = (listen, transports, token, certificate, key, authority, ascend=None))]
    #[allow(clippy::too_many_arguments)] // who may take part, and how
    fn start(
        py: Python<'_>,
        listen: &str,
        transports: Vec<String>,
        token: Option<Vec<u8>>,
        certificate: Option<PathBuf>,
        key: Option<PathBuf>,
        authority: Option<PathBuf>,
        ascend: Option<Plugged>,
    ) -> Outcome<Self> {
        logging::start();
        detached(py, || {
            let settings = engine_settings(listen, &transports, token, certificate, key, authority, ascend)?;
            let runtime = Runtime::system();
            let engine = kvstored_transfer::TransferEngine::start(settings, runtime.clone())?;
            engine.allow_registered(true);
            let address = engine
                .address()
                .ok_or_else(|| Error::internal("the engine doesn't listen"))?;
            Ok(Self {
                home: Home::here(),
                address: address.to_string(),
                port: address.port(),
                background: Background::default(),
                parts: RwLock::new(Some(Arc::new(Parts {
                    memory: Memory::new(engine.clone()),
                    engine,
                    peers: Peers::default(),
                    runtime,
                }))),
            })
        })
    }

    /// Lets peers touch memory, which the caller vouches for until `unregister` has returned.
    fn register(&self, py: Python<'_>, address: u64, length: u64) -> Outcome<()> {
        detached(py, || self.parts()?.memory.register(address, length))
    }

    /// Ends that within `timeout` seconds.
    fn unregister(&self, py: Python<'_>, address: u64, timeout: f64) -> Outcome<()> {
        let timeout = seconds(timeout)?;
        detached(py, || {
            let parts = self.parts()?;
            parts
                .memory
                .unregister(address, false, parts.runtime.deadline(timeout))
        })
    }

    /// Registered memory of the engine's own; its address.
    fn allocate(&self, py: Python<'_>, length: u64) -> Outcome<u64> {
        detached(py, || self.parts()?.memory.allocate(length))
    }

    /// Gives it back, when nobody touches it any more, within `timeout` seconds.
    fn free(&self, py: Python<'_>, address: u64, timeout: f64) -> Outcome<()> {
        let timeout = seconds(timeout)?;
        detached(py, || {
            let parts = self.parts()?;
            parts
                .memory
                .unregister(address, true, parts.runtime.deadline(timeout))
        })
    }

    /// Moves bytes and waits for the end.
    #[allow(clippy::too_many_arguments)] // Mooncake's own, and the two that its methods' names say
    fn transfer(
        &self,
        py: Python<'_>,
        peer: String,
        local: Numbers,
        remote: Numbers,
        lengths: Numbers,
        writes: bool,
        timeout: f64,
    ) -> Outcome<()> {
        let parts = self.parts()?;
        let request = request(&parts, peer, [local, remote, lengths], writes, timeout)?;
        detached(py, || Begun::new(&parts, request))?.wait(py, &parts)
    }

    /// Begins to move bytes; a number for `wait` and `check`.
    #[allow(clippy::too_many_arguments)] // as above
    fn submit(
        &self,
        py: Python<'_>,
        peer: String,
        local: Numbers,
        remote: Numbers,
        lengths: Numbers,
        writes: bool,
        timeout: f64,
    ) -> Outcome<u64> {
        let parts = self.parts()?;
        let request = request(&parts, peer, [local, remote, lengths], writes, timeout)?;
        detached(py, || self.background.keep(Begun::new(&parts, request)?))
    }

    /// Waits for the end of one and forgets it.
    fn wait(&self, py: Python<'_>, number: u64) -> Outcome<()> {
        let parts = self.parts()?;
        self.background.take(number)?.wait(py, &parts)
    }

    /// Whether one has ended, which is then forgotten.
    fn check(&self, py: Python<'_>, number: u64) -> Outcome<bool> {
        let parts = self.parts()?;
        let mut begun = self.background.take(number)?;
        match py.detach(|| begun.poll(&parts)) {
            None => {
                self.background.put_back(number, begun);
                Ok(false)
            }
            Some(result) => Ok(result.map(|()| true)?),
        }
    }

    /// Sends a peer a message with a name.
    fn notify(&self, py: Python<'_>, peer: &str, name: &str, message: &str, timeout: f64) -> Outcome<()> {
        let timeout = seconds(timeout)?;
        detached(py, || {
            let parts = self.parts()?;
            let deadline = parts.runtime.deadline(timeout);
            let peer = parts.peers.open(&parts.engine, peer, deadline)?;
            parts
                .engine
                .notify(&peer.peer, &payload(name, message)?, deadline)
        })
    }

    /// Messages that came, each with its name.
    fn take_notifications(&self, py: Python<'_>) -> Outcome<Vec<(String, String)>> {
        detached(py, || {
            let taken = self.parts()?.engine.take_notifications(NOTIFICATIONS);
            Ok(taken.iter().filter_map(|one| message(&one.payload)).collect())
        })
    }

    /// Whether a peer answers.
    fn probe(&self, py: Python<'_>, peer: &str, timeout: f64) -> Outcome<()> {
        let timeout = seconds(timeout)?;
        detached(py, || {
            let parts = self.parts()?;
            let deadline = parts.runtime.deadline(timeout);
            parts
                .peers
                .open(&parts.engine, peer, deadline)?
                .peer
                .ping(deadline)
        })
    }

    /// The address that a peer registered first; 0 if it has none.
    fn first_address(&self, py: Python<'_>, peer: &str, timeout: f64) -> Outcome<u64> {
        let timeout = seconds(timeout)?;
        detached(py, || {
            let parts = self.parts()?;
            let deadline = parts.runtime.deadline(timeout);
            match parts
                .peers
                .open(&parts.engine, peer, deadline)?
                .peer
                .first_registered(deadline)
            {
                Ok((address, _)) => Ok(address),
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(0),
                Err(error) => Err(error),
            }
        })
    }

    /// Bytes of registered memory.
    fn read_bytes<'py>(&self, py: Python<'py>, address: u64, length: u64) -> Outcome<Bound<'py, PyBytes>> {
        let bytes = detached(py, || self.parts()?.memory.read(address, length))?;
        Ok(PyBytes::new(py, &bytes))
    }

    /// Overwrites bytes of registered memory.
    fn write_bytes(&self, py: Python<'_>, address: u64, data: &[u8]) -> Outcome<()> {
        detached(py, || self.parts()?.memory.write(address, data))
    }

    /// What was moved, by peer and transport, as JSON.
    fn counters(&self, py: Python<'_>) -> Outcome<String> {
        detached(py, || moved(&self.parts()?.engine))
    }

    /// Ends everything that is under way, and the engine.
    fn close(&self, py: Python<'_>) {
        if !self.home.is_left() {
            py.detach(|| self.stop());
        }
    }
}

fn request(
    parts: &Parts,
    peer: String,
    [local, remote, lengths]: [Numbers; 3],
    writes: bool,
    timeout: f64,
) -> Result<Request, Failure> {
    Ok(Request {
        peer,
        kind: if writes {
            TransferKind::Write
        } else {
            TransferKind::Read
        },
        entries: entries(&local.0, &remote.0, &lengths.0)?,
        deadline: parts
            .runtime
            .deadline(seconds(timeout)?.max(Duration::from_millis(1))),
    })
}

/// A name and a message in one: the name's length, 4 bytes little-endian, the name, the message.
fn payload(name: &str, message: &str) -> Result<Vec<u8>> {
    let length = 4 + name.len() + message.len();
    if length > MAX_NOTIFICATION_BYTES {
        return Err(Error::new(
            ErrorKind::TooLarge,
            format!("a notification of {length} bytes"),
        ));
    }
    Ok([
        &(name.len() as u32).to_le_bytes(),
        name.as_bytes(),
        message.as_bytes(),
    ]
    .concat())
}

/// The parts of a payload; `None` for one that isn't made so.
fn message(payload: &[u8]) -> Option<(String, String)> {
    let (length, rest) = payload.split_first_chunk::<4>()?;
    let (name, message) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    Some((
        String::from_utf8(name.to_vec()).ok()?,
        String::from_utf8(message.to_vec()).ok()?,
    ))
}
