//! Tasks end when they are cancelled or late, whatever state the daemon is in.

use std::time::Duration;

use kvstored_core::block::BlockHash;
use kvstored_core::error::ErrorKind;
use kvstored_core::tier::Durability;

use super::peer::Peer;
use super::rig::{Memory, PATIENCE, Rig, dump, dumped, hash, hashes, load, loaded, open, settings};
use super::*;
use crate::task::Task;
use crate::wire::Request;

/// Nothing ends by itself within a test.
const LONG: Duration = Duration::from_hours(1);

fn connect(rig: &Rig, peer: &Peer, timeout: Duration) -> Client {
    let settings = ClientSettings {
        timeout,
        ..settings()
    };
    Client::connect(&peer.path, settings, rig.runtime.clone()).unwrap()
}

/// A task and the memory it uses.
struct Started {
    task: Task,
    memory: Memory,
}

impl Started {
    #[allow(unsafe_code)]
    fn load(
        client: &Client,
        namespace: &NamespaceHandle,
        order: LoadOrder,
        timeout: Option<Duration>,
    ) -> Self {
        let blocks = hashes(0..6);
        let mut memory = Memory::empty(&blocks, 0..3);
        let request = LoadRequest {
            hashes: blocks,
            shards: 0..3,
            tensors: memory.tensors(),
            order,
            timeout,
        };
        // SAFETY: the memory lives as long as the task.
        let task = unsafe { client.load(namespace, request) }.unwrap();
        Self { task, memory }
    }

    #[allow(unsafe_code)]
    fn dump(
        client: &Client,
        namespace: &NamespaceHandle,
        blocks: &[BlockHash],
        timeout: Option<Duration>,
    ) -> Self {
        let mut memory = Memory::full(blocks, 0..3);
        let request = DumpRequest {
            hashes: blocks.to_vec(),
            parent: None,
            tensors: memory.tensors(),
            durability: Durability::Tier,
            timeout,
        };
        // SAFETY: the memory lives as long as the task.
        let task = unsafe { client.dump(namespace, request) }.unwrap();
        Self { task, memory }
    }

    /// The kinds of the blocks that failed. The memory is used for something else from here on.
    fn end(&mut self) -> Vec<ErrorKind> {
        let report = self.task.wait(PATIENCE).unwrap();
        self.memory.scribble();
        failures(&report)
    }
}

fn failures(report: &TaskReport) -> Vec<ErrorKind> {
    let kind = |outcome: &BlockOutcome| match outcome {
        BlockOutcome::Failed(error) => Some(error.kind()),
        _ => None,
    };
    report.blocks.iter().filter_map(kind).collect()
}

/// More of everything than there are streams and sessions that are connected.
fn start_many(client: &Client, namespace: &NamespaceHandle, timeout: Option<Duration>) -> Vec<Started> {
    let mut started = Vec::new();
    for round in 0..4 {
        let first = 100 * (round + 1);
        started.push(Started::load(client, namespace, LoadOrder::BlockMajor, timeout));
        started.push(Started::dump(
            client,
            namespace,
            &hashes(first..first + 6),
            timeout,
        ));
        started.push(Started::load(client, namespace, LoadOrder::ShardMajor, timeout));
    }
    started
}

#[test]
fn everything_ends_when_cancelled_though_the_daemon_has_stopped() {
    let rig = Rig::new(64);
    let peer = Peer::new(&rig);
    let client = connect(&rig, &peer, LONG);
    let namespace = open(&client);
    dump(&client, &namespace, &hashes(0..6), Durability::Tier);
    peer.stop();
    let mut started = start_many(&client, &namespace, None);
    assert!(started.iter().all(|started| started.task.poll().is_none()));
    // the last ones first: they are in line behind the others
    for started in started.iter().rev() {
        started.task.cancel();
        started.task.wait(PATIENCE).unwrap();
    }
    for started in &mut started {
        assert_eq!(started.end(), [ErrorKind::Cancelled; 6]);
    }
    peer.go_on();
    assert_eq!(
        loaded(&load(
            &client,
            &namespace,
            &hashes(0..6),
            0..3,
            LoadOrder::BlockMajor
        )),
        6
    );
    assert_eq!(client.lookup_on_prefix(&namespace, &hashes(100..106)).unwrap(), 0);
    assert!(rig.eventually(|| rig.is_wholly_evictable(64)));
    assert!(started.iter().all(|started| started.memory.is_scribbled()));
}

