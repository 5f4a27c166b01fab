//! Fallback for processors without a fused kernel.
//!
//! Copies a piece that fits in the first-level cache, then runs `crc-fast` (which
//! has its own acceleration, notably on `AArch64`) over it while it is still there.

use crc_fast::{CrcAlgorithm, Digest};

/// Bytes copied before they are summed.
const PIECE: usize = 16 * 1024;

/// Appends `bytes` to `state`.
pub(super) fn update(state: u64, bytes: &[u8]) -> u64 {
    let mut digest = Digest::new_with_init_state(CrcAlgorithm::Crc64Nvme, state);
    digest.update(bytes);
    digest.get_state()
}

/// Copies `length` bytes and appends them to `state`.
///
/// # Safety
///
/// As for [`Checksum::copy_raw`](super::Checksum::copy_raw).
pub(super) unsafe fn copy(mut state: u64, destination: *mut u8, source: *const u8, length: usize) -> u64 {
    let mut offset = 0;
    while offset < length {
        let piece = PIECE.min(length - offset);
        // SAFETY: `offset + piece` is at most `length`, for which the caller
        // vouches; the slice covers bytes the copy has just initialised, and
        // nothing writes to them while it lives.
        let copied = unsafe {
            let target = destination.add(offset);
            target.copy_from_nonoverlapping(source.add(offset), piece);
            std::slice::from_raw_parts(target, piece)
        };
        state = update(state, copied);
        offset += piece;
    }
    state
}
