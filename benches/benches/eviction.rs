//! What a request costs each eviction policy, hits and evictions mixed.
#![allow(missing_docs)] // the macros of criterion

use std::collections::HashMap;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kvstored_core::eviction::{EvictionPolicy, PolicyKind};
use kvstored_core::runtime::{Random, SystemRandom};

const CAPACITY_BLOCKS: usize = 10_000;
const REQUESTS: usize = 20_000;
/// Blocks in all, of which a few are asked for often.
const UNIVERSE: f64 = 200_000.0;

struct Cache {
    policy: Box<dyn EvictionPolicy>,
    slots: HashMap<u64, u32>,
    blocks: Vec<u64>,
}

impl Cache {
    fn new(kind: PolicyKind) -> Self {
        let mut policy = kind.build();
        policy.set_capacity(CAPACITY_BLOCKS);
        Self {
            policy,
            slots: HashMap::with_capacity(CAPACITY_BLOCKS),
            blocks: Vec::new(),
        }
    }

    fn request(&mut self, block: u64) {
        if let Some(slot) = self.slots.get(&block) {
            self.policy.hit(*slot);
            return;
        }
        let slot = if self.blocks.len() < CAPACITY_BLOCKS {
            self.blocks.push(block);
            self.blocks.len() as u32 - 1
        } else {
            let Some(slot) = self.policy.evict(&mut |_| true) else {
                return;
            };
            if let Some(held) = self.blocks.get_mut(slot as usize) {
                self.slots.remove(held);
                *held = block;
            }
            slot
        };
        self.slots.insert(block, slot);
        self.policy
            .insert(slot, block.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    }
}

/// Block numbers of which small ones come often, as the cube of a uniform number.
fn requests(seed: u64) -> Vec<u64> {
    let random = SystemRandom::seeded(seed);
    let uniform = || (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
    std::iter::repeat_with(|| (uniform().powi(3) * UNIVERSE) as u64)
        .take(REQUESTS)
        .collect()
}

fn policies(criterion: &mut Criterion) {
    let requests = requests(5);
    let mut group = criterion.benchmark_group("eviction");
    group.throughput(Throughput::Elements(REQUESTS as u64));
    for kind in PolicyKind::ALL {
        let mut cache = Cache::new(kind);
        for block in &requests {
            cache.request(*block);
        }
        group.bench_function(BenchmarkId::from_parameter(kind.name()), |bencher| {
            bencher.iter(|| requests.iter().for_each(|block| cache.request(*block)));
        });
    }
    group.finish();
}

criterion_group!(benches, policies);
criterion_main!(benches);
