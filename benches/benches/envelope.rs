//! Descriptor pages.
#![allow(missing_docs)] // the macros of criterion
#![allow(clippy::unwrap_used)] // inputs are made here

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use kvstored_core::{BlockHash, BlockKey, Envelope, Layout, Namespace};

fn pages(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("envelope");
    for shards in [1, 94, Layout::MAX_SHARDS] {
        let layout = Layout::uniform(shards, 2, 4096).unwrap();
        let key = BlockKey {
            namespace: Namespace([3; 32]),
            hash: BlockHash::new(&[9; 32]).unwrap(),
        };
        let checksums: Vec<u64> = (0..shards as u64)
            .map(|shard| shard.wrapping_mul(0x9E37_79B9))
            .collect();
        let envelope = Envelope::new(key, &layout, 7, 1_700_000_000_000, checksums);
        let page = envelope.encode().unwrap();
        group.bench_function(BenchmarkId::new("encode", shards), |bencher| {
            bencher.iter(|| black_box(&envelope).encode().unwrap());
        });
        group.bench_function(BenchmarkId::new("decode and expect", shards), |bencher| {
            bencher.iter(|| {
                let decoded = Envelope::decode(black_box(&page[..])).unwrap();
                decoded.expect(&key, &layout).unwrap();
                decoded
            });
        });
    }
    group.finish();
}

criterion_group!(benches, pages);
criterion_main!(benches);
