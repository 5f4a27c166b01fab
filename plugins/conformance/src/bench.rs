//! What every check needs: namespaces, blocks with content that tells whose they are, and operations that are waited for.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use kvstored_core::checksum::Checksum;
use kvstored_core::memory::SlotOwner;
use kvstored_core::{
    Action, Arena, BlockHash, Durability, Envelope, Error, ErrorKind, Identity, Layout, NamespaceInfo,
    Operation, Runtime, SlotGuard, Tier,
};

use parking_lot::Mutex;

use crate::Options;

/// Between two looks at something that comes by itself.
pub(crate) const LOOK_INTERVAL: Duration = Duration::from_millis(2);
/// Buffers at one time: more than any check needs.
const SLOTS: usize = 256;

/// All buffers lie in one arena, as a daemon's do.
struct Slots {
    arena: Arc<Arena>,
    slot_bytes: usize,
    free: Mutex<Vec<u32>>,
}

impl SlotOwner for Slots {
    fn release(&self, slot: u32) {
        self.free.lock().push(slot);
    }
}

/// A tier and what is needed to ask it.
pub(crate) struct Bench {
    pub tier: Arc<dyn Tier>,
    pub namespace: Arc<NamespaceInfo>,
    pub options: Options,
    pub runtime: Runtime,
    /// See [`crate::Subject::lookups_are_hints`].
    pub lookups_are_hints: bool,
    slots: Arc<Slots>,
}

/// An operation under way.
pub(crate) struct Pending {
    ended: Receiver<(SlotGuard, Result<(), Error>)>,
    patience: Duration,
}

impl Pending {
    /// Waits for the end. Fails when it doesn't come.
    pub fn wait(self) -> Result<(SlotGuard, Result<(), Error>), String> {
        let ended = self
            .ended
            .recv_timeout(self.patience)
            .map_err(|_| format!("an operation didn't end in {} s", self.patience.as_secs()))?;
        Ok(ended)
    }
}

impl Bench {
    pub fn new(tier: Arc<dyn Tier>, number: u8, options: Options, runtime: Runtime) -> Result<Self, String> {
        // two shards of odd sizes, so that padding and offsets matter
        let layout = Layout::uniform(2, 3, 5000).map_err(|error| error.to_string())?;
        let namespace = namespace(number, layout)?;
        tier.open_namespace(&namespace)
            .map_err(|error| format!("open_namespace: {error}"))?;
        let slot_bytes = namespace.layout.image_bytes();
        let arena = Arena::heap(SLOTS * slot_bytes).map_err(|error| error.to_string())?;
        Ok(Self {
            tier,
            namespace,
            options,
            runtime,
            lookups_are_hints: false,
            slots: Arc::new(Slots {
                arena: Arc::new(arena),
                slot_bytes,
                free: Mutex::new((0..SLOTS as u32).collect()),
            }),
        })
    }

    /// The block with that number.
    pub fn hash(number: u64) -> BlockHash {
        let mut bytes = [0x5A; 32];
        for (part, seed) in bytes.chunks_exact_mut(8).zip(1u64..) {
            let mixed = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ seed.wrapping_mul(0xBF58_476D_1CE4_E5B9);
            part.copy_from_slice(&mixed.to_le_bytes());
        }
        BlockHash::new(&bytes).unwrap_or_else(|_| unreachable!("32 bytes are a hash"))
    }

    /// A buffer of a size up to that of an image, filled with rubbish.
    pub fn buffer(&self, bytes: usize) -> Result<SlotGuard, String> {
        let slots = &self.slots;
        let slot = slots.free.lock().pop().ok_or("the tier keeps every buffer")?;
        let offset = slot as usize * slots.slot_bytes;
        let bytes = bytes.min(slots.slot_bytes);
        slots
            .arena
            .write(offset, &vec![0xEE; bytes])
            .map_err(|error| error.to_string())?;
        Ok(SlotGuard::new(
            slots.arena.clone(),
            slots.clone(),
            slot,
            offset,
            bytes,
        ))
    }

