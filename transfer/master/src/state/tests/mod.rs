//! Tests of the state machine: single rules here, whole histories against a model in [`histories`].
#![allow(clippy::indexing_slicing)]

mod announcements;
mod eviction;
mod histories;
mod moves;
mod world;

use std::time::{Duration, Instant};

use kvstored_core::{ErrorKind, Runtime};

use super::State;
use super::ranges::GRANULE;
use crate::settings::MasterSettings;
use crate::types::*;

const SECOND: Duration = Duration::from_secs(1);

fn start() -> Instant {
    Runtime::system().clock.now()
}

fn id(number: u8) -> NodeId {
    [number; 16]
}

fn key(name: &str) -> Box<[u8]> {
    whole_key("", name.as_bytes()).unwrap()
}

fn lender(number: u8, segment_bytes: u64) -> Lender {
    Lender {
        node: id(number),
        name: format!("node-{number}"),
        control: format!("127.0.0.1:{number}"),
        engine: format!("127.0.0.1:1{number}"),
        segment_bytes,
        obeyed_epoch: 0,
        highest_put: 0,
        draining: None,
    }
}

/// A master with so many nodes of so many bytes, all announced, past its recovery.
fn pool(settings: MasterSettings, nodes: u8, bytes: u64) -> (State, Instant) {
    let now = start();
    let mut state = State::new(settings, 100, now).unwrap();
    for number in 1..=nodes {
        mount(&mut state, number, bytes, now);
    }
    let now = now + state.settings.recovery;
    for number in 1..=nodes {
        state.heartbeat(&id(number), 100, &[], now);
    }
    (state, now)
}

fn mount(state: &mut State, number: u8, bytes: u64, now: Instant) {
    let epoch = state.epoch();
    state
        .mount(&lender(number, bytes), TokenKey::from_bytes([number; 32]), now)
        .unwrap();
    state.announce(&id(number), epoch, &[], true, now).unwrap();
}

fn try_put(
    state: &mut State,
    name: &str,
    length: u64,
    options: &PutOptions,
    now: Instant,
) -> kvstored_core::Result<Ticket> {
    let key = key(name);
    let ticket = state.start_put(&NewObject { key: &key, length }, 1, options, now)?;
    let nodes: Vec<NodeId> = ticket.locations.iter().map(|location| location.node).collect();
    let finished = Finished {
        key: &key,
        put: ticket.put,
        checksum: 7,
        nodes: &nodes,
        master_epoch: state.epoch(),
    };
    state.end_put(&finished, now)?;
    Ok(ticket)
}

fn put(state: &mut State, name: &str, length: u64, now: Instant) -> Ticket {
    try_put(state, name, length, &PutOptions::default(), now).unwrap()
}

fn is_there(state: &mut State, name: &str, now: Instant) -> bool {
    state.exist(&key(name), false, now).is_some()
}

#[test]
fn an_object_is_visible_only_when_its_put_has_ended() {
    let (mut state, now) = pool(MasterSettings::default(), 1, 1 << 20);
    let (key, options) = (key("a"), PutOptions::default());
    let new = NewObject {
        key: &key,
        length: 1000,
    };
    let ticket = state.start_put(&new, 5, &options, now).unwrap();
    assert!(!is_there(&mut state, "a", now));
    assert_eq!(state.get(&key, now).unwrap_err().kind(), ErrorKind::NotFound);
    // the same attempt again is the same put, another one is refused
    assert_eq!(state.start_put(&new, 5, &options, now).unwrap(), ticket);
    assert_eq!(
        state.start_put(&new, 6, &options, now).unwrap_err().kind(),
        ErrorKind::AlreadyExists
    );
    let finished = Finished {
        key: &key,
        put: ticket.put,
        checksum: 42,
        nodes: &[id(1)],
        master_epoch: 100,
    };
    state.end_put(&finished, now).unwrap();
    state.end_put(&finished, now).unwrap();
    let found = state.get(&key, now).unwrap();
    assert_eq!((found.put, found.length, found.checksum), (ticket.put, 1000, 42));
    assert_eq!(found.lease, state.settings.lease);
    assert!(
        ticket.locations[0].token.len() == crate::token::TOKEN_BYTES && found.locations[0].token.is_empty()
    );
}

