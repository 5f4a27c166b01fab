//! What the tests share: blocks with known contents, tiers over one store, and calls that wait.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use kvstored_core::memory::SlotOwner;
use kvstored_core::{
    Action, Arena, BlockHash, Durability, Envelope, Identity, Layout, NamespaceInfo, Operation, Result,
    Runtime, SlotGuard, Tier,
};
use kvstored_object::{S3Settings, S3Tier};
use object_store::ObjectStore;

use crate::faulty::Faulty;

pub const DEADLINE: Duration = Duration::from_secs(30);

pub fn settings() -> S3Settings {
    S3Settings {
        bucket: "blocks".into(),
        prefix: "some/where".into(),
        object_bytes: 128 << 10,
        part_bytes: 5 << 20,
        capacity_bytes: 64 << 20,
        batch_delay: Duration::from_millis(10),
        tail_interval: Duration::from_millis(20),
        full_interval: Duration::from_millis(100),
        read_timeout: Duration::from_secs(2),
        write_timeout: Duration::from_secs(5),
        ..S3Settings::default()
    }
}

pub fn open(store: &Arc<Faulty>) -> Arc<S3Tier> {
    open_with(store, settings())
}

pub fn open_with(store: &Arc<Faulty>, settings: S3Settings) -> Arc<S3Tier> {
    let store: Arc<dyn ObjectStore> = store.clone();
    S3Tier::start(settings, store, Runtime::system(), None).unwrap()
}

pub fn namespace_of(tier: &dyn Tier, model: &str) -> Arc<NamespaceInfo> {
    let identity = Identity {
        tenant: "tenant".into(),
        model: model.into(),
        ..Identity::default()
    };
    // two shards of two tensors with odd ends: five pages with the descriptor
    let info = Arc::new(NamespaceInfo::new(identity, Layout::uniform(2, 2, 4000).unwrap()).unwrap());
    tier.open_namespace(&info).unwrap();
    info
}

pub fn namespace(tier: &dyn Tier) -> Arc<NamespaceInfo> {
    namespace_of(tier, "model")
}

pub fn hash(number: u64) -> BlockHash {
    let mut bytes = [0xA5; 32];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    BlockHash::new(&bytes).unwrap()
}

struct Nobody;

impl SlotOwner for Nobody {
    fn release(&self, _slot: u32) {}
}

pub fn buffer(info: &NamespaceInfo) -> SlotGuard {
    let bytes = info.layout.image_bytes();
    let arena = Arc::new(Arena::heap(bytes).unwrap());
    SlotGuard::new(arena, Arc::new(Nobody), 0, 0, bytes)
}

/// The image of a block, whose contents follow from its hash.
pub fn image(info: &NamespaceInfo, hash: &BlockHash) -> SlotGuard {
    let slot = buffer(info);
    let mut checksums = Vec::new();
    for (number, shard) in info.layout.shards().iter().enumerate() {
        let mut state = hash.fingerprint() ^ (number as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let payload: Vec<u8> = std::iter::repeat_with(|| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as u8
        })
        .take(shard.payload_bytes())
        .collect();
        let offset = info.layout.shard_offset(number).unwrap();
        slot.arena().write(offset, &payload).unwrap();
        checksums.push(slot.arena().checksum(offset, payload.len()).unwrap());
    }
    let envelope = Envelope::new(info.key(*hash), &info.layout, 1, 1_700_000_000_000, checksums);
    slot.write_descriptor(&envelope.encode().unwrap()).unwrap();
    slot
}

type Answer = Receiver<(SlotGuard, Result<()>)>;

pub fn submit(
    tier: &dyn Tier,
    info: &Arc<NamespaceInfo>,
    blocks: Vec<(BlockHash, SlotGuard)>,
    action: Action,
) -> Vec<Answer> {
    let (mut batch, mut answers) = (Vec::new(), Vec::new());
    for (hash, buffer) in blocks {
        let (sender, receiver) = channel();
        answers.push(receiver);
        batch.push(Operation {
            namespace: Arc::clone(info),
            hash,
            action,
            buffer,
            completion: Box::new(move |buffer, result| {
                let _ = sender.send((buffer, result));
            }),
        });
    }
    tier.submit(batch);
    answers
}

/// Stores blocks and waits for each.
pub fn write_some(
    tier: &dyn Tier,
    info: &Arc<NamespaceInfo>,
    numbers: std::ops::Range<u64>,
) -> Vec<Result<()>> {
    let blocks = numbers
        .map(|number| (hash(number), image(info, &hash(number))))
        .collect();
    let answers = submit(tier, info, blocks, Action::Write(Durability::Durable));
    answers
        .iter()
        .map(|answer| answer.recv_timeout(DEADLINE).unwrap().1)
        .collect()
}

/// Stores blocks, all of which must be accepted.
pub fn write(tier: &dyn Tier, info: &Arc<NamespaceInfo>, numbers: std::ops::Range<u64>) {
    for (number, result) in numbers.clone().zip(write_some(tier, info, numbers)) {
        assert!(result.is_ok(), "{number}: {result:?}");
    }
}

/// Loads blocks. Whatever is `Ok` must be right to the last byte.
pub fn read(tier: &dyn Tier, info: &Arc<NamespaceInfo>, numbers: std::ops::Range<u64>) -> Vec<Result<()>> {
    fetch(tier, info, numbers, Action::Read)
}

pub fn fetch(
    tier: &dyn Tier,
    info: &Arc<NamespaceInfo>,
    numbers: std::ops::Range<u64>,
    action: Action,
) -> Vec<Result<()>> {
    let blocks = numbers
        .clone()
        .map(|number| (hash(number), buffer(info)))
        .collect();
    let answers = submit(tier, info, blocks, action);
    let outcomes = numbers.zip(answers).map(|(number, answer)| {
        let (slot, result) = answer.recv_timeout(DEADLINE).unwrap();
        if result.is_ok() {
            let expected = image(info, &hash(number));
            let envelope = |slot: &SlotGuard| Envelope::decode(&slot.descriptor().unwrap()[..]).unwrap();
            assert_eq!(envelope(&slot), envelope(&expected), "block {number}");
            // nobody looks at the bytes between shards
            for (shard, layout) in info.layout.shards().iter().enumerate() {
                let offset = info.layout.shard_offset(shard).unwrap();
                let payload = |slot: &SlotGuard| {
                    let mut bytes = vec![0; layout.payload_bytes()];
                    slot.arena().read(offset, &mut bytes).unwrap();
                    bytes
                };
                assert!(
                    payload(&slot) == payload(&expected),
                    "block {number} has wrong bytes"
                );
            }
        }
        result
    });
    outcomes.collect()
}

pub fn assert_readable(tier: &dyn Tier, info: &Arc<NamespaceInfo>, numbers: std::ops::Range<u64>) {
    for (number, result) in numbers.clone().zip(read(tier, info, numbers)) {
        assert!(result.is_ok(), "{number}: {result:?}");
    }
}

pub fn found(tier: &dyn Tier, info: &NamespaceInfo, numbers: std::ops::Range<u64>) -> usize {
    let hashes: Vec<BlockHash> = numbers.map(hash).collect();
    let mut present = vec![false; hashes.len()];
    tier.lookup(info, &hashes, &mut present);
    present.iter().filter(|found| **found).count()
}

/// Waits until something is so.
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let runtime = Runtime::system();
    let deadline = runtime.deadline(DEADLINE);
    let (_sender, never) = channel::<()>();
    while !is_so() {
        assert!(runtime.clock.now() < deadline, "never: {what}");
        let _ = never.recv_timeout(Duration::from_millis(5));
    }
}
