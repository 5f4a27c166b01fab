use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use kvstored_core::error::ErrorKind;
use kvstored_core::events::{Event, EventKind};
use kvstored_core::tier::Durability;

use super::rig::{Memory, PATIENCE, dump, dumped, hashes, load, loaded, open, settings};
use super::*;

#[test]
fn blocks_go_through_the_socket_and_the_arena() {
    let served = Served::new(64);
    let client = served.client();
    assert_eq!(client.tier_names(), ["Cache", "Map"]);
    client.ping().unwrap();
    let namespace = open(&client);
    let blocks = hashes(0..25);
    assert_eq!(dumped(&dump(&client, &namespace, &blocks, Durability::Tier)), 25);
    assert_eq!(client.lookup_on_prefix(&namespace, &hashes(0..30)).unwrap(), 25);
    assert_eq!(client.lookup(&namespace, &hashes(24..26)).unwrap(), [true, false]);
    for order in [LoadOrder::BlockMajor, LoadOrder::ShardMajor] {
        assert_eq!(
            loaded(&load(&client, &namespace, &hashes(0..30), 0..3, order)),
            25
        );
    }
    // another client finds what the first one stored, also below the cache
    let other = served.client();
    let namespace = open(&other);
    assert_eq!(other.evict(&namespace, &blocks, Some("Cache")).unwrap(), 25);
    let report = load(&other, &namespace, &blocks, 0..3, LoadOrder::ShardMajor);
    assert!(
        report
            .blocks
            .iter()
            .all(|outcome| matches!(outcome, BlockOutcome::Loaded { tier: 1 })),
        "{report:?}"
    );
    assert!(served.rig.eventually(|| served.rig.is_wholly_evictable(64)));
}

#[test]
#[allow(unsafe_code)]
fn several_threads_dump_layerwise_and_whole_and_load_each_others_blocks() {
    let served = Served::new(40);
    let client = served.client();
    let namespace = open(&client);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (client, namespace) = (client.clone(), namespace.clone());
            scope.spawn(move || {
                for round in 0..3u64 {
                    let first = (thread * 3 + round) * 100;
                    let blocks = hashes(first..first + 6);
                    if thread % 2 == 0 {
                        assert_eq!(dumped(&dump(&client, &namespace, &blocks, Durability::Tier)), 6);
                        continue;
                    }
                    let dump = client
                        .begin_dump(&namespace, blocks.clone(), None, Durability::Tier, None)
                        .unwrap();
                    for shard in [
                        (round as usize + 1) % 3,
                        (round as usize + 2) % 3,
                        round as usize % 3,
                    ] {
                        let mut memory = Memory::full(&blocks, shard..shard + 1);
                        // SAFETY: the memory outlives the task, which is waited for.
                        unsafe { dump.put_shard(shard, memory.tensors()) }
                            .unwrap()
                            .wait(PATIENCE)
                            .unwrap();
                    }
                    let report = dump.task().wait(PATIENCE).unwrap();
                    assert_eq!(dumped(&report), 6, "{report:?}");
                }
            });
        }
    });
    let all: Vec<_> = (0..12).flat_map(|run| hashes(run * 100..run * 100 + 6)).collect();
    std::thread::scope(|scope| {
        for order in [
            LoadOrder::BlockMajor,
            LoadOrder::ShardMajor,
            LoadOrder::BlockMajor,
        ] {
            let (client, namespace, all) = (&client, &namespace, &all);
            scope.spawn(move || assert_eq!(loaded(&load(client, namespace, all, 0..3, order)), 72));
        }
    });
    assert!(served.rig.eventually(|| served.rig.is_wholly_evictable(40)));
}

#[test]
fn a_long_prefix_is_located_in_parts() {
    let served = Served::new(5000);
    let client = served.client();
    let namespace = open(&client);
    let blocks = hashes(0..4500);
    assert_eq!(
        dumped(&dump(&client, &namespace, &blocks, Durability::Tier)),
        4500
    );
    client
        .evict(&namespace, &blocks[2000..4100], Some("Cache"))
        .unwrap();
    let asked = hashes(0..9000);
    let tiers = client.locate_prefix(&namespace, &asked).unwrap();
    assert_eq!(tiers.len(), 4500);
    assert_eq!(tiers.len(), client.lookup_on_prefix(&namespace, &asked).unwrap());
    for (index, tier) in tiers.into_iter().enumerate() {
        assert_eq!(tier, u8::from((2000..4100).contains(&index)), "block {index}");
    }
    client.evict(&namespace, &blocks[2048..2049], None).unwrap();
    assert_eq!(client.locate_prefix(&namespace, &asked).unwrap().len(), 2048);
}

