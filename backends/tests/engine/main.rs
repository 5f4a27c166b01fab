//! The engine over the cache tier and a scripted tier below it.
#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests

mod scripted;

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use kvstored_backends::cache::{CacheSettings, CacheTier};
use kvstored_core::engine::{Engine, EngineSettings, Reservation, Reserved};
use kvstored_core::{
    Acquired, BlockHash, Durability, Error, ErrorKind, Identity, Layout, NamespaceInfo, Result, Runtime,
};
use scripted::ScriptedTier;

const SHARDS: usize = 3;
const TENSOR_BYTES: u32 = 4096;
const IMAGE_BYTES: u64 = 4096 * (1 + SHARDS as u64);

struct Bed {
    engine: Arc<Engine>,
    tier: Arc<ScriptedTier>,
    namespace: Arc<NamespaceInfo>,
}

fn bed(blocks: u64, keep: bool) -> Bed {
    let table_bytes = (64 << 10) + blocks * 1024;
    let settings = CacheSettings {
        capacity_bytes: blocks * IMAGE_BYTES + table_bytes,
        table_bytes: Some(table_bytes),
        keep,
        shared: false,
        ..CacheSettings::default()
    };
    let cache = CacheTier::open(settings, None).unwrap();
    let tier = ScriptedTier::new();
    let engine = Engine::new(
        EngineSettings::default(),
        Runtime::system(),
        cache,
        keep,
        vec![tier.clone()],
    );
    let layout = Layout::uniform(SHARDS, 1, TENSOR_BYTES).unwrap();
    let namespace = engine.open_namespace(Identity::default(), layout).unwrap();
    Bed {
        engine,
        tier,
        namespace,
    }
}

fn hash(number: u64) -> BlockHash {
    let mut bytes = [0u8; 16];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    BlockHash::new(&bytes).unwrap()
}

impl Bed {
    fn reserve_until(&self, numbers: &[u64], wait: Duration) -> Vec<Reserved> {
        let hashes: Vec<_> = numbers.iter().map(|number| hash(*number)).collect();
        let (sender, receiver) = channel();
        let until = self.engine.runtime().deadline(wait);
        let done = Box::new(move |outcomes| sender.send(outcomes).unwrap());
        self.engine.reserve(&self.namespace, None, &hashes, until, done);
        receiver.recv_timeout(Duration::from_secs(10)).unwrap()
    }

    fn reservation(&self, number: u64) -> Reservation {
        match self.reserve_until(&[number], Duration::ZERO).pop().unwrap() {
            Reserved::Slot(reservation) => *reservation,
            Reserved::Present => panic!("present"),
            Reserved::Refused(error) => panic!("{error}"),
        }
    }

    fn fill(&self, reservation: &Reservation, shards: &[usize]) {
        for shard in shards {
            let bytes = vec![*shard as u8 + 1; TENSOR_BYTES as usize];
            let offset = reservation.slot().offset() + self.namespace.layout.shard_offset(*shard).unwrap();
            reservation.slot().arena().write(offset, &bytes).unwrap();
            reservation
                .put_shard(*shard, kvstored_core::checksum::checksum(&bytes))
                .unwrap();
        }
    }

    fn commit(&self, reservation: Reservation, durability: Durability) -> Result<Durability> {
        let (sender, receiver) = channel();
        self.engine.commit(
            reservation,
            durability,
            Box::new(move |result| sender.send(result).unwrap()),
        );
        receiver.recv_timeout(Duration::from_secs(10)).unwrap()
    }

    fn dump(&self, number: u64) {
        let reservation = self.reservation(number);
        self.fill(&reservation, &[2, 0, 1]);
        assert_eq!(
            self.commit(reservation, Durability::Tier).unwrap(),
            Durability::Tier
        );
    }

    fn acquire(&self, numbers: &[u64]) -> Vec<Result<Acquired>> {
        let hashes: Vec<_> = numbers.iter().map(|number| hash(*number)).collect();
        let (sender, receiver) = channel();
        self.engine.acquire(
            &self.namespace,
            &hashes,
            Box::new(move |outcomes| sender.send(outcomes).unwrap()),
        );
        receiver.recv_timeout(Duration::from_secs(10)).unwrap()
    }

    fn has(&self, number: u64) -> bool {
        let mut present = [false];
        self.engine.lookup(&self.namespace, &[hash(number)], &mut present);
        present[0]
    }
}

