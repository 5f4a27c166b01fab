mod caps;

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use kvstored_core::events::EventLog;
use kvstored_core::eviction::PolicyKind;
use kvstored_core::quota::{QuotaLedger, QuotaSettings};
use kvstored_core::tier::{MemoryTier, NamespaceInfo, Tier};
use kvstored_core::{BlockHash, ErrorKind, Event, EventKind, EventSink, Identity, Layout, Runtime};

use rustix::fs::{AtFlags, CWD};

use super::{CacheSettings, CacheTier};

const IMAGE_BYTES: u64 = 8192;

fn hash(number: u64) -> BlockHash {
    let mut bytes = [0u8; 32];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    BlockHash::new(&bytes).unwrap()
}

fn namespace(tenant: &str, tensor_bytes: u32) -> Arc<NamespaceInfo> {
    let identity = Identity {
        tenant: tenant.into(),
        ..Identity::default()
    };
    Arc::new(NamespaceInfo::new(identity, Layout::uniform(1, 1, tensor_bytes).unwrap()).unwrap())
}

fn cache(blocks: u64, policy: PolicyKind) -> (Arc<CacheTier>, Arc<NamespaceInfo>) {
    // room for those blocks, and for tables of that many
    let table_bytes = (64 << 10) + blocks * 1024;
    let settings = CacheSettings {
        capacity_bytes: blocks * IMAGE_BYTES + table_bytes,
        table_bytes: Some(table_bytes),
        policy,
        ..CacheSettings::default()
    };
    let cache = CacheTier::open(settings, None).unwrap();
    let namespace = namespace("", 4096);
    cache.open_namespace(&namespace).unwrap();
    (cache, namespace)
}

fn store(cache: &CacheTier, namespace: &Arc<NamespaceInfo>, parent: Option<u64>, numbers: &[u64]) {
    let hashes: Vec<_> = numbers.iter().map(|number| hash(*number)).collect();
    for slot in cache.allocate(namespace, parent.map(hash).as_ref(), &hashes) {
        cache.publish(&slot.unwrap());
    }
}

fn has(cache: &CacheTier, namespace: &NamespaceInfo, number: u64) -> bool {
    let mut present = [false];
    cache.lookup(namespace, &[hash(number)], &mut present);
    present[0]
}

#[test]
fn a_slot_is_invisible_until_published_and_leaves_no_trace_when_discarded() {
    let (cache, namespace) = cache(4, PolicyKind::Lru);
    let slot = cache
        .allocate(&namespace, None, &[hash(1)])
        .pop()
        .unwrap()
        .unwrap();
    assert!(!has(&cache, &namespace, 1));
    let again = cache
        .allocate(&namespace, None, &[hash(1)])
        .pop()
        .unwrap()
        .unwrap_err();
    assert_eq!(again.kind(), ErrorKind::AlreadyExists);
    cache.discard(&slot);
    drop(slot);
    assert!(!has(&cache, &namespace, 1));
    assert_eq!(cache.state.lock().used_bytes(), 0);
    store(&cache, &namespace, None, &[1]);
    assert!(has(&cache, &namespace, 1));
}

#[test]
fn pinned_blocks_are_never_evicted_and_room_is_announced() {
    let (cache, namespace) = cache(3, PolicyKind::Lru);
    store(&cache, &namespace, None, &[1, 2, 3]);
    let pinned = cache.pin(&namespace, &[hash(1), hash(2), hash(3)]);
    assert!(pinned.iter().all(Option::is_some));
    let rooms = Arc::new(AtomicUsize::new(0));
    let counted = rooms.clone();
    cache.on_room(Arc::new(move || {
        counted.fetch_add(1, Ordering::SeqCst);
    }));
    let refused = cache
        .allocate(&namespace, None, &[hash(4)])
        .pop()
        .unwrap()
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Busy);
    drop(pinned);
    assert_eq!(rooms.load(Ordering::SeqCst), 1);
    store(&cache, &namespace, None, &[4]);
    assert!(has(&cache, &namespace, 4));
}

