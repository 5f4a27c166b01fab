//! The contract of a tier: lookups that never block, and completion-style batches of reads and writes.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::block::{BlockHash, BlockKey, Namespace};
use crate::envelope::Envelope;
use crate::error::{Error, ErrorKind, Result};
use crate::events::EventSink;
use crate::identity::Identity;
use crate::layout::Layout;
use crate::memory::{Arena, SlotGuard};
use crate::quota::{QuotaLedger, QuotaUsage};

/// Headers of descriptor pages up to here, of up to 40 shards, are looked at without memory from the heap.
const SMALL_HEADER_BYTES: usize = 512;

/// A namespace as every tier knows it: its digest, what it stands for and the layout of its blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceInfo {
    /// Digest of identity and layout.
    pub namespace: Namespace,
    /// What the digest stands for.
    pub identity: Identity,
    /// Shards and tensors of a block.
    pub layout: Layout,
}

impl NamespaceInfo {
    /// Validates an identity and derives its namespace.
    pub fn new(identity: Identity, layout: Layout) -> Result<Self> {
        identity.validate()?;
        Ok(Self {
            namespace: identity.namespace(&layout),
            identity,
            layout,
        })
    }

    /// The key of one of its blocks.
    pub fn key(&self, hash: BlockHash) -> BlockKey {
        BlockKey {
            namespace: self.namespace,
            hash,
        }
    }

    /// Checks a slot's descriptor page: it has to be that block's under this layout. Fails with `Corrupt`.
    pub fn check_descriptor(&self, hash: BlockHash, slot: &SlotGuard) -> Result<Envelope> {
        let key = self.key(hash);
        let length = Envelope::header_bytes(self.layout.shards().len());
        let (mut small, mut large) = ([0; SMALL_HEADER_BYTES], Vec::new());
        let header = if let Some(header) = small.get_mut(..length) {
            header
        } else {
            large.resize(length, 0);
            &mut large
        };
        slot.arena().read(slot.offset(), header)?;
        // a flipped bit may look like another version
        let envelope = Envelope::decode_header(header)
            .map_err(|error| Error::new(ErrorKind::Corrupt, error.message()).with("key", key))?;
        envelope.expect(&key, &self.layout)?;
        Ok(envelope)
    }

    /// Checks a slot's whole image: the descriptor page, and every shard against its checksum. Fails with `Corrupt`.
    pub fn verify_image(&self, hash: BlockHash, slot: &SlotGuard) -> Result<()> {
        let envelope = self.check_descriptor(hash, slot)?;
        let shards = self.layout.shards().iter().zip(&envelope.shard_checksums);
        for (number, (shard, expected)) in shards.enumerate() {
            let offset = self.layout.shard_offset(number).unwrap_or(usize::MAX);
            let start = slot.offset().saturating_add(offset);
            if slot.arena().checksum(start, shard.payload_bytes())? != *expected {
                let what = format!("shard {number} has a wrong checksum");
                return Err(Error::new(ErrorKind::Corrupt, what).with("key", self.key(hash)));
            }
        }
        Ok(())
    }

    /// Checks that a buffer holds a whole image. Fails with `InvalidInput`.
    pub fn check_size(&self, buffer: &SlotGuard) -> Result<()> {
        let (found, image_bytes) = (buffer.length(), self.layout.image_bytes());
        if found < image_bytes {
            return Err(Error::invalid(format!(
                "a buffer of {found} bytes for a block of {image_bytes}"
            )));
        }
        Ok(())
    }
}

/// How safe a dump is when it's acknowledged. The words mean the same in every client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// In the daemon's DRAM: visible to its clients, lost with the daemon.
    Memory,
    /// In the first tier below DRAM: survives the process, not a power loss.
    #[default]
    Tier,
    /// Flushed to the medium: survives a power loss.
    Durable,
}

/// What a batch entry asks of a tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Fill the buffer with the block's image (descriptor page and shards).
    ///
    /// The tier has checked the envelope (key, layout, header checksum) before it completes with `Ok`; shard
    /// checksums are verified by whoever copies the payload on. An absent block completes with `NotFound`.
    Read,
    /// Store the buffer, a whole image whose descriptor page is valid. Completes when the block is visible to
    /// lookups and as safe as asked. Writing a block that is there already completes with `Ok` and stores
    /// nothing.
    Write(Durability),
    /// Read the block into the buffer and verify all of it, payload too. A block that fails is quarantined
    /// and completes with `Corrupt`.
    Verify,
}

