//! Fused copy and checksum kernels for `x86_64`.
//!
//! Every kernel loads a block once, stores it and folds it. The main loops work on
//! strides of eight 16-byte blocks, and what is left over goes through [`short`].
//! [`folding`] explains the arithmetic; [`mod@transfer`] has the store modes.

mod folding;
mod transfer;

use core::arch::x86_64::{
    _MM_HINT_T0, _mm_cvtsi64_si128, _mm_prefetch, _mm_sfence, _mm_xor_si128, _mm256_broadcastsi128_si256,
    _mm256_castsi256_si128, _mm256_extracti128_si256, _mm256_xor_si256, _mm256_zextsi128_si256,
};
use folding::{fold, fold_constants, fold_pair, reduce_block, reduce_blocks, reduce_word};
use std::arch::is_x86_feature_detected;
use transfer::{CACHED, READ_ONLY, STREAMING, transfer, transfer_pair, transfer_word};

/// Bytes folded by one turn of the main loop.
const STRIDE: usize = 128;
/// How far ahead of the loads the source is prefetched.
const PREFETCH_DISTANCE: usize = 1024;
/// Shortest length for which source prefetching and non-temporal stores are used.
///
/// Between buffers much larger than the cache they are faster from about this
/// length on. A shorter call is over before the fetches pay, and a small
/// destination is more likely to be wanted in the cache soon.
const STREAMING_MINIMUM: usize = 1024;
/// Cache line size, the alignment at which non-temporal stores start.
const LINE: usize = 64;

/// Processes all whole strides of a call: state, destination, source, length.
type Bulk = unsafe fn(u64, *mut u8, *const u8, usize) -> u64;

/// The main loops of one vector width, by store mode.
pub(super) struct Loops {
    read_only: Bulk,
    cached: Bulk,
    streaming: Bulk,
}

/// 256-bit loops, to be used only where [`wide_is_supported`].
pub(super) static WIDE: Loops = Loops {
    read_only: bulk_wide::<READ_ONLY>,
    cached: bulk_wide::<CACHED>,
    streaming: bulk_wide::<STREAMING>,
};

/// 128-bit loops, to be used only where [`narrow_is_supported`].
pub(super) static NARROW: Loops = Loops {
    read_only: bulk_narrow::<READ_ONLY>,
    cached: bulk_narrow::<CACHED>,
    streaming: bulk_narrow::<STREAMING>,
};

/// Prefetches what the turn `PREFETCH_DISTANCE` ahead will load.
///
/// `remaining` counts the bytes from `source` to the end of the call. Fetching
/// beyond it would be harmless but waste bandwidth when pieces are scattered, so
/// the last turns fetch the last lines again, which costs next to nothing.
#[inline]
#[target_feature(enable = "sse4.1")]
fn prefetch_ahead(source: *const u8, remaining: usize) {
    let ahead = source.wrapping_add(PREFETCH_DISTANCE.min(remaining.saturating_sub(STRIDE)));
    prefetch(ahead);
    prefetch(ahead.wrapping_add(LINE));
}

/// Prefetches the line that contains `address`.
#[inline]
fn prefetch(address: *const u8) {
    // SAFETY: a prefetch is a hint and does not fault, whatever the address.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
}

