//! An engine to test against, and engine memory with contents that tell what they belong to.
#![allow(dead_code)] // two test suites share it, and each uses a part

use std::sync::Arc;
use std::time::Duration;

use kvstored_backends::cache::{CacheSettings, CacheTier};
use kvstored_core::block::BlockHash;
use kvstored_core::engine::{Engine, EngineSettings};
use kvstored_core::identity::Identity;
use kvstored_core::layout::{Layout, Shard};
use kvstored_core::runtime::Runtime;
use kvstored_core::tier::{Durability, Tier};

use super::map_tier::MapTier;
use super::{
    BlockOutcome, Client, ClientSettings, DumpRequest, LoadOrder, LoadRequest, NamespaceHandle, TaskReport,
    TensorAddress,
};

pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct Rig {
    pub cache: Arc<CacheTier>,
    pub map: Arc<MapTier>,
    pub engine: Arc<Engine>,
    pub runtime: Runtime,
}

/// Three shards of unequal tensors, not page-aligned: every offset matters.
pub fn layout() -> Layout {
    let shard = |tensor_bytes: &[u32]| Shard {
        tensor_bytes: tensor_bytes.to_vec(),
    };
    Layout::new(vec![shard(&[3000, 5001]), shard(&[4096]), shard(&[17, 1, 6000])]).unwrap()
}

