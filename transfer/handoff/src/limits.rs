//! Caps on everything that comes from a caller or the wire.

/// Bytes of a name: an engine's, a request's, a layer's, or a fingerprint.
pub const MAX_NAME_BYTES: usize = 256;
/// Blocks of one request.
pub const MAX_BLOCKS: usize = 65_536;
/// Layers of one rank.
pub const MAX_LAYERS: usize = 4096;
/// Pieces of one layer.
pub const MAX_PIECES: usize = 16;
/// Rows and heads of one block, ranks of one kind, tokens of one block.
pub const MAX_COUNT: u32 = 65_535;
/// Ranks of one engine.
pub const MAX_RANKS: usize = 4096;
/// Requests that are held, or released and not yet taken.
pub const MAX_HELD: usize = 65_536;
/// Requests that are remembered as gone.
pub const MAX_TOMBSTONES: usize = 65_536;
/// Pulls that aren't over, or over and not yet taken.
pub const MAX_PULLS: usize = 16_384;
/// Words to producers that aren't delivered yet.
pub const MAX_ENDINGS: usize = 262_144;
/// Bytes of one question for grants, unless it's about a single range: making their checksums holds up the end of the lease.
pub const MAX_GRANTED_BYTES: u64 = 64 << 20;
/// Questions for checksums that are kept for one hold.
pub const MAX_TICKETS: usize = 16_384;
