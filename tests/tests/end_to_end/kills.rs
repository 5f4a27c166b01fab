//! SIGKILL at random moments: what was acknowledged at tier level is there and right after a restart.

use std::collections::BTreeSet;
use std::time::Duration;

use kvstored_client::BlockOutcome;
use kvstored_core::Durability;
use kvstored_core::runtime::{Random, SystemRandom};
use kvstored_tests::blocks::{Blocks, Loaded};
use kvstored_tests::daemon::{Daemon, pause};

use crate::small_layout;

/// Rounds in the ordinary test run; `KVSTORED_KILL_ROUNDS` asks for more.
fn rounds() -> u64 {
    std::env::var("KVSTORED_KILL_ROUNDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(200)
}

#[test]
fn acknowledged_dumps_survive_random_kills() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let storage = directory.path().join("storage");
    let random = SystemRandom::seeded(7);
    let arguments = [
        "--pipeline",
        "Cache|Posix",
        "--cache-buffer-capacity",
        "16MiB",
        "--posix-capacity",
        "8GiB",
        "--posix-segment-bytes",
        "4MiB",
    ];
    let mut acknowledged = BTreeSet::new();
    let mut next = 0u64;
    for round in 0..rounds() {
        let daemon = Daemon::start(directory.path(), &storage, &arguments).unwrap();
        let client = daemon.connect().unwrap();
        let blocks = Blocks::open(&client, "kills", &small_layout()).unwrap();
        check(&blocks, &acknowledged, &random, round);
        let lifetime = Duration::from_millis(random.next_u64() % 60);
        #[allow(clippy::disallowed_methods)] // nothing is simulated here
        let killer = std::thread::spawn(move || {
            pause(lifetime);
            daemon.kill();
        });
        while !killer.is_finished() {
            let numbers: Vec<u64> = (next..next + 1 + random.next_u64() % 24).collect();
            next += numbers.len() as u64;
            let Ok(outcomes) = blocks.dump(&numbers, Durability::Tier) else {
                break;
            };
            for (number, outcome) in numbers.iter().zip(&outcomes) {
                if matches!(outcome, BlockOutcome::Dumped(level) if *level >= Durability::Tier) {
                    acknowledged.insert(*number);
                }
            }
            if outcomes
                .iter()
                .any(|outcome| matches!(outcome, BlockOutcome::Failed(_)))
            {
                break;
            }
        }
        killer.join().unwrap();
    }
    assert!(
        acknowledged.len() as u64 > rounds(),
        "only {} dumps were acknowledged",
        acknowledged.len()
    );
}

/// Everything acknowledged is found; the newest and a sample of the rest are loaded and compared.
fn check(blocks: &Blocks<'_>, acknowledged: &BTreeSet<u64>, random: &SystemRandom, round: u64) {
    let all: Vec<u64> = acknowledged.iter().copied().collect();
    for some in all.chunks(4096) {
        let found = blocks.lookup(some).unwrap();
        let lost: Vec<&u64> = some
            .iter()
            .zip(&found)
            .filter(|(_, found)| !**found)
            .map(|(number, _)| number)
            .collect();
        assert!(lost.is_empty(), "round {round}: lost {lost:?}");
    }
    let mut sample: Vec<u64> = all.iter().rev().take(150).copied().collect();
    for _ in 0..50.min(all.len()) {
        sample.push(all[(random.next_u64() % all.len() as u64) as usize]);
    }
    let loaded = blocks.load(&sample).unwrap();
    for (number, loaded) in sample.iter().zip(loaded) {
        assert_eq!(loaded, Loaded::Right, "round {round}, block {number}");
    }
}