#[test]
fn blocks_that_show_and_blocks_that_go_are_told() {
    let log = EventLog::new(&Runtime::system(), 100);
    let mut after = log.take(0, 0).next;
    let (cache, namespace) = cache(3, PolicyKind::Lru);
    cache.observe(EventSink::new(log.clone(), 0));
    let mut told = || {
        let events = log.take(after, 100);
        assert!(!events.lost);
        after = events.next;
        let tell = |event: &Event| {
            assert_eq!((event.tier, event.key.namespace), (0, namespace.namespace));
            (event.kind, event.key.hash)
        };
        events.events.iter().map(tell).collect::<Vec<_>>()
    };
    let stored = |number| (EventKind::Stored, hash(number));
    let removed = |number| (EventKind::Removed, hash(number));
    store(&cache, &namespace, None, &[1, 2, 3]);
    assert_eq!(told(), [stored(1), stored(2), stored(3)]);
    // one that was never visible leaves no trace here either
    let filling = cache
        .allocate(&namespace, None, &[hash(4)])
        .pop()
        .unwrap()
        .unwrap();
    assert_eq!(told(), [removed(3)]);
    cache.discard(&filling);
    drop(filling);
    assert!(told().is_empty());
    let pinned = cache.pin(&namespace, &[hash(1)]);
    assert_eq!(cache.remove(&namespace, &[hash(1), hash(9)]), 1);
    assert_eq!(told(), [removed(1)]);
    drop(pinned);
    store(&cache, &namespace, None, &[5]);
    assert_eq!(cache.purge(&namespace.namespace).unwrap(), 2);
    let mut gone = told();
    assert_eq!(gone.remove(0), stored(5));
    assert_eq!(gone.len(), 2);
    assert!(gone.contains(&removed(2)) && gone.contains(&removed(5)));
}

#[test]
fn a_tail_goes_before_its_head_even_when_dumped_later() {
    for policy in [PolicyKind::Lru, PolicyKind::Arc] {
        let (cache, namespace) = cache(4, policy);
        store(&cache, &namespace, None, &[1, 2]);
        store(&cache, &namespace, Some(2), &[3, 4]);
        store(&cache, &namespace, None, &[10]);
        assert!(!has(&cache, &namespace, 4), "{policy:?}");
        store(&cache, &namespace, None, &[11]);
        assert!(!has(&cache, &namespace, 3), "{policy:?}");
        assert!(
            has(&cache, &namespace, 1) && has(&cache, &namespace, 2),
            "{policy:?}"
        );
    }
}

#[test]
fn a_large_block_takes_the_place_of_several_small_neighbours() {
    let (cache, small) = cache(8, PolicyKind::Lru);
    let large = namespace("large", 3 * 8192 + 4096);
    cache.open_namespace(&large).unwrap();
    store(&cache, &small, None, &[1, 2, 3, 4, 5, 6, 7, 8]);
    store(&cache, &large, None, &[100]);
    assert!(has(&cache, &large, 100));
    let left = (1..=8).filter(|number| has(&cache, &small, *number)).count();
    assert!((3..=4).contains(&left), "{left} small blocks left");
    let too_large = namespace("giant", 9 * 8192);
    cache.open_namespace(&too_large).unwrap();
    let refused = cache
        .allocate(&too_large, None, &[hash(1)])
        .pop()
        .unwrap()
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::TooLarge);
}

#[test]
fn a_tenant_over_its_quota_evicts_its_own_blocks() {
    let mut settings = QuotaSettings::default();
    settings.tenants.insert("small".into(), 2 * IMAGE_BYTES);
    let quotas = Arc::new(QuotaLedger::new(settings));
    let cache = CacheTier::open(
        CacheSettings {
            capacity_bytes: 1 << 20,
            ..CacheSettings::default()
        },
        Some(quotas),
    )
    .unwrap();
    let (bounded, free) = (namespace("small", 4096), namespace("free", 4096));
    cache.open_namespace(&bounded).unwrap();
    cache.open_namespace(&free).unwrap();
    store(&cache, &free, None, &[1, 2, 3, 4]);
    for number in 1..=5 {
        store(&cache, &bounded, None, &[number]);
    }
    assert_eq!((1..=5).filter(|number| has(&cache, &bounded, *number)).count(), 2);
    assert_eq!((1..=4).filter(|number| has(&cache, &free, *number)).count(), 4);
    let pinned = cache.pin(&bounded, &[hash(4), hash(5)]);
    let refused = cache
        .allocate(&bounded, None, &[hash(6)])
        .pop()
        .unwrap()
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::QuotaExceeded);
    drop(pinned);
}

