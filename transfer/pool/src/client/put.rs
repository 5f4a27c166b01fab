//! Putting objects: the master says where, the nodes grant the right to write, and nothing is visible before each node
//! that holds it has taken the descriptor.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use kvstored_core::{Error, ErrorKind, Result};
use kvstored_master::{Location, NewObject, NodeId, PutOptions, Ticket, split_key};
use kvstored_transfer::{Transfer, TransferKind};

use super::peers::{Node, grant_of};
use super::{MOST_KEYS, PoolClient, PutRequest};
use crate::memory::{InUse, Piece, checksum};
use crate::wire::{Item, Verb};

/// How often an object is put elsewhere because its nodes don't answer.
const MOST_ATTEMPTS: usize = 3;

/// One object on its way.
pub(super) struct Job<'a> {
    pub index: usize,
    pub request: PutRequest<'a>,
    pub length: u64,
    pub ticket: Ticket,
    pub checksum: Option<u64>,
    /// What the checksum must be, where that is known beforehand.
    pub expected: Option<u64>,
    /// Nodes that hold it, and the smallest fencing epoch that they obeyed.
    pub holders: Vec<NodeId>,
    pub master_epoch: u64,
    pub failure: Option<Error>,
}

impl Job<'_> {
    pub fn item(&self, place: &Location) -> Item {
        Item {
            put: self.ticket.put,
            offset: place.offset,
            length: self.length,
            checksum: self.checksum.unwrap_or(0),
            key: self.request.key.into(),
            token: place.token.clone(),
        }
    }

    /// Computes the checksum of what is put, if it isn't known.
    fn sum(&mut self) {
        if self.checksum.is_none() {
            // SAFETY: the pieces are registered, and the caller keeps writers away while it puts.
            self.checksum = Some(unsafe { checksum(self.request.pieces) });
        }
    }

    /// Fails with `Corrupt` where the bytes aren't those that they should be.
    fn verify(&mut self) -> Result<()> {
        self.sum();
        if self.expected.is_some() && self.checksum != self.expected {
            return Err(Error::new(
                ErrorKind::Corrupt,
                "the bytes to be put fail their checksum",
            ));
        }
        Ok(())
    }

    /// Takes the checksum of bytes that were sent. Fails with `Corrupt` when others were sent before: two replicas must not
    /// differ, and the caller broke its promise if they do.
    fn agree(&mut self, sent: u64) -> Result<()> {
        if self.checksum.is_some_and(|before| before != sent) {
            return Err(Error::new(
                ErrorKind::Corrupt,
                "the bytes changed while they were put",
            ));
        }
        self.checksum = Some(sent);
        Ok(())
    }

    pub fn held_by(&mut self, node: NodeId, master_epoch: u64) {
        self.master_epoch = if self.holders.is_empty() {
            master_epoch
        } else {
            self.master_epoch.min(master_epoch)
        };
        self.holders.push(node);
    }
}

impl PoolClient {
    /// Puts one object; see [`PoolClient::put_batch`].
    pub fn put(&self, key: &[u8], pieces: &[Piece], options: &PutOptions, deadline: Instant) -> Result<()> {
        let outcomes = self.put_batch(&[PutRequest { key, pieces }], options, deadline);
        let none = || Err(Error::internal("a put without an outcome"));
        outcomes.into_iter().next().unwrap_or_else(none)
    }

