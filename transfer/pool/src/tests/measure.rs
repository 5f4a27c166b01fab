//! Figures, for whoever wants them: `cargo nextest run --release -p kvstored-pool --run-ignored only measure --no-capture`.

use std::time::{Duration, Instant};

use kvstored_core::Runtime;
use kvstored_transfer::TransportKind;

use super::others::{Lender, any_port, join, start_master};
use super::{k, soon};
use crate::{GetRequest, Piece, PutOptions, PutRequest};

/// Runs something over and over for a while; returns the median time of one run.
fn median(mut body: impl FnMut(usize)) -> Duration {
    const WHILE: Duration = Duration::from_secs(1);
    let clock = Runtime::system().clock;
    let end = clock.now() + WHILE;
    let mut times = Vec::new();
    let mut before = clock.now();
    while before < end || times.len() < 5 {
        body(times.len());
        let now: Instant = clock.now();
        times.push(now - before);
        before = now;
    }
    times.sort_unstable();
    times[times.len() / 2]
}

fn gigabytes(bytes: usize, time: Duration) -> f64 {
    bytes as f64 / time.as_secs_f64() / 1e9
}

fn figures(lends_itself: bool, transport: TransportKind) {
    let master = start_master(any_port());
    let _lender = (!lends_itself).then(|| Lender::start(master.address(), transport));
    let client = join(
        master.address(),
        if lends_itself { 64 << 20 } else { 0 },
        transport,
    );
    let buffer = client.allocate(32 << 20).unwrap();
    let place = if lends_itself {
        "own process"
    } else {
        transport.name()
    };
    for (length, batch) in [(4096, 1), (1 << 20, 1), (4 << 20, 1), (1 << 20, 8)] {
        let pieces: Vec<[Piece; 1]> = (0..batch)
            .map(|at| {
                [Piece {
                    address: buffer.address + at * length,
                    length,
                }]
            })
            .collect();
        let name = |round: usize, at: usize| k(format!("{place} {length} {batch} {round} {at}"));
        let mut rounds = 0;
        // removing isn't measured, so the time is taken around the put alone
        let mut times = Vec::new();
        median(|round| {
            let keys: Vec<_> = (0..batch).map(|at| name(round, at)).collect();
            let puts: Vec<PutRequest<'_>> = keys
                .iter()
                .zip(&pieces)
                .map(|(key, pieces)| PutRequest { key, pieces })
                .collect();
            let clock = Runtime::system().clock;
            let before = clock.now();
            let outcomes = client.put_batch(&puts, &PutOptions::default(), soon());
            times.push(clock.now() - before);
            for outcome in outcomes {
                outcome.unwrap();
            }
            if round > 0 {
                let gone: Vec<_> = (0..batch).map(|at| name(round - 1, at)).collect();
                let gone: Vec<&[u8]> = gone.iter().map(|key| &**key).collect();
                client.remove(&gone, true, soon()).unwrap();
            }
            rounds = round;
        });
        times.sort_unstable();
        let put = times[times.len() / 2];
        let keys: Vec<_> = (0..batch).map(|at| name(rounds, at)).collect();
        let gets: Vec<GetRequest<'_>> = keys
            .iter()
            .zip(&pieces)
            .map(|(key, pieces)| GetRequest { key, pieces })
            .collect();
        let all = |gets: &[GetRequest<'_>]| {
            for outcome in client.get_batch(gets, soon()) {
                outcome.unwrap();
            }
        };
        let get = median(|_| all(&gets));
        let first = median(|_| {
            client.forget_all();
            all(&gets);
        });
        println!(
            "{place}: {length} bytes x {batch}: put {:.2} GB/s ({put:?}), get {:.2} GB/s ({get:?}), get of what isn't known yet {:.2} GB/s ({first:?})",
            gigabytes(length * batch, put),
            gigabytes(length * batch, get),
            gigabytes(length * batch, first),
        );
    }
    let keys: Vec<_> = (0..64).map(|at| k(format!("exists {at}"))).collect();
    let piece = [Piece {
        address: buffer.address,
        length: 64,
    }];
    for key in &keys {
        client.put(key, &piece, &PutOptions::default(), soon()).unwrap();
    }
    let wanted: Vec<&[u8]> = keys.iter().map(|key| &**key).collect();
    let known = median(|_| assert!(client.exist(&wanted, soon()).unwrap().iter().all(|found| *found)));
    let asked = median(|_| {
        client.forget_all();
        assert!(client.exist(&wanted, soon()).unwrap().iter().all(|found| *found));
    });
    let rate = |time: Duration| 64.0 / time.as_secs_f64() / 1e6;
    println!(
        "{place}: existence of 64: {:.1} M keys/s leased, {:.2} M keys/s asked",
        rate(known),
        rate(asked)
    );
    client.close();
}

#[test]
#[ignore = "measures"]
fn measure_own_process() {
    figures(true, TransportKind::Tcp);
}

#[test]
#[ignore = "measures"]
fn measure_tcp() {
    figures(false, TransportKind::Tcp);
}

#[test]
#[ignore = "measures"]
fn measure_shared_memory() {
    figures(false, TransportKind::Shm);
}
