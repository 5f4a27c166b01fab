//! What is measured.

use crate::placement::Placement;
use crate::tiers::Kind;

const BATCH: usize = 32;
/// Batches under way where the queue is kept full.
const FULL: usize = 4;

/// One kind of load.
pub struct Load {
    /// As the table says it.
    pub name: &'static str,
    /// The tiers.
    pub kind: Kind,
    /// Of each block.
    pub payload_bytes: u32,
    /// So many are written and read.
    pub blocks: usize,
    /// Operations in one batch.
    pub batch: usize,
    /// Batches under way at once.
    pub batches: usize,
    /// How often all blocks are read.
    pub reads: usize,
    /// Where threads run.
    pub placement: Placement,
}

const fn throughput(name: &'static str, kind: Kind, payload_bytes: u32, blocks: usize) -> Load {
    Load {
        name,
        kind,
        payload_bytes,
        blocks,
        batch: BATCH,
        batches: FULL,
        reads: 2,
        placement: Placement::Any,
    }
}

const fn awaited(load: Load, batch: usize, placement: Placement) -> Load {
    Load {
        batch,
        batches: 1,
        placement,
        ..load
    }
}

const DIRECT: Kind = Kind::Posix { direct: true };
const CACHED: Kind = Kind::Posix { direct: false };

/// What is measured, in this order.
pub const LOADS: [Load; 15] = [
    throughput("Posix, 1 MiB", DIRECT, 1 << 20, 192),
    throughput("Posix, 64 KiB", DIRECT, 64 << 10, 1024),
    throughput("Posix, 4 KiB", DIRECT, 4096, 4096),
    throughput("page cache, 1 MiB", CACHED, 1 << 20, 192),
    throughput("page cache, 64 KiB", CACHED, 64 << 10, 1024),
    throughput("page cache, 4 KiB", CACHED, 4096, 4096),
    throughput("memory, 64 KiB", Kind::Memory, 64 << 10, 1024),
    throughput("memory, 4 KiB", Kind::Memory, 4096, 4096),
    awaited(
        throughput("Posix, 64 KiB, 32 awaited", DIRECT, 64 << 10, 512),
        BATCH,
        Placement::Any,
    ),
    awaited(
        throughput("Posix, 64 KiB, single, 1 CPU", DIRECT, 64 << 10, 256),
        1,
        Placement::Together,
    ),
    awaited(
        throughput("Posix, 64 KiB, single, 2 CPUs", DIRECT, 64 << 10, 256),
        1,
        Placement::Apart,
    ),
    awaited(
        throughput("memory, 4 KiB, 32 awaited", Kind::Memory, 4096, 4096),
        BATCH,
        Placement::Any,
    ),
    awaited(
        throughput("memory, 4 KiB, 32, 1 CPU", Kind::Memory, 4096, 4096),
        BATCH,
        Placement::Together,
    ),
    awaited(
        throughput("memory, 4 KiB, single, 1 CPU", Kind::Memory, 4096, 512),
        1,
        Placement::Together,
    ),
    awaited(
        throughput("memory, 4 KiB, single, 2 CPUs", Kind::Memory, 4096, 512),
        1,
        Placement::Apart,
    ),
];
