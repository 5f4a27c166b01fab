//! The in-memory index of a tier.
#![allow(missing_docs)] // the macros of criterion
#![allow(clippy::unwrap_used)] // inputs are made here

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use kvstored_core::BlockHash;
use kvstored_core::index::BlockIndex;
use kvstored_core::runtime::{Random, SystemRandom};

/// Enough to be far larger than a processor's caches.
const BLOCKS: usize = 500_000;
/// A million tokens in blocks of 128.
const PROMPT_BLOCKS: usize = 8192;

fn hashes(seed: u64, count: usize) -> Vec<BlockHash> {
    let random = SystemRandom::seeded(seed);
    let hash = || {
        let words = [
            random.next_u64(),
            random.next_u64(),
            random.next_u64(),
            random.next_u64(),
        ];
        BlockHash::new(&words.map(u64::to_le_bytes).concat()).unwrap()
    };
    std::iter::repeat_with(hash).take(count).collect()
}

fn lookups(criterion: &mut Criterion) {
    let known = hashes(1, BLOCKS);
    let mut index = BlockIndex::new();
    for (number, hash) in known.iter().enumerate() {
        index.insert(*hash, [number as u32; 3]);
    }
    let random = SystemRandom::seeded(2);
    let prompt: Vec<BlockHash> = std::iter::repeat_with(|| random.next_u64() as usize % BLOCKS)
        .filter_map(|place| known.get(place).copied())
        .take(PROMPT_BLOCKS)
        .collect();
    let absent = hashes(3, PROMPT_BLOCKS);
    let mut group = criterion.benchmark_group("index");
    group.throughput(Throughput::Elements(PROMPT_BLOCKS as u64));
    group.bench_function("lookup on prefix, all present", |bencher| {
        bencher.iter(|| index.lookup_on_prefix(black_box(&prompt)));
    });
    group.bench_function("lookup, all absent", |bencher| {
        let mut present = vec![false; PROMPT_BLOCKS];
        bencher.iter(|| index.lookup(black_box(&absent), &mut present));
    });
    group.bench_function("get one by one", |bencher| {
        bencher.iter(|| prompt.iter().filter(|hash| index.get(hash).is_some()).count());
    });
    group.bench_function("insert into an empty index", |bencher| {
        bencher.iter_batched_ref(
            BlockIndex::new,
            |index| {
                for hash in &absent {
                    index.insert(*hash, [0u32; 3]);
                }
            },
            BatchSize::LargeInput,
        );
    });
    group.finish();
}

criterion_group!(benches, lookups);
criterion_main!(benches);
