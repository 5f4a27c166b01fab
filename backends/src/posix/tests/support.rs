//! What the tests share: temporary directories, blocks with known contents, and calls that wait.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use kvstored_core::memory::SlotOwner;
use kvstored_core::{
    Action, Arena, BlockHash, Durability, Envelope, Identity, Layout, NamespaceInfo, Operation, Result,
    Runtime, SlotGuard, Tier,
};
use tempfile::TempDir;

use crate::posix::{PosixSettings, PosixTier};

pub const DEADLINE: Duration = Duration::from_secs(30);

/// A directory on the file system that the build lives on.
pub fn directory() -> TempDir {
    let base = std::env::current_exe()
        .unwrap()
        .parent()
        .unwrap()
        .join("posix-tests");
    fs::create_dir_all(&base).unwrap();
    tempfile::Builder::new()
        .prefix("store-")
        .tempdir_in(base)
        .unwrap()
}

pub fn settings(path: &Path) -> PosixSettings {
    PosixSettings {
        directories: vec![path.to_owned()],
        capacity_bytes: 64 << 20,
        segment_bytes: Some(1 << 20),
        tail_interval_ms: 5,
        ..PosixSettings::default()
    }
}

pub fn open(path: &Path) -> Arc<PosixTier> {
    open_with(settings(path))
}

pub fn open_with(settings: PosixSettings) -> Arc<PosixTier> {
    PosixTier::open(settings, Runtime::system(), None).unwrap()
}

pub fn namespace_of(model: &str, layout: Layout) -> Arc<NamespaceInfo> {
    let identity = Identity {
        tenant: "tenant".into(),
        model: model.into(),
        ..Identity::default()
    };
    Arc::new(NamespaceInfo::new(identity, layout).unwrap())
}

/// Two shards of two tensors, 16 KiB of payload with odd ends: 5 pages and the descriptor.
pub fn namespace(tier: &dyn Tier) -> Arc<NamespaceInfo> {
    let info = namespace_of("model", Layout::uniform(2, 2, 4000).unwrap());
    tier.open_namespace(&info).unwrap();
    info
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
    SlotGuard::new(
        Arc::new(Arena::heap(bytes).unwrap()),
        Arc::new(Nobody),
        0,
        0,
        bytes,
    )
}

/// The image of a block, whose contents follow from its hash.
pub fn image(info: &NamespaceInfo, hash: &BlockHash) -> SlotGuard {
    let slot = buffer(info);
    let mut checksums = Vec::new();
    for (number, shard) in info.layout.shards().iter().enumerate() {
        let payload = payload(hash, number, shard.payload_bytes());
        let offset = info.layout.shard_offset(number).unwrap();
        slot.arena().write(offset, &payload).unwrap();
        checksums.push(slot.arena().checksum(offset, payload.len()).unwrap());
    }
    let envelope = Envelope::new(info.key(*hash), &info.layout, 1, 1_700_000_000_000, checksums);
    slot.write_descriptor(&envelope.encode().unwrap()).unwrap();
    slot
}

