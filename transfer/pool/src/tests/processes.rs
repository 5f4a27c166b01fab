//! Nodes and masters that are killed, stopped and started again.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kvstored_core::{ErrorKind, Runtime};
use kvstored_transfer::TransportKind;
use rustix::process::Signal;

use super::others::{Lender, Other, any_port, join, start_master};
use super::{BUFFER_BYTES, eventually, k, memory, pattern, soon};
use crate::{NodeId, Piece, PutOptions};

fn within(limit: Duration) -> Instant {
    Runtime::system().deadline(limit)
}

fn fill(piece: Piece, seed: u64) -> Vec<u8> {
    let bytes = pattern(seed, piece.length);
    memory::copy_in(piece, &bytes);
    bytes
}

/// One object on both lenders, one on the first alone, one on the second alone; then something happens to the first.
fn the_first_of_two_lenders(transport: TransportKind, happens: impl Fn(&mut Lender)) {
    let master = start_master(any_port());
    let mut first = Lender::start(master.address(), transport);
    let second = Lender::start(master.address(), transport);
    let client = join(master.address(), 0, transport);
    let buffer = client.allocate(BUFFER_BYTES).unwrap();
    let part = |at: usize| Piece {
        address: buffer.address + at * 100_000,
        length: 100_000,
    };
    let bytes = fill(part(0), 1);
    let on = |node: NodeId, replicas: u32| PutOptions {
        replicas,
        prefer: Some(node),
        ..PutOptions::default()
    };
    client
        .put(&k("both"), &[part(0)], &on(first.id, 2), soon())
        .unwrap();
    client
        .put(&k("first"), &[part(0)], &on(first.id, 1), soon())
        .unwrap();
    client
        .put(&k("second"), &[part(0)], &on(second.id, 1), soon())
        .unwrap();
    for key in ["both", "first", "second"] {
        client.get(&k(key), &[part(1)], soon()).unwrap();
    }
    happens(&mut first);
    // a second is enough for a reader to be served by the other one, or to be told
    for round in 0..10 {
        for key in ["both", "second"] {
            fill(part(1), 100 + round);
            client
                .get(&k(key), &[part(1)], within(Duration::from_secs(1)))
                .unwrap();
            assert!(memory::copy_out(part(1)) == bytes, "{key}");
        }
        if let Err(error) = client.get(&k("first"), &[part(2)], within(Duration::from_secs(1))) {
            let expected = [ErrorKind::NotFound, ErrorKind::TimedOut, ErrorKind::Unavailable];
            assert!(expected.contains(&error.kind()), "{error}");
        } else {
            // what is mapped here needs no help of a stopped process
            assert!(memory::copy_out(part(2)) == bytes);
        }
    }
    // and puts go where there is somebody
    for number in 0..5u8 {
        let key = k([b'n', number]);
        client
            .put(
                &key,
                &[part(0)],
                &PutOptions::default(),
                within(Duration::from_secs(5)),
            )
            .unwrap();
    }
    client.close();
}

#[test]
fn a_killed_lender_over_tcp() {
    the_first_of_two_lenders(TransportKind::Tcp, Lender::kill);
}

#[test]
fn a_killed_lender_over_shared_memory() {
    the_first_of_two_lenders(TransportKind::Shm, Lender::kill);
}

#[test]
fn a_stopped_lender_over_tcp() {
    the_first_of_two_lenders(TransportKind::Tcp, |lender| lender.process.signal(Signal::STOP));
}

#[test]
fn a_stopped_lender_over_shared_memory() {
    the_first_of_two_lenders(TransportKind::Shm, |lender| lender.process.signal(Signal::STOP));
}

#[test]
fn a_lender_killed_in_the_middle_of_reads_and_writes_hangs_nobody() {
    let master = start_master(any_port());
    let mut first = Lender::start(master.address(), TransportKind::Tcp);
    let second = Lender::start(master.address(), TransportKind::Tcp);
    let client = join(master.address(), 0, TransportKind::Tcp);
    let buffer = client.allocate(BUFFER_BYTES).unwrap();
    let half = BUFFER_BYTES / 2;
    let (from, into) = (
        Piece {
            address: buffer.address,
            length: half,
        },
        Piece {
            address: buffer.address + half,
            length: half,
        },
    );
    let bytes = fill(from, 7);
    let twice = PutOptions {
        replicas: 2,
        ..PutOptions::default()
    };
    client.put(&k("large"), &[from], &twice, soon()).unwrap();
    let dead = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::park_timeout(Duration::from_millis(200));
            first.process.child.kill().unwrap();
            dead.store(true, Ordering::Release);
        });
        let mut after = 0;
        let mut number = 0u32;
        while after < 20 {
            after += u32::from(dead.load(Ordering::Acquire));
            number += 1;
            client
                .get(&k("large"), &[into], within(Duration::from_secs(5)))
                .unwrap();
            assert!(memory::copy_out(into) == bytes);
            let key = k(number.to_le_bytes());
            // the pool is small: room comes only as fast as it's given back
            if client
                .put(
                    &key,
                    &[from],
                    &PutOptions::default(),
                    within(Duration::from_secs(5)),
                )
                .is_ok()
            {
                client.remove(&[&key], true, soon()).unwrap();
            }
        }
    });
    drop(second);
    client.close();
}