#[test]
fn everything_ends_at_its_deadline_though_the_daemon_has_stopped() {
    let rig = Rig::new(64);
    let peer = Peer::new(&rig);
    let client = connect(&rig, &peer, LONG);
    let namespace = open(&client);
    dump(&client, &namespace, &hashes(0..6), Durability::Tier);
    peer.stop();
    let timeout = Some(Duration::from_millis(40));
    for mut started in start_many(&client, &namespace, timeout) {
        assert_eq!(started.end(), [ErrorKind::TimedOut; 6]);
    }
    let error = client
        .begin_dump(&namespace, hashes(0..3), None, Durability::Tier, timeout)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    peer.go_on();
    assert_eq!(
        dumped(&dump(&client, &namespace, &hashes(50..56), Durability::Tier)),
        6
    );
}

#[test]
fn a_load_ends_wherever_the_daemon_stops() {
    for stop_at in 0..6 {
        let rig = Rig::new(64);
        let peer = Peer::new(&rig);
        let client = connect(&rig, &peer, LONG);
        let namespace = open(&client);
        dump(&client, &namespace, &hashes(0..6), Durability::Tier);
        let mut requests = 0;
        peer.stop_at(move |_| {
            requests += 1;
            requests > stop_at
        });
        let tasks: Vec<_> = (0..3)
            .map(|_| Started::load(&client, &namespace, LoadOrder::ShardMajor, None))
            .collect();
        assert!(rig.eventually(|| peer.is_stopped()));
        for mut started in tasks {
            started.task.cancel();
            for kind in started.end() {
                assert_eq!(kind, ErrorKind::Cancelled);
            }
        }
    }
}

#[test]
fn a_cancelled_dump_leaves_nothing_that_was_copied_afterwards() {
    // the memory is scribbled over as soon as the task has ended
    for stop_at in 0..10 {
        let rig = Rig::new(64);
        let peer = Peer::new(&rig);
        let client = connect(&rig, &peer, LONG);
        let namespace = open(&client);
        let blocks = hashes(0..30);
        let mut requests = 0;
        peer.stop_at(move |_| {
            requests += 1;
            requests > stop_at
        });
        let mut started = Started::dump(&client, &namespace, &blocks, None);
        assert!(rig.eventually(|| peer.is_stopped()));
        assert!(started.task.poll().is_none());
        started.task.cancel();
        let failed = started.end();
        assert!(
            failed.iter().all(|kind| *kind == ErrorKind::Cancelled),
            "{failed:?}"
        );
        assert!(!failed.is_empty());
        peer.go_on();
        // what it had sent before is worked off: nothing is reserved any more
        assert!(rig.eventually(|| rig.is_wholly_evictable(64)));
        let report = load(&client, &namespace, &blocks, 0..3, LoadOrder::BlockMajor);
        let missing = report
            .blocks
            .iter()
            .filter(|outcome| matches!(outcome, BlockOutcome::Missing))
            .count();
        assert_eq!(loaded(&report) + missing, 30, "{report:?}");
    }
}

#[test]
#[allow(unsafe_code)]
fn a_layerwise_dump_ends_when_cancelled_though_the_daemon_has_stopped() {
    let rig = Rig::new(64);
    let peer = Peer::new(&rig);
    let client = connect(&rig, &peer, LONG);
    let namespace = open(&client);
    let begin = |first| {
        let blocks = hashes(first..first + 7);
        client
            .begin_dump(&namespace, blocks, None, Durability::Tier, None)
            .unwrap()
    };
    let (untouched, partial, whole) = (begin(0), begin(100), begin(200));
    peer.stop();
    let put = |dump: &DumpSession, first, shards: std::ops::Range<usize>| {
        for shard in shards {
            let mut memory = Memory::full(&hashes(first..first + 7), shard..shard + 1);
            // SAFETY: the memory outlives the task, which is waited for.
            let task = unsafe { dump.put_shard(shard, memory.tensors()) }.unwrap();
            // copying needs nothing of the daemon
            assert!(failures(&task.wait(PATIENCE).unwrap()).is_empty());
        }
    };
    put(&partial, 100, 0..2);
    put(&whole, 200, 0..3);
    for (dump, first) in [(untouched, 0), (partial, 100), (whole, 200)] {
        assert!(dump.task().poll().is_none());
        dump.task().cancel();
        let report = dump.task().wait(PATIENCE).unwrap();
        assert_eq!(failures(&report), [ErrorKind::Cancelled; 7]);
        let mut late = Memory::full(&hashes(first..first + 7), 2..3);
        // SAFETY: the memory outlives the task, which is waited for.
        let error = unsafe { dump.put_shard(2, late.tensors()) }.unwrap_err();
        assert!(
            matches!(error.kind(), ErrorKind::Cancelled | ErrorKind::AlreadyExists),
            "{error}"
        );
    }
    peer.go_on();
    assert!(rig.eventually(|| rig.is_wholly_evictable(64)));
    assert_eq!(client.lookup(&namespace, &hashes(0..7)).unwrap(), [false; 7]);
    assert_eq!(client.lookup(&namespace, &hashes(100..107)).unwrap(), [false; 7]);
    // the third was whole and handed over before it was cancelled
    let report = load(
        &client,
        &namespace,
        &hashes(200..207),
        0..3,
        LoadOrder::BlockMajor,
    );
    assert_eq!(loaded(&report), 7);
}

