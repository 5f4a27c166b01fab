//! What clients ask for: batches over the state machine, in parts so that no call holds the lock for long.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvstored_core::{Error, ErrorKind, Result};

use super::core::{Core, Refusal};
use crate::types::{Finished, Found, MAX_ITEMS, NewObject, NodeId, PutOptions, Ticket};
use crate::wire::proto;
use crate::wire::{self, NodeTable, millis, node_id};

/// Items that are worked on under one lock.
const PART: usize = 256;
/// The longest that a put waits for room.
const MAX_WAIT: Duration = Duration::from_secs(10);
/// How long a removal waits for the nodes to carry it out.
const REMOVAL_WAIT: Duration = Duration::from_millis(500);
/// Objects that are looked at under one lock when all are removed.
const REMOVED_PART: usize = 4096;

/// Fails with `InvalidInput` for too long a batch.
pub(super) fn check_batch(items: usize) -> Result<()> {
    if items <= MAX_ITEMS {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "a batch of {items} items; at most {MAX_ITEMS} are accepted"
    )))
}

pub(super) async fn put_start(
    core: &Core,
    request: proto::PutStartRequest,
) -> Result<proto::PutStartResponse, Refusal> {
    check_batch(request.objects.len())?;
    check_batch(request.avoid.len())?;
    let options = PutOptions {
        replicas: request.replicas,
        soft_pin: request.soft_pin,
        prefer: (!request.prefer.is_empty())
            .then(|| node_id(&request.prefer))
            .transpose()?,
        avoid: request
            .avoid
            .iter()
            .map(|id| node_id(id))
            .collect::<Result<Vec<NodeId>>>()?,
        wait: Duration::from_millis(u64::from(request.wait_ms)).min(MAX_WAIT),
    };
    let objects = &request.objects;
    let mut outcomes: Vec<Option<Result<Ticket>>> = objects.iter().map(|_| None).collect();
    let deadline = core.now() + options.wait;
    core.until(deadline, || {
        start_open(core, objects, request.attempt, &options, &mut outcomes)?;
        let waits = outcomes.iter().flatten().any(waits_for_room);
        Ok((!waits).then_some(()))
    })
    .await?;
    let mut nodes = NodeTable::default();
    let items = outcomes
        .into_iter()
        .map(|outcome| {
            let missing = || Err(Error::internal("a put without an outcome"));
            let outcome = match outcome.unwrap_or_else(missing) {
                Ok(ticket) => proto::put_started::Outcome::Ticket(nodes.ticket(ticket)),
                Err(error) => proto::put_started::Outcome::Failure(wire::failure(&error)),
            };
            proto::PutStarted {
                outcome: Some(outcome),
            }
        })
        .collect();
    Ok(proto::PutStartResponse {
        nodes: nodes.into_nodes(),
        items,
    })
}

/// Starts those puts that haven't started and may.
fn start_open(
    core: &Core,
    objects: &[proto::NewObject],
    attempt: u64,
    options: &PutOptions,
    outcomes: &mut [Option<Result<Ticket>>],
) -> Result<(), Refusal> {
    for (part, outcomes) in objects.chunks(PART).zip(outcomes.chunks_mut(PART)) {
        let open = |outcome: &Option<Result<Ticket>>| outcome.as_ref().is_none_or(waits_for_room);
        if !outcomes.iter().any(open) {
            continue;
        }
        core.with(|state, now| {
            for (object, outcome) in part.iter().zip(outcomes) {
                if open(outcome) {
                    let new = NewObject {
                        key: &object.key,
                        length: object.length,
                    };
                    *outcome = Some(state.start_put(&new, attempt, options, now));
                }
            }
        })?;
    }
    Ok(())
}

fn waits_for_room(outcome: &Result<Ticket>) -> bool {
    let room = |error: &Error| matches!(error.kind(), ErrorKind::NoSpace | ErrorKind::QuotaExceeded);
    outcome.as_ref().is_err_and(room)
}

pub(super) fn put_end(core: &Core, request: &proto::PutEndRequest) -> Result<proto::PutEndResponse, Refusal> {
    check_batch(request.puts.len())?;
    let mut items = Vec::with_capacity(request.puts.len());
    for part in request.puts.chunks(PART) {
        let named = part.iter().map(|put| {
            let nodes = put
                .nodes
                .iter()
                .map(|id| node_id(id))
                .collect::<Result<Vec<NodeId>>>()?;
            Ok((put, nodes))
        });
        let named: Vec<Result<(&proto::Finished, Vec<NodeId>)>> = named.collect();
        core.with(|state, now| {
            for one in named {
                let outcome = one.and_then(|(put, nodes)| {
                    let finished = Finished {
                        key: &put.key,
                        put: put.put,
                        checksum: put.checksum,
                        nodes: &nodes,
                        master_epoch: put.master_epoch,
                    };
                    state.end_put(&finished, now)
                });
                items.push(wire::to_failure(&outcome));
            }
        })?;
    }
    Ok(proto::PutEndResponse { items })
}