/// The 256-bit main loop.
///
/// # Safety
///
/// The processor must support the enabled features, and `length` must be at least
/// `STRIDE`. `length` rounded down to a multiple of `STRIDE` bytes must be readable
/// at `source`, and writable at `destination` unless `STORE` is `READ_ONLY`;
/// aligned to `LINE` if it is `STREAMING`.
#[target_feature(enable = "avx2,vpclmulqdq,sse4.1,pclmulqdq")]
unsafe fn bulk_wide<const STORE: u8>(
    state: u64,
    destination: *mut u8,
    source: *const u8,
    length: usize,
) -> u64 {
    let constants = _mm256_broadcastsi128_si256(fold_constants::<STRIDE>());
    // SAFETY: called with an offset whose whole stride lies within `length`, so
    // that the caller's promises cover it; offsets are multiples
    // of 32.
    let pair = |offset: usize| unsafe {
        transfer_pair::<STORE>(destination.wrapping_add(offset), source.wrapping_add(offset))
    };
    let mut pairs = [pair(0), pair(32), pair(64), pair(96)];
    let state = _mm256_zextsi128_si256(_mm_cvtsi64_si128(state.cast_signed()));
    pairs[0] = _mm256_xor_si256(pairs[0], state);
    let mut offset = STRIDE;
    while length - offset >= STRIDE {
        prefetch_ahead(source.wrapping_add(offset), length - offset);
        pairs[0] = fold_pair(pairs[0], constants, pair(offset));
        pairs[1] = fold_pair(pairs[1], constants, pair(offset + 32));
        pairs[2] = fold_pair(pairs[2], constants, pair(offset + 64));
        pairs[3] = fold_pair(pairs[3], constants, pair(offset + 96));
        offset += STRIDE;
    }
    let lower = |index: usize| _mm256_castsi256_si128(pairs[index]);
    let upper = |index: usize| _mm256_extracti128_si256::<1>(pairs[index]);
    reduce_blocks([
        lower(0),
        upper(0),
        lower(1),
        upper(1),
        lower(2),
        upper(2),
        lower(3),
        upper(3),
    ])
}

/// The 128-bit main loop.
///
/// # Safety
///
/// As for [`bulk_wide`].
#[target_feature(enable = "sse4.1,pclmulqdq")]
unsafe fn bulk_narrow<const STORE: u8>(
    state: u64,
    destination: *mut u8,
    source: *const u8,
    length: usize,
) -> u64 {
    let constants = fold_constants::<STRIDE>();
    // SAFETY: as in `bulk_wide`, with offsets that are multiples of 16.
    let block = |offset: usize| unsafe {
        transfer::<STORE>(destination.wrapping_add(offset), source.wrapping_add(offset))
    };
    let mut blocks = [0, 16, 32, 48, 64, 80, 96, 112].map(block);
    blocks[0] = _mm_xor_si128(blocks[0], _mm_cvtsi64_si128(state.cast_signed()));
    let mut offset = STRIDE;
    while length - offset >= STRIDE {
        prefetch_ahead(source.wrapping_add(offset), length - offset);
        for (index, accumulator) in blocks.iter_mut().enumerate() {
            *accumulator = fold(*accumulator, constants, block(offset + 16 * index));
        }
        offset += STRIDE;
    }
    reduce_blocks(blocks)
}

/// Processes a few bytes, of any alignment.
///
/// # Safety
///
/// The processor must support the enabled features. `length` bytes must be
/// readable at `source`, and writable at `destination` unless `STORE` is
/// `READ_ONLY`. `STORE` must not be `STREAMING`.
#[target_feature(enable = "sse4.1,pclmulqdq")]
unsafe fn short<const STORE: u8>(
    mut state: u64,
    destination: *mut u8,
    source: *const u8,
    length: usize,
) -> u64 {
    let mut offset = 0;
    // SAFETY: called only while 16 bytes of `length` are left at `offset`, and the
    // caller's promises cover those.
    let block = |offset: usize| unsafe {
        transfer::<STORE>(destination.wrapping_add(offset), source.wrapping_add(offset))
    };
    if length >= 16 {
        let constants = fold_constants::<16>();
        let mut folded = _mm_xor_si128(block(0), _mm_cvtsi64_si128(state.cast_signed()));
        offset = 16;
        while length - offset >= 16 {
            folded = fold(folded, constants, block(offset));
            offset += 16;
        }
        state = reduce_block(folded);
    }
    // At most 15 bytes are left: gather them, by powers of two, into words.
    let left = length - offset;
    if left & 8 != 0 {
        // SAFETY: at least 8 bytes are left at `offset`.
        let word = unsafe { transfer_word::<STORE, 8>(destination, source, offset) };
        state = reduce_word(state ^ word);
        offset += 8;
    }
    let (mut tail, mut bits) = (0, 0);
    if left & 4 != 0 {
        // SAFETY: at least 4 bytes are left at `offset`.
        tail = unsafe { transfer_word::<STORE, 4>(destination, source, offset) };
        (offset, bits) = (offset + 4, 32);
    }
    if left & 2 != 0 {
        // SAFETY: at least 2 bytes are left at `offset`.
        tail |= unsafe { transfer_word::<STORE, 2>(destination, source, offset) } << bits;
        (offset, bits) = (offset + 2, bits + 16);
    }
    if left & 1 != 0 {
        // SAFETY: one byte is left at `offset`.
        tail |= unsafe { transfer_word::<STORE, 1>(destination, source, offset) } << bits;
        bits += 8;
    }
    if bits > 0 {
        // The `bits` highest terms of the state meet the message and leave the
        // register, the others move up in it.
        state = (state >> bits) ^ reduce_word((state ^ tail) << (64 - bits));
    }
    state
}

