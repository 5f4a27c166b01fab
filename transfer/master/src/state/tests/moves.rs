//! Emptying a node by copying what it holds.

use super::*;

/// Two nodes or more, of which the first is being emptied, and objects on it.
fn emptied(settings: MasterSettings, nodes: u8, bytes: u64, names: &[&str]) -> (State, Instant) {
    let (mut state, now) = pool(settings, nodes, bytes);
    for name in names {
        try_put(&mut state, name, GRANULE, &on(1, 1), now).unwrap();
    }
    state.drain(&id(1), false, false, now).unwrap();
    (state, now)
}

fn on(node: u8, replicas: u32) -> PutOptions {
    PutOptions {
        replicas,
        prefer: Some(id(node)),
        ..PutOptions::default()
    }
}

fn moves(state: &mut State, now: Instant) -> Vec<Move> {
    let epoch = state.epoch();
    state.start_moves(&id(1), epoch, &[], now).unwrap().moves
}

fn finish(state: &mut State, one: &Move, now: Instant) -> kvstored_core::Result<()> {
    let finished = Finished {
        key: &one.key,
        put: one.ticket.put,
        checksum: one.checksum,
        nodes: &[one.ticket.locations[0].node],
        master_epoch: state.epoch(),
    };
    state.end_put(&finished, now)
}

fn nodes_of(state: &mut State, name: &str, now: Instant) -> Vec<u8> {
    let found = state.get(&key(name), now).unwrap();
    found.locations.iter().map(|location| location.node[0]).collect()
}

fn alive(state: &mut State, nodes: u8, now: Instant) {
    for number in 1..=nodes {
        state.heartbeat(&id(number), state.epoch(), &[], now);
    }
    state.tick(now);
}

fn released(state: &mut State, node: u8, now: Instant) -> Vec<u64> {
    let orders = state.orders(&id(node), state.epoch(), now).release;
    state.heartbeat(&id(node), state.epoch(), &orders, now);
    orders
}

fn progress(state: &State, now: Instant) -> (String, DrainProgress) {
    let mut nodes = state.node_statuses(now).into_iter();
    let (_, node) = nodes.find(|(node, _)| *node == id(1)).unwrap();
    (node.state, node.drain.unwrap())
}

#[test]
fn a_copy_is_read_when_it_is_complete_and_the_original_goes_when_its_leases_are_over() {
    let (mut state, now) = emptied(MasterSettings::default(), 2, 1 << 20, &["a"]);
    let found = state.get(&key("a"), now).unwrap();
    let made = moves(&mut state, now);
    assert_eq!((made.len(), made[0].from_put), (1, found.put));
    assert_ne!(made[0].ticket.put, found.put);
    assert_eq!(
        nodes_of(&mut state, "a", now),
        [1],
        "nobody reads what isn't complete"
    );
    assert_eq!(progress(&state, now).1.moving_objects, 1);
    assert!(
        moves(&mut state, now + SECOND).is_empty(),
        "it's being copied already"
    );
    finish(&mut state, &made[0], now).unwrap();
    finish(&mut state, &made[0], now).unwrap();
    let after = state.get(&key("a"), now).unwrap();
    assert_eq!(after.locations.len(), 1);
    assert_eq!(
        (after.locations[0].node, after.locations[0].put),
        (id(2), made[0].ticket.put)
    );
    assert_eq!(progress(&state, now).1.leaving_replicas, 1);
    // those who were sent to the original have until their leases are over
    let before = now + state.settings.lease / 2;
    alive(&mut state, 2, before);
    assert!(released(&mut state, 1, before).is_empty());
    let over = now + state.settings.lease;
    alive(&mut state, 2, over);
    assert_eq!(released(&mut state, 1, over), [found.put]);
    let (name, told) = progress(&state, over);
    assert_eq!(
        (name.as_str(), told.moved_objects, told.moved_bytes),
        ("drained", 1, GRANULE)
    );
    assert!(is_there(&mut state, "a", over));
    assert_eq!(state.status(over).used_bytes, GRANULE);
}