#[test]
fn a_real_master_that_restarts_under_load_loses_nothing() {
    let mut master = Some(start_master(any_port()));
    let address = master.as_ref().unwrap().address();
    let _lender = Lender::start(address, TransportKind::Tcp);
    let client = join(address, 0, TransportKind::Tcp);
    let buffer = client.allocate(BUFFER_BYTES).unwrap();
    let part = |at: usize| Piece {
        address: buffer.address + at * 100_000,
        length: 50_000,
    };
    let restarted = AtomicBool::new(false);
    let mut acknowledged = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..3 {
                std::thread::park_timeout(Duration::from_millis(300));
                if let Some(before) = master.take() {
                    before.stop();
                }
                master = Some(start_master(address));
            }
            restarted.store(true, Ordering::Release);
        });
        let mut number = 0u64;
        while !restarted.load(Ordering::Acquire) {
            number += 1;
            let bytes = fill(part(0), number);
            let key = k(number.to_le_bytes());
            if client
                .put(
                    &key,
                    &[part(0)],
                    &PutOptions::default(),
                    within(Duration::from_secs(8)),
                )
                .is_ok()
            {
                acknowledged.push(number);
                // readers go on meanwhile
                client
                    .get(&key, &[part(1)], within(Duration::from_secs(8)))
                    .unwrap();
                assert!(memory::copy_out(part(1)) == bytes);
            }
        }
    });
    assert!(!acknowledged.is_empty());
    let newcomer = join(address, 0, TransportKind::Tcp);
    let into = newcomer.allocate(50_000).unwrap();
    let mut lost = Vec::new();
    for number in acknowledged {
        let key = k(number.to_le_bytes());
        eventually("an announcement", || {
            newcomer.sizes(&[&key], soon()).remove(0).is_ok()
        });
        newcomer.get(&key, &[into], soon()).unwrap();
        if memory::copy_out(into) != pattern(number, 50_000) {
            lost.push(number);
        }
    }
    assert_eq!(lost, [0u64; 0]);
    newcomer.close();
    client.close();
}

/// In the virtual machine with a device: what a lender holds is written and read by verbs, and so is what it hands over.
mod over_rdma {
    use super::*;

    #[test]
    #[ignore = "needs an RDMA device; `cargo xtask rdma` has one"]
    fn puts_gets_and_copies_between_processes() {
        let master = start_master(any_port());
        let mut first = Lender::start(master.address(), TransportKind::Rdma);
        let client = join(master.address(), 0, TransportKind::Rdma);
        let buffer = client.allocate(2 << 16).unwrap();
        let part = |at: usize| Piece {
            address: buffer.address + at * (1 << 16),
            length: 1 << 16,
        };
        let patient = || within(Duration::from_mins(1));
        for number in 0..4u8 {
            fill(part(0), u64::from(number));
            // an emulated processor takes longer to connect than a replica is given
            eventually("a put", || {
                match client.put(&k([number]), &[part(0)], &PutOptions::default(), patient()) {
                    Ok(()) => true,
                    Err(error) => error.kind() == ErrorKind::AlreadyExists,
                }
            });
        }
        let all_come = || {
            for number in 0..4u8 {
                fill(part(1), 100);
                // an emulated processor takes longer than a replica is given
                let got = || client.get(&k([number]), &[part(1)], patient()).is_ok();
                eventually("an object", got);
                assert!(memory::copy_out(part(1)) == pattern(u64::from(number), 1 << 16));
            }
        };
        all_come();
        let _second = Lender::start(master.address(), TransportKind::Rdma);
        master.drain(&first.id, false, false).unwrap();
        eventually("copies", || {
            let nodes = master.nodes().unwrap();
            nodes
                .iter()
                .any(|node| node.drain.is_some_and(|drain| drain.moved_objects == 4))
        });
        first.kill();
        client.forget_all();
        all_come();
        client.close();
    }
}

#[test]
fn a_stopped_master_stops_no_reader() {
    let transport = TransportKind::Tcp;
    let master = Other::start("tests::others::master", "none yet", transport, "leading ");
    let address: SocketAddr = master.said.parse().unwrap();
    let _lender = Lender::start(address, transport);
    let client = join(address, 0, transport);
    let buffer = client.allocate(BUFFER_BYTES).unwrap();
    let part = |at: usize| Piece {
        address: buffer.address + at * 100_000,
        length: 50_000,
    };
    let bytes = fill(part(0), 1);
    client
        .put(&k("known"), &[part(0)], &PutOptions::default(), soon())
        .unwrap();
    master.signal(Signal::STOP);
    for round in 0..5 {
        fill(part(1), 10 + round);
        client
            .get(&k("known"), &[part(1)], within(Duration::from_secs(1)))
            .unwrap();
        assert!(memory::copy_out(part(1)) == bytes);
        assert_eq!(
            client
                .exist(&[&k("known")], within(Duration::from_secs(1)))
                .unwrap(),
            [true]
        );
        let error = client
            .get(&k("unknown"), &[part(1)], within(Duration::from_secs(1)))
            .unwrap_err();
        assert!(
            [ErrorKind::TimedOut, ErrorKind::Unavailable].contains(&error.kind()),
            "{error}"
        );
    }
    master.signal(Signal::CONT);
    let put = || client.put(&k("later"), &[part(0)], &PutOptions::default(), soon());
    eventually("the master", || put().is_ok());
    client.close();
}
