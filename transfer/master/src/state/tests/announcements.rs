//! What nodes say they hold.

use kvstored_core::ErrorKind;

use super::super::State;
use super::{id, is_there, key, lender, pool, put, start};
use crate::settings::MasterSettings;
use crate::types::*;

#[test]
fn wrong_announcements_are_refused() {
    let now = start();
    let mut state = State::new(MasterSettings::default(), 100, now).unwrap();
    state
        .mount(&lender(1, 1024), TokenKey::from_bytes([1; 32]), now)
        .unwrap();
    let holding = |put: u64, offset: u64, length: u64| Holding {
        key: key(&put.to_string()),
        put,
        offset,
        length,
        checksum: 0,
        state: HoldingState::Sealed,
    };
    let mut refused = |holdings: &[Holding]| {
        state
            .announce(&id(1), 100, holdings, false, now)
            .unwrap_err()
            .kind()
    };
    for wrong in [
        holding(1, 1024, 1),
        holding(1, u64::MAX - 10, 100),
        holding(1, 0, u64::MAX),
        holding(1, 0, 0),
        holding(0, 0, 1),
        holding(u64::MAX, 0, 1),
    ] {
        assert_eq!(refused(&[wrong]), ErrorKind::InvalidInput);
    }
    assert_eq!(
        refused(&[holding(1, 0, 512), holding(2, 256, 10)]),
        ErrorKind::InvalidInput
    );
    let later = state.announce(&id(1), 99, &[], true, now).unwrap_err();
    assert_eq!(later.kind(), ErrorKind::Fenced);
    assert_eq!(
        state.announce(&id(2), 100, &[], true, now).unwrap_err().kind(),
        ErrorKind::NotFound
    );
}

#[test]
fn the_later_put_wins_when_nodes_contradict_each_other() {
    let now = start();
    let mut state = State::new(MasterSettings::default(), 100, now).unwrap();
    let holding = |put: u64, checksum: u64, state: HoldingState| Holding {
        key: key("k"),
        put,
        offset: 0,
        length: 10,
        checksum,
        state,
    };
    let nodes = [
        holding(5, 50, HoldingState::Sealed),
        holding(7, 70, HoldingState::Sealed),
        holding(7, 70, HoldingState::Sealed),
        holding(7, 71, HoldingState::Sealed),
        holding(9, 0, HoldingState::Open),
        holding(6, 60, HoldingState::Sealed),
    ];
    for (index, holding) in nodes.iter().enumerate() {
        let number = index as u8 + 1;
        state
            .mount(&lender(number, 1024), TokenKey::from_bytes([1; 32]), now)
            .unwrap();
        state
            .announce(&id(number), 100, std::slice::from_ref(holding), true, now)
            .unwrap();
    }
    let found = state.get(&key("k"), now).unwrap();
    assert_eq!((found.put, found.checksum, found.locations.len()), (7, 70, 2));
    for (number, put) in [(1, 5), (4, 7), (5, 9), (6, 6)] {
        assert_eq!(state.orders(&id(number), 100, now).release, [put]);
    }
    // what comes next has a higher number
    let next = put(&mut state, "next", 10, now);
    assert!(next.put > 9);
}

#[test]
fn a_node_that_obeys_a_later_master_is_not_taken() {
    let now = start();
    let mut state = State::new(MasterSettings::default(), 100, now).unwrap();
    let mut later = lender(1, 1024);
    later.obeyed_epoch = 101;
    let refused = state
        .mount(&later, TokenKey::from_bytes([0; 32]), now)
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Fenced);
    let mut impossible = lender(1, 1024);
    impossible.highest_put = u64::MAX;
    assert!(
        state
            .mount(&impossible, TokenKey::from_bytes([0; 32]), now)
            .is_err()
    );
    assert!(
        state
            .mount(&lender(1, u64::MAX), TokenKey::from_bytes([0; 32]), now)
            .is_err()
    );
}

#[test]
fn a_node_that_is_being_emptied_says_so_to_the_next_master() {
    let (mut state, now) = pool(MasterSettings::default(), 1, 1 << 20);
    assert!(!state.has_news_of_drain(&id(1), 100));
    state.drain(&id(1), true, false, now).unwrap();
    assert!(state.take_effects().orders.contains(&id(1)), "it's told at once");
    assert!(state.has_news_of_drain(&id(1), 100) && !state.has_news_of_drain(&id(1), 100));
    let draining = state.orders(&id(1), 100, now).draining;
    assert_eq!(draining, Some(true));

    let mut next = State::new(MasterSettings::default(), 101, now).unwrap();
    let mut marked = lender(1, 1 << 20);
    marked.draining = draining;
    let holding = Holding {
        key: key("k"),
        put: 5,
        offset: 0,
        length: 10,
        checksum: 0,
        state: HoldingState::Sealed,
    };
    let mount = |state: &mut State, now| {
        let epoch = state.epoch();
        state.mount(&marked, TokenKey::from_bytes([1; 32]), now).unwrap();
        state
            .announce(&id(1), epoch, std::slice::from_ref(&holding), true, now)
            .unwrap();
    };
    mount(&mut next, now);
    assert!(!next.has_news_of_drain(&id(1), 101), "it knows");
    let later = now + next.settings.lease + next.settings.recovery;
    next.heartbeat(&id(1), 101, &[], later);
    next.tick(later);
    assert_eq!(
        next.status(later).objects,
        0,
        "what it holds goes as the last master wanted"
    );
    // a master that knows the node knows better
    next.drain(&id(1), false, true, later).unwrap();
    mount(&mut next, later);
    assert!(next.has_news_of_drain(&id(1), 101));
    assert_eq!(next.orders(&id(1), 101, later).draining, None);
    assert_eq!(next.node_statuses(later)[0].1.state, "ready");
}

#[test]
fn what_was_removed_stays_so_when_its_nodes_mount_anew_before_they_hear_of_it() {
    let (mut state, now) = pool(MasterSettings::default(), 2, 1 << 20);
    let ticket = put(&mut state, "k", 10, now);
    let source = ticket.locations[0].node;
    state.drain(&source, false, false, now).unwrap();
    let moves = state.start_moves(&source, 100, &[], now).unwrap().moves;
    let copy = &moves[0].ticket;
    state.remove(&key("k"), true, now).unwrap();

    for (place, put, holds) in [
        (&copy.locations[0], copy.put, HoldingState::Open),
        (&ticket.locations[0], ticket.put, HoldingState::Sealed),
    ] {
        let number = place.node[0];
        let holding = Holding {
            key: key("k"),
            put,
            offset: place.offset,
            length: 10,
            checksum: 7,
            state: holds,
        };
        // the first time its announcement is lost
        for lost in [true, false] {
            let lender = lender(number, 1 << 20);
            state
                .mount(&lender, TokenKey::from_bytes([number; 32]), now)
                .unwrap();
            assert!(
                state.is_ending(Some(put)) && state.is_ending(None),
                "before it announces too"
            );
            if !lost {
                let holdings = std::slice::from_ref(&holding);
                state.announce(&id(number), 100, holdings, true, now).unwrap();
            }
        }
        assert!(state.is_ending(Some(put)));
        assert_eq!(state.orders(&id(number), 100, now).release, [put]);
    }
    let finished = Finished {
        key: &key("k"),
        put: copy.put,
        checksum: 7,
        nodes: &[copy.locations[0].node],
        master_epoch: 100,
    };
    assert_eq!(
        state.end_put(&finished, now).unwrap_err().kind(),
        ErrorKind::Fenced
    );
    assert!(!is_there(&mut state, "k", now));
}