#[test]
fn a_layerwise_dump_whose_shards_dont_come_ends_at_its_deadline() {
    let rig = Rig::new(8);
    let peer = Peer::new(&rig);
    let client = connect(&rig, &peer, Duration::from_millis(150));
    let namespace = open(&client);
    let dump = client
        .begin_dump(&namespace, hashes(0..8), None, Durability::Tier, None)
        .unwrap();
    let report = dump.task().wait(PATIENCE).unwrap();
    assert_eq!(failures(&report), [ErrorKind::TimedOut; 8]);
    assert!(rig.eventually(|| rig.is_wholly_evictable(8)));
}

#[test]
fn a_dump_is_begun_within_its_own_time_and_says_who_found_no_room() {
    let rig = Rig::cache_alone(8);
    let peer = Peer::new(&rig);
    for client in [connect(&rig, &peer, LONG), {
        let settings = ClientSettings {
            timeout: LONG,
            ..settings()
        };
        rig.embedded(settings)
    }] {
        // what the other one held has been given back
        assert!(rig.eventually(|| rig.is_wholly_evictable(8)));
        let namespace = open(&client);
        let begin = |first, count, timeout_ms| {
            client.begin_dump(
                &namespace,
                hashes(first..first + count),
                None,
                Durability::Memory,
                Some(Duration::from_millis(timeout_ms)),
            )
        };
        let held = begin(0, 6, 5000).unwrap();
        assert!(held.task().failed_blocks().is_empty());
        let late = begin(100, 4, 60).unwrap();
        assert_eq!(late.task().failed_blocks(), [2, 3]);
        let later = begin(200, 2, 60).unwrap();
        assert_eq!(
            failures(&later.task().wait(PATIENCE).unwrap()),
            [ErrorKind::Busy; 2]
        );
        // it's the wait for room that was short, not the dump
        assert!(late.task().poll().is_none());
    }
}

#[test]
fn one_acknowledgement_isnt_stuck_behind_another() {
    let rig = Rig::new(64);
    let client = rig.embedded(ClientSettings {
        timeout: LONG,
        ..settings()
    });
    let namespace = open(&client);
    rig.map.hold();
    let stuck: Vec<_> = (0..3)
        .map(|number| Started::dump(&client, &namespace, &[hash(number)], None))
        .collect();
    assert!(rig.eventually(|| rig.map.held_operations() == 3));
    // acknowledged from memory, although the tier below has stopped
    assert_eq!(
        dumped(&dump(&client, &namespace, &hashes(10..12), Durability::Memory)),
        2
    );
    for mut started in stuck.into_iter().rev() {
        assert!(started.task.poll().is_none());
        started.task.cancel();
        assert_eq!(started.end(), [ErrorKind::Cancelled]);
    }
    rig.map.go_on();
    assert!(rig.eventually(|| rig.is_wholly_evictable(64)));
}

#[test]
fn a_client_is_dropped_though_the_daemon_has_stopped() {
    let rig = Rig::new(64);
    let peer = Peer::new(&rig);
    let client = connect(&rig, &peer, LONG);
    let namespace = open(&client);
    let dump = client
        .begin_dump(&namespace, hashes(0..3), None, Durability::Tier, None)
        .unwrap();
    peer.stop_at(|request| matches!(request, Request::Reserve { .. }));
    let started = start_many(&client, &namespace, None);
    assert!(rig.eventually(|| peer.is_stopped()));
    drop(client);
    for started in started {
        assert!(started.task.poll().is_some());
    }
    let report = dump.task().poll().unwrap().unwrap();
    assert_eq!(failures(&report), [ErrorKind::Cancelled; 3]);
}
