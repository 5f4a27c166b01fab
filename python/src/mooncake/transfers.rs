//! Transfers under way.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvstored_core::{Error, ErrorKind, Result, Runtime};
use kvstored_transfer::{Transfer, TransferEngine, TransferEntry, TransferKind};
use parking_lot::Mutex;
use pyo3::prelude::*;

use super::memory::Memory;
use super::numbers::Entry;
use super::peers::{KnownPeer, Peers};
use crate::failure::Outcome;

/// Transfers that were begun and not asked after.
const MOST_BEGUN: usize = 1 << 16;
/// How long a wait goes without asking whether a signal came in.
const SLICE: Duration = Duration::from_millis(200);

/// What is asked of a peer.
pub struct Request {
    /// The peer, `host:port`.
    pub peer: String,
    pub kind: TransferKind,
    pub entries: Vec<Entry>,
    pub deadline: Instant,
}

/// The parts of an engine that transfers need.
pub struct Parts {
    pub engine: Arc<TransferEngine>,
    pub memory: Memory,
    pub peers: Peers,
    pub runtime: Runtime,
}

/// A transfer that has been begun. Where the peer's memory turns out to be registered otherwise than it was known to be, it's
/// begun again, once.
pub struct Begun {
    request: Request,
    peer: Arc<KnownPeer>,
    transfer: Transfer,
    again: bool,
}

impl Begun {
    /// Begins. Fails as opening the peer, granting and submitting do.
    pub fn new(parts: &Parts, request: Request) -> Result<Self> {
        let peer = parts.peers.open(&parts.engine, &request.peer, request.deadline)?;
        let mut again = false;
        let transfer = match submit(parts, &peer, &request) {
            Err(error) if is_stale(&error) => {
                again = true;
                peer.forget();
                submit(parts, &peer, &request)?
            }
            result => result?,
        };
        Ok(Self {
            request,
            peer,
            transfer,
            again,
        })
    }

    /// What it came to; `None` while it's under way.
    pub fn poll(&mut self, parts: &Parts) -> Option<Result<()>> {
        match self.transfer.poll() {
            Some(Err(error)) if is_stale(&error) && !self.again => {
                self.again = true;
                self.peer.forget();
                match submit(parts, &self.peer, &self.request) {
                    Ok(transfer) => {
                        self.transfer = transfer;
                        None
                    }
                    Err(error) => Some(Err(error)),
                }
            }
            result => result,
        }
    }

    /// Waits for the end, noticing signals: then it's cancelled first, so that its memory is free.
    pub fn wait(&mut self, py: Python<'_>, parts: &Parts) -> Outcome<()> {
        loop {
            let ended = py.detach(|| {
                let slice = parts.runtime.deadline(SLICE).min(self.request.deadline);
                // what it came to is asked below
                drop(self.transfer.wait(slice));
                self.poll(parts)
            });
            if let Some(result) = ended {
                return Ok(result?);
            }
            if let Err(signal) = py.check_signals() {
                py.detach(|| self.transfer.cancel());
                return Err(signal.into());
            }
        }
    }
}

/// Whether an error may mean that a grant is of memory that has been registered anew since.
fn is_stale(error: &Error) -> bool {
    error.kind() == ErrorKind::Fenced
}

fn submit(parts: &Parts, peer: &KnownPeer, request: &Request) -> Result<Transfer> {
    let local = request
        .entries
        .iter()
        .map(|entry| parts.memory.locate(entry.local, entry.length))
        .collect::<Result<Vec<_>>>()?;
    let granted = peer.grants(&request.entries, request.deadline)?;
    let entries = request
        .entries
        .iter()
        .zip(local)
        .zip(granted)
        .map(
            |((entry, (region, offset)), (grant, remote_offset))| TransferEntry {
                local: region,
                local_offset: offset,
                grant,
                remote_offset,
                length: entry.length,
            },
        )
        .collect();
    parts
        .engine
        .submit(&peer.peer, request.kind, entries, request.deadline)
}

/// Transfers in the background, by the numbers that they were given.
#[derive(Default)]
pub struct Background {
    begun: Mutex<(u64, HashMap<u64, Begun>)>,
}

impl Background {
    /// Keeps one; its number. Fails with `Busy` when there are too many.
    pub fn keep(&self, begun: Begun) -> Result<u64> {
        let mut all = self.begun.lock();
        if all.1.len() >= MOST_BEGUN {
            begun.transfer.cancel();
            return Err(Error::new(
                ErrorKind::Busy,
                format!("{MOST_BEGUN} transfers were begun and not asked after"),
            ));
        }
        all.0 += 1;
        let number = all.0;
        all.1.insert(number, begun);
        Ok(number)
    }

    /// Takes one out. Fails with `NotFound` for a number that isn't known any more.
    pub fn take(&self, number: u64) -> Result<Begun> {
        let taken = self.begun.lock().1.remove(&number);
        taken.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("no transfer has the number {number}"),
            )
        })
    }

    /// Puts one back that is still under way.
    pub fn put_back(&self, number: u64, begun: Begun) {
        self.begun.lock().1.insert(number, begun);
    }
}
