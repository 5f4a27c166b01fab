//! Nodes that are emptied by copying, with everybody killed, stopped or restarted in the middle.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kvstored_core::{ErrorKind, Runtime};
use kvstored_master::server::{MasterServer, ServerSettings};
use kvstored_master::{MasterSettings, NodeStatus, node_name};
use kvstored_transfer::TransportKind;
use rustix::process::Signal;

use super::others::{Lender, any_port, join};
use super::{eventually, k, memory, pattern, soon};
use crate::{GetRequest, NodeId, Piece, PoolClient, PutOptions, PutRequest};

/// Enough to be in the middle of for a while.
const OBJECTS: u64 = 1500;
const BYTES: usize = 4096;
/// Objects put or got at once.
const AT_ONCE: usize = 50;

fn start_master(listen: SocketAddr, lease: Duration) -> MasterServer {
    let settings = ServerSettings {
        listen,
        ..ServerSettings::default()
    };
    let master = MasterSettings {
        lease,
        recovery: Duration::from_millis(500),
        ..MasterSettings::default()
    };
    MasterServer::start(settings, master, Runtime::system()).unwrap()
}

/// A client that lends nothing, with memory for a batch.
struct User {
    client: Arc<PoolClient>,
    buffer: Piece,
}

impl User {
    fn join(master: &MasterServer, transport: TransportKind) -> Self {
        let client = join(master.address(), 0, transport);
        let buffer = client.allocate(AT_ONCE * BYTES).unwrap();
        Self { client, buffer }
    }

    fn piece(&self, at: usize) -> Piece {
        Piece {
            address: self.buffer.address + at * BYTES,
            length: BYTES,
        }
    }

    /// Puts objects where they are wanted.
    fn put(&self, numbers: std::ops::Range<u64>, node: NodeId, replicas: u32) {
        let options = PutOptions {
            replicas,
            prefer: Some(node),
            ..PutOptions::default()
        };
        let all: Vec<u64> = numbers.collect();
        for part in all.chunks(AT_ONCE) {
            let pieces: Vec<[Piece; 1]> = (0..part.len()).map(|at| [self.piece(at)]).collect();
            for (number, piece) in part.iter().zip(&pieces) {
                memory::copy_in(piece[0], &pattern(*number, BYTES));
            }
            let keys: Vec<Box<[u8]>> = part.iter().map(|number| k(number.to_le_bytes())).collect();
            let puts: Vec<PutRequest<'_>> = keys
                .iter()
                .zip(&pieces)
                .map(|(key, pieces)| PutRequest { key, pieces })
                .collect();
            for outcome in self.client.put_batch(&puts, &options, soon()) {
                outcome.unwrap();
            }
        }
    }

    /// Gets objects; those that didn't come, and why. Bytes that came are right.
    fn get(&self, numbers: &[u64]) -> Vec<(u64, ErrorKind)> {
        let mut missing = Vec::new();
        for part in numbers.chunks(AT_ONCE) {
            let pieces: Vec<[Piece; 1]> = (0..part.len()).map(|at| [self.piece(at)]).collect();
            let keys: Vec<Box<[u8]>> = part.iter().map(|number| k(number.to_le_bytes())).collect();
            let gets: Vec<GetRequest<'_>> = keys
                .iter()
                .zip(&pieces)
                .map(|(key, pieces)| GetRequest { key, pieces })
                .collect();
            let deadline = Runtime::system().deadline(Duration::from_secs(3));
            let outcomes = self.client.get_batch(&gets, deadline);
            for ((number, piece), outcome) in part.iter().zip(&pieces).zip(outcomes) {
                match outcome {
                    Ok(_) => assert!(
                        memory::copy_out(piece[0]) == pattern(*number, BYTES),
                        "wrong bytes of {number}"
                    ),
                    Err(error) => missing.push((*number, error.kind())),
                }
            }
        }
        missing
    }

    /// Waits until all of them can be got, and forgets first what is known of them.
    fn has_all(&self, numbers: std::ops::Range<u64>) {
        self.client.forget_all();
        let left = std::cell::RefCell::new(numbers.collect::<Vec<u64>>());
        eventually("an object", || {
            let missing = self.get(&left.borrow());
            *left.borrow_mut() = missing.into_iter().map(|(number, _)| number).collect();
            left.borrow().is_empty()
        });
    }
}

