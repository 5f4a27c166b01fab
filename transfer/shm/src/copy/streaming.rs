//! Copies with non-temporal stores.

use core::arch::x86_64::{
    __m256i, _MM_HINT_T0, _mm_prefetch, _mm_sfence, _mm256_loadu_si256, _mm256_stream_si256,
};
use std::arch::is_x86_feature_detected;

/// Bytes of a vector, and the alignment that its stores need.
const VECTOR: usize = 32;
/// Bytes that one turn of the loop copies.
const STRIDE: usize = 256;
/// Cache line size.
const LINE: usize = 64;
/// How far ahead of the loads the source is fetched.
const AHEAD: usize = 1024;

/// Whether [`copy`] may be used.
pub(super) fn is_supported() -> bool {
    is_x86_feature_detected!("avx2")
}

/// Copies bytes past the caches. All stores come before whatever this thread stores afterwards.
///
/// # Safety
/// The processor must support AVX2; otherwise as for [`super::copy`].
#[target_feature(enable = "avx2")]
pub(super) unsafe fn copy(destination: *mut u8, source: *const u8, length: usize) {
    let head = destination.align_offset(VECTOR).min(length);
    let strides = (length - head) / STRIDE * STRIDE;
    // SAFETY: the three parts lie within `length`, and the middle one is aligned.
    unsafe {
        std::ptr::copy_nonoverlapping(source, destination, head);
        copy_strides(destination.add(head), source.add(head), strides);
        let done = head + strides;
        std::ptr::copy_nonoverlapping(source.add(done), destination.add(done), length - done);
    }
    // nothing else orders non-temporal stores
    _mm_sfence();
}

/// # Safety
/// As for [`copy`]; the destination is aligned to vectors, and the length a multiple of the stride.
#[target_feature(enable = "avx2")]
unsafe fn copy_strides(destination: *mut u8, source: *const u8, length: usize) {
    for offset in (0..length).step_by(STRIDE) {
        let (to, from) = (destination.wrapping_add(offset), source.wrapping_add(offset));
        for line in (0..STRIDE).step_by(LINE) {
            _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(AHEAD + line).cast());
        }
        // SAFETY: the stride lies within `length` of both ranges.
        let vectors: [__m256i; STRIDE / VECTOR] = std::array::from_fn(|index| unsafe {
            _mm256_loadu_si256(from.wrapping_add(index * VECTOR).cast())
        });
        for (index, vector) in vectors.into_iter().enumerate() {
            // SAFETY: as above, and the destination is aligned.
            unsafe { _mm256_stream_si256(to.wrapping_add(index * VECTOR).cast(), vector) };
        }
    }
}
