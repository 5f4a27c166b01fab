//! The log is the Posix tier's: each reads what the other wrote.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;

use kvstored_backends::posix::{PosixSettings, PosixTier};
use kvstored_core::checksum::Checksum;
use kvstored_core::{
    Action, BlockHash, Durability, Envelope, Identity, Layout, NamespaceInfo, Operation, Result, Runtime,
    SlotGuard, Tier,
};

use crate::support::{Mounted, PATIENCE, Plugins, pattern, settings, slot};

pub fn namespace(model: &str) -> Arc<NamespaceInfo> {
    let identity = Identity {
        tenant: "tests".into(),
        model: model.into(),
        block_tokens: 16,
        ..Identity::default()
    };
    Arc::new(NamespaceInfo::new(identity, Layout::uniform(3, 2, 9000).unwrap()).unwrap())
}

pub fn hash(number: u64) -> BlockHash {
    BlockHash::new(&[number.to_le_bytes(); 4].concat()).unwrap()
}

/// Makes a block's image in a buffer.
pub fn image(namespace: &NamespaceInfo, number: u64, buffer: &SlotGuard) {
    let layout = &namespace.layout;
    let mut checksums = Vec::new();
    for (index, shard) in layout.shards().iter().enumerate() {
        let payload = pattern(number * 31 + index as u64, shard.payload_bytes());
        let mut checksum = Checksum::new();
        checksum.update(&payload);
        checksums.push(checksum.value());
        let offset = buffer.offset() + layout.shard_offset(index).unwrap();
        buffer.arena().write(offset, &payload).unwrap();
    }
    let envelope = Envelope::new(namespace.key(hash(number)), layout, 1, 1, checksums);
    buffer.write_descriptor(&envelope.encode().unwrap()).unwrap();
}

/// One operation, waited for.
pub fn one(
    tier: &dyn Tier,
    namespace: &Arc<NamespaceInfo>,
    number: u64,
    action: Action,
    buffer: SlotGuard,
) -> (SlotGuard, Result<()>) {
    let (sender, ended) = channel();
    tier.submit(vec![Operation {
        namespace: Arc::clone(namespace),
        hash: hash(number),
        action,
        buffer,
        completion: Box::new(move |buffer, outcome| drop(sender.send((buffer, outcome)))),
    }]);
    ended.recv_timeout(PATIENCE).expect("an operation never ended")
}

pub fn write_blocks(tier: &dyn Tier, namespace: &Arc<NamespaceInfo>, numbers: Range<u64>) {
    tier.open_namespace(namespace).unwrap();
    for number in numbers {
        let buffer = slot(namespace.layout.image_bytes());
        image(namespace, number, &buffer);
        one(tier, namespace, number, Action::Write(Durability::Tier), buffer)
            .1
            .unwrap();
    }
}

/// Every block is found, and is what was written.
fn expect_blocks(tier: &dyn Tier, namespace: &Arc<NamespaceInfo>, numbers: Range<u64>) {
    tier.open_namespace(namespace).unwrap();
    for number in numbers {
        let mut present = [false];
        tier.lookup(namespace, &[hash(number)], &mut present);
        assert!(present[0], "block {number} isn't found");
        let buffer = slot(namespace.layout.image_bytes());
        let (buffer, outcome) = one(tier, namespace, number, Action::Verify, buffer);
        outcome.unwrap();
        let expected = slot(namespace.layout.image_bytes());
        image(namespace, number, &expected);
        for (index, shard) in namespace.layout.shards().iter().enumerate() {
            let offset = namespace.layout.shard_offset(index).unwrap();
            let sum = |slot: &SlotGuard| {
                slot.arena()
                    .checksum(slot.offset() + offset, shard.payload_bytes())
            };
            assert_eq!(sum(&buffer).unwrap(), sum(&expected).unwrap(), "block {number}");
        }
    }
}

fn posix(directory: &Path) -> Arc<PosixTier> {
    let settings = PosixSettings {
        directories: vec![directory.to_owned()],
        capacity_bytes: 16 << 20,
        segment_bytes: Some(1 << 20),
        ..PosixSettings::default()
    };
    PosixTier::open(settings, Runtime::system(), None).unwrap()
}

#[test]
fn each_reads_what_the_other_wrote() {
    let mount = Mounted::new();
    let plugins = Plugins::new();
    let directory = mount.path().join("blocks");
    let namespace = namespace("shared");
    let ds3fs = plugins.open(&settings(&directory)).unwrap();
    write_blocks(&*ds3fs, &namespace, 0..40);
    ds3fs.remove(&namespace, &[hash(39)]);
    ds3fs.drain(Runtime::system().deadline(PATIENCE)).unwrap();
    ds3fs.shutdown();

    let plain = posix(&directory);
    expect_blocks(&*plain, &namespace, 0..39);
    let mut present = [false];
    plain.lookup(&namespace, &[hash(39)], &mut present);
    assert!(!present[0], "a removed block came back");
    write_blocks(&*plain, &namespace, 100..120);
    plain.shutdown();

    let ds3fs = plugins.open(&settings(&directory)).unwrap();
    expect_blocks(&*ds3fs, &namespace, 0..39);
    expect_blocks(&*ds3fs, &namespace, 100..120);
    ds3fs.shutdown();
}

/// Two at once: each follows the other's journal.
#[test]
fn each_sees_what_the_other_writes_meanwhile() {
    let mount = Mounted::new();
    let plugins = Plugins::new();
    let directory = mount.path().join("blocks");
    let namespace = namespace("together");
    let ds3fs = plugins.open(&settings(&directory)).unwrap();
    let plain = posix(&directory);
    write_blocks(&*ds3fs, &namespace, 0..10);
    write_blocks(&*plain, &namespace, 10..20);
    let runtime = Runtime::system();
    let deadline = runtime.deadline(PATIENCE);
    let tiers: [&dyn Tier; 2] = [&*ds3fs, &*plain];
    for tier in tiers {
        let hashes: Vec<BlockHash> = (0..20).map(hash).collect();
        while tier.lookup_on_prefix(&namespace, &hashes) < hashes.len() {
            assert!(
                runtime.clock.now() < deadline,
                "a block of the other is never found"
            );
            std::thread::park_timeout(std::time::Duration::from_millis(10));
        }
        expect_blocks(tier, &namespace, 0..20);
    }
    ds3fs.shutdown();
    plain.shutdown();
}