fn status(master: &MasterServer, node: NodeId) -> Option<NodeStatus> {
    let name = node_name(&node);
    let nodes = master.nodes().unwrap();
    nodes.into_iter().find(|status| status.node == name)
}

fn is_drained(master: &MasterServer, node: NodeId) -> bool {
    status(master, node).is_some_and(|node| node.state == "drained")
}

/// Waits until some objects were copied, while others are left; how many were.
fn in_the_middle(master: &MasterServer, node: NodeId) -> u64 {
    let moved = std::cell::Cell::new(0);
    eventually("a copy", || {
        let drain = status(master, node).and_then(|node| node.drain);
        moved.set(drain.map_or(0, |drain| drain.moved_objects));
        moved.get() > OBJECTS / 20
    });
    assert!(moved.get() < OBJECTS, "it was over too soon");
    moved.get()
}

fn a_drained_node_can_go(transport: TransportKind) {
    let master = start_master(any_port(), Duration::from_millis(700));
    let mut source = Lender::start(master.address(), transport);
    let user = User::join(&master, transport);
    user.put(0..OBJECTS, source.id, 1);
    let target = Lender::start(master.address(), transport);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let reader = User::join(&master, transport);
            let all: Vec<u64> = (0..OBJECTS).collect();
            let mut rounds = 0;
            while !over.load(Ordering::Acquire) || rounds == 0 {
                rounds += 1;
                assert_eq!(reader.get(&all), [], "whoever reads notices nothing");
                std::thread::park_timeout(Duration::from_millis(300));
            }
            reader.client.close();
        });
        master.drain(&source.id, false, false).unwrap();
        eventually("an empty node", || is_drained(&master, source.id));
        over.store(true, Ordering::Release);
    });
    let drain = status(&master, source.id).unwrap().drain.unwrap();
    assert_eq!(
        (drain.moved_objects, drain.moved_bytes),
        (OBJECTS, OBJECTS * BYTES as u64)
    );
    assert_eq!(status(&master, target.id).unwrap().replicas, OBJECTS);
    source.kill();
    user.has_all(0..OBJECTS);
    user.client.close();
}

#[test]
fn a_drained_node_can_go_over_tcp() {
    a_drained_node_can_go(TransportKind::Tcp);
}

#[test]
fn a_drained_node_can_go_over_shared_memory() {
    a_drained_node_can_go(TransportKind::Shm);
}

#[test]
fn a_target_that_is_killed_takes_nothing_along_that_is_leased_at_the_source() {
    let transport = TransportKind::Tcp;
    let master = start_master(any_port(), Duration::from_secs(30));
    let source = Lender::start(master.address(), transport);
    let user = User::join(&master, transport);
    user.put(0..OBJECTS, source.id, 1);
    let all: Vec<u64> = (0..OBJECTS).collect();
    assert_eq!(user.get(&all), []);
    let mut target = Lender::start(master.address(), transport);
    master.drain(&source.id, false, false).unwrap();
    in_the_middle(&master, source.id);
    target.kill();
    user.has_all(0..OBJECTS);
    // and once the target is known to be gone, the drain goes on to whoever comes
    eventually("the target to be gone", || status(&master, target.id).is_none());
    user.has_all(0..OBJECTS);
    let next = Lender::start(master.address(), transport);
    eventually("a copy of each", || {
        status(&master, next.id).is_some_and(|node| node.replicas == OBJECTS)
    });
    user.has_all(0..OBJECTS);
    user.client.close();
}

