//! A transport that copies within this process, and fails as it's told to.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use kvstored_core::transport::{Exposure, Move, MoveDirection, Moved, RawConnection, RawMemory};
use kvstored_core::{Error, ErrorKind, MemoryTransport, Result, TransportFactory};
use parking_lot::Mutex;

/// What connects transports with each other, and what goes wrong on it.
#[derive(Default)]
pub struct Fabric {
    next: AtomicU64,
    /// Exposed memory by transport and handle.
    exposed: Mutex<HashMap<(u64, u64), (u64, u64)>>,
    /// Nobody can be connected with.
    pub refuses: AtomicBool,
    /// Moves fail.
    pub fails: AtomicBool,
    /// Moves are held until their connection ends, and then fail.
    pub hangs: AtomicBool,
    /// Connections can't be ended.
    pub sticks: AtomicBool,
    /// Memory can't be taken back.
    pub keeps: AtomicBool,
    /// Connections made.
    pub connections: AtomicU64,
    /// Batches begun.
    pub batches: AtomicU64,
}

static SHARED: LazyLock<Arc<Fabric>> = LazyLock::new(Arc::default);

/// The factory of transports on a fabric that is always well.
pub fn shared() -> TransportFactory {
    SHARED.factory("fabric")
}

impl Fabric {
    /// Makes transports of that name.
    pub fn factory(self: &Arc<Self>, name: &'static str) -> TransportFactory {
        let fabric = self.clone();
        TransportFactory::new(move || {
            Ok(Arc::new(Plugged {
                name,
                number: fabric.number(),
                fabric: fabric.clone(),
                own: Mutex::default(),
                connections: Mutex::default(),
            }))
        })
    }

    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Ranges that peers may touch.
    pub fn exposed(&self) -> usize {
        self.exposed.lock().len()
    }
}

fn holds(range: (u64, u64), address: u64, bytes: u64) -> bool {
    address >= range.0 && address + bytes <= range.0 + range.1
}

#[derive(Default)]
struct Connection {
    peer: u64,
    /// What was registered on both sides when it was made.
    local: Vec<(u64, u64)>,
    remote: Vec<(u64, u64)>,
    held: Vec<Moved>,
}

struct Plugged {
    name: &'static str,
    number: u64,
    fabric: Arc<Fabric>,
    own: Mutex<HashMap<u64, (u64, u64)>>,
    connections: Mutex<HashMap<u64, Connection>>,
}

fn is_on(switch: &AtomicBool) -> bool {
    switch.load(Ordering::Relaxed)
}

fn failed(kind: ErrorKind) -> Error {
    Error::new(kind, "the fabric was told to")
}

impl MemoryTransport for Plugged {
    fn name(&self) -> &str {
        self.name
    }

    fn address(&self) -> Result<Vec<u8>> {
        Ok(self.number.to_le_bytes().to_vec())
    }

    unsafe fn register(&self, address: usize, bytes: u64, exposure: Exposure) -> Result<RawMemory> {
        let memory = self.fabric.number();
        let range = (address as u64, bytes);
        match exposure {
            Exposure::Own => self.own.lock().insert(memory, range),
            Exposure::Peers => self.fabric.exposed.lock().insert((self.number, memory), range),
        };
        Ok(RawMemory(memory))
    }

    unsafe fn unregister(&self, memory: RawMemory) -> Result<()> {
        if is_on(&self.fabric.keeps) {
            return Err(failed(ErrorKind::Internal));
        }
        // under the lock that moves hold, so that none goes on afterwards
        self.fabric.exposed.lock().remove(&(self.number, memory.0));
        self.own.lock().remove(&memory.0);
        Ok(())
    }

    fn connect(&self, address: &[u8], _: Duration) -> Result<RawConnection> {
        if is_on(&self.fabric.refuses) {
            return Err(failed(ErrorKind::Unavailable));
        }
        let peer = u64::from_le_bytes(address.try_into().unwrap());
        let exposed = self.fabric.exposed.lock();
        let of_peer = exposed.iter().filter(|((owner, _), _)| *owner == peer);
        let connection = Connection {
            peer,
            local: self.own.lock().values().copied().collect(),
            remote: of_peer.map(|(_, range)| *range).collect(),
            held: Vec::new(),
        };
        let number = self.fabric.number();
        self.connections.lock().insert(number, connection);
        self.fabric.connections.fetch_add(1, Ordering::Relaxed);
        Ok(RawConnection(number))
    }

    unsafe fn disconnect(&self, connection: RawConnection) -> Result<()> {
        if is_on(&self.fabric.sticks) {
            return Err(failed(ErrorKind::Internal));
        }
        let ended = self.connections.lock().remove(&connection.0).unwrap();
        for done in ended.held {
            done(Err(failed(ErrorKind::Cancelled)));
        }
        Ok(())
    }

    unsafe fn submit(
        &self,
        connection: RawConnection,
        direction: MoveDirection,
        moves: &[Move],
        done: Moved,
    ) {
        self.fabric.batches.fetch_add(1, Ordering::Relaxed);
        let mut connections = self.connections.lock();
        let known = connections.get_mut(&connection.0).unwrap();
        if is_on(&self.fabric.hangs) {
            known.held.push(done);
            return;
        }
        let exposed = self.fabric.exposed.lock();
        for one in moves {
            let local = known
                .local
                .iter()
                .any(|range| holds(*range, one.local, one.bytes));
            let remote = known
                .remote
                .iter()
                .any(|range| holds(*range, one.remote, one.bytes));
            let still = exposed
                .iter()
                .any(|((owner, _), range)| *owner == known.peer && holds(*range, one.remote, one.bytes));
            if is_on(&self.fabric.fails) || !(local && remote && still) {
                drop((connections, exposed));
                return done(Err(failed(ErrorKind::Io)));
            }
            let (from, to) = match direction {
                MoveDirection::FromPeer => (one.remote, one.local),
                MoveDirection::ToPeer => (one.local, one.remote),
            };
            let from = std::ptr::with_exposed_provenance::<u8>(from as usize);
            let to = std::ptr::with_exposed_provenance_mut::<u8>(to as usize);
            // SAFETY: both ranges are registered, which they stay under the lock, and the engines hold them in place.
            unsafe { std::ptr::copy(from, to, one.bytes as usize) };
        }
        drop((connections, exposed));
        done(Ok(()));
    }
}
