//! Getting objects: from this process's own lent memory, else from the replicas one after the other.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use kvstored_core::{Error, ErrorKind, Result};
use kvstored_master::{Location, NodeId};

use super::known::Object;
use super::{GetRequest, PoolClient};
use crate::memory::{Piece, first_bytes};

/// One object on its way.
pub(super) struct Attempt<'a> {
    pub index: usize,
    pub key: &'a [u8],
    pub pieces: Vec<Piece>,
    pub object: Arc<Object>,
    /// Replicas that are left, the next one last.
    pub left: Vec<Location>,
    /// Whether a grant from memory was refused at the next replica, so that a fresh one is asked for.
    pub fresh: bool,
    pub failure: Option<Error>,
}

impl PoolClient {
    /// Gets one object; see [`PoolClient::get_batch`].
    pub fn get(&self, key: &[u8], pieces: &[Piece], deadline: Instant) -> Result<u64> {
        let outcomes = self.get_batch(&[GetRequest { key, pieces }], deadline);
        let none = || Err(Error::internal("a get without an outcome"));
        outcomes.into_iter().next().unwrap_or_else(none)
    }

    /// Gets objects into registered memory; for each its bytes. What was written there before a failure is undefined.
    ///
    /// Per object: `NotFound` when the pool doesn't have it (any more), `Corrupt` when no replica's bytes pass their
    /// checksum, `InvalidInput` for buffers that are too short or not registered, `TimedOut`, and `Unavailable` when no
    /// replica can be reached.
    pub fn get_batch(&self, gets: &[GetRequest<'_>], deadline: Instant) -> Vec<Result<u64>> {
        let mut outcomes: Vec<Result<u64>> = Vec::with_capacity(gets.len());
        let mut open = Vec::new();
        let mut uses = Vec::new();
        for (index, get) in gets.iter().enumerate() {
            match self.registry.enter(get.pieces, &mut uses) {
                Ok(()) => {
                    outcomes.push(Err(Error::internal("a get without an outcome")));
                    open.push(index);
                }
                Err(error) => outcomes.push(Err(error)),
            }
        }
        self.serve_own(gets, &mut open, &mut outcomes);
        for again in [false, true] {
            if open.is_empty() {
                break;
            }
            open = self.round(gets, &open, again, &mut outcomes, deadline);
        }
        for (get, outcome) in gets.iter().zip(&mut outcomes) {
            match outcome {
                Ok(bytes) => {
                    self.counters.gets.fetch_add(1, Ordering::Relaxed);
                    self.counters.got_bytes.fetch_add(*bytes, Ordering::Relaxed);
                }
                Err(error) => self.after_failure(get.key, error, deadline),
            }
        }
        outcomes
    }

    /// Serves what lies in this process's own lent memory: nobody has to be asked for that.
    fn serve_own(&self, gets: &[GetRequest<'_>], open: &mut Vec<usize>, outcomes: &mut [Result<u64>]) {
        let Some(node) = &self.node else { return };
        open.retain(|index| {
            let Some(get) = gets.get(*index) else { return false };
            let Some((put, length)) = node.segment().find(get.key) else {
                return true;
            };
            // SAFETY: the pieces are in use by this call, and the caller keeps others away from them.
            let read = unsafe { node.segment().read_here(put, get.key, length, get.pieces) };
            match read {
                Ok((found, expected)) if found == expected => {
                    self.counters.local_gets.fetch_add(1, Ordering::Relaxed);
                    set(outcomes, *index, Ok(length));
                    false
                }
                Err(error) if error.kind() == ErrorKind::InvalidInput => {
                    set(outcomes, *index, Err(error));
                    false
                }
                // another replica may be good, and the master knows whether there is one
                Ok(_) | Err(_) => true,
            }
        });
    }

    /// Tries the replicas of all `open` objects; returns those for which a fresh answer of the master may help.
    fn round(
        &self,
        gets: &[GetRequest<'_>],
        open: &[usize],
        again: bool,
        outcomes: &mut [Result<u64>],
        deadline: Instant,
    ) -> Vec<usize> {
        let wanted: Vec<(usize, GetRequest<'_>)> = open
            .iter()
            .filter_map(|at| Some((*at, *gets.get(*at)?)))
            .collect();
        let keys: Vec<&[u8]> = wanted.iter().map(|(_, get)| get.key).collect();
        let located = self.locate(&keys, again, deadline);
        let mut attempts = Vec::with_capacity(wanted.len());
        for ((index, get), object) in wanted.iter().zip(located) {
            let prepared = object.and_then(|object| {
                let pieces = first_bytes(get.pieces, object.found.length)?;
                Ok((object, pieces))
            });
            match prepared {
                Ok((object, pieces)) => attempts.push(Attempt {
                    index: *index,
                    key: get.key,
                    pieces,
                    left: self.order(&object),
                    object,
                    fresh: false,
                    failure: None,
                }),
                Err(error) => set(outcomes, *index, Err(error)),
            }
        }
        while !attempts.is_empty() {
            attempts = self.try_next_replicas(attempts, outcomes, deadline);
        }
        let stale = |at: &usize| {
            let failed = outcomes.get(*at).and_then(|outcome| outcome.as_ref().err());
            failed.is_some_and(|error| !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidInput))
        };
        if again || self.runtime.clock.now() >= deadline {
            return Vec::new();
        }
        wanted.iter().map(|(index, _)| *index).filter(stale).collect()
    }

    /// The replicas, best last: this process's own, then those that work, then those that failed lately.
    fn order(&self, object: &Object) -> Vec<Location> {
        let now = self.runtime.clock.now();
        let own = self.own_node();
        let mut order = object.found.locations.clone();
        if order.len() > 1 {
            // spreads readers over the replicas
            let turn = self.runtime.random.next_u64() as usize % order.len();
            order.rotate_left(turn);
            order.sort_by_key(|location| {
                let own = Some(location.node) == own;
                (own, !self.nodes.get(location).is_shunned(now))
            });
        }
        order
    }

    /// Tries the next replica of each object. Returns what isn't decided.
    fn try_next_replicas<'a>(
        &self,
        attempts: Vec<Attempt<'a>>,
        outcomes: &mut [Result<u64>],
        deadline: Instant,
    ) -> Vec<Attempt<'a>> {
        let own = self.own_node();
        let expired = self.runtime.clock.now() >= deadline;
        let mut by_node: HashMap<NodeId, Vec<(Attempt<'a>, Location)>> = HashMap::new();
        let mut undecided = Vec::new();
        for mut attempt in attempts {
            let next = if expired { None } else { attempt.left.pop() };
            let Some(location) = next else {
                let nowhere = || Error::new(ErrorKind::NotFound, "no replica is left");
                let late = || Error::new(ErrorKind::TimedOut, "the object didn't come in time");
                let error = attempt
                    .failure
                    .unwrap_or_else(if expired { late } else { nowhere });
                set(outcomes, attempt.index, Err(error));
                continue;
            };
            if Some(location.node) == own {
                match self.read_own(&attempt, location.put) {
                    Ok(()) => set(outcomes, attempt.index, Ok(attempt.object.found.length)),
                    Err(error) => {
                        attempt.failure = Some(error);
                        undecided.push(attempt);
                    }
                }
            } else {
                by_node
                    .entry(location.node)
                    .or_default()
                    .push((attempt, location));
            }
        }
        let mut flights = Vec::new();
        for group in by_node.into_values() {
            self.start_reads(group, &mut flights, &mut undecided, outcomes, deadline);
        }
        for flight in flights {
            self.land(flight, &mut undecided, outcomes);
        }
        undecided
    }

    fn read_own(&self, attempt: &Attempt<'_>, put: u64) -> Result<()> {
        let Some(node) = &self.node else {
            return Err(Error::new(ErrorKind::NotFound, "this process lends no memory"));
        };
        // SAFETY: the pieces were checked against the registry, and the caller keeps others away from them.
        let (found, _) = unsafe {
            node.segment()
                .read_here(put, attempt.key, attempt.object.found.length, &attempt.pieces)?
        };
        self.counters.local_gets.fetch_add(1, Ordering::Relaxed);
        self.verify(attempt, found)
    }

    pub(super) fn verify(&self, attempt: &Attempt<'_>, found: u64) -> Result<()> {
        if found == attempt.object.found.checksum {
            return Ok(());
        }
        self.counters.corrupt.fetch_add(1, Ordering::Relaxed);
        tracing::error!(
            key = %attempt.key.escape_ascii(),
            "a replica's bytes fail their checksum; they were not returned"
        );
        Err(Error::new(
            ErrorKind::Corrupt,
            "the object's bytes fail their checksum",
        ))
    }

    /// Draws conclusions from a get that failed for good.
    fn after_failure(&self, key: &[u8], error: &mut Error, deadline: Instant) {
        match error.kind() {
            ErrorKind::Corrupt => {
                // no replica is good: it must not be found again
                self.known.forget(key);
                if let Err(error) = self.remove(&[key], true, deadline) {
                    tracing::debug!(%error, "a corrupt object wasn't removed");
                }
            }
            // the nodes don't hold it any more, whatever the master believes
            ErrorKind::Fenced => {
                self.known.forget(key);
                *error = Error::new(ErrorKind::NotFound, "the object is gone").with("cause", &*error);
            }
            _ => {}
        }
    }
}

pub(super) fn set(outcomes: &mut [Result<u64>], index: usize, outcome: Result<u64>) {
    if let Some(slot) = outcomes.get_mut(index) {
        *slot = outcome;
    }
}
