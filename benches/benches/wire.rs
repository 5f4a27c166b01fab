//! Control messages between client and daemon.
#![allow(missing_docs)] // the macros of criterion
#![allow(clippy::unwrap_used)] // inputs are made here

use std::borrow::Cow;
use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kvstored_client::wire::{Answer, FrameBuffer, Held, Request, answer_frame, request_frame};
use kvstored_core::BlockHash;

fn hashes(count: usize) -> Vec<BlockHash> {
    (0..count as u64)
        .map(|number| BlockHash::new(&[number.to_le_bytes(); 4].concat()).unwrap())
        .collect()
}

/// Passes a frame's bytes through a buffer, as a connection does.
fn receive<T>(frame: &[u8], buffer: &mut FrameBuffer, decode: impl Fn(u8, &[u8]) -> T) -> T {
    let mut left = frame;
    while !left.is_empty() {
        let space = buffer.space();
        let count = space.len().min(left.len());
        let (now, later) = left.split_at(count);
        space[..count].copy_from_slice(now);
        buffer.filled(count);
        left = later;
    }
    let (header, body) = buffer.next_frame().unwrap().unwrap();
    decode(header.kind, body)
}

fn messages(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("wire");
    for blocks in [1, 64, 8192] {
        group.throughput(Throughput::Elements(blocks as u64));
        let request = Request::LookupOnPrefix {
            namespace: 0,
            hashes: Cow::Owned(hashes(blocks)),
        };
        let frame = request_frame(1, &request).unwrap();
        group.bench_function(BenchmarkId::new("encode a lookup", blocks), |bencher| {
            bencher.iter(|| request_frame(1, black_box(&request)).unwrap());
        });
        let mut buffer = FrameBuffer::default();
        group.bench_function(BenchmarkId::new("receive a lookup", blocks), |bencher| {
            bencher.iter(|| {
                receive(&frame, &mut buffer, |kind, body| {
                    Request::decode(kind, body).unwrap()
                })
            });
        });
        let held = (0..blocks as u64).map(|lease| {
            Ok(Held {
                lease,
                offset: lease << 16,
                tier: 0,
            })
        });
        let answer = Answer::Acquired(held.collect());
        let frame = answer_frame(1, &answer).unwrap();
        group.bench_function(BenchmarkId::new("encode leases", blocks), |bencher| {
            bencher.iter(|| answer_frame(1, black_box(&answer)).unwrap());
        });
        group.bench_function(BenchmarkId::new("receive leases", blocks), |bencher| {
            bencher.iter(|| {
                receive(&frame, &mut buffer, |kind, body| {
                    Answer::decode(kind, body).unwrap()
                })
            });
        });
    }
    let ping = request_frame(1, &Request::Ping).unwrap();
    let mut buffer = FrameBuffer::default();
    group.throughput(Throughput::Elements(1));
    group.bench_function("encode a ping", |bencher| {
        bencher.iter(|| request_frame(1, black_box(&Request::Ping)).unwrap());
    });
    group.bench_function("receive a ping", |bencher| {
        bencher.iter(|| {
            receive(&ping, &mut buffer, |kind, body| {
                Request::decode(kind, body).unwrap()
            })
        });
    });
    group.finish();
}

criterion_group!(benches, messages);
criterion_main!(benches);
