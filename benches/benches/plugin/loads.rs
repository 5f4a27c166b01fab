//! What is measured.

use crate::placement::Placement;

const BATCH: usize = 32;

/// One kind of load.
pub struct Load {
    /// As the table says it.
    pub name: &'static str,
    /// Of each block.
    pub payload_bytes: u32,
    /// So many are written and read.
    pub blocks: usize,
    /// Operations in one batch, which is waited for.
    pub batch: usize,
    /// How often all blocks are read.
    pub reads: usize,
    /// Where threads run.
    pub placement: Placement,
}

/// What is measured, in this order.
pub const LOADS: [Load; 7] = [
    Load {
        name: "1 MiB, 32 at once",
        payload_bytes: 1 << 20,
        blocks: 64,
        batch: BATCH,
        reads: 4,
        placement: Placement::Any,
    },
    Load {
        name: "64 KiB, 32 at once",
        payload_bytes: 64 << 10,
        blocks: 512,
        batch: BATCH,
        reads: 4,
        placement: Placement::Any,
    },
    Load {
        name: "4 KiB, 32 at once",
        payload_bytes: 4096,
        blocks: 4096,
        batch: BATCH,
        reads: 4,
        placement: Placement::Any,
    },
    Load {
        name: "4 KiB, 32 at once, one CPU",
        payload_bytes: 4096,
        blocks: 4096,
        batch: BATCH,
        reads: 4,
        placement: Placement::Together,
    },
    Load {
        name: "4 KiB, one by one",
        payload_bytes: 4096,
        blocks: 512,
        batch: 1,
        reads: 4,
        placement: Placement::Any,
    },
    Load {
        name: "4 KiB, one by one, one CPU",
        payload_bytes: 4096,
        blocks: 512,
        batch: 1,
        reads: 4,
        placement: Placement::Together,
    },
    Load {
        name: "4 KiB, one by one, two CPUs",
        payload_bytes: 4096,
        blocks: 512,
        batch: 1,
        reads: 4,
        placement: Placement::Apart,
    },
];