#[test]
fn every_client_may_ask_for_events() {
    let served = Served::new(16);
    let (client, other) = (served.client(), served.client());
    let namespace = open(&client);
    let start = client.take_events(0, 10).unwrap().next;
    dump(&client, &namespace, &hashes(0..5), Durability::Tier);
    client.evict(&namespace, &hashes(1..3), Some("Cache")).unwrap();
    for client in [client, other] {
        let events = client.take_events(start, usize::MAX).unwrap();
        assert_eq!((events.first, events.lost), (start + 1, false));
        assert_eq!(events.next, start + 12);
        let count = |kind, tier| {
            let like = |event: &&Event| (event.kind, event.tier) == (kind, tier);
            events.events.iter().filter(like).count()
        };
        assert_eq!(count(EventKind::Stored, 0), 5);
        assert_eq!(count(EventKind::Stored, 1), 5);
        assert_eq!(count(EventKind::Removed, 0), 2);
    }
}

#[test]
fn administrators_are_answered_while_blocks_move() {
    let served = Served::new(16);
    let client = served.client();
    let namespace = open(&client);
    dump(&client, &namespace, &hashes(0..5), Durability::Tier);
    assert_eq!(client.statistics().unwrap().dumped_blocks, 5);
    assert_eq!(client.namespaces().unwrap()[0].blocks_by_tier, [5, 5]);
    assert_eq!(client.list(1, None, None, 100).unwrap().len(), 5);
    assert_eq!(client.verify(1, None, None, 100).unwrap().0.checked_blocks, 5);
    client.prefetch(&namespace, &hashes(0..5)).unwrap();
    client.drain(PATIENCE).unwrap();
    assert_eq!(client.purge(&namespace.info().namespace).unwrap(), 10);
    let statistics = served.handle.statistics();
    assert!(
        statistics.connections > 0 && statistics.bad_frames == 0,
        "{statistics:?}"
    );
}

#[test]
fn the_socket_is_private_has_one_owner_and_replaces_a_stale_one() {
    let served = Served::new(4);
    let mode = std::fs::metadata(&served.path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let error = serve(&served.rig, DaemonSettings::new(served.path.clone()))
        .err()
        .unwrap();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert!(error.to_string().contains("kvstored.sock"), "{error}");
    served.handle.shutdown(Duration::ZERO);
    assert!(!served.path.exists());
    // what a killed daemon leaves behind
    drop(std::os::unix::net::UnixListener::bind(&served.path).unwrap());
    assert!(served.path.exists());
    let again = serve(&served.rig, DaemonSettings::new(served.path.clone())).unwrap();
    served.client().ping().unwrap();
    drop(again);
    std::fs::write(&served.path, "precious").unwrap();
    let error = serve(&served.rig, DaemonSettings::new(served.path.clone()))
        .err()
        .unwrap();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert_eq!(std::fs::read(&served.path).unwrap(), b"precious");
}

#[test]
fn a_socket_that_others_listen_on_without_our_lock_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("other.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let error = serve(&Rig::new(2), DaemonSettings::new(path.clone()))
        .err()
        .unwrap();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert!(path.exists());
}

#[test]
fn a_client_outlives_its_daemon_and_goes_on_with_the_next() {
    let served = Served::new(16);
    let client = served.client();
    let namespace = open(&client);
    dump(&client, &namespace, &hashes(0..3), Durability::Tier);
    served.handle.shutdown(Duration::from_secs(5));
    assert_eq!(client.ping().unwrap_err().kind(), ErrorKind::Unavailable);
    let report = load(&client, &namespace, &hashes(0..3), 0..3, LoadOrder::BlockMajor);
    for outcome in report.blocks {
        assert!(
            matches!(&outcome, BlockOutcome::Failed(error) if error.kind() == ErrorKind::Unavailable),
            "{outcome:?}"
        );
    }
    // another engine, another arena, the same path
    let next = Rig::new(16);
    let _handle = serve(&next, DaemonSettings::new(served.path.clone())).unwrap();
    assert!(next.eventually(|| client.ping().is_ok()));
    assert_eq!(client.lookup_on_prefix(&namespace, &hashes(0..3)).unwrap(), 0);
    assert_eq!(
        dumped(&dump(&client, &namespace, &hashes(0..3), Durability::Tier)),
        3
    );
    assert_eq!(
        loaded(&load(
            &client,
            &namespace,
            &hashes(0..3),
            0..3,
            LoadOrder::BlockMajor
        )),
        3
    );
}

#[test]
fn where_nobody_listens_connecting_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = kvstored_core::Runtime::system();
    let error = Client::connect(&directory.path().join("none.sock"), settings(), runtime).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("none.sock"), "{error}");
}
