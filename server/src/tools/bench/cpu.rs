//! CPU time per gigabyte, for blocks of 1 MiB.

use kvstored_core::{Durability, Result};

use super::cache::cache_bytes_for;
use super::figure::{Figure, Samples, Side};
use super::posix::{Cold, Dumping};
use super::scattered::{Scattered, hashes};
use super::setup::{Setup, cpu_seconds};
use crate::tools::buffer::Buffer;

const GEOMETRY: &str = "blocks-1mib";
const WARM_BYTES: usize = 512 << 20;

/// CPU seconds per 10^9 bytes of what `run` does.
fn cost(bytes: usize, run: impl FnOnce() -> Result<()>) -> Result<f64> {
    let before = cpu_seconds();
    run()?;
    Ok((cpu_seconds() - before) / (bytes as f64 / 1e9))
}

/// Loads from storage and dumps to it.
pub fn posix(setup: &Setup) -> Result<Vec<Figure>> {
    let geometry = setup.geometry(GEOMETRY)?;
    let mut cold = Cold::new(setup, geometry)?;
    let loads = Samples::take(setup.rounds, |side| {
        cold.chill()?;
        cost(cold.payload_bytes(), || cold.load(side))
    })?;
    cold.check()?;
    drop(cold);
    let mut dumping = Dumping::new(setup, geometry)?;
    let dumps = Samples::take(setup.rounds, |side| {
        dumping.prepare(side)?;
        cost(dumping.payload_bytes(), || dumping.dump(side, setup))
    })?;
    Ok(vec![
        Figure::new(
            "cpu_seconds_per_gb_cold_load",
            "s/GB",
            &loads,
            "embedded; limit: direct reads alone",
        ),
        Figure::new(
            "cpu_seconds_per_gb_dump",
            "s/GB",
            &dumps,
            "embedded; limit: direct writes alone",
        ),
    ])
}

/// Loads from the cache.
pub fn warm_load(setup: &Setup) -> Result<Vec<Figure>> {
    let geometry = setup.geometry(GEOMETRY)?;
    let layout = geometry.whole_block()?;
    let blocks = (WARM_BYTES / geometry.block_bytes()).max(1);
    let embedded = setup.embedded("Cache", None, cache_bytes_for(layout.image_bytes(), blocks), 0, 1)?;
    let namespace = embedded.client.open_namespace(&Setup::identity(), &layout)?;
    let hashes = hashes(setup.number(), blocks)?;
    let mut memory = Scattered::new(geometry, blocks)?;
    memory.dump(&embedded.client, &namespace, &hashes, Durability::Memory)?;
    let source = Buffer::new(memory.payload_bytes())?;
    let samples = Samples::take(setup.rounds, |side| {
        cost(memory.payload_bytes(), || match side {
            Side::Ours => memory.load(&embedded.client, &namespace, &hashes),
            Side::Limit => {
                memory.copy_whole_blocks(&source);
                Ok(())
            }
        })
    })?;
    Ok(vec![Figure::new(
        "cpu_seconds_per_gb_warm_load",
        "s/GB",
        &samples,
        "embedded; limit: memcpy alone",
    )])
}
