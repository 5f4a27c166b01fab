//! How fast it is here: of no meaning for real devices, but a change shows.

use std::time::Instant;

use kvstored_verbs::{Direction, LinkSettings};

use crate::rig::{GOOD, MIB, Results, Rig, Store, part, run};

pub fn print(rig: &Rig) {
    let store = Store::new(rig, 32 * MIB);
    let [link, _other] = rig.pair(&LinkSettings::default(), [Store::new(rig, 4096), store]);
    let local = rig.buffer(32 * MIB);
    for direction in [Direction::Write, Direction::Read] {
        let results = Results::new();
        let start = Instant::now();
        let operations = (0..32).map(|index| {
            let slice = part(&local, index * MIB, MIB);
            results.operation(direction, slice, GOOD, index * MIB, rig.soon())
        });
        link.submit(operations.collect()).unwrap();
        for result in results.all(32) {
            result.unwrap();
        }
        let seconds = start.elapsed().as_secs_f64();
        println!(
            "throughput: {direction:?} 32 x 1 MiB, {:.1} MB/s",
            32.0 * MIB as f64 / seconds / 1e6
        );
    }
    let mut times: Vec<_> = (0..200)
        .map(|_| {
            let start = Instant::now();
            run(rig, &link, Direction::Read, part(&local, 0, 4096), GOOD, 0).unwrap();
            start.elapsed()
        })
        .collect();
    times.sort();
    println!("latency: read of 4 KiB, median {} us", times[100].as_micros());
}
