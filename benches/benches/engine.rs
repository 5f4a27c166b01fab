//! The engine over the cache tier: what a request costs beside copying its bytes.
#![allow(missing_docs)] // the macros of criterion
#![allow(clippy::unwrap_used)] // inputs are made here

use std::sync::Arc;
use std::sync::mpsc::channel;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kvstored_backends::cache::{CacheSettings, CacheTier};
use kvstored_core::{
    BlockHash, Durability, Engine, EngineSettings, Identity, Layout, NamespaceInfo, Reserved, Runtime,
};

const BLOCK_BYTES: u32 = 64 << 10;
const CAPACITY_BYTES: u64 = 256 << 20;

struct Fixture {
    engine: Arc<Engine>,
    namespace: Arc<NamespaceInfo>,
    next: u64,
}

impl Fixture {
    fn new() -> Self {
        let runtime = Runtime::system();
        let settings = CacheSettings {
            capacity_bytes: CAPACITY_BYTES,
            ..CacheSettings::default()
        };
        let memory = CacheTier::open(settings, None).unwrap();
        let engine = Engine::new(EngineSettings::default(), runtime, memory, true, Vec::new());
        let layout = Layout::uniform(1, 1, BLOCK_BYTES).unwrap();
        let namespace = engine.open_namespace(Identity::default(), layout).unwrap();
        Self {
            engine,
            namespace,
            next: 0,
        }
    }

    /// Hashes that were never used before.
    fn fresh(&mut self, blocks: usize) -> Vec<BlockHash> {
        let hash = |number: u64| {
            let words = [1u64, 2, 3, 4]
                .map(|lane| (number + lane).wrapping_mul(0x9E37_79B9_7F4A_7C15 ^ (lane << 32)));
            BlockHash::new(&words.map(u64::to_le_bytes).concat()).unwrap()
        };
        let first = self.next;
        self.next += blocks as u64;
        (first..self.next).map(|number| hash(number * 8)).collect()
    }

    /// Reserves and commits blocks without filling them: the checksums are made up.
    fn store(&self, hashes: &[BlockHash]) {
        let (slots, reserved) = channel();
        let now = self.engine.runtime().clock.now();
        let done = move |outcomes: Vec<Reserved>| slots.send(outcomes).unwrap();
        self.engine
            .reserve(&self.namespace, None, hashes, now, Box::new(done));
        for outcome in reserved.recv().unwrap() {
            let Reserved::Slot(reservation) = outcome else {
                continue;
            };
            reservation.put_shard(0, 7).unwrap();
            self.engine
                .commit(*reservation, Durability::Memory, Box::new(drop));
        }
    }
}

fn requests(criterion: &mut Criterion) {
    let mut fixture = Fixture::new();
    let mut group = criterion.benchmark_group("engine");
    for blocks in [1, 64, 1024] {
        let present = fixture.fresh(blocks);
        fixture.store(&present);
        group.throughput(Throughput::Elements(blocks as u64));
        group.bench_function(BenchmarkId::new("lookup on prefix", blocks), |bencher| {
            bencher.iter(|| fixture.engine.lookup_on_prefix(&fixture.namespace, &present));
        });
        group.bench_function(BenchmarkId::new("acquire and release", blocks), |bencher| {
            bencher.iter(|| {
                fixture
                    .engine
                    .acquire(&fixture.namespace, &present, Box::new(drop));
            });
        });
    }
    for blocks in [1, 64] {
        group.throughput(Throughput::Elements(blocks as u64));
        let next = std::cell::RefCell::new(Fixture::new());
        group.bench_function(BenchmarkId::new("reserve, commit and evict", blocks), |bencher| {
            bencher.iter_batched(
                || next.borrow_mut().fresh(blocks),
                |hashes| next.borrow().store(&hashes),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, requests);
criterion_main!(benches);
