//! Loads from the cache, beside plain copies of the same tensors.

use kvstored_core::{Durability, Result};

use super::figure::{Figure, Samples, Side};
use super::scattered::{Scattered, hashes};
use super::setup::{Setup, gigabytes_per_second};
use crate::tools::buffer::Buffer;

/// Bytes moved in a round: far more than processors' caches hold.
const ROUND_BYTES: usize = 512 << 20;
const SEED: u64 = 17;

/// Whole blocks, one copying thread.
pub fn load_whole(setup: &Setup) -> Result<Vec<Figure>> {
    let geometry = setup.geometry("qwq-32b-tp4")?;
    let layout = geometry.whole_block()?;
    let blocks = (ROUND_BYTES / geometry.block_bytes()).max(1);
    let cache_bytes = cache_bytes_for(layout.image_bytes(), blocks);
    let embedded = setup.embedded("Cache", None, cache_bytes, 0, 1)?;
    let namespace = embedded.client.open_namespace(&Setup::identity(), &layout)?;
    let hashes = hashes(setup.number(), blocks)?;
    let mut memory = Scattered::new(geometry, blocks)?;
    memory.fill(SEED);
    memory.dump(&embedded.client, &namespace, &hashes, Durability::Memory)?;
    memory.clear();
    let source = Buffer::new(memory.payload_bytes())?;
    let samples = Samples::take(setup.rounds, |side| {
        let started = setup.now();
        match side {
            Side::Ours => memory.load(&embedded.client, &namespace, &hashes)?,
            Side::Limit => memory.copy_whole_blocks(&source),
        }
        Ok(gigabytes_per_second(memory.payload_bytes(), setup.since(started)))
    })?;
    memory.load(&embedded.client, &namespace, &hashes)?;
    memory.check(SEED)?;
    let note = format!(
        "{blocks} blocks of {}, one thread; limit: memcpy of the same tensors",
        geometry.name
    );
    Ok(vec![Figure::new("load_cache", "GB/s", &samples, note)])
}

/// Layer by layer across all blocks, one copying thread.
pub fn load_layerwise(setup: &Setup) -> Result<Vec<Figure>> {
    let geometry = setup.geometry("qwen3-235b-tp4")?;
    let layout = geometry.layerwise()?;
    let blocks = (ROUND_BYTES / geometry.block_bytes()).max(1);
    let cache_bytes = cache_bytes_for(layout.image_bytes(), blocks);
    let embedded = setup.embedded("Cache", None, cache_bytes, 0, 1)?;
    let namespace = embedded.client.open_namespace(&Setup::identity(), &layout)?;
    let hashes = hashes(setup.number(), blocks)?;
    let mut memory = Scattered::new(geometry, blocks)?;
    memory.fill(SEED);
    memory.dump(&embedded.client, &namespace, &hashes, Durability::Memory)?;
    memory.clear();
    let source = Buffer::new(memory.payload_bytes())?;
    let mut first_layer = Vec::new();
    let samples = Samples::take(setup.rounds, |side| {
        let started = setup.now();
        match side {
            Side::Ours => {
                let clock = &*setup.runtime.clock;
                let first = memory.load_layerwise(&embedded.client, &namespace, &hashes, clock)?;
                first_layer.push(first.as_secs_f64() * 1e6);
            }
            Side::Limit => memory.copy_layers(&source),
        }
        Ok(gigabytes_per_second(memory.payload_bytes(), setup.since(started)))
    })?;
    memory.load_layerwise(&embedded.client, &namespace, &hashes, &*setup.runtime.clock)?;
    memory.check(SEED)?;
    let mut first = first_layer.into_iter().skip(1);
    let first = Samples::alone(setup.rounds, || Ok(first.next().unwrap_or_default()))?;
    let what = format!("{blocks} blocks of {}, one thread", geometry.name);
    Ok(vec![
        Figure::new(
            "load_cache_layerwise",
            "GB/s",
            &samples,
            format!("{what}; limit: memcpy of the same tensors"),
        ),
        Figure::new(
            "first_layer_cache_layerwise",
            "us",
            &first,
            format!("{what}; until the first layer is there"),
        ),
    ])
}

/// A cache that surely holds so many blocks, its tables and alignment included.
pub fn cache_bytes_for(image_bytes: usize, blocks: usize) -> u64 {
    let images = (image_bytes * blocks) as u64;
    (images + images / 16 + (4 << 20)).next_multiple_of(2 << 20)
}
