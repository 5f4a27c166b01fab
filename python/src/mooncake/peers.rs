//! Peers by name, and what they have granted.
//!
//! A grant covers as much as it can: all of the region that a peer registered first, or everything from the first to the last
//! byte of a batch. So it takes a question only now and then, not for each transfer.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use kvstored_core::{Error, ErrorKind, Result};
use kvstored_transfer::{Grant, Peer, Rights, TransferEngine};
use parking_lot::Mutex;

use super::numbers::Entry;

/// Grants that are remembered of one peer.
const MOST_GRANTS: usize = 4096;

/// A grant on memory of a peer's process.
#[derive(Clone, Copy)]
struct Held {
    grant: Grant,
    length: u64,
}

/// A peer and its grants, which last as long as its memory stays registered.
pub struct KnownPeer {
    pub peer: Peer,
    /// By the address of their first byte.
    grants: Mutex<BTreeMap<u64, Held>>,
}

/// A grant for an entry, and where in its range the entry begins.
pub type Placed = (Grant, u64);

impl KnownPeer {
    fn new(peer: Peer) -> Self {
        Self {
            peer,
            grants: Mutex::default(),
        }
    }

    /// A grant for each entry, asked for where none is held. Fails with `NotFound` where the peer has not registered all of an
    /// entry's bytes.
    pub fn grants(&self, entries: &[Entry], deadline: Instant) -> Result<Vec<Placed>> {
        let mut placed = Vec::with_capacity(entries.len());
        for entry in entries {
            let found = self
                .held(entry)
                .map_or_else(|| self.ask(entry, entries, deadline), Ok)?;
            placed.push(found);
        }
        Ok(placed)
    }

    /// Forgets all grants: the peer refused one, so its memory is registered otherwise than it was.
    pub fn forget(&self) {
        self.grants.lock().clear();
    }

    fn held(&self, entry: &Entry) -> Option<Placed> {
        let grants = self.grants.lock();
        let (start, held) = grants.range(..=entry.remote).next_back()?;
        let offset = entry.remote - start;
        let end = offset.checked_add(entry.length)?;
        (end <= held.length).then_some((held.grant, offset))
    }

    /// Asks for a grant on an entry's bytes, and on more if the peer has it.
    fn ask(&self, entry: &Entry, batch: &[Entry], deadline: Instant) -> Result<Placed> {
        let end = entry
            .remote
            .checked_add(entry.length)
            .ok_or_else(|| Error::invalid(format!("{} bytes at {:#x}", entry.length, entry.remote)))?;
        let holds = |(address, length): &(u64, u64)| {
            *address <= entry.remote && address.checked_add(*length).is_some_and(|last| end <= last)
        };
        let first = || self.peer.first_registered(deadline).ok();
        let own = (entry.remote, entry.length);
        let tries = [
            first().filter(holds),
            hull(batch).filter(|hull| *hull != own),
            Some(own),
        ];
        for (address, length) in tries.into_iter().flatten() {
            match self
                .peer
                .grant_by_address(address, length, Rights::ReadWrite, deadline)
            {
                Ok(grant) => {
                    self.keep(address, Held { grant, length });
                    return Ok((grant, entry.remote - address));
                }
                Err(error) if error.kind() == ErrorKind::NotFound && (address, length) != own => {}
                Err(error) => return Err(error),
            }
        }
        Err(Error::internal("no grant was asked for"))
    }

    fn keep(&self, address: u64, held: Held) {
        let mut grants = self.grants.lock();
        if grants.len() >= MOST_GRANTS {
            grants.clear();
        }
        // those within the new one are not needed any more
        let inside: Vec<u64> = grants
            .range(address..address.saturating_add(held.length))
            .filter(|(start, other)| *start - address + other.length <= held.length)
            .map(|(start, _)| *start)
            .collect();
        for start in inside {
            grants.remove(&start);
        }
        grants.insert(address, held);
    }
}

/// From the first to the last byte of a batch at the peer.
fn hull(batch: &[Entry]) -> Option<(u64, u64)> {
    let start = batch.iter().map(|entry| entry.remote).min()?;
    let ends: Option<Vec<u64>> = batch
        .iter()
        .map(|entry| entry.remote.checked_add(entry.length))
        .collect();
    let end = ends?.into_iter().max()?;
    Some((start, end - start))
}

/// Open peers.
#[derive(Default)]
pub struct Peers {
    by_name: Mutex<HashMap<String, Arc<KnownPeer>>>,
}

impl Peers {
    /// The peer of that name (`host:port`), opened if it isn't.
    pub fn open(&self, engine: &TransferEngine, name: &str, deadline: Instant) -> Result<Arc<KnownPeer>> {
        let known = self.by_name.lock().get(name).cloned();
        if let Some(known) = known.filter(|known| known.peer.is_alive()) {
            return Ok(known);
        }
        let peer = engine.open_peer(name, deadline)?;
        let mut all = self.by_name.lock();
        all.retain(|_, known| known.peer.is_alive());
        let known = all
            .entry(name.to_owned())
            .or_insert_with(|| Arc::new(KnownPeer::new(peer)));
        Ok(known.clone())
    }
}
