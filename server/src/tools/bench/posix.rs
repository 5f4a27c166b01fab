//! Loads from and dumps to storage, beside direct reads and writes of a plain file.

use kvstored_backends::io::Direction;
use kvstored_core::{Durability, Error, Result};

use super::cache::cache_bytes_for;
use super::direct::DirectFile;
use super::figure::{Figure, Samples, Side};
use super::geometry::Geometry;
use super::scattered::{Scattered, hashes};
use super::setup::{Setup, gigabytes_per_second};
use crate::tools::embedded::Embedded;

/// Bytes moved in a round.
const ROUND_BYTES: usize = 512 << 20;
/// Bytes dumped in a round of `dump_sustained`, and what the cache holds of them.
const DUMP_ROUND_BYTES: usize = 768 << 20;
const DUMP_CACHE_BYTES: u64 = 256 << 20;
/// Engine memory that they are dumped from, over and over.
const SOURCE_BYTES: usize = 128 << 20;
const POSIX_BYTES: u64 = 6 << 30;
/// Copying threads; the store's default.
const STREAMS: usize = 2;
const SEED: u64 = 23;

/// Blocks that lie in storage, an emptied cache before them, and a plain file of the same size.
pub struct Cold {
    embedded: Embedded,
    namespace: kvstored_client::NamespaceHandle,
    hashes: Vec<kvstored_core::BlockHash>,
    memory: Scattered,
    direct: DirectFile,
    // after everything that has files in it
    _directory: tempfile::TempDir,
}

impl Cold {
    /// Dumps the blocks and writes the file.
    pub fn new(setup: &Setup, geometry: Geometry) -> Result<Self> {
        let layout = geometry.whole_block()?;
        let blocks = (ROUND_BYTES / geometry.block_bytes()).max(1);
        let directory = setup.directory()?;
        let cache_bytes = cache_bytes_for(layout.image_bytes(), blocks);
        let embedded = setup.embedded(
            "Cache|Posix",
            Some(&directory.path().join("store")),
            cache_bytes,
            POSIX_BYTES,
            STREAMS,
        )?;
        let namespace = embedded.client.open_namespace(&Setup::identity(), &layout)?;
        let hashes = hashes(setup.number(), blocks)?;
        let mut memory = Scattered::new(geometry, blocks)?;
        memory.fill(SEED);
        memory.dump(&embedded.client, &namespace, &hashes, Durability::Tier)?;
        memory.clear();
        let mut direct = DirectFile::new(
            directory.path(),
            layout.image_bytes(),
            blocks,
            blocks,
            &setup.runtime,
        )?;
        direct.renew()?;
        direct.transfer(Direction::Write)?;
        Ok(Self {
            embedded,
            namespace,
            hashes,
            memory,
            direct,
            _directory: directory,
        })
    }

    /// Bytes of KV of all blocks.
    pub fn payload_bytes(&self) -> usize {
        self.memory.payload_bytes()
    }

    /// Empties the cache.
    pub fn chill(&self) -> Result<()> {
        let names = self.embedded.client.tier_names();
        let first = names.first().map(String::as_str);
        self.embedded.client.evict(&self.namespace, &self.hashes, first)?;
        Ok(())
    }

    /// Loads everything, or reads the plain file.
    pub fn load(&mut self, side: Side) -> Result<()> {
        match side {
            Side::Ours => self
                .memory
                .load(&self.embedded.client, &self.namespace, &self.hashes),
            Side::Limit => self.direct.transfer(Direction::Read),
        }
    }

    /// Loads once more and compares every byte.
    pub fn check(&mut self) -> Result<()> {
        self.chill()?;
        self.memory.clear();
        self.load(Side::Ours)?;
        self.memory.check(SEED)
    }
}

/// Whole blocks from storage with an empty cache.
pub fn load_cold(setup: &Setup) -> Result<Vec<Figure>> {
    let geometry = setup.geometry("qwq-32b-tp4")?;
    let mut cold = Cold::new(setup, geometry)?;
    let samples = Samples::take(setup.rounds, |side| {
        cold.chill()?;
        let started = setup.now();
        cold.load(side)?;
        Ok(gigabytes_per_second(cold.payload_bytes(), setup.since(started)))
    })?;
    cold.check()?;
    let note = format!(
        "blocks of {}, cache emptied; limit: direct reads of the same sizes",
        geometry.name
    );
    Ok(vec![Figure::new("load_posix_cold", "GB/s", &samples, note)])
}