    /// Puts objects from registered memory. An object that was acknowledged is on as many nodes as asked for, or on
    /// those that were left, and outlives a restart of the master.
    ///
    /// Per object: `AlreadyExists` when it's there or being put, `NoSpace`, `QuotaExceeded`, `InvalidInput` for a wrong
    /// key or memory that isn't registered, `Fenced` when the put was revoked meanwhile, `TimedOut`, `Unavailable`.
    pub fn put_batch(
        &self,
        puts: &[PutRequest<'_>],
        options: &PutOptions,
        deadline: Instant,
    ) -> Vec<Result<()>> {
        let mut outcomes: Vec<Result<()>> = Vec::with_capacity(puts.len());
        let mut accepted = Vec::new();
        let mut uses = Vec::new();
        for (index, put) in puts.iter().enumerate() {
            match self.check(put, &mut uses) {
                Ok(length) => {
                    accepted.push((index, *put, length));
                    outcomes.push(Err(Error::internal("a put without an outcome")));
                }
                Err(error) => outcomes.push(Err(error)),
            }
        }
        for _ in 0..MOST_ATTEMPTS {
            let options = self.put_options(options);
            for part in accepted.chunks(MOST_KEYS) {
                let mut jobs = self.start(part, &options, &mut outcomes, deadline);
                self.write_all(&mut jobs, deadline);
                self.finish(jobs, &mut outcomes, deadline);
            }
            accepted.retain(|(index, _, _)| outcomes.get(*index).is_some_and(may_go_elsewhere));
            let nobody_failed = self.nodes.shunned().is_empty();
            if accepted.is_empty() || nobody_failed || self.runtime.clock.now() >= deadline {
                break;
            }
        }
        outcomes
    }

    fn check(&self, put: &PutRequest<'_>, uses: &mut Vec<InUse>) -> Result<u64> {
        split_key(put.key)?;
        self.registry.enter(put.pieces, uses)?;
        match Piece::total(put.pieces)? {
            0 => Err(Error::invalid("an object of no bytes")),
            length => Ok(length),
        }
    }

    fn start<'a>(
        &self,
        accepted: &[(usize, PutRequest<'a>, u64)],
        options: &PutOptions,
        outcomes: &mut [Result<()>],
        deadline: Instant,
    ) -> Vec<Job<'a>> {
        let objects: Vec<NewObject<'_>> = accepted
            .iter()
            .map(|(_, put, length)| NewObject {
                key: put.key,
                length: *length,
            })
            .collect();
        let tickets = match self.directory.start_puts(&objects, options, deadline) {
            Ok(tickets) => tickets,
            Err(error) => {
                for (index, _, _) in accepted {
                    set(outcomes, *index, Err(error.clone()));
                }
                return Vec::new();
            }
        };
        let mut jobs = Vec::with_capacity(tickets.len());
        for ((index, request, length), ticket) in accepted.iter().zip(tickets) {
            match ticket {
                Ok(ticket) => jobs.push(Job {
                    index: *index,
                    request: *request,
                    length: *length,
                    ticket,
                    checksum: None,
                    expected: None,
                    holders: Vec::new(),
                    master_epoch: 0,
                    failure: None,
                }),
                Err(error) => set(outcomes, *index, Err(error)),
            }
        }
        jobs
    }

    /// Writes every replica of every job, as far as nodes let it.
    pub(super) fn write_all(&self, jobs: &mut [Job<'_>], deadline: Instant) {
        let own = self.own_node();
        let mut by_node: HashMap<NodeId, Vec<(usize, Location)>> = HashMap::new();
        for (at, job) in jobs.iter_mut().enumerate() {
            for place in job.ticket.locations.clone() {
                let node = place.node;
                if Some(node) == own {
                    if let Err(error) = self.write_own(job, &place) {
                        job.failure = Some(error);
                    }
                } else {
                    by_node.entry(node).or_default().push((at, place));
                }
            }
        }
        let mut flights = Vec::new();
        for group in by_node.into_values() {
            self.start_writes(jobs, group, &mut flights, deadline);
        }
        // where the transport won't tell the checksum, it costs no time of its own while the bytes are on their way
        for flight in flights.iter().filter(|flight| !flight.transfer.tells_checksum()) {
            if let Some(job) = jobs.get_mut(flight.job) {
                job.sum();
            }
        }
        let mut written: HashMap<NodeId, Written> = HashMap::new();
        for flight in flights {
            let outcome = flight.transfer.wait(flight.until).inspect_err(|_| {
                flight.transfer.cancel();
            });
            let outcome = outcome.and_then(|()| {
                let Some(job) = jobs.get_mut(flight.job) else {
                    return Ok(());
                };
                if let Some(sent) = flight.transfer.checksum() {
                    job.agree(sent)?;
                }
                job.verify()
            });
            match outcome {
                Ok(()) => {
                    let group = written.entry(flight.place.node).or_insert_with(|| Written {
                        node: flight.node.clone(),
                        places: Vec::new(),
                    });
                    group.places.push((flight.job, flight.place));
                }
                Err(error) => {
                    flight.node.failed(&error);
                    fail(jobs, flight.job, error);
                }
            }
        }
        for group in written.into_values() {
            self.seal(jobs, &group.node, group.places, deadline);
        }
    }

    fn write_own(&self, job: &mut Job<'_>, place: &Location) -> Result<()> {
        let Some(node) = &self.node else {
            return Err(Error::new(ErrorKind::NotFound, "this process lends no memory"));
        };
        let segment = node.segment();
        let (put, key) = (job.ticket.put, job.request.key);
        // SAFETY: the pieces were checked against the registry, and the caller keeps writers away while it puts.
        let found = unsafe { segment.write_here(put, place, job.length, key, job.request.pieces)? };
        job.agree(found)?;
        segment.seal(put, key, found)?;
        job.held_by(place.node, segment.master_epoch());
        Ok(())
    }

    fn start_writes(
        &self,
        jobs: &mut [Job<'_>],
        group: Vec<(usize, Location)>,
        flights: &mut Vec<Flight>,
        deadline: Instant,
    ) {
        let Some((_, first)) = group.first() else { return };
        let node = self.nodes.get(first);
        let until = self.runtime.deadline(self.settings.replica_timeout).min(deadline);
        let items = group
            .iter()
            .filter_map(|(at, place)| Some(jobs.get(*at)?.item(place)))
            .collect();
        let opened = node
            .ask(Verb::Open, items, until)
            .and_then(|answers| Ok((answers, node.peer(until)?)));
        let (answers, peer) = match opened {
            Ok(both) => both,
            Err(error) => {
                node.failed(&error);
                for (at, _) in group {
                    fail(jobs, at, error.clone());
                }
                return;
            }
        };
        for ((at, place), answer) in group.into_iter().zip(answers) {
            let Some(job) = jobs.get_mut(at) else { continue };
            let until = self.patience(job.length).min(deadline);
            let started = answer.and_then(|answer| {
                let entries = self.entries(job.request.pieces, &grant_of(&peer, &answer)?)?;
                self.engine
                    .submit_summed(&peer, TransferKind::Write, &entries, until)
            });
            match started {
                Ok(transfer) => flights.push(Flight {
                    job: at,
                    place,
                    node: node.clone(),
                    transfer,
                    until,
                }),
                Err(error) => job.failure = Some(error),
            }
        }
    }
}

/// What has arrived on one node.
struct Written {
    node: Arc<Node>,
    places: Vec<(usize, Location)>,
}

/// A write under way.
struct Flight {
    job: usize,
    place: Location,
    node: Arc<Node>,
    transfer: Transfer,
    until: Instant,
}

pub(super) fn fail(jobs: &mut [Job<'_>], at: usize, error: Error) {
    if let Some(job) = jobs.get_mut(at) {
        job.failure = Some(error);
    }
}

/// Whether a put failed because of its nodes, so that others may take it.
fn may_go_elsewhere(outcome: &Result<()>) -> bool {
    let nodes_fault = |error: &Error| {
        matches!(
            error.kind(),
            ErrorKind::TimedOut | ErrorKind::Unavailable | ErrorKind::Io
        )
    };
    outcome.as_ref().err().is_some_and(nodes_fault)
}

pub(super) fn set(outcomes: &mut [Result<()>], index: usize, outcome: Result<()>) {
    if let Some(slot) = outcomes.get_mut(index) {
        *slot = outcome;
    }
}
