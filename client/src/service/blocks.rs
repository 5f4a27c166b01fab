//! What moves blocks: leases on blocks that were found, reservations of slots, and their commits.

use std::sync::Arc;
use std::time::Duration;

use kvstored_core::block::BlockHash;
use kvstored_core::engine::{Acquired, Reservation, Reserved};
use kvstored_core::error::{Error, ErrorKind, Result};
use kvstored_core::tier::Durability;
use parking_lot::Mutex;

use crate::wire::{Answer, Failure, Granted, Held};

use super::{Lease, Reply, Service};

impl Service {
    /// Counts a request in, or fails with `Busy`.
    fn begin(&self, blocks: usize) -> Result<()> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(Error::new(ErrorKind::Cancelled, "the client is gone"));
        }
        let held = state.leases.len() + state.reservations.len() + state.promised_blocks;
        if held + blocks > self.settings.max_held_blocks {
            return Err(Error::new(
                ErrorKind::Busy,
                format!(
                    "the client holds {held} blocks and asks for {blocks}; {} may be held",
                    self.settings.max_held_blocks
                ),
            ));
        }
        if state.in_flight >= self.settings.max_in_flight {
            return Err(Error::new(
                ErrorKind::Busy,
                format!("the client has {} requests under way", state.in_flight),
            ));
        }
        state.in_flight += 1;
        state.promised_blocks += blocks;
        Ok(())
    }

    pub(super) fn acquire(self: &Arc<Self>, namespace: u32, hashes: &[BlockHash], reply: Reply) {
        let namespace = match self
            .namespace(namespace)
            .and_then(|info| self.begin(hashes.len()).map(|()| info))
        {
            Ok(namespace) => namespace,
            Err(error) => return reply(Answer::error(error)),
        };
        let (this, info, asked) = (self.clone(), namespace.clone(), hashes.to_vec());
        let done = move |outcomes: Vec<Result<Acquired>>| {
            let mut state = this.state.lock();
            state.in_flight -= 1;
            state.promised_blocks -= asked.len();
            if state.closed {
                drop(state);
                drop(outcomes);
                return;
            }
            let mut blocks = Vec::with_capacity(outcomes.len());
            for (hash, outcome) in asked.into_iter().zip(outcomes) {
                blocks.push(outcome.map_err(miss).map(|Acquired { slot, tier }| {
                    let (lease, offset) = (state.next_id(), slot.offset() as u64);
                    state.leases.insert(
                        lease,
                        Lease {
                            namespace: info.clone(),
                            hash,
                            slot,
                        },
                    );
                    Held {
                        lease,
                        offset,
                        tier: tier as u8,
                    }
                }));
            }
            drop(state);
            reply(Answer::Acquired(blocks));
        };
        self.engine.acquire(&namespace, hashes, Box::new(done));
    }

    pub(super) fn release(&self, leases: &[u64]) {
        let mut state = self.state.lock();
        let released: Vec<Lease> = leases
            .iter()
            .filter_map(|lease| state.leases.remove(lease))
            .collect();
        drop(state);
        drop(released);
    }

    pub(super) fn report_corrupt(&self, lease: u64) {
        let lease = self.state.lock().leases.remove(&lease);
        if let Some(lease) = lease {
            self.engine
                .report_corrupt(&lease.namespace, lease.hash, &lease.slot);
        }
    }

    pub(super) fn reserve(
        self: &Arc<Self>,
        namespace: u32,
        parent: Option<BlockHash>,
        hashes: &[BlockHash],
        wait_ms: u32,
        reply: Reply,
    ) {
        let namespace = match self
            .namespace(namespace)
            .and_then(|info| self.begin(hashes.len()).map(|()| info))
        {
            Ok(namespace) => namespace,
            Err(error) => return reply(Answer::error(error)),
        };
        let (this, promised) = (self.clone(), hashes.len());
        let done = move |outcomes: Vec<Reserved>| {
            let mut state = this.state.lock();
            state.in_flight -= 1;
            state.promised_blocks -= promised;
            if state.closed {
                drop(state);
                drop(outcomes);
                return;
            }
            let blocks = outcomes
                .into_iter()
                .map(|outcome| match outcome {
                    Reserved::Slot(reservation) => {
                        let (id, offset) = (state.next_id(), reservation.slot().offset() as u64);
                        state.reservations.insert(id, reservation);
                        Granted::Slot {
                            reservation: id,
                            offset,
                        }
                    }
                    Reserved::Present => Granted::Present,
                    Reserved::Refused(error) => Granted::Refused(error.into()),
                })
                .collect();
            drop(state);
            reply(Answer::Reserved(blocks));
        };
        let wait_until = self
            .engine
            .runtime()
            .deadline(Duration::from_millis(u64::from(wait_ms)));
        self.engine
            .reserve(&namespace, parent, hashes, wait_until, Box::new(done));
    }

    pub(super) fn commit(
        self: &Arc<Self>,
        blocks: Vec<(u64, Vec<u64>)>,
        durability: Durability,
        reply: Reply,
    ) {
        if let Err(error) = self.begin(0) {
            return reply(Answer::error(error));
        }
        let reservations: Vec<Option<Box<Reservation>>> = {
            let mut state = self.state.lock();
            blocks
                .iter()
                .map(|(id, _)| state.reservations.remove(id))
                .collect()
        };
        // one outcome more than there are blocks, so that nothing is answered before all are under way
        let gather = Arc::new(Commits::new(self.clone(), blocks.len(), reply));
        for (index, ((id, checksums), reservation)) in blocks.into_iter().zip(reservations).enumerate() {
            match filled(id, &checksums, reservation) {
                Ok(reservation) => {
                    let gather = gather.clone();
                    let done = move |result: Result<Durability>| gather.set(Some(index), result);
                    self.engine.commit(reservation, durability, Box::new(done));
                }
                Err(error) => gather.set(Some(index), Err(error)),
            }
        }
        gather.set(None, Ok(durability));
    }

    pub(super) fn abort(&self, reservations: &[u64]) {
        let mut state = self.state.lock();
        let aborted: Vec<_> = reservations
            .iter()
            .filter_map(|id| state.reservations.remove(id))
            .collect();
        drop(state);
        drop(aborted);
    }
}