#[test]
fn a_block_is_absent_or_whole_whatever_the_order_of_its_shards() {
    let bed = bed(8, true);
    let reservation = bed.reservation(1);
    bed.fill(&reservation, &[2, 0]);
    assert!(!bed.has(1));
    let error = bed.commit(reservation, Durability::Memory).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.to_string().contains("1 of 3 shards missing"), "{error}");
    assert!(!bed.has(1), "a failed commit leaves no trace");
    bed.dump(1);
    assert!(bed.has(1));
}

#[test]
fn a_shard_outside_the_layout_or_twice_is_refused() {
    let bed = bed(8, true);
    let reservation = bed.reservation(1);
    assert_eq!(
        reservation.put_shard(3, 0).unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
    assert!(!reservation.put_shard(1, 5).unwrap());
    assert_eq!(
        reservation.put_shard(1, 5).unwrap_err().kind(),
        ErrorKind::AlreadyExists
    );
}

#[test]
fn a_dropped_reservation_leaves_no_trace() {
    let bed = bed(2, true);
    for _ in 0..5 {
        let first = bed.reservation(1);
        let second = bed.reservation(2);
        bed.fill(&first, &[0, 1, 2]);
        drop((first, second));
    }
    assert!(!bed.has(1));
}

#[test]
fn present_blocks_are_not_written_again() {
    let bed = bed(8, true);
    bed.dump(1);
    assert!(matches!(
        bed.reserve_until(&[1], Duration::ZERO)[..],
        [Reserved::Present]
    ));
    assert_eq!(bed.tier.writes(), 1);
    let held = bed.reservation(2);
    assert!(
        matches!(bed.reserve_until(&[2], Duration::ZERO)[..], [Reserved::Present]),
        "one dump at a time"
    );
    drop(held);
}

#[test]
fn a_block_evicted_from_memory_comes_back_from_the_tier_below() {
    let bed = bed(2, true);
    for number in 1..=4 {
        bed.dump(number);
    }
    let outcomes = bed.acquire(&[1, 2]);
    for outcome in &outcomes {
        let acquired = outcome.as_ref().unwrap();
        assert_eq!(acquired.tier, 1);
        let mut bytes = [0u8; 8];
        let offset = acquired.slot.offset() + bed.namespace.layout.shard_offset(1).unwrap();
        acquired.slot.arena().read(offset, &mut bytes).unwrap();
        assert_eq!(bytes, [2; 8]);
    }
    drop(outcomes);
    assert_eq!(
        bed.acquire(&[1])[0].as_ref().unwrap().tier,
        0,
        "a hit below is promoted"
    );
    let statistics = bed.engine.statistics();
    assert_eq!(statistics.tiers[1].counts.hits, 2);
    assert_eq!(statistics.tiers[0].counts.hits, 1);
}

#[test]
fn one_read_serves_all_who_ask() {
    let bed = bed(2, true);
    for number in 1..=3 {
        bed.dump(number);
    }
    bed.engine
        .evict(&bed.namespace, &[hash(1)], Some("Cache"))
        .unwrap();
    bed.tier.hold(true);
    let (sender, receiver) = channel();
    for _ in 0..3 {
        let sender = sender.clone();
        bed.engine.acquire(
            &bed.namespace,
            &[hash(1)],
            Box::new(move |outcomes| sender.send(outcomes).unwrap()),
        );
    }
    bed.tier.hold(false);
    for _ in 0..3 {
        let outcome = receiver
            .recv_timeout(Duration::from_secs(10))
            .unwrap()
            .pop()
            .unwrap();
        assert_eq!(outcome.unwrap().tier, 1);
    }
    assert_eq!(bed.tier.reads(), 1);
}

#[test]
fn a_failed_read_is_a_miss_and_leaves_no_trace() {
    let bed = bed(2, true);
    for number in 1..=3 {
        bed.dump(number);
    }
    bed.engine
        .evict(&bed.namespace, &[hash(1)], Some("Cache"))
        .unwrap();
    bed.tier.fail_reads(Some(Error::new(ErrorKind::Io, "scripted")));
    assert_eq!(bed.acquire(&[1])[0].as_ref().unwrap_err().kind(), ErrorKind::Io);
    bed.tier.fail_reads(None);
    assert_eq!(bed.acquire(&[1])[0].as_ref().unwrap().tier, 1);
}

#[test]
fn a_full_buffer_refuses_at_once_or_waits_until_the_deadline() {
    let bed = bed(2, true);
    let held = [bed.reservation(1), bed.reservation(2)];
    let refused = bed.reserve_until(&[3], Duration::ZERO).pop().unwrap();
    assert!(matches!(refused, Reserved::Refused(error) if error.kind() == ErrorKind::Busy));
    let (sender, receiver) = channel();
    let until = bed.engine.runtime().deadline(Duration::from_secs(10));
    let done = Box::new(move |outcomes| sender.send(outcomes).unwrap());
    bed.engine.reserve(&bed.namespace, None, &[hash(3)], until, done);
    assert!(receiver.try_recv().is_err(), "it waits");
    drop(held);
    let outcomes: Vec<Reserved> = receiver.recv_timeout(Duration::from_secs(10)).unwrap();
    assert!(matches!(outcomes[..], [Reserved::Slot(_)]));
}

#[test]
fn an_expired_wait_is_refused_by_the_sweep() {
    let bed = bed(1, true);
    let held = bed.reservation(1);
    let (sender, receiver) = channel();
    let until = bed.engine.runtime().deadline(Duration::from_millis(1));
    let done = Box::new(move |outcomes| sender.send(outcomes).unwrap());
    bed.engine.reserve(&bed.namespace, None, &[hash(2)], until, done);
    let mut outcome = None;
    for _ in 0..200 {
        bed.engine.expire_parked();
        outcome = receiver.recv_timeout(Duration::from_millis(5)).ok();
        if outcome.is_some() {
            break;
        }
    }
    let outcomes: Vec<Reserved> = outcome.unwrap();
    assert!(matches!(&outcomes[..], [Reserved::Refused(error)] if error.kind() == ErrorKind::Busy));
    drop(held);
}

#[test]
fn blocks_being_written_are_not_evicted_and_a_full_disk_is_reported() {
    let bed = bed(2, true);
    bed.tier.hold(true);
    for number in [1, 2] {
        let reservation = bed.reservation(number);
        bed.fill(&reservation, &[0, 1, 2]);
        assert_eq!(
            bed.commit(reservation, Durability::Memory).unwrap(),
            Durability::Memory
        );
    }
    assert!(matches!(
        bed.reserve_until(&[3], Duration::ZERO)[..],
        [Reserved::Refused(_)]
    ));
    bed.tier.hold(false);
    bed.dump(3);
    bed.tier
        .fail_writes(Some(Error::new(ErrorKind::NoSpace, "scripted")));
    let reservation = bed.reservation(4);
    bed.fill(&reservation, &[0, 1, 2]);
    let error = bed.commit(reservation, Durability::Tier).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert!(error.to_string().contains("tier=Scripted"), "{error}");
    assert!(bed.has(4), "it's still in memory");
}

#[test]
fn without_a_cache_nothing_stays_in_memory() {
    let bed = bed(2, false);
    for number in 1..=5 {
        bed.dump(number);
    }
    for _ in 0..2 {
        assert_eq!(bed.acquire(&[3])[0].as_ref().unwrap().tier, 1);
    }
    assert_eq!(bed.tier.reads(), 2);
}

#[test]
fn a_corrupt_block_is_dropped_everywhere_it_is_bad() {
    let bed = bed(2, true);
    bed.dump(1);
    bed.tier.flip_byte(hash(1));
    bed.engine
        .evict(&bed.namespace, &[hash(1)], Some("Cache"))
        .unwrap();
    let acquired = bed.acquire(&[1]).pop().unwrap().unwrap();
    bed.engine.report_corrupt(&bed.namespace, hash(1), &acquired.slot);
    drop(acquired);
    assert!(!bed.has(1));
    assert_eq!(
        bed.acquire(&[1])[0].as_ref().unwrap_err().kind(),
        ErrorKind::NotFound
    );
}

#[test]
fn evict_names_the_tiers_it_knows() {
    let bed = bed(2, true);
    bed.dump(1);
    let error = bed
        .engine
        .evict(&bed.namespace, &[hash(1)], Some("Posix"))
        .unwrap_err();
    assert!(error.to_string().contains("Cache, Scripted"), "{error}");
    assert_eq!(bed.engine.evict(&bed.namespace, &[hash(1)], None).unwrap(), 2);
    bed.dump(2);
    assert_eq!(bed.engine.purge(&bed.namespace.namespace).unwrap(), 2);
    assert!(!bed.has(2));
}

#[test]
fn a_block_larger_than_memory_is_refused_when_its_namespace_is_opened() {
    let bed = bed(2, true);
    let error = bed
        .engine
        .open_namespace(Identity::default(), Layout::uniform(9, 1, 4096).unwrap())
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
}