pub fn hash(number: u64) -> BlockHash {
    let mut bytes = [0u8; 20];
    bytes[..8].copy_from_slice(&number.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
    bytes[12..].copy_from_slice(&number.to_le_bytes());
    BlockHash::new(&bytes).unwrap()
}

pub fn hashes(range: std::ops::Range<u64>) -> Vec<BlockHash> {
    range.map(hash).collect()
}

impl Rig {
    /// `Cache|Map` with room for that many blocks of [`layout`] in the cache.
    pub fn new(cache_blocks: usize) -> Self {
        Self::with_lower(cache_blocks, true)
    }

    /// Only the cache.
    pub fn cache_alone(cache_blocks: usize) -> Self {
        Self::with_lower(cache_blocks, false)
    }

    fn with_lower(cache_blocks: usize, lower: bool) -> Self {
        // room for tables when all of them are written at once
        let table_bytes = (256 << 10) + cache_blocks as u64 * 1024;
        let settings = CacheSettings {
            capacity_bytes: (cache_blocks * layout().image_bytes()) as u64 + table_bytes,
            table_bytes: Some(table_bytes),
            huge_pages: false,
            ..CacheSettings::default()
        };
        let cache = CacheTier::open(settings, None).unwrap();
        let (map, runtime) = (MapTier::new(), Runtime::system());
        let below: Vec<Arc<dyn Tier>> = if lower { vec![map.clone()] } else { Vec::new() };
        let engine = Engine::new(
            EngineSettings::default(),
            runtime.clone(),
            cache.clone(),
            true,
            below,
        );
        Self {
            cache,
            map,
            engine,
            runtime,
        }
    }

    pub fn embedded(&self, settings: ClientSettings) -> Client {
        Client::embedded(self.engine.clone(), settings, self.runtime.clone()).unwrap()
    }

    /// Whether nothing is pinned: as many new blocks as fit can be reserved at once.
    pub fn is_wholly_evictable(&self, cache_blocks: usize) -> bool {
        let info = self
            .engine
            .open_namespace(identity("evictable"), layout())
            .unwrap();
        let wanted: Vec<BlockHash> = hashes(1 << 40..(1 << 40) + cache_blocks as u64);
        let (sender, receiver) = std::sync::mpsc::channel();
        let now = self.runtime.clock.now();
        self.engine.reserve(
            &info,
            None,
            &wanted,
            now,
            Box::new(move |outcomes| sender.send(outcomes).unwrap()),
        );
        let outcomes = receiver.recv_timeout(PATIENCE).unwrap();
        outcomes
            .iter()
            .all(|outcome| matches!(outcome, kvstored_core::Reserved::Slot(_)))
    }

    pub fn cache_has(&self, info: &kvstored_core::NamespaceInfo, hash: BlockHash) -> bool {
        let mut present = [false];
        self.cache.lookup(info, &[hash], &mut present);
        present[0]
    }

    /// Waits for a condition that another thread brings about.
    pub fn eventually(&self, mut condition: impl FnMut() -> bool) -> bool {
        let deadline = self.runtime.deadline(PATIENCE);
        while self.runtime.clock.now() < deadline {
            if condition() {
                return true;
            }
            std::thread::park_timeout(Duration::from_millis(2));
        }
        false
    }
}

pub fn identity(model: &str) -> Identity {
    Identity {
        model: model.into(),
        ..Identity::default()
    }
}

pub fn settings() -> ClientSettings {
    ClientSettings {
        window_blocks: 3,
        timeout: PATIENCE,
        ..ClientSettings::default()
    }
}

/// Engine memory for some blocks and shards.
pub struct Memory {
    pieces: Vec<Vec<u8>>,
    shards: std::ops::Range<usize>,
    blocks: Vec<BlockHash>,
}

fn content(hash: &BlockHash, shard: usize, tensor: usize, length: usize) -> Vec<u8> {
    let seed = hash.fingerprint() ^ ((shard as u64) << 32) ^ ((tensor as u64) << 48);
    let step = |index: usize| {
        seed.wrapping_add(index as u64)
            .wrapping_mul(0xD6E8_FEB8_6659_FD93)
            >> 29
    };
    (0..length).map(|index| step(index) as u8).collect()
}

impl Memory {
    /// Memory whose bytes are those of the blocks.
    pub fn full(blocks: &[BlockHash], shards: std::ops::Range<usize>) -> Self {
        let mut pieces = Vec::new();
        for block in blocks {
            for shard in shards.clone() {
                for (tensor, bytes) in layout().shards()[shard].tensor_bytes.iter().enumerate() {
                    pieces.push(content(block, shard, tensor, *bytes as usize));
                }
            }
        }
        Self {
            pieces,
            shards,
            blocks: blocks.to_vec(),
        }
    }

    /// Memory to be filled.
    pub fn empty(blocks: &[BlockHash], shards: std::ops::Range<usize>) -> Self {
        let mut memory = Self::full(blocks, shards);
        for piece in &mut memory.pieces {
            piece.fill(0);
        }
        memory
    }

    pub fn tensors(&mut self) -> Vec<TensorAddress> {
        let address = |piece: &mut Vec<u8>| TensorAddress {
            address: piece.as_mut_ptr() as usize,
            bytes: piece.len() as u32,
        };
        self.pieces.iter_mut().map(address).collect()
    }

    /// Uses the memory for something else.
    pub fn scribble(&mut self) {
        for piece in &mut self.pieces {
            piece.fill(0xEE);
        }
    }

    /// Whether nobody has written to it since.
    pub fn is_scribbled(&self) -> bool {
        self.pieces.iter().flatten().all(|byte| *byte == 0xEE)
    }

    /// Whether a block's bytes are right.
    pub fn is_right(&self, block: usize) -> bool {
        let right = Self::full(&self.blocks[block..=block], self.shards.clone());
        let count = right.pieces.len();
        self.pieces[block * count..(block + 1) * count] == right.pieces
    }
}

pub fn open(client: &Client) -> NamespaceHandle {
    client.open_namespace(&identity("model"), &layout()).unwrap()
}

#[allow(unsafe_code)]
pub fn dump(
    client: &Client,
    namespace: &NamespaceHandle,
    blocks: &[BlockHash],
    durability: Durability,
) -> TaskReport {
    let mut memory = Memory::full(blocks, 0..3);
    let request = DumpRequest {
        hashes: blocks.to_vec(),
        parent: None,
        tensors: memory.tensors(),
        durability,
        timeout: None,
    };
    // SAFETY: the memory outlives the task, which is waited for.
    let task = unsafe { client.dump(namespace, request) }.unwrap();
    task.wait(PATIENCE).unwrap()
}

/// Loads shards and checks that what is said to be loaded is right.
#[allow(unsafe_code)]
pub fn load(
    client: &Client,
    namespace: &NamespaceHandle,
    blocks: &[BlockHash],
    shards: std::ops::Range<usize>,
    order: LoadOrder,
) -> TaskReport {
    let mut memory = Memory::empty(blocks, shards.clone());
    let request = LoadRequest {
        hashes: blocks.to_vec(),
        shards: shards.clone(),
        tensors: memory.tensors(),
        order,
        timeout: None,
    };
    // SAFETY: the memory outlives the task, which is waited for.
    let task = unsafe { client.load(namespace, request) }.unwrap();
    for shard in shards {
        task.wait_shard(shard, PATIENCE).unwrap();
    }
    let report = task.wait(PATIENCE).unwrap();
    for (index, outcome) in report.blocks.iter().enumerate() {
        if matches!(outcome, BlockOutcome::Loaded { .. }) {
            assert!(memory.is_right(index), "block {index} has wrong bytes");
        }
    }
    report
}

pub fn loaded(report: &TaskReport) -> usize {
    report
        .blocks
        .iter()
        .filter(|outcome| matches!(outcome, BlockOutcome::Loaded { .. }))
        .count()
}

pub fn dumped(report: &TaskReport) -> usize {
    report
        .blocks
        .iter()
        .filter(|outcome| matches!(outcome, BlockOutcome::Dumped(_)))
        .count()
}
