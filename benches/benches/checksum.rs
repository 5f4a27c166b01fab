//! Checksums, alone and while copying, beside a plain copy.
#![allow(missing_docs)] // the macros of criterion

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kvstored_core::checksum::{Checksum, checksum};

/// A tensor of a small model, one of a large one, and more than any processor's cache holds.
const SIZES: [usize; 3] = [32 << 10, 1 << 20, 128 << 20];

fn copies(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("copy");
    group.sample_size(20);
    for bytes in SIZES {
        let source = vec![0x5Au8; bytes];
        let mut destination = vec![0u8; bytes];
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(BenchmarkId::new("memcpy", bytes), |bencher| {
            bencher.iter(|| black_box(&mut destination).copy_from_slice(black_box(&source)));
        });
        group.bench_function(BenchmarkId::new("with checksum", bytes), |bencher| {
            bencher.iter(|| {
                let mut running = Checksum::new();
                running.copy(black_box(&mut destination), black_box(&source));
                running.value()
            });
        });
        group.bench_function(BenchmarkId::new("checksum alone", bytes), |bencher| {
            bencher.iter(|| checksum(black_box(&source)));
        });
    }
    group.finish();
}

criterion_group!(benches, copies);
criterion_main!(benches);
