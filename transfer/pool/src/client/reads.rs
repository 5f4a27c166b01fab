//! Reads from other nodes: rights for a group of objects with one question, then all of them at once.
#![allow(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kvstored_core::{Error, ErrorKind, Result};
use kvstored_master::Location;
use kvstored_transfer::{Grant, Peer, Transfer, TransferEntry, TransferKind};

use super::PoolClient;
use super::get::{Attempt, set};
use super::peers::{Node, grant_of};
use crate::memory::{Piece, checksum};
use crate::wire::{Item, Verb};

/// How long a client relies on a grant, from the moment it asked; shorter than nodes grant.
const GRANT_IS_GOOD: Duration = Duration::from_secs(30);
/// How long a node may take that failed just now.
const SHUNNED_PATIENCE: Duration = Duration::from_millis(100);
/// Transfers of one batch that are under way at once.
const WINDOW: usize = 64;
/// The slowest transfer that isn't taken for a failure, in bytes a second.
const SLOWEST: u64 = 128 << 20;

/// A read under way.
pub(super) struct Flight<'a> {
    attempt: Attempt<'a>,
    location: Location,
    node: Arc<Node>,
    transfer: Transfer,
    until: Instant,
    kept: bool,
}

impl PoolClient {
    /// Gets rights for a group of objects on one node, and starts reading them.
    pub(super) fn start_reads<'a>(
        &self,
        group: Vec<(Attempt<'a>, Location)>,
        flights: &mut Vec<Flight<'a>>,
        undecided: &mut Vec<Attempt<'a>>,
        outcomes: &mut [Result<u64>],
        deadline: Instant,
    ) {
        let Some((_, first)) = group.first() else { return };
        let node = self.nodes.get(first);
        let asked_at = self.runtime.clock.now();
        // one that failed just now gets a chance, and no more of everybody's time
        let shunned = node.is_shunned(asked_at);
        let limit = if shunned { SHUNNED_PATIENCE } else { Duration::MAX };
        let patience = asked_at + self.settings.replica_timeout.min(limit);
        let until = patience.min(deadline);
        let asked = node
            .peer(until)
            .and_then(|peer| Ok((Self::grants(&node, &peer, &group, asked_at, until)?, peer)));
        let (grants, peer) = match asked {
            Ok(both) => both,
            Err(error) => {
                node.failed(&error);
                for (mut attempt, _) in group {
                    self.counters.failovers.fetch_add(1, Ordering::Relaxed);
                    attempt.failure = Some(error.clone());
                    undecided.push(attempt);
                }
                return;
            }
        };
        for ((mut attempt, location), grant) in group.into_iter().zip(grants) {
            while flights.len() >= WINDOW && !flights.is_empty() {
                let oldest = flights.remove(0);
                self.land(oldest, undecided, outcomes);
            }
            let until = self.patience(attempt.object.found.length).min(deadline);
            let until = if shunned { until.min(patience) } else { until };
            let started = grant.and_then(|(grant, kept)| {
                let entries = self.entries(&attempt.pieces, &grant)?;
                let transfer = self
                    .engine
                    .submit_summed(&peer, TransferKind::Read, &entries, until)?;
                Ok((transfer, kept))
            });
            match started {
                Ok((transfer, kept)) => flights.push(Flight {
                    attempt,
                    location,
                    node: node.clone(),
                    transfer,
                    until,
                    kept,
                }),
                Err(error) => {
                    attempt.failure = Some(error);
                    self.counters.failovers.fetch_add(1, Ordering::Relaxed);
                    undecided.push(attempt);
                }
            }
        }
    }