/// Called exactly once for each operation, on a thread of the tier or before `submit` returns. It gets the
/// buffer back, must not block, and must not be called with a lock of the tier held.
pub type Completion = Box<dyn FnOnce(SlotGuard, Result<()>) + Send>;

/// One entry of a batch.
pub struct Operation {
    /// The block's namespace, known to the tier through [`Tier::open_namespace`].
    pub namespace: Arc<NamespaceInfo>,
    /// The block.
    pub hash: BlockHash,
    /// What to do.
    pub action: Action,
    /// The slot to fill or store; owned by the tier until completion, whatever the caller drops.
    pub buffer: SlotGuard,
    /// What to call at the end.
    pub completion: Completion,
}

impl Operation {
    /// Ends the operation.
    pub fn complete(self, result: Result<()>) {
        (self.completion)(self.buffer, result);
    }
}

impl fmt::Debug for Operation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Operation")
            .field("hash", &self.hash)
            .field("action", &self.action)
            .field("buffer", &self.buffer)
            .finish_non_exhaustive()
    }
}

/// A tier's numbers at one moment. Counters only grow; the others are levels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TierStatistics {
    /// Physical bytes the tier occupies (files, DRAM, metadata).
    pub allocated_bytes: u64,
    /// Configured bound of `allocated_bytes`.
    pub capacity_bytes: u64,
    /// Visible blocks.
    pub blocks: u64,
    /// Bytes of memory the index takes.
    pub index_bytes: u64,
    /// Operations waiting or under way.
    pub queue_depth: u64,
    /// Bytes read from the medium.
    pub read_bytes: u64,
    /// Bytes written to the medium, journal and padding included.
    pub written_bytes: u64,
    /// Blocks evicted to make room.
    pub evicted_blocks: u64,
    /// Hot blocks written again during eviction.
    pub reinserted_blocks: u64,
    /// Blocks that failed verification.
    pub quarantined_blocks: u64,
    /// Writes refused for want of space or quota.
    pub refused_writes: u64,
    /// Breaches of the contract and deadlines missed, by a tier that isn't ours, and failures of a device.
    pub faults: u64,
    /// Bytes of buffers that such a tier, or a device, keeps past its deadline; nothing else uses them until they are given
    /// back.
    pub held_bytes: u64,
    /// Calls that handed copies to a device. A batch of operations is one, however many copies it has.
    pub device_calls: u64,
    /// Copies in those calls.
    pub device_copies: u64,
    /// What went between this node and others, by transport and by who asked; empty for a tier of one node.
    pub transports: Vec<TransportStatistics>,
    /// What tenants take and may take, where there are quotas: those with one of their own and the largest others.
    pub tenants: Vec<QuotaUsage>,
    /// What namespaces with a quota of their own take and may take.
    pub limited_namespaces: Vec<QuotaUsage>,
    /// Whether the tier works; a degraded tier answers misses and heals by itself.
    pub degraded: bool,
    /// Why it's degraded.
    pub degraded_reason: String,
}

impl TierStatistics {
    /// With what tenants and namespaces take by a ledger, if there is one.
    #[must_use]
    pub fn with_quotas(mut self, ledger: Option<&QuotaLedger>) -> Self {
        if let Some(ledger) = ledger {
            self.tenants = ledger.tenant_usage();
            self.limited_namespaces = ledger.namespace_usage();
        }
        self
    }
}

/// What a tier moved between this node and others over one transport. Counts only grow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TransportStatistics {
    /// The transport's name, e.g. `tcp`.
    pub transport: String,
    /// Whether another node asked, rather than this one.
    pub served: bool,
    /// Bytes that whoever asked read.
    pub read_bytes: u64,
    /// Bytes that whoever asked wrote.
    pub written_bytes: u64,
    /// Operations that failed, refused ones among them.
    pub failures: u64,
}

