use std::sync::Arc;
use std::time::Duration;

use kvstored_core::error::ErrorKind;
use kvstored_core::events::EventKind;
use kvstored_core::layout::Layout;
use kvstored_core::tier::Durability;

use super::rig::{
    Memory, PATIENCE, Rig, dump, dumped, hash, hashes, identity, layout, load, loaded, open, settings,
};
use super::*;

#[test]
fn what_is_dumped_is_found_and_loaded() {
    let rig = Rig::new(64);
    let client = rig.embedded(settings());
    assert_eq!(client.tier_names(), ["Cache", "Map"]);
    let namespace = open(&client);
    let blocks = hashes(0..20);
    assert_eq!(client.lookup_on_prefix(&namespace, &blocks).unwrap(), 0);
    let report = dump(&client, &namespace, &blocks, Durability::Tier);
    assert!(
        report
            .blocks
            .iter()
            .all(|outcome| matches!(outcome, BlockOutcome::Dumped(Durability::Tier))),
        "{report:?}"
    );
    assert_eq!(client.lookup_on_prefix(&namespace, &hashes(0..25)).unwrap(), 20);
    assert_eq!(
        client.lookup(&namespace, &[hash(3), hash(99)]).unwrap(),
        [true, false]
    );
    for order in [LoadOrder::BlockMajor, LoadOrder::ShardMajor] {
        for shards in [0..3, 1..2, 2..3, 0..2] {
            let report = load(&client, &namespace, &hashes(0..22), shards, order);
            assert_eq!(loaded(&report), 20);
            assert!(matches!(report.blocks[21], BlockOutcome::Missing));
        }
    }
    let again = dump(&client, &namespace, &blocks, Durability::Tier);
    assert!(
        again
            .blocks
            .iter()
            .all(|outcome| matches!(outcome, BlockOutcome::Present)),
        "{again:?}"
    );
    client.ping().unwrap();
    assert!(rig.eventually(|| rig.is_wholly_evictable(64)));
}

#[test]
fn the_fastest_tier_of_each_block_of_a_prefix_is_located() {
    let rig = Rig::new(64);
    let client = rig.embedded(settings());
    let namespace = open(&client);
    let blocks = hashes(0..12);
    dump(&client, &namespace, &blocks, Durability::Tier);
    let asked = hashes(0..20);
    assert_eq!(client.locate_prefix(&namespace, &asked).unwrap(), [0; 12]);
    let drop_from = |tier: &str, indices: &[u64]| {
        let some: Vec<_> = indices.iter().map(|index| hash(*index)).collect();
        client.evict(&namespace, &some, Some(tier)).unwrap();
    };
    drop_from("Cache", &[1, 2, 4, 7, 9, 10]);
    drop_from("Map", &[5, 11]);
    let expected = [0, 1, 1, 0, 1, 0, 0, 1, 0, 1, 1, 0];
    assert_eq!(client.locate_prefix(&namespace, &asked).unwrap(), expected);
    // a block that nobody has ends it, whatever comes behind
    drop_from("Map", &[7]);
    assert_eq!(client.locate_prefix(&namespace, &asked).unwrap(), expected[..7]);
    assert_eq!(client.lookup_on_prefix(&namespace, &asked).unwrap(), 7);
    assert!(client.locate_prefix(&namespace, &asked[7..]).unwrap().is_empty());
    assert!(client.locate_prefix(&namespace, &[]).unwrap().is_empty());
}

#[test]
fn more_than_the_cache_holds_goes_through_and_comes_back() {
    let rig = Rig::new(5);
    let client = rig.embedded(settings());
    let namespace = open(&client);
    let blocks = hashes(0..60);
    assert_eq!(dumped(&dump(&client, &namespace, &blocks, Durability::Tier)), 60);
    for order in [LoadOrder::BlockMajor, LoadOrder::ShardMajor] {
        let report = load(&client, &namespace, &blocks, 0..3, order);
        assert_eq!(loaded(&report), 60, "{report:?}");
    }
    // whichever the cache has kept
    client.evict(&namespace, &blocks, Some("Cache")).unwrap();
    let below = load(&client, &namespace, &blocks[..1], 0..3, LoadOrder::BlockMajor);
    assert!(
        matches!(below.blocks[0], BlockOutcome::Loaded { tier: 1 }),
        "{below:?}"
    );
    assert!(rig.eventually(|| rig.is_wholly_evictable(5)));
}