pub(super) fn put_revoke(
    core: &Core,
    request: &proto::PutRevokeRequest,
) -> Result<proto::PutRevokeResponse, Refusal> {
    check_batch(request.puts.len())?;
    for part in request.puts.chunks(PART) {
        core.with(|state, _| part.iter().for_each(|put| state.revoke_put(&put.key, put.put)))?;
    }
    let done = wire::to_failure(&Ok(()));
    Ok(proto::PutRevokeResponse {
        items: vec![done; request.puts.len()],
    })
}

pub(super) fn get(core: &Core, request: &proto::GetRequest) -> Result<proto::GetResponse, Refusal> {
    check_batch(request.keys.len())?;
    let mut outcomes: Vec<Option<Result<Found>>> = request.keys.iter().map(|_| None).collect();
    // from the last to the first, so that a prompt's tail is colder than its head
    for (part, outcomes) in request.keys.chunks(PART).zip(outcomes.chunks_mut(PART)).rev() {
        core.with(|state, now| {
            for (key, outcome) in part.iter().zip(outcomes).rev() {
                *outcome = Some(state.get(key, now));
            }
        })?;
    }
    let mut nodes = NodeTable::default();
    let items = outcomes
        .into_iter()
        .map(|outcome| {
            let missing = || Err(Error::internal("a get without an outcome"));
            let outcome = match outcome.unwrap_or_else(missing) {
                Ok(found) => proto::get_item::Outcome::Found(proto::Found {
                    put: found.put,
                    length: found.length,
                    checksum: found.checksum,
                    lease_ms: millis(found.lease),
                    locations: nodes.locations(found.locations, found.put),
                }),
                Err(error) => proto::get_item::Outcome::Failure(wire::failure(&error)),
            };
            proto::GetItem {
                outcome: Some(outcome),
            }
        })
        .collect();
    Ok(proto::GetResponse {
        nodes: nodes.into_nodes(),
        items,
    })
}

pub(super) fn exist(core: &Core, request: &proto::ExistRequest) -> Result<proto::ExistResponse, Refusal> {
    check_batch(request.keys.len())?;
    let mut answers = vec![0; request.keys.len()];
    for (part, answers) in request.keys.chunks(PART).zip(answers.chunks_mut(PART)).rev() {
        core.with(|state, now| {
            for (key, answer) in part.iter().zip(answers).rev() {
                let stays = state.exist(key, request.lease, now);
                *answer = stays.map_or(0, |stays| millis(stays).saturating_add(1));
            }
        })?;
    }
    Ok(proto::ExistResponse {
        stays_ms_plus_one: answers,
    })
}

/// Removes objects, and waits a moment until their nodes have done it too: then no crash brings them back.
pub(super) async fn remove(
    core: &Core,
    request: proto::RemoveRequest,
) -> Result<proto::RemoveResponse, Refusal> {
    check_batch(request.keys.len())?;
    let mut items = Vec::with_capacity(request.keys.len());
    let mut ending = Vec::new();
    for part in request.keys.chunks(PART) {
        core.with(|state, now| {
            for key in part {
                let outcome = state.remove(key, request.force, now);
                let outcome = outcome.map(|puts| ending.extend(puts));
                items.push(wire::to_failure(&outcome));
            }
        })?;
    }
    let deadline = core.now() + REMOVAL_WAIT;
    core.until(deadline, || {
        core.with(|state, _| ending.retain(|put| state.is_ending(Some(*put))))?;
        Ok(ending.is_empty().then_some(()))
    })
    .await?;
    Ok(proto::RemoveResponse { items })
}

/// Removes all objects, or all of one tenant.
pub(super) fn remove_all(core: &Core, tenant: Option<&str>, force: bool) -> Result<u64, Refusal> {
    let mut removed = 0;
    let mut from = Some(0);
    while let Some(position) = from {
        let (some, next) =
            core.with(|state, now| state.remove_some(position, REMOVED_PART, tenant, force, now))?;
        removed += some;
        from = next;
    }
    Ok(removed)
}

pub(super) async fn remove_all_and_wait(
    core: &Arc<Core>,
    request: proto::RemoveAllRequest,
) -> Result<proto::RemoveAllResponse, Refusal> {
    let mut removed = 0;
    let mut from = Some(0);
    while let Some(position) = from {
        let tenant = request.tenant.as_deref();
        let some =
            core.with(|state, now| state.remove_some(position, REMOVED_PART, tenant, request.force, now))?;
        removed += some.0;
        from = some.1;
        tokio::task::yield_now().await;
    }
    let deadline: Instant = core.now() + REMOVAL_WAIT;
    core.until(deadline, || {
        let ending = core.with(|state, _| state.is_ending(None))?;
        Ok((!ending).then_some(()))
    })
    .await?;
    Ok(proto::RemoveAllResponse { removed })
}