/// One level of the pipeline.
pub trait Tier: Send + Sync + 'static {
    /// The tier's name in pipelines, metrics and logs, e.g. `Posix`.
    fn name(&self) -> &str;

    /// The level that a block reaches by being written here. A dump that asks for more is acknowledged by a tier
    /// further down.
    fn keeps(&self) -> Durability {
        Durability::Durable
    }

    /// Writes that the tier wants to have at once, where it gains from more than the engine hands it by itself. Their bytes
    /// are bounded all the same.
    fn write_depth(&self) -> Option<usize> {
        None
    }

    /// Whether blocks that were found further down are written here too, so that the next load finds them nearer.
    fn takes_promotions(&self) -> bool {
        false
    }

    /// Makes a namespace known. Idempotent; fails with `Mismatch` if the tier holds the namespace under
    /// another layout.
    fn open_namespace(&self, namespace: &Arc<NamespaceInfo>) -> Result<()>;

    /// Sets `present[i]` for every block that's here, and leaves the others as they are. Memory only: never
    /// waits for I/O. A hit may still turn out to be a miss at the read.
    fn lookup(&self, namespace: &NamespaceInfo, hashes: &[BlockHash], present: &mut [bool]);

    /// How many blocks at the start of `hashes` are here without a gap. Memory only.
    fn lookup_on_prefix(&self, namespace: &NamespaceInfo, hashes: &[BlockHash]) -> usize;

    /// Takes a batch of operations over. Never blocks: what can't be queued completes with `Busy` at once.
    fn submit(&self, batch: Vec<Operation>);

    /// Forgets blocks. Returns how many were here.
    fn remove(&self, namespace: &NamespaceInfo, hashes: &[BlockHash]) -> u64;

    /// Forgets a whole namespace, also after a restart. Returns how many blocks were here.
    fn purge(&self, namespace: &Namespace) -> Result<u64>;

    /// The tier's numbers.
    fn statistics(&self) -> TierStatistics;

    /// Up to `limit` keys starting behind `after`, in an order of the tier's own; for `ctl ls` and `verify`.
    fn list(&self, namespace: Option<&Namespace>, after: Option<&BlockKey>, limit: usize) -> Vec<BlockKey>;

    /// Namespaces with blocks here and how many, known to this process or not.
    fn namespaces(&self) -> Vec<(Namespace, u64)>;

    /// What the tier itself has recorded of a namespace, perhaps in an earlier run or by another process.
    fn stored_namespace(&self, _namespace: &Namespace) -> Option<Arc<NamespaceInfo>> {
        None
    }

    /// Hands over where to tell of each block that becomes visible here or leaves, in the order in which lookups see
    /// it. Called at most once, before any block is asked for. A tier that keeps nothing has nothing to tell.
    fn observe(&self, _events: EventSink) {}

    /// Finishes all accepted operations and makes what was written durable, or fails with `TimedOut`.
    fn drain(&self, deadline: Instant) -> Result<()>;

    /// Stops the tier's threads; operations that come later complete with `Cancelled`.
    fn shutdown(&self);
}

/// The tier whose blocks lie in mapped memory: the first level of every pipeline.
///
/// Where the pipeline has no `Cache`, the same pool serves as a staging area that keeps nothing.
pub trait MemoryTier: Tier {
    /// The memory that slots are cut from.
    fn arena(&self) -> &Arc<Arena>;

    /// Pins the visible ones among `hashes` (`None` where absent) and counts them as used. `hashes` is a run
    /// of one prompt in prefix order, so that the policy can evict its tail before its head.
    fn pin(&self, namespace: &NamespaceInfo, hashes: &[BlockHash]) -> Vec<Option<SlotGuard>>;

    /// Cuts a slot for each new block of a run, evicting others as needed. `parent` is the block before the
    /// run, if the caller knows it. A slot stays invisible until [`MemoryTier::publish`].
    ///
    /// Per block: `Busy` when nothing can be evicted now, `TooLarge` when the block can never fit,
    /// `AlreadyExists` when it's visible or being written, `QuotaExceeded`.
    fn allocate(
        &self,
        namespace: &Arc<NamespaceInfo>,
        parent: Option<&BlockHash>,
        hashes: &[BlockHash],
    ) -> Vec<Result<SlotGuard>>;

    /// A slot for a block's image that never becomes visible. Fails with `Busy` or `TooLarge`.
    fn allocate_scratch(&self, namespace: &Arc<NamespaceInfo>) -> Result<SlotGuard>;

    /// Makes an allocated slot visible under its key, its image complete.
    fn publish(&self, slot: &SlotGuard);

    /// Makes a slot invisible, published or not; its memory returns with its last guard.
    fn discard(&self, slot: &SlotGuard);

    /// Sets what to call, without locks, after slots became free for somebody who was told `Busy`.
    fn on_room(&self, notify: Arc<dyn Fn() + Send + Sync>);
}
