//! Loads that store on the way: the memory accesses of the `x86_64` kernels.

use core::arch::x86_64::{
    __m128i, __m256i, _mm_loadu_si128, _mm_storeu_si128, _mm_stream_si128, _mm256_loadu_si256,
    _mm256_storeu_si256, _mm256_stream_si256,
};

/// Store mode: nothing is stored and the destination is never accessed.
pub(super) const READ_ONLY: u8 = 0;
/// Store mode: ordinary stores.
pub(super) const CACHED: u8 = 1;
/// Store mode: non-temporal stores, for an aligned destination.
pub(super) const STREAMING: u8 = 2;

/// Loads 16 bytes and stores them as `STORE` says.
///
/// # Safety
///
/// 16 bytes must be readable at `source`, and writable at `destination` unless
/// `STORE` is `READ_ONLY`; aligned to 16 if it is `STREAMING`.
#[inline]
#[target_feature(enable = "sse4.1")]
pub(super) unsafe fn transfer<const STORE: u8>(destination: *mut u8, source: *const u8) -> __m128i {
    // SAFETY: the caller vouches for both pointers.
    unsafe {
        let block = _mm_loadu_si128(source.cast());
        match STORE {
            CACHED => _mm_storeu_si128(destination.cast(), block),
            STREAMING => _mm_stream_si128(destination.cast(), block),
            _ => {}
        }
        block
    }
}

/// Loads 32 bytes and stores them as `STORE` says.
///
/// # Safety
///
/// As for [`transfer`], with 32 in place of 16.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn transfer_pair<const STORE: u8>(destination: *mut u8, source: *const u8) -> __m256i {
    // SAFETY: the caller vouches for both pointers.
    unsafe {
        let blocks = _mm256_loadu_si256(source.cast());
        match STORE {
            CACHED => _mm256_storeu_si256(destination.cast(), blocks),
            STREAMING => _mm256_stream_si256(destination.cast(), blocks),
            _ => {}
        }
        blocks
    }
}

/// Transfers `SIZE` bytes, at most 8, and returns them as a little-endian word.
///
/// # Safety
///
/// `SIZE` bytes must be readable at `offset` from `source`, and writable at
/// `offset` from `destination` unless `STORE` is `READ_ONLY`.
#[inline]
pub(super) unsafe fn transfer_word<const STORE: u8, const SIZE: usize>(
    destination: *mut u8,
    source: *const u8,
    offset: usize,
) -> u64 {
    let mut word = [0; 8];
    // SAFETY: the caller vouches for both pointers; byte arrays need no alignment.
    let bytes = unsafe { source.wrapping_add(offset).cast::<[u8; SIZE]>().read() };
    if STORE != READ_ONLY {
        // SAFETY: as above.
        unsafe {
            destination.wrapping_add(offset).cast::<[u8; SIZE]>().write(bytes);
        };
    }
    word[..SIZE].copy_from_slice(&bytes);
    u64::from_le_bytes(word)
}
