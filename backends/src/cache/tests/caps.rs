//! The capacity bounds the arena and the tier's tables together.

use kvstored_core::BlockHash;
use kvstored_core::eviction::PolicyKind;
use kvstored_core::tier::{MemoryTier, Tier};

use super::super::{CacheSettings, CacheTier};
use super::{Arc, ErrorKind, IMAGE_BYTES, NamespaceInfo, cache, has, hash, namespace, store};

const CAPACITY_BYTES: u64 = 8 << 20;

fn open(policy: PolicyKind) -> Arc<CacheTier> {
    let settings = CacheSettings {
        capacity_bytes: CAPACITY_BYTES,
        policy,
        huge_pages: false,
        ..CacheSettings::default()
    };
    CacheTier::open(settings, None).unwrap()
}

/// Everything that the tier says it takes, at the end of the arena that ever had blocks and in its tables.
fn taken(cache: &CacheTier) -> u64 {
    let statistics = cache.statistics();
    assert!(
        statistics.allocated_bytes <= statistics.capacity_bytes,
        "{statistics:?}"
    );
    let touched = cache.arena().claim(0).max(cache.state.lock().used_to());
    touched as u64 + statistics.index_bytes
}

fn store_some(cache: &CacheTier, namespace: &Arc<NamespaceInfo>, numbers: std::ops::Range<u64>) {
    let numbers: Vec<u64> = numbers.collect();
    for some in numbers.chunks(16) {
        let hashes: Vec<BlockHash> = some.iter().map(|number| hash(*number)).collect();
        for slot in cache.allocate(namespace, None, &hashes) {
            match slot {
                Ok(slot) => cache.publish(&slot),
                Err(error) => assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}"),
            }
        }
        assert!(taken(cache) <= CAPACITY_BYTES, "after {some:?}");
    }
}

#[test]
fn small_blocks_and_their_tables_stay_within_the_capacity() {
    for policy in PolicyKind::ALL {
        let cache = open(policy);
        let namespace = namespace("", 4096);
        cache.open_namespace(&namespace).unwrap();
        store_some(&cache, &namespace, 0..2_000);
        let full = cache.statistics().blocks;
        assert!(
            full * IMAGE_BYTES * 100 > CAPACITY_BYTES * 88,
            "{policy:?}: {full} blocks"
        );
        // blocks that come back have ghosts, and those that were used are in other lists
        for round in 0..3 {
            cache.pin(&namespace, &(0..500).map(hash).collect::<Vec<BlockHash>>());
            store_some(&cache, &namespace, round * 700..round * 700 + 1_500);
        }
        assert!(cache.statistics().blocks * 100 >= full * 98, "{policy:?}");
    }
}

#[test]
fn tables_take_nothing_from_memory_that_was_used_or_pinned() {
    let small = namespace("small", 4096);
    for pinned in [false, true] {
        let cache = open(PolicyKind::Arc);
        cache.open_namespace(&small).unwrap();
        if pinned {
            cache.arena().claim(cache.arena().length());
        } else {
            let large = namespace("large", (1 << 20) - 4096);
            cache.open_namespace(&large).unwrap();
            store(&cache, &large, None, &[1, 2, 3, 4, 5, 6, 7]);
        }
        for first in (0..3_000).step_by(8) {
            store(&cache, &small, None, &(first..first + 8).collect::<Vec<u64>>());
            let tables = cache.statistics().index_bytes;
            let arena = if pinned {
                cache.arena().length() as u64
            } else {
                7 << 20
            };
            assert!(arena + tables <= CAPACITY_BYTES, "{tables} bytes of tables");
        }
        assert!(has(&cache, &small, 2_999));
    }
}

#[test]
fn namespaces_that_come_and_go_stay_within_the_capacity() {
    let cache = open(PolicyKind::Lru);
    for number in 0..30 {
        let namespace = namespace(&format!("tenant {number}"), 4096);
        cache.open_namespace(&namespace).unwrap();
        store_some(&cache, &namespace, 0..1_000);
        // what earlier ones left behind is taken back from them
        let blocks = cache.statistics().blocks;
        assert!(
            blocks * IMAGE_BYTES * 10 > CAPACITY_BYTES * 5,
            "{blocks} blocks in {number}"
        );
    }
}

#[test]
fn a_namespace_that_there_is_no_room_for_is_refused() {
    let (cache, _) = cache(4, PolicyKind::Lru);
    let error = (0..200).find_map(|number| {
        let namespace = namespace(&format!("tenant {number}"), 4096);
        cache.open_namespace(&namespace).err()
    });
    assert_eq!(error.unwrap().kind(), ErrorKind::NoSpace);
    assert!(taken(&cache) <= cache.statistics().capacity_bytes);
}
