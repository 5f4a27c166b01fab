//! Taking blocks in: reservations, shards in any order, commits.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use crate::block::BlockHash;
use crate::envelope::Envelope;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::SlotGuard;
use crate::tier::{Durability, MemoryTier, NamespaceInfo};

use super::Engine;

/// A slot that one client fills with one block. Dropping it uncommitted leaves no trace.
pub struct Reservation {
    namespace: Arc<NamespaceInfo>,
    hash: BlockHash,
    slot: SlotGuard,
    memory: Arc<dyn MemoryTier>,
    shards: Mutex<ShardStates>,
}

struct ShardStates {
    checksums: Vec<Option<u64>>,
    missing: usize,
    committed: bool,
}

impl Reservation {
    /// The block's hash.
    pub fn hash(&self) -> BlockHash {
        self.hash
    }

    /// The block's namespace.
    pub fn namespace(&self) -> &Arc<NamespaceInfo> {
        &self.namespace
    }

    /// The slot to fill: shards at their offsets in the layout. The descriptor page is the engine's.
    pub fn slot(&self) -> &SlotGuard {
        &self.slot
    }

    /// Says that a shard's bytes are in the slot, with their CRC-64/NVME. Shards may come in any order and
    /// from several threads. Returns whether the block is now whole.
    ///
    /// Fails with `InvalidInput` for an index outside the layout and `AlreadyExists` for a shard that came
    /// before.
    pub fn put_shard(&self, index: usize, checksum: u64) -> Result<bool> {
        let mut shards = self.shards.lock();
        let count = shards.checksums.len();
        let Some(place) = shards.checksums.get_mut(index) else {
            return Err(Error::invalid(format!(
                "shard index {index} is outside the layout's {count} shards"
            ))
            .with("key", self.namespace.key(self.hash)));
        };
        if place.replace(checksum).is_some() {
            return Err(
                Error::new(ErrorKind::AlreadyExists, format!("shard {index} came twice"))
                    .with("key", self.namespace.key(self.hash)),
            );
        }
        shards.missing -= 1;
        Ok(shards.missing == 0)
    }

    fn take_checksums(&self) -> Result<Vec<u64>> {
        let mut shards = self.shards.lock();
        if shards.missing > 0 || shards.committed {
            return Err(Error::invalid(format!(
                "a block is committed with {} of {} shards missing",
                shards.missing,
                shards.checksums.len()
            ))
            .with("key", self.namespace.key(self.hash)));
        }
        shards.committed = true;
        Ok(shards
            .checksums
            .iter()
            .map(|checksum| checksum.unwrap_or_default())
            .collect())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.shards.get_mut().committed {
            self.memory.discard(&self.slot);
        }
    }
}

/// What became of one block of a reserve request.
pub enum Reserved {
    /// Fill the slot and commit.
    Slot(Box<Reservation>),
    /// Some tier has the block, or somebody is dumping it; there's nothing to do.
    Present,
    /// Not taken: `Busy`, `TooLarge`, `QuotaExceeded`.
    Refused(Error),
}

/// Called once with the outcome of each block, in order.
pub type ReserveDone = Box<dyn FnOnce(Vec<Reserved>) + Send>;

/// Called once with the durability reached, or with what went wrong.
pub type CommitDone = Box<dyn FnOnce(Result<Durability>) + Send>;

struct Parked {
    namespace: Arc<NamespaceInfo>,
    parent: Option<BlockHash>,
    hashes: Vec<BlockHash>,
    outcomes: Vec<Option<Reserved>>,
    deadline: Instant,
    done: ReserveDone,
}

/// Reservations that wait for room, first come first served.
#[derive(Default)]
pub(crate) struct Parking {
    queue: Mutex<VecDeque<Parked>>,
    waiting: AtomicUsize,
}

impl Parking {
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }
}

impl Engine {
    /// Reserves a slot for each block of a run that no tier has yet. `parent` is the block before the run.
    /// Where everything is pinned or being written, waits in line until `wait_until`, then refuses with `Busy`;
    /// a `wait_until` in the past refuses at once.
    pub fn reserve(
        &self,
        namespace: &Arc<NamespaceInfo>,
        parent: Option<BlockHash>,
        hashes: &[BlockHash],
        wait_until: Instant,
        done: ReserveDone,
    ) {
        if let Err(error) = self.check_request(hashes.len()) {
            self.counters.error(error.kind());
            done(hashes.iter().map(|_| Reserved::Refused(error.clone())).collect());
            return;
        }
        let mut present = vec![false; hashes.len()];
        for tier in &self.lower {
            tier.lookup(namespace, hashes, &mut present);
        }
        let outcomes = present
            .into_iter()
            .map(|found| found.then_some(Reserved::Present))
            .collect();
        let request = Parked {
            namespace: namespace.clone(),
            parent,
            hashes: hashes.to_vec(),
            outcomes,
            deadline: wait_until,
            done,
        };
        let request = if self.parking.waiting() > 0 {
            request
        } else {
            match self.try_reserve(request) {
                None => return,
                Some(request) => request,
            }
        };
        if wait_until <= self.runtime.clock.now() {
            finish(request, &busy("the cache buffer is full of blocks in use"));
            return;
        }
        let mut queue = self.parking.queue.lock();
        if queue.len() >= self.settings.max_parked_requests {
            drop(queue);
            finish(request, &busy("too many dumps wait for room"));
            return;
        }
        queue.push_back(request);
        self.parking.waiting.store(queue.len(), Ordering::Release);
        drop(queue);
        // room may have come between the attempt and the parking
        self.retry_parked();
    }