    /// A right for each object, and whether it was kept from before.
    fn grants(
        node: &Node,
        peer: &Peer,
        group: &[(Attempt<'_>, Location)],
        asked_at: Instant,
        until: Instant,
    ) -> Result<Vec<Result<(Grant, bool)>>> {
        let kept = |attempt: &Attempt<'_>| {
            let grant = (!attempt.fresh).then(|| attempt.object.grant(&node.id(), asked_at));
            grant.flatten()
        };
        let mut grants: Vec<Option<Result<(Grant, bool)>>> = group
            .iter()
            .map(|(attempt, _)| kept(attempt).map(|grant| Ok((grant, true))))
            .collect();
        let missing = group.iter().zip(&grants).filter(|(_, grant)| grant.is_none());
        let items: Vec<Item> = missing
            .map(|((attempt, location), _)| Item {
                put: location.put,
                offset: location.offset,
                length: attempt.object.found.length,
                checksum: 0,
                key: attempt.key.into(),
                token: Box::default(),
            })
            .collect();
        if !items.is_empty() {
            let mut answers = node.ask(Verb::Read, items, until)?.into_iter();
            for (slot, (attempt, _)) in grants.iter_mut().zip(group) {
                if slot.is_some() {
                    continue;
                }
                let grant = answers.next().map(|answer| {
                    answer.and_then(|answer| {
                        let grant = grant_of(peer, &answer)?;
                        attempt
                            .object
                            .keep_grant(node.id(), grant, asked_at + GRANT_IS_GOOD);
                        Ok((grant, false))
                    })
                });
                *slot = grant;
            }
        }
        let none = || Err(Error::internal("an item without a grant"));
        Ok(grants
            .into_iter()
            .map(|grant| grant.unwrap_or_else(none))
            .collect())
    }

    /// Waits for a read and verifies what came.
    pub(super) fn land<'a>(
        &self,
        flight: Flight<'a>,
        undecided: &mut Vec<Attempt<'a>>,
        outcomes: &mut [Result<u64>],
    ) {
        let Flight {
            mut attempt,
            location,
            node,
            transfer,
            until,
            kept,
        } = flight;
        let outcome = transfer.wait(until).inspect_err(|_| {
            // nothing may touch the caller's memory once it is told of the failure
            transfer.cancel();
        });
        let outcome = outcome.and_then(|()| {
            // SAFETY: the pieces are registered, and the transfer into them is over.
            let sum = || unsafe { checksum(&attempt.pieces) };
            let found = transfer.checksum().unwrap_or_else(sum);
            self.verify(&attempt, found)
        });
        match outcome {
            Ok(()) => {
                node.worked();
                set(outcomes, attempt.index, Ok(attempt.object.found.length));
            }
            Err(error) => {
                attempt.object.drop_grant(&node.id());
                let refused = matches!(error.kind(), ErrorKind::Fenced | ErrorKind::PermissionDenied);
                if refused && kept && !attempt.fresh {
                    // the grant from memory was too old; the object may be there all the same
                    attempt.fresh = true;
                    attempt.left.push(location);
                } else {
                    attempt.fresh = false;
                    node.failed(&error);
                    self.counters.failovers.fetch_add(1, Ordering::Relaxed);
                }
                attempt.failure = Some(error);
                undecided.push(attempt);
            }
        }
    }

    /// The entries of a transfer between pieces of memory and a range that a grant names.
    pub(super) fn entries(&self, pieces: &[Piece], grant: &Grant) -> Result<Vec<TransferEntry>> {
        let mut remote_offset = 0;
        let mut entries = Vec::with_capacity(pieces.len());
        for piece in pieces.iter().filter(|piece| piece.length > 0) {
            let (local, local_offset) = self.registry.locate(*piece)?;
            entries.push(TransferEntry {
                local,
                local_offset,
                grant: *grant,
                remote_offset,
                length: piece.length as u64,
            });
            remote_offset += piece.length as u64;
        }
        Ok(entries)
    }

    /// Until when a transfer of so many bytes may take.
    pub(super) fn patience(&self, bytes: u64) -> Instant {
        let extra = Duration::from_millis(bytes.saturating_mul(1000) / SLOWEST);
        self.runtime.deadline(self.settings.replica_timeout + extra)
    }
}
