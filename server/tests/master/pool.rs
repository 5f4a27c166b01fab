//! The real master with nodes in processes of their own: sharing, kills of either, emptying.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::member::{Member, Plan};
use super::process::{Master, kvstored};
use super::{client, soon, until};

const SMALL: usize = 1000;
const LARGE: usize = 1 << 20;
/// How long a reader waits at most when a node is gone.
const SECOND: Duration = Duration::from_secs(1);
/// What measuring may add to it on a busy machine.
const SLACK: Duration = Duration::from_millis(300);

fn member(master: &Master, name: &str, lends: u64, transport: &str) -> Member {
    Member::start(&Plan {
        master: &master.address,
        lends,
        name,
        transport,
        tls: None,
    })
}

#[test]
fn what_one_node_puts_another_gets() {
    let master = Master::start(&[]);
    for transport in ["shm", "tcp"] {
        let mut first = member(&master, "first", 32 << 20, transport);
        let mut second = member(&master, "second", 32 << 20, transport);
        let first_number = if transport == "shm" { 0 } else { 100 };
        for (number, bytes) in [(first_number, SMALL), (first_number + 1, LARGE)] {
            let (own, others) = (first.node.clone(), second.node.clone());
            assert_eq!(first.put(number, bytes, 1, &own), "ok");
            assert_eq!(first.put(number + 10, bytes, 1, &others), "ok");
            assert_eq!(first.put(number, bytes, 1, &own), "already_exists");
            for reader in [&mut first, &mut second] {
                for number in [number, number + 10] {
                    assert_eq!(
                        reader.get(number, bytes, SECOND * 10).0,
                        "ok",
                        "{transport} {number}"
                    );
                }
            }
        }
        assert!(first.leave() && second.leave());
    }
}

#[test]
fn a_master_that_is_killed_under_load_loses_no_object() {
    let master = Master::start(&[]);
    let address = master.address.clone();
    let port = address.rsplit(':').next().unwrap().to_owned();
    let mut writer = member(&master, "writer", 64 << 20, "tcp");
    let mut lender = member(&master, "lender", 64 << 20, "tcp");
    let nodes = [writer.node.clone(), lender.node.clone()];
    let acknowledged = Mutex::new(Vec::new());
    let stop = AtomicBool::new(false);
    let more = || {
        let wanted = acknowledged.lock().len() + 50;
        until("puts", || acknowledged.lock().len() >= wanted);
    };
    let mut master = Some(master);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // no more than fits: what is evicted isn't lost
            for number in 0..20_000 {
                if stop.load(Ordering::Acquire) {
                    break;
                }
                if writer.put(number, SMALL, 1, &nodes[number as usize % 2]) == "ok" {
                    acknowledged.lock().push(number);
                }
            }
        });
        for _ in 0..2 {
            more();
            master.take().unwrap().kill();
            master = Some(Master::start(&["--port", &port]));
        }
        more();
        stop.store(true, Ordering::Release);
    });
    let states = client(&[&address]);
    until("both nodes", || {
        let nodes = states.nodes(soon()).unwrap();
        nodes.iter().filter(|node| node.state == "ready").count() == 2
    });
    for number in acknowledged.into_inner() {
        assert_eq!(lender.get(number, SMALL, SECOND * 10).0, "ok", "{number}");
    }
}

#[test]
fn a_killed_lender_costs_readers_a_second_at_most() {
    for transport in ["shm", "tcp"] {
        let master = Master::start(&[]);
        let mut reader = member(&master, "reader", 0, transport);
        let mut doomed = member(&master, "doomed", 32 << 20, transport);
        let other = member(&master, "other", 32 << 20, transport);
        let (first, second) = (doomed.node.clone(), other.node.clone());
        assert_eq!(reader.put(1, LARGE, 2, &first), "ok");
        assert_eq!(reader.put(2, LARGE, 1, &first), "ok");
        assert_eq!(reader.put(3, LARGE, 1, &second), "ok");
        for number in 1..=3 {
            assert_eq!(reader.get(number, LARGE, SECOND * 10).0, "ok");
        }
        doomed.kill();
        for _ in 0..5 {
            for (number, expected) in [(1, true), (2, false), (3, true)] {
                let (word, took) = reader.get(number, LARGE, SECOND);
                // memory that is mapped outlives its lender: what is read there passes its checksum, or isn't told
                let may_be_there = expected || transport == "shm";
                assert!(word == "ok" || !expected, "{transport} {number}: {word}");
                assert!(word != "ok" || may_be_there, "{transport} {number}: {word}");
                assert_ne!(word, "wrong");
                assert!(
                    took < SECOND + SLACK,
                    "{transport} {number}: {word} after {took:?}"
                );
            }
        }
        assert_eq!(reader.put(4, LARGE, 1, "-"), "ok", "there is a node left");
    }
}

#[test]
fn a_node_that_is_being_emptied_stays_so_across_masters() {
    let master = Master::start(&[]);
    let address = master.address.clone();
    let port = address.rsplit(':').next().unwrap().to_owned();
    let mut node = member(&master, "leaving", 32 << 20, "tcp");
    let drain = |flag: &[&str]| {
        let mut arguments = vec!["ctl", "pool", "--master", &address, "drain", "leaving"];
        arguments.extend(flag);
        assert!(kvstored(&arguments).status().unwrap().success());
    };
    let state = || client(&[&address]).nodes(soon()).unwrap();
    assert_eq!(node.put(1, SMALL, 1, "-"), "ok");
    drain(&[]);
    assert_eq!(state()[0].state, "draining");
    // the node has heard of it
    super::pause(Duration::from_millis(100));
    master.kill();
    let master = Master::start(&["--port", &port]);
    until("the node", || {
        state().first().is_some_and(|node| node.state == "draining")
    });
    assert_ne!(node.put(2, SMALL, 1, "-"), "ok");
    drain(&["--undo"]);
    until("room", || node.put(2, SMALL, 1, "-") == "ok");
    assert_eq!(node.get(1, SMALL, SECOND).0, "ok");
    assert!(node.leave());
    assert!(master.terminate());
}

#[test]
fn a_master_without_a_token_says_what_that_means() {
    let open = Master::start(&[]);
    until("a warning", || open.said("there is no token"));
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "secret").unwrap();
    let closed = Master::start(&["--token_file", token.to_str().unwrap()]);
    assert!(!closed.said("there is no token"));
    assert!(closed.terminate());
}