#[test]
fn a_put_whose_nodes_obeyed_another_master_is_to_be_sealed_again() {
    let (mut state, now) = pool(MasterSettings::default(), 1, 1 << 20);
    let key = key("a");
    let ticket = state
        .start_put(
            &NewObject {
                key: &key,
                length: 10,
            },
            1,
            &PutOptions::default(),
            now,
        )
        .unwrap();
    let mut finished = Finished {
        key: &key,
        put: ticket.put,
        checksum: 0,
        nodes: &[id(1)],
        master_epoch: 99,
    };
    assert_eq!(
        state.end_put(&finished, now).unwrap_err().kind(),
        ErrorKind::Unavailable
    );
    finished.master_epoch = 100;
    finished.put += 1;
    assert_eq!(
        state.end_put(&finished, now).unwrap_err().kind(),
        ErrorKind::Fenced
    );
}

#[test]
fn a_put_that_takes_too_long_or_is_revoked_is_over() {
    let (mut state, now) = pool(MasterSettings::default(), 1, 1 << 20);
    for (name, late) in [("a", true), ("b", false)] {
        let key = key(name);
        let ticket = state
            .start_put(
                &NewObject {
                    key: &key,
                    length: 10,
                },
                1,
                &PutOptions::default(),
                now,
            )
            .unwrap();
        let now = if late {
            let later = now + state.settings.put_discard;
            state.heartbeat(&id(1), 100, &[], later);
            state.tick(later);
            later
        } else {
            state.revoke_put(&key, ticket.put);
            now
        };
        let finished = Finished {
            key: &key,
            put: ticket.put,
            checksum: 0,
            nodes: &[id(1)],
            master_epoch: 100,
        };
        assert_eq!(
            state.end_put(&finished, now).unwrap_err().kind(),
            ErrorKind::Fenced
        );
        assert!(state.orders(&id(1), 100, now).release.contains(&ticket.put));
    }
    assert_eq!(state.status(now).used_bytes, 0);
}

#[test]
fn a_range_is_reused_only_after_its_node_has_confirmed() {
    let (mut state, now) = pool(MasterSettings::default(), 1, 4 * GRANULE);
    let ticket = put(&mut state, "a", 4 * GRANULE, now);
    state.remove(&key("a"), false, now).unwrap();
    let refused = try_put(&mut state, "b", 1, &PutOptions::default(), now).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NoSpace);
    assert_eq!(state.orders(&id(1), 100, now).release, [ticket.put]);
    assert!(try_put(&mut state, "b", 1, &PutOptions::default(), now).is_err());
    state.heartbeat(&id(1), 100, &[ticket.put], now);
    put(&mut state, "b", 1, now);
}

#[test]
fn an_order_that_is_not_carried_out_is_given_again_but_not_at_once() {
    let (mut state, now) = pool(MasterSettings::default(), 1, 1 << 20);
    let ticket = put(&mut state, "a", 10, now);
    state.remove(&key("a"), false, now).unwrap();
    assert_eq!(state.orders(&id(1), 100, now).release, [ticket.put]);
    assert!(state.orders(&id(1), 100, now).release.is_empty());
    assert_eq!(state.orders(&id(1), 100, now + SECOND).release, [ticket.put]);
}

#[test]
fn replicas_lie_on_different_nodes_and_outlive_one() {
    let (mut state, now) = pool(MasterSettings::default(), 3, 1 << 20);
    let options = PutOptions {
        replicas: 5,
        prefer: Some(id(2)),
        ..PutOptions::default()
    };
    let ticket = try_put(&mut state, "a", 100, &options, now).unwrap();
    let mut nodes: Vec<NodeId> = ticket.locations.iter().map(|location| location.node).collect();
    assert_eq!(nodes[0], id(2));
    nodes.sort_unstable();
    assert_eq!(nodes, [id(1), id(2), id(3)]);
    put(&mut state, "b", 100, now);
    // 2 and 3 go on, 1 is silent
    let later = now + state.settings.client_ttl;
    for number in [2, 3] {
        state.heartbeat(&id(number), 100, &[], later);
    }
    state.tick(later);
    let found = state.get(&key("a"), later).unwrap();
    assert_eq!(found.locations.len(), 2);
    assert!(found.locations.iter().all(|location| location.node != id(1)));
}