#[test]
fn spoiled_bytes_are_a_miss_and_never_come_back() {
    let rig = Rig::new(16);
    let client = rig.embedded(settings());
    let namespace = open(&client);
    let blocks = hashes(0..4);
    dump(&client, &namespace, &blocks, Durability::Tier);
    let info = namespace.info().clone();
    assert_eq!(client.evict(&namespace, &blocks, Some("Cache")).unwrap(), 4);
    // one in the middle of a shard, one in the descriptor page
    rig.map.spoil(&info.key(hash(1)), 4096 + 8192 + 100);
    rig.map.spoil(&info.key(hash(2)), 40);
    let report = load(&client, &namespace, &blocks, 0..3, LoadOrder::ShardMajor);
    assert!(matches!(report.blocks[1], BlockOutcome::Missing), "{report:?}");
    assert!(matches!(report.blocks[2], BlockOutcome::Missing), "{report:?}");
    assert_eq!(loaded(&report), 2);
    assert!(!rig.cache_has(&info, hash(1)));
    let error = client.evict(&namespace, &blocks, Some("Nowhere")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

#[test]
#[allow(unsafe_code)]
fn tensors_that_dont_fit_are_named_before_anything_moves() {
    let rig = Rig::new(8);
    let client = rig.embedded(settings());
    let namespace = open(&client);
    let blocks = hashes(0..2);
    let mut memory = Memory::full(&blocks, 0..3);
    let mut request = |change: &dyn Fn(&mut Vec<TensorAddress>)| {
        let mut tensors = memory.tensors();
        change(&mut tensors);
        let request = DumpRequest {
            hashes: blocks.clone(),
            parent: None,
            tensors,
            durability: Durability::Tier,
            timeout: None,
        };
        // SAFETY: it's refused.
        unsafe { client.dump(&namespace, request) }.unwrap_err()
    };
    let few = request(&|tensors| tensors.truncate(11));
    assert!(
        few.to_string().contains("11 tensors") && few.to_string().contains("12"),
        "{few}"
    );
    let size = request(&|tensors| tensors[8].bytes = 9);
    assert_eq!(size.kind(), ErrorKind::InvalidInput);
    assert!(
        size.to_string().contains("tensor 8 (block 1, tensor 2") && size.to_string().contains("4096"),
        "{size}"
    );
    request(&|tensors| tensors[0].address = 0);
    let load = LoadRequest {
        hashes: blocks.clone(),
        shards: 2..4,
        tensors: Vec::new(),
        order: LoadOrder::BlockMajor,
        timeout: None,
    };
    // SAFETY: it's refused.
    let error = unsafe { client.load(&namespace, load) }.unwrap_err();
    assert!(error.to_string().contains("2..4"), "{error}");
    assert_eq!(client.lookup_on_prefix(&namespace, &blocks).unwrap(), 0);
}

#[test]
fn another_layout_is_another_namespace_and_a_block_that_cant_fit_is_refused() {
    let rig = Rig::new(4);
    let client = rig.embedded(settings());
    let namespace = open(&client);
    dump(&client, &namespace, &hashes(0..1), Durability::Memory);
    let other = client
        .open_namespace(&identity("model"), &Layout::uniform(1, 1, 4096).unwrap())
        .unwrap();
    assert_eq!(client.lookup(&other, &hashes(0..1)).unwrap(), [false]);
    let huge = Layout::uniform(1, 1, 1 << 24).unwrap();
    let error = client.open_namespace(&identity("model"), &huge).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    let ranks = kvstored_core::Identity {
        lora: "x".repeat(2000),
        ..identity("m")
    };
    assert_eq!(
        client.open_namespace(&ranks, &layout()).unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
}

#[test]
#[allow(unsafe_code)]
fn a_stuck_load_ends_when_cancelled_or_late_and_leaves_nothing_pinned() {
    let rig = Rig::new(16);
    let client = rig.embedded(settings());
    let namespace = open(&client);
    let blocks = hashes(0..6);
    dump(&client, &namespace, &blocks, Durability::Tier);
    client.evict(&namespace, &blocks, Some("Cache")).unwrap();
    rig.map.hold();
    let mut memory = Memory::empty(&blocks, 0..3);
    let mut request = |timeout| LoadRequest {
        hashes: blocks.clone(),
        shards: 0..3,
        tensors: memory.tensors(),
        order: LoadOrder::BlockMajor,
        timeout,
    };
    // SAFETY: the memory outlives the tasks, which are waited for.
    let (stuck, also_stuck, late) = unsafe {
        let stuck = client.load(&namespace, request(None)).unwrap();
        let also_stuck = client.load(&namespace, request(None)).unwrap();
        // no stream is left for this one
        (
            stuck,
            also_stuck,
            client
                .load(&namespace, request(Some(Duration::from_millis(30))))
                .unwrap(),
        )
    };
    let kinds = |report: TaskReport| -> Vec<ErrorKind> {
        let failed = |outcome: BlockOutcome| match outcome {
            BlockOutcome::Failed(error) => error.kind(),
            other => panic!("{other:?}"),
        };
        report.blocks.into_iter().map(failed).collect()
    };
    assert_eq!(kinds(late.wait(PATIENCE).unwrap()), vec![ErrorKind::TimedOut; 6]);
    assert_eq!(
        stuck.wait(Duration::ZERO).unwrap_err().kind(),
        ErrorKind::TimedOut
    );
    assert!(stuck.poll().is_none());
    stuck.cancel();
    also_stuck.cancel();
    assert_eq!(
        kinds(also_stuck.wait(PATIENCE).unwrap()),
        vec![ErrorKind::Cancelled; 6]
    );
    assert_eq!(
        kinds(stuck.wait(PATIENCE).unwrap()),
        vec![ErrorKind::Cancelled; 6]
    );
    assert!(stuck.wait_shard(7, PATIENCE).is_err());
    rig.map.go_on();
    assert!(rig.eventually(|| rig.is_wholly_evictable(16)));
    let report = load(&client, &namespace, &blocks, 0..3, LoadOrder::BlockMajor);
    assert_eq!(loaded(&report), 6);
}

#[test]
fn a_dump_without_room_waits_and_a_memory_dump_is_acknowledged_before_the_tier_has_it() {
    let rig = Rig::new(4);
    let client = Arc::new(rig.embedded(settings()));
    let namespace = open(&client);
    rig.map.hold();
    let first = dump(&client, &namespace, &hashes(0..4), Durability::Memory);
    assert_eq!(dumped(&first), 4, "{first:?}");
    // every slot waits to be written: the next dump has to wait until the tier goes on
    let second = {
        let (client, namespace) = (client.clone(), namespace.clone());
        std::thread::Builder::new()
            .spawn(move || dump(&client, &namespace, &hashes(10..13), Durability::Tier))
            .unwrap()
    };
    assert!(rig.eventually(|| rig.engine.parked_requests() > 0));
    rig.map.go_on();
    assert_eq!(dumped(&second.join().unwrap()), 3);
}

#[test]
fn events_tell_which_tier_got_and_lost_which_block() {
    let rig = Rig::new(4);
    let client = rig.embedded(settings());
    let namespace = open(&client);
    dump(&client, &namespace, &hashes(50..51), Durability::Tier);
    let start = client.take_events(0, 100).unwrap();
    assert!(start.events.is_empty() && !start.lost, "{start:?}");
    let blocks = hashes(0..6);
    dump(&client, &namespace, &blocks, Durability::Tier);
    load(&client, &namespace, &blocks, 0..3, LoadOrder::BlockMajor);
    client.evict(&namespace, &blocks[..2], Some("Map")).unwrap();
    let mut after = start.next;
    let mut there = [vec![hash(50)], vec![hash(50)]];
    loop {
        // in small pieces
        let events = client.take_events(after, 3).unwrap();
        assert_eq!((events.lost, events.first), (false, after + 1));
        assert_eq!(events.next, after + events.events.len() as u64);
        if events.events.is_empty() {
            break;
        }
        after = events.next;
        for event in events.events {
            assert_eq!(event.key.namespace, namespace.info().namespace);
            let tier = &mut there[usize::from(event.tier)];
            match event.kind {
                EventKind::Stored => tier.push(event.key.hash),
                EventKind::Removed => tier.retain(|hash| *hash != event.key.hash),
            }
        }
    }
    for (tier, mut there) in there.into_iter().enumerate() {
        let mut listed: Vec<_> = client.list(tier, None, None, 100).unwrap();
        listed.sort();
        there.sort();
        assert_eq!(listed.iter().map(|key| key.hash).collect::<Vec<_>>(), there);
    }
    assert!(client.take_events(after + 1000, 3).unwrap().lost);
}

#[test]
fn administrators_see_blocks_and_forget_them() {
    let rig = Rig::new(16);
    let client = rig.embedded(settings());
    let namespace = open(&client);
    let blocks = hashes(0..5);
    dump(&client, &namespace, &blocks, Durability::Tier);
    let rows = client.namespaces().unwrap();
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].namespace, namespace.info().namespace);
    assert_eq!(rows[0].identity.as_ref(), Some(&identity("model")));
    assert_eq!(rows[0].blocks_by_tier, [5, 5]);
    let first = client.list(1, None, None, 3).unwrap();
    let rest = client.list(1, None, first.last(), 10).unwrap();
    assert_eq!((first.len(), rest.len()), (3, 2));
    assert_eq!(
        client.list(9, None, None, 3).unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
    let (report, after) = client.verify(1, None, None, 4).unwrap();
    assert_eq!((report.checked_blocks, after.is_some()), (4, true));
    assert_eq!(
        client
            .verify(1, None, after.as_ref(), 4)
            .unwrap()
            .0
            .checked_blocks,
        1
    );
    assert_eq!(client.statistics().unwrap().dumped_blocks, 5);
    client.drain(PATIENCE).unwrap();
    client.prefetch(&namespace, &blocks).unwrap();
    assert_eq!(client.purge(&namespace.info().namespace).unwrap(), 10);
    assert_eq!(client.lookup_on_prefix(&namespace, &blocks).unwrap(), 0);
}