#[test]
fn a_source_that_is_killed_leaves_what_was_copied() {
    let transport = TransportKind::Tcp;
    let master = start_master(any_port(), Duration::from_millis(700));
    let mut source = Lender::start(master.address(), transport);
    let user = User::join(&master, transport);
    user.put(0..OBJECTS, source.id, 1);
    let target = Lender::start(master.address(), transport);
    let twice = OBJECTS..OBJECTS + 100;
    user.put(twice.clone(), source.id, 2);
    master.drain(&source.id, false, false).unwrap();
    let moved = in_the_middle(&master, source.id);
    source.kill();
    eventually("the source to be gone", || status(&master, source.id).is_none());
    user.client.forget_all();
    let all: Vec<u64> = (0..OBJECTS).collect();
    let lost = user.get(&all);
    assert!(
        lost.iter().all(|(_, kind)| *kind == ErrorKind::NotFound),
        "{lost:?}"
    );
    let there = OBJECTS - lost.len() as u64;
    assert!(there >= moved, "{there} are left of {moved}");
    user.has_all(twice);
    // half-written copies leave nothing behind
    let left = || status(&master, target.id).unwrap();
    eventually("what was begun to be released", || {
        left().quarantined_bytes == 0 && left().used_bytes == left().replicas * BYTES as u64
    });
    assert_eq!(left().replicas, there + 100);
    user.client.close();
}

#[test]
fn a_target_that_is_stopped_is_passed_over() {
    let transport = TransportKind::Tcp;
    let master = start_master(any_port(), Duration::from_millis(700));
    let source = Lender::start(master.address(), transport);
    let user = User::join(&master, transport);
    user.put(0..OBJECTS, source.id, 1);
    let target = Lender::start(master.address(), transport);
    master.drain(&source.id, false, false).unwrap();
    in_the_middle(&master, source.id);
    target.process.signal(Signal::STOP);
    let other = Lender::start(master.address(), transport);
    let left = || status(&master, source.id).unwrap();
    eventually("what was left to go elsewhere", || {
        left().state == "drained" || status(&master, other.id).is_some_and(|node| node.replicas > 100)
    });
    target.process.signal(Signal::CONT);
    eventually("an empty node", || left().state == "drained");
    user.has_all(0..OBJECTS);
    user.client.close();
}

#[test]
fn a_drain_outlives_its_master() {
    let transport = TransportKind::Tcp;
    let lease = Duration::from_millis(700);
    let mut master = start_master(any_port(), lease);
    let address = master.address();
    let mut source = Lender::start(address, transport);
    let user = User::join(&master, transport);
    user.put(0..OBJECTS, source.id, 1);
    let _target = Lender::start(address, transport);
    master.drain(&source.id, false, false).unwrap();
    in_the_middle(&master, source.id);
    for _ in 0..2 {
        master.stop();
        master = start_master(address, lease);
        user.has_all(0..OBJECTS);
    }
    eventually("an empty node", || is_drained(&master, source.id));
    source.kill();
    user.has_all(0..OBJECTS);
    user.client.close();
}

#[test]
fn a_drain_that_is_called_off_in_the_middle_loses_nothing() {
    let transport = TransportKind::Tcp;
    let master = start_master(any_port(), Duration::from_millis(700));
    let source = Lender::start(master.address(), transport);
    let user = User::join(&master, transport);
    user.put(0..OBJECTS, source.id, 1);
    let target = Lender::start(master.address(), transport);
    master.drain(&source.id, false, false).unwrap();
    in_the_middle(&master, source.id);
    master.drain(&source.id, false, true).unwrap();
    user.has_all(0..OBJECTS);
    let sum = || {
        let replicas = |node| status(&master, node).unwrap().replicas;
        replicas(source.id) + replicas(target.id)
    };
    eventually("each object to be in one place", || sum() == OBJECTS);
    assert_eq!(status(&master, source.id).unwrap().state, "ready");
    user.has_all(0..OBJECTS);
    user.client.close();
}

#[test]
fn a_member_hands_over_what_it_lends_before_it_leaves() {
    let transport = TransportKind::Tcp;
    let master = start_master(any_port(), Duration::from_secs(30));
    let leaving = join(master.address(), 32 << 20, transport);
    let node = leaving.node().unwrap().clone();
    let user = User::join(&master, transport);
    user.put(0..200, node.id(), 1);
    // alone, it has nobody to give it to
    let left = node
        .drain(Runtime::system().deadline(Duration::from_secs(3)))
        .unwrap();
    assert_eq!((left.replicas, left.progress.unplaced_objects), (200, 200));
    let _other = Lender::start(master.address(), transport);
    let left = node.drain(soon()).unwrap();
    assert_eq!(
        (left.progress.moved_objects, left.progress.leaving_replicas),
        (200, left.replicas)
    );
    leaving.close();
    user.has_all(0..200);
    user.client.close();
}
