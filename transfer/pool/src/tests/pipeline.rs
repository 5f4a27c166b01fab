//! The tier in pipelines, below a real cache and above real storage.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use kvstored_backends::cache::{CacheSettings, CacheTier};
use kvstored_backends::posix::{PosixSettings, PosixTier};
use kvstored_core::engine::{Engine, EngineSettings, Reserved};
use kvstored_core::{
    Acquired, BlockHash, Durability, Identity, Layout, NamespaceInfo, Result, Runtime, Tier,
};

use super::{FakeMaster, Member, eventually, pattern, soon};
use crate::{PoolTier, TierSettings};

const SHARDS: usize = 3;
const SHARD_BYTES: usize = 4096;

/// A node with a pipeline.
struct Host {
    engine: Arc<Engine>,
    pool: Arc<PoolTier>,
    posix: Option<Arc<PosixTier>>,
    namespace: Arc<NamespaceInfo>,
    _member: Member,
}

impl Host {
    fn new(master: &Arc<FakeMaster>, storage: Option<&Path>) -> Self {
        let member = Member::new(master, 4 << 20);
        let runtime = Runtime::system();
        let settings = CacheSettings {
            capacity_bytes: 1 << 20,
            shared: false,
            ..CacheSettings::default()
        };
        let cache = CacheTier::open(settings, None).unwrap();
        let settings = TierSettings {
            feed_interval: Duration::from_millis(10),
            ..TierSettings::default()
        };
        let pool = PoolTier::start(&settings, member.client.clone(), &runtime).unwrap();
        let posix = storage.map(|directory| {
            let settings = PosixSettings {
                directories: vec![directory.to_owned()],
                capacity_bytes: 64 << 20,
                ..PosixSettings::default()
            };
            PosixTier::open(settings, runtime.clone(), None).unwrap()
        });
        let mut lower: Vec<Arc<dyn Tier>> = vec![pool.clone()];
        lower.extend(posix.clone().map(|posix| posix as Arc<dyn Tier>));
        let engine = Engine::new(EngineSettings::default(), runtime, cache, true, lower);
        let layout = Layout::uniform(SHARDS, 1, SHARD_BYTES as u32).unwrap();
        let namespace = engine.open_namespace(Identity::default(), layout).unwrap();
        Self {
            engine,
            pool,
            posix,
            namespace,
            _member: member,
        }
    }

    fn dump(&self, number: u64) -> Result<Durability> {
        let (sender, receiver) = channel();
        let done = Box::new(move |outcomes| sender.send(outcomes).unwrap());
        self.engine
            .reserve(&self.namespace, None, &[hash(number)], soon(), done);
        let mut outcomes: Vec<Reserved> = receiver.recv_timeout(Duration::from_secs(20)).unwrap();
        let Some(Reserved::Slot(reservation)) = outcomes.pop() else {
            panic!("no slot")
        };
        for shard in 0..SHARDS {
            let bytes = pattern(number * 10 + shard as u64, SHARD_BYTES);
            let slot = reservation.slot();
            let offset = slot.offset() + self.namespace.layout.shard_offset(shard).unwrap();
            slot.arena().write(offset, &bytes).unwrap();
            let sum = kvstored_core::checksum::checksum(&bytes);
            reservation.put_shard(shard, sum).unwrap();
        }
        let (sender, receiver) = channel();
        let done = Box::new(move |outcome| sender.send(outcome).unwrap());
        self.engine.commit(*reservation, Durability::Tier, done);
        receiver.recv_timeout(Duration::from_secs(20)).unwrap()
    }

    /// The tier that had it.
    fn load(&self, number: u64) -> Result<usize> {
        let (sender, receiver) = channel();
        let done = Box::new(move |outcomes| sender.send(outcomes).unwrap());
        self.engine.acquire(&self.namespace, &[hash(number)], done);
        let mut outcomes: Vec<Result<Acquired>> = receiver.recv_timeout(Duration::from_secs(20)).unwrap();
        let found = outcomes.remove(0)?;
        for shard in 0..SHARDS {
            let mut bytes = vec![0; SHARD_BYTES];
            let offset = found.slot.offset() + self.namespace.layout.shard_offset(shard).unwrap();
            found.slot.arena().read(offset, &mut bytes).unwrap();
            assert!(
                bytes == pattern(number * 10 + shard as u64, SHARD_BYTES),
                "block {number}"
            );
        }
        Ok(found.tier)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.engine.shutdown();
    }
}

fn hash(number: u64) -> BlockHash {
    let mut bytes = [3u8; 16];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    BlockHash::new(&bytes).unwrap()
}

fn has(tier: &dyn Tier, namespace: &NamespaceInfo, number: u64) -> bool {
    let mut present = [false];
    tier.lookup(namespace, &[hash(number)], &mut present);
    present[0]
}

fn master() -> Arc<FakeMaster> {
    Arc::new(FakeMaster::new(Duration::from_secs(2)))
}

#[test]
fn a_dump_is_acknowledged_by_the_tier_that_outlives_the_process() {
    let directory = tempfile::tempdir().unwrap();
    let host = Host::new(&master(), Some(directory.path()));
    for number in 0..10 {
        assert_eq!(host.dump(number).unwrap(), Durability::Tier);
        assert!(has(&**host.posix.as_ref().unwrap(), &host.namespace, number));
        assert!(has(&*host.pool, &host.namespace, number));
    }
}

#[test]
fn without_storage_below_it_says_that_the_block_is_only_in_memory() {
    let host = Host::new(&master(), None);
    assert_eq!(host.dump(1).unwrap(), Durability::Memory);
}

#[test]
fn a_pool_that_is_away_keeps_no_dump_from_storage() {
    let directory = tempfile::tempdir().unwrap();
    let master = master();
    let host = Host::new(&master, Some(directory.path()));
    master.set_away(true);
    assert_eq!(host.dump(1).unwrap(), Durability::Tier);
    assert!(!has(&*host.pool, &host.namespace, 1));
    assert!(host.pool.statistics().degraded);
    master.set_away(false);
    assert_eq!(host.dump(2).unwrap(), Durability::Tier);
    assert!(has(&*host.pool, &host.namespace, 2));
    assert!(!host.pool.statistics().degraded);
}

#[test]
fn another_host_loads_through_the_pool_and_keeps_it_in_its_cache() {
    let master = master();
    let (one, two) = (Host::new(&master, None), Host::new(&master, None));
    for number in 0..10 {
        one.dump(number).unwrap();
    }
    eventually("the index", || {
        (0..10).all(|number| has(&*two.pool, &two.namespace, number))
    });
    for number in 0..10 {
        assert_eq!(two.load(number).unwrap(), 1, "from the pool");
        assert_eq!(two.load(number).unwrap(), 0, "from the cache");
    }
}
