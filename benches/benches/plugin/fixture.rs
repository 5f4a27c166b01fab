//! Blocks in a daemon's memory that are written to a tier and read from it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use kvstored_backends::cache::{CacheSettings, CacheTier};
use kvstored_core::checksum::Checksum;
use kvstored_core::{
    Action, BlockHash, Durability, Envelope, Identity, Layout, MemoryTier, NamespaceInfo, Operation, Result,
    Runtime, SlotGuard, Tier,
};

use crate::loads::Load;

const PATIENCE: Duration = Duration::from_mins(1);
const PAGE_BYTES: u64 = 4096;

/// Operations that were submitted together.
struct Batch {
    left: AtomicUsize,
    place: usize,
    ended: Sender<usize>,
}

impl Batch {
    fn one_ended(&self, outcome: &Result<()>) {
        assert!(outcome.is_ok(), "{outcome:?}");
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            let _ = self.ended.send(self.place);
        }
    }
}

/// Blocks, ready to be written, and buffers to read into.
pub struct Fixture {
    runtime: Runtime,
    info: Arc<NamespaceInfo>,
    images: Vec<SlotGuard>,
    buffers: Vec<SlotGuard>,
    batch: usize,
}

fn hash(number: usize) -> BlockHash {
    let words =
        [1u64, 2, 3, 4].map(|lane| (number as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15 ^ (lane << 32)));
    BlockHash::new(&words.map(u64::to_le_bytes).concat()).unwrap()
}

impl Fixture {
    /// Blocks for that load, each another.
    pub fn new(load: &Load, runtime: &Runtime) -> Self {
        let layout = Layout::uniform(1, 1, load.payload_bytes).unwrap();
        let identity = Identity {
            model: load.name.into(),
            ..Identity::default()
        };
        let info = Arc::new(NamespaceInfo::new(identity, layout).unwrap());
        let buffers = load.batch * load.batches;
        let slots = (load.blocks + buffers) as u64;
        let memory = CacheSettings {
            capacity_bytes: (slots + 1) * (info.layout.image_bytes() as u64 + PAGE_BYTES) + (16 << 20),
            keep: false,
            ..CacheSettings::default()
        };
        let memory = CacheTier::open(memory, None).unwrap();
        memory.open_namespace(&info).unwrap();
        let slots = |count| (0..count).map(|_| memory.allocate_scratch(&info).unwrap());
        let payload: Vec<u8> = (0..load.payload_bytes).map(|at| (at % 251) as u8).collect();
        let mut checksum = Checksum::new();
        checksum.update(&payload);
        let written = |(number, slot): (usize, SlotGuard)| {
            let offset = slot.offset() + info.layout.shard_offset(0).unwrap();
            slot.arena().write(offset, &payload).unwrap();
            let key = info.key(hash(number));
            let envelope = Envelope::new(key, &info.layout, 1, 1, vec![checksum.value()]);
            slot.write_descriptor(&envelope.encode().unwrap()).unwrap();
            slot
        };
        Self {
            images: slots(load.blocks).enumerate().map(written).collect(),
            buffers: slots(buffers).collect(),
            runtime: runtime.clone(),
            info,
            batch: load.batch,
        }
    }

    /// Does something with every block, as many batches under way at once as there are buffers for. Returns microseconds
    /// per operation.
    fn pass(&self, tier: &dyn Tier, action: Action) -> f64 {
        let started = self.runtime.clock.now();
        let (sender, ended) = channel();
        let batches: Vec<&[SlotGuard]> = self.buffers.chunks(self.batch).collect();
        let mut free: Vec<usize> = (0..batches.len()).collect();
        let numbers: Vec<usize> = (0..self.images.len()).collect();
        for numbers in numbers.chunks(self.batch) {
            if free.is_empty() {
                free.push(ended.recv_timeout(PATIENCE).expect("an end"));
            }
            let place = free.pop().expect("a place");
            // whoever waits is woken once for a batch, as an engine's task is
            let batch = Arc::new(Batch {
                left: AtomicUsize::new(numbers.len()),
                place,
                ended: sender.clone(),
            });
            let operations = numbers.iter().zip(batches[place]).map(|(number, buffer)| {
                let buffer = match action {
                    Action::Write(_) => self.images.get(*number).expect("a block"),
                    Action::Read | Action::Verify => buffer,
                };
                let batch = Arc::clone(&batch);
                Operation {
                    namespace: self.info.clone(),
                    hash: hash(*number),
                    action,
                    buffer: buffer.clone(),
                    completion: Box::new(move |_, outcome| batch.one_ended(&outcome)),
                }
            });
            tier.submit(operations.collect());
        }
        while free.len() < batches.len() {
            free.push(ended.recv_timeout(PATIENCE).expect("an end"));
        }
        let elapsed = self.runtime.clock.now().saturating_duration_since(started);
        elapsed.as_secs_f64() * 1e6 / self.images.len() as f64
    }

    /// Writes and reads all blocks and removes them. Returns microseconds per write and per read.
    pub fn round(&self, tier: &dyn Tier, load: &Load) -> [f64; 2] {
        tier.open_namespace(&self.info).unwrap();
        let write = self.pass(tier, Action::Write(Durability::Memory));
        let reads = (0..load.reads).map(|_| self.pass(tier, Action::Read));
        let read = reads.sum::<f64>() / load.reads as f64;
        let gone = tier.purge(&self.info.namespace).unwrap();
        assert_eq!(gone, self.images.len() as u64);
        [write, read]
    }
}
