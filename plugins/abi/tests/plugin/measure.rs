//! What the way to a device costs: `cargo test --release -p kvstored-plugin-host -- --ignored --nocapture measure`.
#![allow(unsafe_code)]

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use kvstored_backends::cache::map_arena;
use kvstored_backends::hbm::{HbmSettings, HbmTier};
use kvstored_core::device::{CopyBatch, DeviceMemory, Direction, HostRegistration, Stream};
use kvstored_core::memory::SlotOwner;
use kvstored_core::{
    Action, Arena, BlockHash, Device, Durability, Envelope, Identity, Layout, NamespaceInfo, Operation,
    Runtime, SlotGuard, Tier,
};

use crate::devices::Emulator;
use crate::support::PATIENCE;

const ROUNDS: usize = 15;
const BLOCKS: usize = 16;
const LAYERS: usize = 94;
const TENSORS: usize = 2;
const TENSOR_BYTES: u32 = 32 << 10;

struct Loose;

impl SlotOwner for Loose {
    fn release(&self, _slot: u32) {}
}

struct Rig {
    runtime: Runtime,
    namespace: Arc<NamespaceInfo>,
    device: Arc<dyn Device>,
    arena: Arc<Arena>,
    other: Arc<Arena>,
}

impl Rig {
    fn slot(&self, number: usize) -> SlotGuard {
        let image = self.namespace.layout.image_bytes();
        SlotGuard::new(
            self.arena.clone(),
            Arc::new(Loose),
            number as u32,
            number * image,
            image,
        )
    }

    fn seconds(&self, body: impl FnOnce()) -> f64 {
        let began = self.runtime.clock.now();
        body();
        self.runtime.clock.now().duration_since(began).as_secs_f64()
    }

    /// The same bytes within the host.
    fn memcpy(&self) -> f64 {
        let bytes = BLOCKS * self.namespace.layout.image_bytes();
        self.seconds(|| {
            // SAFETY: both arenas have as many bytes, and nobody else uses them
            unsafe { std::ptr::copy_nonoverlapping(self.arena.base(), self.other.base(), bytes) };
        })
    }

    /// A copy for each tensor, all blocks in one batch.
    fn tensors(&self, direction: Direction, memory: &Arc<DeviceMemory>, stream: &Stream) -> f64 {
        let (bytes, image) = (TENSOR_BYTES as usize, self.namespace.layout.image_bytes());
        self.seconds(|| {
            let mut batch = CopyBatch::new(direction);
            for block in 0..BLOCKS {
                let slot = self.slot(block);
                for tensor in 0..LAYERS * TENSORS {
                    let (here, there) = (4096 + tensor * bytes, block * image + tensor * bytes);
                    batch.slot(&slot, here, memory, there, bytes).unwrap();
                }
            }
            stream.copy(batch).unwrap();
            stream.synchronize(PATIENCE).unwrap();
        })
    }

    fn tier(&self, tier: &HbmTier, action: Action) -> f64 {
        let (ended, wait) = channel();
        let operations = (0..BLOCKS).map(|number| {
            let ended = ended.clone();
            Operation {
                namespace: self.namespace.clone(),
                hash: hash(number),
                action,
                buffer: self.slot(number),
                completion: Box::new(move |_, outcome| ended.send(outcome).unwrap()),
            }
        });
        let operations: Vec<_> = operations.collect();
        self.seconds(|| {
            tier.submit(operations);
            for _ in 0..BLOCKS {
                wait.recv_timeout(PATIENCE).unwrap().unwrap();
            }
        })
    }
}

fn hash(number: usize) -> BlockHash {
    let mut bytes = [0x5A; 32];
    bytes[..8].copy_from_slice(&(number as u64).to_le_bytes());
    BlockHash::new(&bytes).unwrap()
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

#[test]
#[ignore = "a measurement"]
fn measure() {
    let emulator = Emulator::ascendcl();
    let device = emulator.open(0).unwrap();
    let layout = Layout::uniform(LAYERS, TENSORS, TENSOR_BYTES).unwrap();
    let namespace = Arc::new(NamespaceInfo::new(Identity::default(), layout.clone()).unwrap());
    let bytes = BLOCKS * layout.image_bytes();
    let rig = Rig {
        runtime: Runtime::system(),
        namespace,
        device: device.clone(),
        arena: map_arena(bytes, true, true).unwrap().arena,
        other: map_arena(bytes, true, true).unwrap().arena,
    };
    for block in 0..BLOCKS {
        let envelope = Envelope::new(rig.namespace.key(hash(block)), &layout, 1, 1, vec![0; LAYERS]);
        rig.slot(block)
            .write_descriptor(&envelope.encode().unwrap())
            .unwrap();
    }
    let memory = DeviceMemory::allocate(&rig.device, bytes).unwrap();
    let registration = HostRegistration::of_arena(&rig.device, &rig.arena).unwrap();
    let stream = Stream::create(&rig.device).unwrap();
    let settings = HbmSettings {
        capacity_bytes: 2 * bytes as u64,
        timeout: Duration::from_secs(20),
        ..HbmSettings::default()
    };
    let tier = HbmTier::open(settings, &rig.device, &rig.runtime, None).unwrap();
    tier.open_namespace(&rig.namespace).unwrap();
    let mut all: [Vec<f64>; 5] = Default::default();
    let before = emulator.counts();
    for round in 0..ROUNDS + 2 {
        let seconds = [
            rig.memcpy(),
            rig.tensors(Direction::HostToDevice, &memory, &stream),
            rig.tensors(Direction::DeviceToHost, &memory, &stream),
            rig.tier(&tier, Action::Write(Durability::Tier)),
            rig.tier(&tier, Action::Read),
        ];
        let hashes: Vec<BlockHash> = (0..BLOCKS).map(hash).collect();
        tier.remove(&rig.namespace, &hashes);
        if round >= 2 {
            all.iter_mut()
                .zip(seconds)
                .for_each(|(all, seconds)| all.push(seconds));
        }
    }
    let calls = emulator.counts()[0] - before[0];
    assert_eq!(calls as usize, 4 * (ROUNDS + 2), "one call for each batch");
    let [limit, there, back, written, read] = all.map(median);
    let gigabytes = |seconds: f64| bytes as f64 / seconds / 1e9;
    println!("memcpy                {:6.2} GB/s", gigabytes(limit));
    for (name, seconds) in [
        ("tensors to the device", there),
        ("tensors back", back),
        ("Hbm writes", written),
        ("Hbm reads", read),
    ] {
        println!(
            "{name:<21} {:6.2} GB/s  {:.2} of memcpy",
            gigabytes(seconds),
            limit / seconds
        );
    }
    drop(tier);
    drop(stream);
    drop(registration);
}