#[test]
fn what_fits_nowhere_stays_and_is_told() {
    let settings = MasterSettings {
        eviction_high_watermark_ratio: 0.5,
        ..MasterSettings::default()
    };
    let names = ["a", "b", "c"];
    let (mut state, now) = emptied(settings, 2, 4 * GRANULE, &names);
    let made = moves(&mut state, now);
    assert_eq!(made.len(), 2, "two fit below the watermark");
    for one in &made {
        finish(&mut state, one, now).unwrap();
    }
    assert!(moves(&mut state, now + SECOND).is_empty());
    let (name, told) = progress(&state, now);
    assert_eq!(
        (name.as_str(), told.unplaced_objects, told.unplaced_bytes),
        ("draining", 1, GRANULE)
    );
    let before = Drained::default();
    let drained = state.drain(&id(1), false, false, now).unwrap();
    assert!(drained.is_settled(&before), "{drained:?}");
    assert!(!drained.is_settled(&drained), "there may be room since");
    assert!(names.iter().all(|name| is_there(&mut state, name, now)));
    assert_eq!(state.counters().evicted_objects, 0);
    // room elsewhere is used as soon as there is some
    let gone = made[0].key.clone();
    state.remove(&gone, true, now).unwrap();
    let later = now + SECOND * 2;
    alive(&mut state, 2, later);
    for node in [1, 2] {
        released(&mut state, node, later);
    }
    assert_eq!(moves(&mut state, later).len(), 1);
}

#[test]
fn a_drain_that_is_called_off_leaves_everything_in_place() {
    let (mut state, now) = emptied(MasterSettings::default(), 2, 1 << 20, &["a", "b"]);
    let made = moves(&mut state, now);
    finish(&mut state, &made[0], now).unwrap();
    state.drain(&id(1), false, true, now).unwrap();
    let late = finish(&mut state, &made[1], now).unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Fenced);
    assert_eq!(
        released(&mut state, 2, now),
        [made[1].ticket.put],
        "what was being written"
    );
    assert!(moves(&mut state, now + SECOND).is_empty());
    assert!(is_there(&mut state, "a", now) && is_there(&mut state, "b", now));
    let placed = try_put(&mut state, "new", GRANULE, &on(1, 1), now).unwrap();
    assert_eq!(placed.locations[0].node, id(1));
}

#[test]
fn a_copy_that_is_revoked_or_takes_too_long_is_over() {
    let (mut state, now) = emptied(MasterSettings::default(), 2, 1 << 20, &["a"]);
    let made = moves(&mut state, now).remove(0);
    state.revoke_put(&made.key, made.ticket.put);
    assert_eq!(released(&mut state, 2, now), [made.ticket.put]);
    let again = moves(&mut state, now + SECOND).remove(0);
    assert_ne!(again.ticket.put, made.ticket.put);
    let late = now + SECOND + state.settings.put_discard;
    let before = now + state.settings.put_discard;
    alive(&mut state, 2, before);
    alive(&mut state, 2, late);
    assert_eq!(released(&mut state, 2, late), [again.ticket.put]);
    assert_eq!(
        finish(&mut state, &again, late).unwrap_err().kind(),
        ErrorKind::Fenced
    );
    assert_eq!(state.counters().moves_given_up, 2);
    assert_eq!(nodes_of(&mut state, "a", late), [1]);
}

#[test]
fn a_copy_of_other_bytes_is_refused() {
    let (mut state, now) = emptied(MasterSettings::default(), 2, 1 << 20, &["a"]);
    let mut made = moves(&mut state, now).remove(0);
    made.checksum += 1;
    assert_eq!(
        finish(&mut state, &made, now).unwrap_err().kind(),
        ErrorKind::Corrupt
    );
    assert_eq!(nodes_of(&mut state, "a", now), [1]);
    assert_eq!(released(&mut state, 2, now), [made.ticket.put]);
}

#[test]
fn an_object_keeps_as_many_replicas_as_it_had_where_there_are_nodes() {
    let (mut state, now) = pool(MasterSettings::default(), 3, 1 << 20);
    try_put(&mut state, "twice", GRANULE, &on(1, 2), now).unwrap();
    let mut before = nodes_of(&mut state, "twice", now);
    before.sort_unstable();
    state.drain(&id(1), false, false, now).unwrap();
    let made = moves(&mut state, now);
    assert_eq!(made.len(), 1);
    assert!(!before.contains(&made[0].ticket.locations[0].node[0]));
    finish(&mut state, &made[0], now).unwrap();
    let mut after = nodes_of(&mut state, "twice", now);
    after.sort_unstable();
    assert_eq!(after, [2, 3]);

    let (mut state, now) = pool(MasterSettings::default(), 2, 1 << 20);
    try_put(&mut state, "twice", GRANULE, &on(1, 2), now).unwrap();
    state.drain(&id(1), false, false, now).unwrap();
    assert!(moves(&mut state, now).is_empty());
    assert_eq!(nodes_of(&mut state, "twice", now), [2], "one is left");
}