#[test]
fn a_node_whose_connection_broke_gets_nothing_and_goes_soon() {
    let (mut state, now) = pool(MasterSettings::default(), 1, 1 << 20);
    put(&mut state, "a", 100, now);
    state.suspect(&id(1), 100, now);
    assert!(!is_there(&mut state, "a", now));
    assert!(try_put(&mut state, "b", 1, &PutOptions::default(), now).is_err());
    // it shows up again
    state.heartbeat(&id(1), 100, &[], now);
    assert!(is_there(&mut state, "a", now));
    state.suspect(&id(1), 100, now);
    assert_eq!(state.next_wake(), Some(now + state.settings.broken_ttl));
    state.tick(now + state.settings.broken_ttl);
    assert_eq!(
        state.get(&key("a"), now + SECOND).unwrap_err().kind(),
        ErrorKind::NotFound
    );
    assert_eq!(state.status(now).capacity_bytes, 0);
}

#[test]
fn removing_respects_leases_unless_forced() {
    let (mut state, now) = pool(MasterSettings::default(), 1, 1 << 20);
    for name in ["a", "b", "c"] {
        put(&mut state, name, 10, now);
    }
    state.get(&key("a"), now).unwrap();
    assert_eq!(
        state.remove(&key("a"), false, now).unwrap_err().kind(),
        ErrorKind::Busy
    );
    assert_eq!(state.remove_some(0, 100, None, false, now), (2, None));
    assert_eq!(state.remove_some(0, 100, Some("nobody"), true, now), (0, None));
    state.remove(&key("a"), true, now).unwrap();
    assert_eq!(
        state.remove(&key("a"), true, now).unwrap_err().kind(),
        ErrorKind::NotFound
    );
    assert_eq!(state.status(now).objects, 0);
}

#[test]
fn a_drained_node_empties_without_breaking_leases() {
    let (mut state, now) = pool(MasterSettings::default(), 2, 1 << 20);
    let two = PutOptions {
        replicas: 2,
        ..PutOptions::default()
    };
    let prefer = PutOptions {
        prefer: Some(id(1)),
        ..PutOptions::default()
    };
    try_put(&mut state, "both", 10, &two, now).unwrap();
    try_put(&mut state, "alone", 10, &prefer, now).unwrap();
    state.get(&key("alone"), now).unwrap();
    assert_eq!(
        state.drain(&id(9), false, false, now).unwrap_err().kind(),
        ErrorKind::NotFound
    );
    let left = state.drain(&id(1), true, false, now).unwrap();
    assert_eq!(left.replicas, 1);
    let placed = try_put(&mut state, "new", 10, &prefer, now).unwrap();
    assert_eq!(placed.locations[0].node, id(2));
    let later = now + state.settings.lease;
    state.heartbeat(&id(1), 100, &[], later);
    state.heartbeat(&id(2), 100, &[], later);
    state.tick(later);
    assert!(!is_there(&mut state, "alone", later) && is_there(&mut state, "both", later));
    state.drain(&id(1), false, true, later).unwrap();
    assert_eq!(
        try_put(&mut state, "again", 10, &prefer, later)
            .unwrap()
            .locations[0]
            .node,
        id(1)
    );
}

#[test]
fn an_idle_master_wakes_for_nodes_only() {
    let (mut state, now) = pool(MasterSettings::default(), 1, 1 << 20);
    put(&mut state, "a", 10, now);
    state.get(&key("a"), now).unwrap();
    let wake = state.next_wake().unwrap();
    assert!(wake > now + SECOND, "nothing is due within a second");
    state.unmount(&id(1), now);
    while state.next_wake().is_some_and(|at| at <= now) {
        state.tick(now);
    }
    let later = now + state.settings.client_ttl * 2;
    state.tick(later);
    assert_eq!(state.next_wake(), None);
    assert_eq!(state.status(later).objects, 0);
}
