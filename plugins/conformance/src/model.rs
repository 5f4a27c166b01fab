//! Random operations against a simple map: what the tier answers must be what the map would, or a miss.

use std::collections::HashMap;

use kvstored_core::runtime::{Random, SystemRandom};

use crate::bench::Bench;

const BLOCKS: u64 = 24;

/// Runs the steps; a failure names the step and the seed.
pub(crate) fn run(bench: &Bench) -> Result<(), String> {
    let random = SystemRandom::seeded(bench.options.seed);
    // the versions that each block may have: a tier may evict one and take another
    let mut map: HashMap<u64, Vec<u64>> = (0..BLOCKS.min(16)).map(|number| (number, vec![0])).collect();
    for step in 0..bench.options.model_steps {
        let number = random.next_u64() % BLOCKS;
        let hash = Bench::hash(number);
        let outcome = match random.next_u64() % 4 {
            0 => {
                let version = random.next_u64() % 3;
                bench.write(hash, version).map(|taken| {
                    if taken.is_ok() {
                        map.entry(number).or_default().push(version);
                    }
                })
            }
            1 => {
                bench.tier.remove(&bench.namespace, &[hash]);
                map.remove(&number);
                Ok(())
            }
            2 => match map.get(&number) {
                Some(versions) => bench.read(hash, versions).map(|found| match found {
                    Some(version) => {
                        map.insert(number, vec![version]);
                    }
                    None => {
                        map.remove(&number);
                    }
                }),
                None => bench.read(hash, &[]).map(|_| ()),
            },
            _ => bench.present(hash).and_then(|found| {
                if found && !map.contains_key(&number) && !bench.absent(hash)? {
                    Err("a lookup found a block that isn't there".to_owned())
                } else {
                    Ok(())
                }
            }),
        };
        outcome.map_err(|why| format!("step {step} of seed {}: {why}", bench.options.seed))?;
    }
    Ok(())
}