/// The reservation with every shard put; one with a wrong number of checksums is aborted.
fn filled(id: u64, checksums: &[u64], reservation: Option<Box<Reservation>>) -> Result<Reservation> {
    let reservation = reservation.ok_or_else(|| {
        Error::new(
            ErrorKind::NotFound,
            format!("reservation {id} is not one of this client's"),
        )
    })?;
    let shards = reservation.namespace().layout.shards().len();
    if checksums.len() != shards {
        return Err(Error::invalid(format!(
            "{} shard checksums for a block of {shards} shards",
            checksums.len()
        )));
    }
    for (index, checksum) in checksums.iter().enumerate() {
        reservation.put_shard(index, *checksum)?;
    }
    Ok(*reservation)
}

/// A miss travels without a message; there may be many, and their kind says it all.
fn miss(error: Error) -> Failure {
    match error.kind() {
        ErrorKind::NotFound => Failure {
            kind: ErrorKind::NotFound,
            message: String::new(),
        },
        _ => error.into(),
    }
}

/// Collects the outcomes of one commit.
struct Commits {
    service: Arc<Service>,
    state: Mutex<CommitState>,
}

struct CommitState {
    outcomes: Vec<Option<Result<Durability, Failure>>>,
    missing: usize,
    reply: Option<Reply>,
}

impl Commits {
    fn new(service: Arc<Service>, blocks: usize, reply: Reply) -> Self {
        let state = CommitState {
            outcomes: vec![None; blocks],
            missing: blocks + 1,
            reply: Some(reply),
        };
        Self {
            service,
            state: Mutex::new(state),
        }
    }

    fn set(&self, index: Option<usize>, result: Result<Durability>) {
        let mut state = self.state.lock();
        if let Some(place) = index.and_then(|index| state.outcomes.get_mut(index)) {
            *place = Some(result.map_err(Failure::from));
        }
        state.missing -= 1;
        if state.missing > 0 {
            return;
        }
        let (outcomes, reply) = (std::mem::take(&mut state.outcomes), state.reply.take());
        drop(state);
        let mut service = self.service.state.lock();
        service.in_flight -= 1;
        let closed = service.closed;
        drop(service);
        if let Some(reply) = reply
            && !closed
        {
            let lost = || Err(Error::internal("an outcome is missing").into());
            reply(Answer::Committed(
                outcomes
                    .into_iter()
                    .map(|outcome| outcome.unwrap_or_else(lost))
                    .collect(),
            ));
        }
    }
}