    /// Gives waiting reservations another try, in order; called when slots became free.
    pub(crate) fn retry_parked(&self) {
        if self.parking.waiting() == 0 {
            return;
        }
        let now = self.runtime.clock.now();
        loop {
            let Some(mut queue) = self.parking.queue.try_lock() else {
                return;
            };
            let Some(request) = queue.pop_front() else { return };
            self.parking.waiting.store(queue.len(), Ordering::Release);
            drop(queue);
            if request.deadline <= now {
                finish(request, &busy("no room until the deadline"));
                continue;
            }
            if let Some(request) = self.try_reserve(request) {
                let mut queue = self.parking.queue.lock();
                queue.push_front(request);
                self.parking.waiting.store(queue.len(), Ordering::Release);
                return;
            }
        }
    }

    /// How many reservations wait for room.
    pub fn parked_requests(&self) -> usize {
        self.parking.waiting()
    }

    /// Refuses waiting reservations whose deadline has passed; called now and then by whoever owns the engine.
    pub fn expire_parked(&self) {
        if self.parking.waiting() > 0 {
            let now = self.runtime.clock.now();
            let mut queue = self.parking.queue.lock();
            let (expired, waiting): (Vec<_>, Vec<_>) =
                queue.drain(..).partition(|request| request.deadline <= now);
            queue.extend(waiting);
            self.parking.waiting.store(queue.len(), Ordering::Release);
            drop(queue);
            for request in expired {
                finish(request, &busy("no room until the deadline"));
            }
        }
    }

    /// Reserves what it can; gives the request back when something is still `Busy`.
    fn try_reserve(&self, mut request: Parked) -> Option<Parked> {
        let open: Vec<usize> = request
            .outcomes
            .iter()
            .enumerate()
            .filter_map(|(index, outcome)| outcome.is_none().then_some(index))
            .collect();
        let wanted: Vec<BlockHash> = open
            .iter()
            .filter_map(|index| request.hashes.get(*index).copied())
            .collect();
        let parent = match open.first() {
            Some(0) | None => request.parent,
            Some(first) => request.hashes.get(first - 1).copied(),
        };
        let slots = self.memory.allocate(&request.namespace, parent.as_ref(), &wanted);
        let mut busy = false;
        for ((index, hash), slot) in open.into_iter().zip(wanted).zip(slots) {
            let outcome = match slot {
                Ok(slot) => Reserved::Slot(Box::new(Reservation {
                    shards: Mutex::new(ShardStates {
                        checksums: vec![None; request.namespace.layout.shards().len()],
                        missing: request.namespace.layout.shards().len(),
                        committed: false,
                    }),
                    namespace: request.namespace.clone(),
                    hash,
                    slot,
                    memory: self.memory.clone(),
                })),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => Reserved::Present,
                Err(error) if error.kind() == ErrorKind::Busy => {
                    busy = true;
                    continue;
                }
                Err(error) => {
                    self.counters.error(error.kind());
                    Reserved::Refused(error)
                }
            };
            if let Some(place) = request.outcomes.get_mut(index) {
                *place = Some(outcome);
            }
        }
        // what was reserved is handed out even when the rest has to wait longer: its owner could otherwise
        // hold slots that it doesn't know of while others wait for them
        let handed_out = request
            .outcomes
            .iter()
            .any(|outcome| matches!(outcome, Some(Reserved::Slot(_))));
        if busy && !handed_out {
            return Some(request);
        }
        finish(request, &self::busy("the cache buffer is full of blocks in use"));
        None
    }

    /// Makes a whole block visible and writes it through. `done` is called when it's as safe as asked.
    ///
    /// Fails with `InvalidInput` when a shard is missing: a block is absent or whole.
    pub fn commit(&self, reservation: Reservation, durability: Durability, done: CommitDone) {
        let started = self.runtime.clock.now();
        match self.publish(&reservation) {
            Ok(()) => {}
            Err(error) => {
                self.counters.error(error.kind());
                done(Err(error));
                return;
            }
        }
        self.counters
            .dumped(reservation.namespace.layout.payload_bytes() as u64);
        let engine = self.this.clone();
        let done: CommitDone = Box::new(move |result| {
            if let Some(engine) = engine.upgrade() {
                engine
                    .counters
                    .commit
                    .record(engine.runtime.clock.now().saturating_duration_since(started));
                if let Err(error) = &result {
                    engine.counters.error(error.kind());
                }
            }
            done(result);
        });
        let slot = reservation.slot.clone();
        let (namespace, hash) = (reservation.namespace.clone(), reservation.hash);
        drop(reservation);
        self.write_through(&namespace, hash, slot, durability, done);
    }

    fn publish(&self, reservation: &Reservation) -> Result<()> {
        let checksums = reservation.take_checksums()?;
        let namespace = &reservation.namespace;
        let unix_ms = self.runtime.clock.unix_ms();
        let envelope = Envelope::new(
            namespace.key(reservation.hash),
            &namespace.layout,
            self.counters.next_generation(unix_ms),
            unix_ms,
            checksums,
        );
        let published = envelope
            .encode()
            .and_then(|page| reservation.slot.write_descriptor(&page));
        match published {
            Ok(()) => self.memory.publish(&reservation.slot),
            Err(_) => self.memory.discard(&reservation.slot),
        }
        published
    }
}

fn busy(why: &str) -> Error {
    Error::new(ErrorKind::Busy, why)
}

fn finish(request: Parked, refusal: &Error) {
    let outcomes = request
        .outcomes
        .into_iter()
        .map(|outcome| outcome.unwrap_or_else(|| Reserved::Refused(refusal.clone())))
        .collect();
    (request.done)(outcomes);
}