fn payload(hash: &BlockHash, shard: usize, length: usize) -> Vec<u8> {
    let mut state = hash.fingerprint() ^ (shard as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&state.rotate_left(29).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

type Answer = (SlotGuard, Result<()>);

fn submit(
    tier: &dyn Tier,
    info: &Arc<NamespaceInfo>,
    blocks: impl Iterator<Item = (BlockHash, SlotGuard)>,
    action: Action,
) -> Vec<Receiver<Answer>> {
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

/// Stores blocks and waits.
pub fn write_as(
    tier: &dyn Tier,
    info: &Arc<NamespaceInfo>,
    hashes: &[BlockHash],
    durability: Durability,
) -> Vec<Result<()>> {
    let mut results = Vec::new();
    for chunk in hashes.chunks(128) {
        let blocks = chunk.iter().map(|hash| (*hash, image(info, hash)));
        let answers = submit(tier, info, blocks, Action::Write(durability));
        results.extend(
            answers
                .iter()
                .map(|answer| answer.recv_timeout(DEADLINE).unwrap().1),
        );
    }
    results
}

/// Stores blocks, all of which must be accepted.
pub fn write(tier: &dyn Tier, info: &Arc<NamespaceInfo>, numbers: impl Iterator<Item = u64>) {
    let hashes: Vec<BlockHash> = numbers.map(hash).collect();
    for (result, hash) in write_as(tier, info, &hashes, Durability::Tier)
        .into_iter()
        .zip(&hashes)
    {
        assert!(result.is_ok(), "{hash}: {result:?}");
    }
}

/// Stores blocks; returns the numbers of those that were accepted.
pub fn write_some(
    tier: &dyn Tier,
    info: &Arc<NamespaceInfo>,
    numbers: impl Iterator<Item = u64>,
) -> Vec<u64> {
    let numbers: Vec<u64> = numbers.collect();
    let hashes: Vec<BlockHash> = numbers.iter().copied().map(hash).collect();
    let results = write_as(tier, info, &hashes, Durability::Tier);
    numbers
        .into_iter()
        .zip(results)
        .filter(|(_, result)| result.is_ok())
        .map(|(number, _)| number)
        .collect()
}

/// Reads a block. Whatever says `Ok` must have the right descriptor; `Ok(true)` says that the payload is right too.
pub fn read(tier: &dyn Tier, info: &Arc<NamespaceInfo>, hash: BlockHash) -> Result<bool> {
    fetch(tier, info, hash, Action::Read)
}

pub fn verify(tier: &dyn Tier, info: &Arc<NamespaceInfo>, hash: BlockHash) -> Result<()> {
    fetch(tier, info, hash, Action::Verify).map(|right| assert!(right, "verified but wrong: {hash}"))
}

fn fetch(tier: &dyn Tier, info: &Arc<NamespaceInfo>, hash: BlockHash, action: Action) -> Result<bool> {
    let answers = submit(tier, info, std::iter::once((hash, buffer(info))), action);
    let (slot, result) = answers[0].recv_timeout(DEADLINE).unwrap();
    result?;
    let expected = image(info, &hash);
    let (mut got, mut want) = (vec![0; slot.length()], vec![0; slot.length()]);
    slot.arena().read(0, &mut got).unwrap();
    expected.arena().read(0, &mut want).unwrap();
    let envelope = Envelope::decode(&got).unwrap();
    assert_eq!(envelope.key, info.key(hash));
    // what whoever copies the payload checks
    let sums = &envelope.shard_checksums;
    let checked = info.layout.shards().iter().enumerate().all(|(number, shard)| {
        let offset = info.layout.shard_offset(number).unwrap();
        slot.arena().checksum(offset, shard.payload_bytes()).unwrap() == sums[number]
    });
    let right = info.layout.shards().iter().enumerate().all(|(number, shard)| {
        let offset = info.layout.shard_offset(number).unwrap();
        got[offset..offset + shard.payload_bytes()] == want[offset..offset + shard.payload_bytes()]
    });
    assert!(right || !checked, "wrong bytes with right checksums: {hash}");
    Ok(right)
}

pub fn assert_readable(tier: &dyn Tier, info: &Arc<NamespaceInfo>, numbers: impl Iterator<Item = u64>) {
    for number in numbers {
        match read(tier, info, hash(number)) {
            Ok(true) => {}
            other => panic!("block {number}: {other:?}"),
        }
    }
}

/// How many of the blocks lookups see.
pub fn present(tier: &dyn Tier, info: &NamespaceInfo, numbers: impl Iterator<Item = u64>) -> usize {
    let hashes: Vec<BlockHash> = numbers.map(hash).collect();
    let mut present = vec![false; hashes.len()];
    tier.lookup(info, &hashes, &mut present);
    present.iter().filter(|here| **here).count()
}

#[allow(clippy::disallowed_methods)] // tests may wait for other threads
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..3000 {
        if condition() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("never: {what}");
}

/// Copies a directory as it is at this moment: what a killed process leaves. The directory must come to rest.
pub fn snapshot(path: &Path) -> TempDir {
    let listing = || -> Vec<(PathBuf, Option<u64>)> {
        let lengths = files(path, "").into_iter();
        lengths
            .map(|file| {
                (
                    file.clone(),
                    fs::metadata(&file).ok().map(|metadata| metadata.len()),
                )
            })
            .collect()
    };
    for _ in 0..100 {
        let copy = directory();
        let before = listing();
        if copy_tree(path, copy.path()).is_ok() && listing() == before {
            return copy;
        }
    }
    panic!("the directory never comes to rest");
}

fn copy_tree(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// All files below a directory whose names start like that, in order.
pub fn files(path: &Path, prefix: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut stack = vec![path.to_owned()];
    while let Some(path) = stack.pop() {
        let Ok(entries) = fs::read_dir(path) else { continue };
        for entry in entries.flatten() {
            if entry.path().is_dir() {
                stack.push(entry.path());
            } else if entry.file_name().to_string_lossy().starts_with(prefix) {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

/// Physical bytes below a directory.
pub fn physical(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    files(path, "")
        .iter()
        .filter_map(|file| fs::metadata(file).ok())
        .map(|metadata| metadata.blocks() * 512)
        .sum()
}
