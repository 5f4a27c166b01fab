use std::sync::Arc;

use kvstored_core::error::ErrorKind;
use kvstored_core::tier::Durability;

use super::rig::{Memory, PATIENCE, Rig, dumped, hashes, load, loaded, open, settings};
use super::*;

#[test]
#[allow(unsafe_code)]
fn shards_may_come_in_any_order_and_blocks_show_when_whole() {
    let rig = Rig::new(32);
    let client = rig.embedded(settings());
    let namespace = open(&client);
    for (round, order) in [[0, 1, 2], [2, 0, 1], [1, 2, 0], [2, 1, 0]]
        .into_iter()
        .enumerate()
    {
        let first = round as u64 * 100;
        let blocks = hashes(first..first + 7);
        let dump = client
            .begin_dump(&namespace, blocks.clone(), None, Durability::Tier, None)
            .unwrap();
        for shard in order {
            assert_eq!(client.lookup_on_prefix(&namespace, &blocks).unwrap(), 0);
            let mut memory = Memory::full(&blocks, shard..shard + 1);
            // SAFETY: the memory outlives the task, which is waited for.
            let task = unsafe { dump.put_shard(shard, memory.tensors()) }.unwrap();
            let report = task.wait(PATIENCE).unwrap();
            assert!(
                report
                    .blocks
                    .iter()
                    .all(|outcome| matches!(outcome, BlockOutcome::Copied)),
                "{report:?}"
            );
            // SAFETY: it's refused.
            let twice = unsafe { dump.put_shard(shard, memory.tensors()) }.unwrap_err();
            assert_eq!(twice.kind(), ErrorKind::AlreadyExists);
        }
        assert_eq!(dumped(&dump.task().wait(PATIENCE).unwrap()), 7);
        assert_eq!(
            loaded(&load(&client, &namespace, &blocks, 0..3, LoadOrder::ShardMajor)),
            7
        );
    }
    assert!(rig.eventually(|| rig.is_wholly_evictable(32)));
}

#[test]
#[allow(unsafe_code)]
fn threads_may_put_shards_at_once() {
    let rig = Rig::new(32);
    let client = rig.embedded(settings());
    let namespace = open(&client);
    let blocks = hashes(0..12);
    let dump = client
        .begin_dump(&namespace, blocks.clone(), None, Durability::Durable, None)
        .unwrap();
    std::thread::scope(|scope| {
        for shard in 0..3 {
            let (dump, blocks) = (&dump, &blocks);
            scope.spawn(move || {
                let mut memory = Memory::full(blocks, shard..shard + 1);
                // SAFETY: the memory outlives the task, which is waited for.
                unsafe { dump.put_shard(shard, memory.tensors()) }
                    .unwrap()
                    .wait(PATIENCE)
                    .unwrap();
            });
        }
    });
    assert_eq!(dumped(&dump.task().wait(PATIENCE).unwrap()), 12);
    assert_eq!(
        loaded(&load(&client, &namespace, &blocks, 0..3, LoadOrder::BlockMajor)),
        12
    );
}

#[test]
#[allow(unsafe_code)]
fn a_dump_that_is_dropped_or_aborted_leaves_no_trace() {
    let rig = Rig::new(8);
    let client = rig.embedded(settings());
    let namespace = open(&client);
    let blocks = hashes(0..8);
    for abort in [true, false] {
        let dump = client
            .begin_dump(&namespace, blocks.clone(), None, Durability::Tier, None)
            .unwrap();
        let mut memory = Memory::full(&blocks, 0..1);
        // SAFETY: the memory outlives the task, which is waited for.
        unsafe { dump.put_shard(0, memory.tensors()) }
            .unwrap()
            .wait(PATIENCE)
            .unwrap();
        let task = dump.task().clone();
        assert!(!rig.is_wholly_evictable(8));
        if abort {
            dump.abort();
        } else {
            drop(dump);
        }
        let report = task.wait(PATIENCE).unwrap();
        assert_eq!(task.failed_blocks().len(), 8, "{report:?}");
        assert_eq!(client.lookup_on_prefix(&namespace, &blocks).unwrap(), 0);
        assert!(rig.eventually(|| rig.is_wholly_evictable(8)));
    }
}

#[test]
fn blocks_that_are_there_or_dont_fit_are_told_at_once() {
    let rig = Rig::cache_alone(4);
    let client = rig.embedded(ClientSettings {
        timeout: std::time::Duration::from_millis(400),
        ..settings()
    });
    let namespace = open(&client);
    super::rig::dump(&client, &namespace, &hashes(0..2), Durability::Memory);
    let dump = client
        .begin_dump(&namespace, hashes(0..7), None, Durability::Memory, None)
        .unwrap();
    let failed = dump.task().failed_blocks();
    // two are present at first, and make room for the last of four
    assert_eq!(failed, [6]);
    drop(dump);
    super::rig::dump(&client, &namespace, &hashes(0..2), Durability::Memory);
    let all = client
        .begin_dump(&namespace, hashes(0..2), None, Durability::Memory, None)
        .unwrap();
    let report = all.task().wait(PATIENCE).unwrap();
    assert!(
        report
            .blocks
            .iter()
            .all(|outcome| matches!(outcome, BlockOutcome::Present)),
        "{report:?}"
    );
}

#[test]
#[allow(unsafe_code)]
fn a_client_that_goes_ends_its_tasks() {
    let rig = Rig::new(8);
    let client = rig.embedded(settings());
    let namespace = open(&client);
    let blocks = hashes(0..3);
    rig.map.hold();
    let mut memory = Memory::full(&blocks, 0..3);
    let request = DumpRequest {
        hashes: blocks.clone(),
        parent: None,
        tensors: memory.tensors(),
        durability: Durability::Tier,
        timeout: None,
    };
    // SAFETY: the memory outlives the task, which is waited for.
    let task = unsafe { client.dump(&namespace, request) }.unwrap();
    let dump = Arc::new(
        client
            .begin_dump(&namespace, hashes(10..12), None, Durability::Tier, None)
            .unwrap(),
    );
    drop(client);
    let report = task.wait(PATIENCE).unwrap();
    assert!(
        report
            .blocks
            .iter()
            .all(|outcome| matches!(outcome, BlockOutcome::Failed(_))),
        "{report:?}"
    );
    let mut shard = Memory::full(&hashes(10..12), 0..1);
    // SAFETY: it's refused.
    assert!(unsafe { dump.put_shard(0, shard.tensors()) }.is_err());
    drop(dump);
    rig.map.go_on();
    assert!(rig.eventually(|| rig.is_wholly_evictable(8)));
}