#[test]
fn purge_and_remove_drop_blocks_and_free_their_bytes() {
    let (cache, namespace) = cache(16, PolicyKind::Arc);
    store(&cache, &namespace, None, &(0..16).collect::<Vec<_>>());
    assert_eq!(cache.remove(&namespace, &[hash(3), hash(99)]), 1);
    let pinned = cache.pin(&namespace, &[hash(5)]);
    assert_eq!(cache.purge(&namespace.namespace).unwrap(), 15);
    assert_eq!(cache.statistics().blocks, 0);
    assert_eq!(
        cache.state.lock().used_bytes(),
        IMAGE_BYTES,
        "a pinned slot stays until its guard goes"
    );
    drop(pinned);
    assert_eq!(cache.state.lock().used_bytes(), 0);
}

#[test]
fn a_staging_area_keeps_nothing() {
    let settings = CacheSettings {
        capacity_bytes: 1 << 20,
        keep: false,
        shared: false,
        ..CacheSettings::default()
    };
    let cache = CacheTier::open(settings, None).unwrap();
    let namespace = namespace("", 4096);
    cache.open_namespace(&namespace).unwrap();
    store(&cache, &namespace, None, &[1]);
    assert!(!has(&cache, &namespace, 1));
    assert_eq!(cache.state.lock().used_bytes(), 0);
}

#[test]
fn many_threads_leave_the_books_balanced() {
    let (cache, namespace) = cache(32, PolicyKind::S3Fifo);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (cache, namespace) = (&cache, &namespace);
            scope.spawn(move || {
                for step in 0..500u64 {
                    let number = (thread * 7 + step * 13) % 60;
                    let pinned = cache.pin(namespace, &[hash(number), hash(number + 1)]);
                    for slot in cache
                        .allocate(namespace, None, &[hash(number)])
                        .into_iter()
                        .flatten()
                    {
                        if step % 5 == 0 {
                            cache.discard(&slot);
                        } else {
                            cache.publish(&slot);
                        }
                    }
                    drop(pinned);
                    if step % 50 == 0 {
                        cache.remove(namespace, &[hash(number)]);
                    }
                }
            });
        }
    });
    let statistics = cache.statistics();
    assert_eq!(cache.state.lock().used_bytes(), statistics.blocks * IMAGE_BYTES);
    cache.purge(&namespace.namespace).unwrap();
    assert_eq!(cache.state.lock().used_bytes(), 0);
}

#[test]
fn a_linkable_arena_is_a_file_without_a_name_that_can_get_one() {
    let settings = CacheSettings {
        capacity_bytes: 4 << 20,
        linkable: true,
        ..CacheSettings::default()
    };
    let cache = CacheTier::open(settings, None).unwrap();
    let arena = cache.arena();
    let file = arena.file().expect("shared memory has a file");
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let lies = std::fs::read_link(&path).unwrap();
    if lies.parent() != Some(std::path::Path::new("/dev/shm")) {
        eprintln!("SKIPPED: no room in /dev/shm, the arena is {}", lies.display());
        return;
    }
    arena.write(8192, b"here").unwrap();
    let name = format!("/dev/shm/kvstored-test-{}-{}", std::process::id(), arena.id());
    rustix::fs::linkat(CWD, &path, CWD, &name, AtFlags::SYMLINK_FOLLOW).unwrap();
    let bytes = std::fs::read(&name);
    std::fs::remove_file(&name).unwrap();
    assert_eq!(bytes.unwrap().get(8192..8196), Some(&b"here"[..]));
}