    /// A block's image; `version` makes images of one block differ.
    pub fn image(
        &self,
        namespace: &NamespaceInfo,
        hash: BlockHash,
        version: u64,
    ) -> Result<SlotGuard, String> {
        let failed = |error: Error| error.to_string();
        let layout = &namespace.layout;
        let buffer = self.buffer(layout.image_bytes())?;
        let mut checksums = Vec::new();
        for (index, shard) in layout.shards().iter().enumerate() {
            let seed = hash.fingerprint() ^ version.wrapping_mul(31) ^ index as u64;
            let payload: Vec<u8> = (0..shard.payload_bytes() as u64)
                .map(|at| (seed.wrapping_add(at).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8)
                .collect();
            let mut checksum = Checksum::new();
            checksum.update(&payload);
            checksums.push(checksum.value());
            let offset = layout.shard_offset(index).unwrap_or(0);
            let start = buffer.offset() + offset;
            buffer.arena().write(start, &payload).map_err(failed)?;
        }
        let envelope = Envelope::new(
            namespace.key(hash),
            layout,
            version + 1,
            self.runtime.clock.unix_ms(),
            checksums,
        );
        let page = envelope.encode().map_err(failed)?;
        buffer.write_descriptor(&page).map_err(failed)?;
        Ok(buffer)
    }

    /// Starts operations in one batch.
    pub fn start(&self, batch: Vec<(Arc<NamespaceInfo>, BlockHash, Action, SlotGuard)>) -> Vec<Pending> {
        let mut pending = Vec::new();
        let operations = batch
            .into_iter()
            .map(|(namespace, hash, action, buffer)| {
                let (sender, ended): (Sender<_>, Receiver<_>) = channel();
                pending.push(Pending {
                    ended,
                    patience: self.options.patience,
                });
                Operation {
                    namespace,
                    hash,
                    action,
                    buffer,
                    completion: Box::new(move |buffer, outcome| {
                        let _ = sender.send((buffer, outcome));
                    }),
                }
            })
            .collect();
        self.tier.submit(operations);
        pending
    }

    /// Writes a block and waits.
    pub fn write(&self, hash: BlockHash, version: u64) -> Result<Result<(), Error>, String> {
        let image = self.image(&self.namespace, hash, version)?;
        let action = Action::Write(self.tier.keeps().max(Durability::Tier));
        let pending = self.start(vec![(self.namespace.clone(), hash, action, image)]);
        Self::ended(pending)
    }

    /// Writes a block that has to be taken.
    pub fn store(&self, number: u64) -> Result<(), String> {
        let outcome = self.write(Self::hash(number), 0)?;
        outcome.map_err(|error| format!("block {number} was not taken: {error}"))
    }

    /// Reads a block; `Ok(None)` where it's absent. What comes has to be the whole image of `versions`.
    pub fn read(&self, hash: BlockHash, versions: &[u64]) -> Result<Option<u64>, String> {
        let buffer = self.buffer(self.namespace.layout.image_bytes())?;
        let pending = self.start(vec![(self.namespace.clone(), hash, Action::Read, buffer)]);
        let Some(pending) = pending.into_iter().next() else {
            return Err("no operation".into());
        };
        let (buffer, outcome) = pending.wait()?;
        match outcome {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(format!("a read failed: {error}")),
        }
        let page = buffer.descriptor().map_err(|error| error.to_string())?;
        Envelope::decode(&page[..])
            .and_then(|envelope| envelope.expect(&self.namespace.key(hash), &self.namespace.layout))
            .map_err(|error| format!("a read gave another block: {error}"))?;
        for version in versions {
            let expected = self.image(&self.namespace, hash, *version)?;
            if self.same_payload(&buffer, &expected)? {
                return Ok(Some(*version));
            }
        }
        Err("a read gave bytes that nobody wrote as one block".into())
    }

    /// Whether the payloads of two images are the same.
    pub fn same_payload(&self, one: &SlotGuard, other: &SlotGuard) -> Result<bool, String> {
        let layout = &self.namespace.layout;
        for (index, shard) in layout.shards().iter().enumerate() {
            let offset = layout.shard_offset(index).unwrap_or(0);
            let sum = |buffer: &SlotGuard| {
                buffer
                    .arena()
                    .checksum(buffer.offset() + offset, shard.payload_bytes())
                    .map_err(|error| error.to_string())
            };
            if sum(one)? != sum(other)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether a lookup finds a block; both kinds of lookup must agree.
    pub fn present(&self, hash: BlockHash) -> Result<bool, String> {
        let before = self.looked_up(hash);
        let prefix = self.tier.lookup_on_prefix(&self.namespace, &[hash]);
        // a tier that still finds out what it has may show the block between two questions
        let after = self.looked_up(hash);
        if prefix == usize::from(after) || before != after || self.lookups_are_hints {
            Ok(after)
        } else {
            Err(format!("lookup says {after}, lookup_on_prefix {prefix}"))
        }
    }

    fn looked_up(&self, hash: BlockHash) -> bool {
        let mut present = [false];
        self.tier.lookup(&self.namespace, &[hash], &mut present);
        present[0]
    }

    /// Whether lookups don't find a block: at once, or soon where they are hints.
    pub fn absent(&self, hash: BlockHash) -> Result<bool, String> {
        let deadline = self.runtime.deadline(self.options.patience);
        let (_sender, never) = channel::<()>();
        while self.present(hash)? {
            if !self.lookups_are_hints || self.runtime.clock.now() >= deadline {
                return Ok(false);
            }
            let _ = never.recv_timeout(LOOK_INTERVAL);
        }
        Ok(true)
    }

    fn ended(pending: Vec<Pending>) -> Result<Result<(), Error>, String> {
        match pending.into_iter().next() {
            Some(pending) => pending.wait().map(|(_, outcome)| outcome),
            None => Err("no operation".into()),
        }
    }
}

/// A namespace of a check's own.
pub(crate) fn namespace(number: u8, layout: Layout) -> Result<Arc<NamespaceInfo>, String> {
    let identity = Identity {
        tenant: "conformance".into(),
        model: format!("check-{number}"),
        block_tokens: 16,
        ..Identity::default()
    };
    NamespaceInfo::new(identity, layout)
        .map(Arc::new)
        .map_err(|error| error.to_string())
}