/// Dumps to an empty store and writes to a plain file, in turn.
pub struct Dumping {
    embedded: Embedded,
    namespace: kvstored_client::NamespaceHandle,
    memory: Scattered,
    blocks: usize,
    payload_bytes: usize,
    direct: DirectFile,
    // after everything that has files in it
    _directory: tempfile::TempDir,
}

impl Dumping {
    /// Opens a store with a small cache.
    pub fn new(setup: &Setup, geometry: Geometry) -> Result<Self> {
        let layout = geometry.whole_block()?;
        let blocks = (DUMP_ROUND_BYTES / geometry.block_bytes()).max(1);
        let directory = setup.directory()?;
        let store = directory.path().join("store");
        // room for every round and the one that isn't counted: deleting is not what is measured
        let storage_bytes = (setup.rounds as u64 + 3) * DUMP_ROUND_BYTES as u64;
        let embedded = setup.embedded(
            "Cache|Posix",
            Some(&store),
            DUMP_CACHE_BYTES,
            storage_bytes,
            STREAMS,
        )?;
        let namespace = embedded.client.open_namespace(&Setup::identity(), &layout)?;
        let mut memory = Scattered::new(geometry, (SOURCE_BYTES / geometry.block_bytes()).max(1))?;
        memory.fill(SEED);
        let slots = DUMP_CACHE_BYTES as usize / layout.image_bytes();
        let direct = DirectFile::new(
            directory.path(),
            layout.image_bytes(),
            blocks,
            slots,
            &setup.runtime,
        )?;
        let payload_bytes = blocks * geometry.block_bytes();
        Ok(Self {
            embedded,
            namespace,
            memory,
            blocks,
            payload_bytes,
            direct,
            _directory: directory,
        })
    }

    /// Bytes of KV dumped in a round.
    pub fn payload_bytes(&self) -> usize {
        self.payload_bytes
    }

    /// What isn't timed: a fresh file for the limit. The store takes new blocks each round.
    pub fn prepare(&mut self, side: Side) -> Result<()> {
        match side {
            Side::Ours => Ok(()),
            Side::Limit => self.direct.renew(),
        }
    }

    /// One round.
    pub fn dump(&mut self, side: Side, setup: &Setup) -> Result<()> {
        if side == Side::Limit {
            return self.direct.transfer(Direction::Write);
        }
        let hashes = hashes(setup.number(), self.blocks)?;
        self.memory
            .dump(&self.embedded.client, &self.namespace, &hashes, Durability::Tier)
    }

    /// Bytes that the storage tier has written so far.
    pub fn written_bytes(&self) -> Result<u64> {
        let statistics = self.embedded.client.statistics()?;
        let tier = statistics
            .tiers
            .last()
            .ok_or_else(|| Error::internal("the engine has no tiers"))?;
        Ok(tier.statistics.written_bytes)
    }
}

/// Whole blocks, several times what the cache holds, acknowledged when they are in storage.
pub fn dump_sustained(setup: &Setup) -> Result<Vec<Figure>> {
    let geometry = setup.geometry("qwq-32b-tp4")?;
    let mut dumping = Dumping::new(setup, geometry)?;
    let mut amplification = Vec::new();
    let samples = Samples::take(setup.rounds, |side| {
        dumping.prepare(side)?;
        let written = dumping.written_bytes()?;
        let started = setup.now();
        dumping.dump(side, setup)?;
        let seconds = setup.since(started);
        if side == Side::Ours {
            let written = dumping.written_bytes()?.saturating_sub(written);
            amplification.push(written as f64 / dumping.payload_bytes() as f64);
        }
        Ok(gigabytes_per_second(dumping.payload_bytes(), seconds))
    })?;
    let mut amplification = amplification.into_iter().skip(1);
    let amplification = Samples::alone(setup.rounds, || Ok(amplification.next().unwrap_or_default()))?;
    let what = format!(
        "blocks of {}, {} MiB a round past a cache of {} MiB",
        geometry.name,
        dumping.payload_bytes() >> 20,
        DUMP_CACHE_BYTES >> 20
    );
    Ok(vec![
        Figure::new(
            "dump_sustained",
            "GB/s",
            &samples,
            format!("{what}; limit: direct writes of the same sizes"),
        ),
        Figure::new(
            "write_amplification",
            "x",
            &amplification,
            format!("{what}; bytes written by bytes dumped"),
        ),
    ])
}