#[test]
fn a_copy_takes_nothing_of_a_tenants_quota() {
    let mut settings = MasterSettings::default();
    settings.quotas.default_tenant_bytes = Some(2 * GRANULE);
    let (mut state, now) = emptied(settings, 2, 1 << 20, &["a", "b"]);
    let used = |state: &State| state.status(now).tenants[0].used_bytes;
    for one in moves(&mut state, now) {
        assert_eq!(used(&state), 2 * GRANULE);
        finish(&mut state, &one, now).unwrap();
    }
    assert_eq!(used(&state), 2 * GRANULE);
    state.tick(now);
    for node in [1, 2] {
        released(&mut state, node, now);
    }
    assert_eq!(used(&state), 2 * GRANULE);
    assert!(is_there(&mut state, "a", now) && is_there(&mut state, "b", now));
}

#[test]
fn what_dies_in_the_middle_takes_nothing_along_that_is_elsewhere() {
    // the target dies before the copy is complete, and after
    for complete in [false, true] {
        let (mut state, now) = emptied(MasterSettings::default(), 2, 1 << 20, &["a"]);
        state.get(&key("a"), now).unwrap();
        let made = moves(&mut state, now).remove(0);
        if complete {
            finish(&mut state, &made, now).unwrap();
        }
        state.unmount(&id(2), now);
        state.tick(now);
        assert_eq!(nodes_of(&mut state, "a", now), [1], "{complete}");
        assert_eq!(state.status(now).tenants[0].used_bytes, GRANULE);
        let over = now + state.settings.lease;
        alive(&mut state, 1, over);
        assert!(released(&mut state, 1, over).is_empty());
        assert!(is_there(&mut state, "a", over));
    }
    // the source does
    for complete in [false, true] {
        let (mut state, now) = emptied(MasterSettings::default(), 2, 1 << 20, &["a"]);
        let made = moves(&mut state, now).remove(0);
        if complete {
            finish(&mut state, &made, now).unwrap();
        }
        state.unmount(&id(1), now);
        state.tick(now);
        assert_eq!(is_there(&mut state, "a", now), complete);
        let orders = released(&mut state, 2, now);
        assert_eq!(orders.is_empty(), complete, "half a copy is of no use");
    }
}

#[test]
fn the_next_master_takes_a_copy_for_what_it_is() {
    let (mut state, now) = emptied(MasterSettings::default(), 2, 1 << 20, &["a"]);
    let made = moves(&mut state, now).remove(0);
    let holding = |put: u64, state: HoldingState| Holding {
        key: made.key.clone(),
        put,
        offset: 0,
        length: made.length,
        checksum: made.checksum,
        state,
    };
    for (copy, order) in [
        (HoldingState::Sealed, [1, 2]),
        (HoldingState::Sealed, [2, 1]),
        (HoldingState::Open, [1, 2]),
        (HoldingState::Open, [2, 1]),
    ] {
        let mut next = State::new(MasterSettings::default(), 101, now).unwrap();
        for node in order {
            let mut lender = lender(node, 1 << 20);
            lender.draining = (node == 1).then_some(false);
            next.mount(&lender, TokenKey::from_bytes([node; 32]), now)
                .unwrap();
            let held = if node == 1 {
                holding(made.from_put, HoldingState::Sealed)
            } else {
                holding(made.ticket.put, copy)
            };
            next.announce(&id(node), 101, &[held], true, now).unwrap();
        }
        let mut nodes = nodes_of(&mut next, "a", now);
        nodes.sort_unstable();
        let there = copy == HoldingState::Sealed;
        assert_eq!(
            nodes,
            if there { vec![1, 2] } else { vec![1] },
            "{copy:?} {order:?}"
        );
        // the drain goes on where the master knows what there is
        assert!(moves(&mut next, now).is_empty());
        let later = now + next.settings.recovery;
        alive(&mut next, 2, later);
        assert_eq!(moves(&mut next, later).len(), usize::from(!there));
        assert_eq!(
            finish(&mut next, &made, later).map_err(|error| error.kind()),
            if there { Ok(()) } else { Err(ErrorKind::Fenced) }
        );
    }
}

#[test]
fn eviction_for_puts_spares_what_is_to_be_copied() {
    let settings = MasterSettings {
        eviction_ratio: 0.0,
        eviction_high_watermark_ratio: 1.0,
        ..MasterSettings::default()
    };
    let (mut state, now) = emptied(settings, 2, 2 * GRANULE, &["old"]);
    put(&mut state, "b", GRANULE, now);
    put(&mut state, "c", GRANULE, now);
    let refused = try_put(&mut state, "d", GRANULE, &PutOptions::default(), now).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NoSpace);
    assert!(is_there(&mut state, "old", now) && is_there(&mut state, "c", now));
    assert!(!is_there(&mut state, "b", now), "what makes room goes");
}