/// Splits a call into whole strides for `bulk` and a remainder.
///
/// # Safety
///
/// As for [`short`], and the processor must support what `bulk` needs, which must
/// be instantiated for the same `STORE`.
#[inline]
#[target_feature(enable = "sse4.1,pclmulqdq")]
unsafe fn split<const STORE: u8>(
    bulk: Bulk,
    mut state: u64,
    destination: *mut u8,
    source: *const u8,
    length: usize,
) -> u64 {
    let whole = length - length % STRIDE;
    // SAFETY: both parts lie within `length`, and `bulk` gets at least one stride.
    // The remainder is shorter than what non-temporal stores are good for.
    unsafe {
        if whole > 0 {
            state = bulk(state, destination, source, whole);
        }
        let (destination, source) = (destination.wrapping_add(whole), source.wrapping_add(whole));
        match STORE {
            READ_ONLY => short::<READ_ONLY>(state, destination, source, length - whole),
            _ => short::<CACHED>(state, destination, source, length - whole),
        }
    }
}

/// Appends `bytes` to `state`.
///
/// # Safety
///
/// The processor must support `loops`.
pub(super) unsafe fn update(loops: &Loops, state: u64, bytes: &[u8]) -> u64 {
    let (destination, source) = (std::ptr::null_mut(), bytes.as_ptr());
    // SAFETY: the slice is readable, and this mode has no destination.
    unsafe { split::<READ_ONLY>(loops.read_only, state, destination, source, bytes.len()) }
}

/// Copies `length` bytes and appends them to `state`.
///
/// # Safety
///
/// The processor must support `loops`, of which no kind needs less than the
/// features enabled here; otherwise as for
/// [`Checksum::copy_raw`](super::Checksum::copy_raw).
#[target_feature(enable = "sse4.1,pclmulqdq")]
pub(super) unsafe fn copy(
    loops: &Loops,
    mut state: u64,
    destination: *mut u8,
    source: *const u8,
    length: usize,
) -> u64 {
    if length < STREAMING_MINIMUM {
        // SAFETY: the caller's promises are those of `split`.
        return unsafe { split::<CACHED>(loops.cached, state, destination, source, length) };
    }
    // The main loop fetches only from `PREFETCH_DISTANCE` on.
    for offset in (0..PREFETCH_DISTANCE).step_by(LINE) {
        prefetch(source.wrapping_add(offset));
    }
    let head = destination.addr().wrapping_neg() % LINE;
    // SAFETY: `head` is less than `LINE` and so than `length`; behind it the
    // destination is aligned as non-temporal stores demand.
    unsafe {
        state = short::<CACHED>(state, destination, source, head);
        let (destination, source) = (destination.wrapping_add(head), source.wrapping_add(head));
        state = split::<STREAMING>(loops.streaming, state, destination, source, length - head);
    }
    // Non-temporal stores are not ordered by anything else.
    _mm_sfence();
    state
}

/// Whether [`NARROW`] may be used.
pub(super) fn narrow_is_supported() -> bool {
    is_x86_feature_detected!("sse4.1") && is_x86_feature_detected!("pclmulqdq")
}

/// Whether [`WIDE`] may be used.
pub(super) fn wide_is_supported() -> bool {
    narrow_is_supported() && is_x86_feature_detected!("avx2") && is_x86_feature_detected!("vpclmulqdq")
}
