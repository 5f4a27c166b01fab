//! CRC-64/NVME, computed while the bytes are being copied.
//!
//! A shard is written by copying many tensors into it, and its checksum covers
//! every one of those bytes. Copying first and checksumming afterwards walks the
//! memory twice; here each register of data is stored to its destination *and*
//! folded into the running remainder, so the arithmetic hides behind the memory
//! traffic. Long copies also use non-temporal stores, which spare the
//! read-for-ownership of every destination line, and end up faster than a plain
//! `memcpy` between buffers that do not fit in the cache.
//!
//! The checksum always describes the bytes that were *stored*: every source byte
//! is loaded exactly once (or, in the portable fallback, the destination is what
//! is summed), so what has been written never disagrees with its checksum.
//!
//! Three kernels produce identical values; the best one the processor supports
//! is chosen once per process:
//!
//! | kernel   | needs                         | implementation                      |
//! |----------|-------------------------------|-------------------------------------|
//! | wide     | AVX2 + VPCLMULQDQ             | 256-bit fused fold                  |
//! | narrow   | SSE4.1 + PCLMULQDQ            | 128-bit fused fold                  |
//! | portable | nothing                       | copy 16 KiB, then `crc-fast` on it  |

#![allow(unsafe_code)]

mod combine;
mod portable;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use std::sync::OnceLock;

/// Value the remainder starts from; also what it is combined with at the end.
const ALL_ONES: u64 = u64::MAX;

/// Running CRC-64/NVME over a shard's bytes.
///
/// Calls may be mixed freely; the value is that of all bytes seen so far, in
/// order, however they were divided among the calls.
///
/// ```
/// use kvstored_core::checksum::Checksum;
/// let mut checksum = Checksum::new();
/// checksum.update(b"1234");
/// let mut copied = [0; 5];
/// checksum.copy(&mut copied, b"56789");
/// assert_eq!(checksum.value(), 0xae8b_1486_0a79_9888);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checksum {
    /// Remainder before the final complement.
    state: u64,
}

impl Checksum {
    /// The checksum of no bytes.
    #[must_use]
    pub fn new() -> Self {
        Self { state: ALL_ONES }
    }

    /// Appends `bytes` without copying them.
    pub fn update(&mut self, bytes: &[u8]) {
        self.state = Kernel::selected().update(self.state, bytes);
    }

    /// Copies `source` to `destination` and appends the copied bytes.
    ///
    /// The lengths are meant to be equal, which debug builds assert. In release
    /// builds the shorter of the two decides how many bytes are copied and
    /// appended, and the rest of the longer one is left alone.
    pub fn copy(&mut self, destination: &mut [u8], source: &[u8]) {
        debug_assert_eq!(destination.len(), source.len(), "copy between different lengths");
        let length = destination.len().min(source.len());
        // SAFETY: `length` is within both slices, and an exclusive borrow cannot
        // overlap a shared one.
        unsafe { self.copy_raw(destination.as_mut_ptr(), source.as_ptr(), length) }
    }

    /// Copies `length` bytes from `source` to `destination` and appends them.
    ///
    /// Neither pointer needs any alignment. All stores, including the
    /// non-temporal ones, are ordered before any store that follows the call,
    /// so publishing the destination with an ordinary release store is enough.
    ///
    /// # Safety
    ///
    /// `source` must be valid for reads and `destination` for writes of `length`
    /// bytes, the two ranges must not overlap, and nothing else may write to
    /// either range, or read `destination`, during the call.
    pub unsafe fn copy_raw(&mut self, destination: *mut u8, source: *const u8, length: usize) {
        // SAFETY: the caller's promises are exactly those the kernel asks for.
        self.state = unsafe { Kernel::selected().copy(self.state, destination, source, length) };
    }

    /// Appends `length` bytes (fewer than 2 to the 61) that lie elsewhere, whose checksum is `value`. Takes a microsecond.
    pub fn append(&mut self, value: u64, length: u64) {
        self.state = combine::combine(self.value(), value, length) ^ ALL_ONES;
    }

    /// The checksum of everything appended so far; appending may go on.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.state ^ ALL_ONES
    }
}

impl Default for Checksum {
    fn default() -> Self {
        Self::new()
    }
}

/// CRC-64/NVME of `bytes`.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u64 {
    let mut checksum = Checksum::new();
    checksum.update(bytes);
    checksum.value()
}

/// An implementation this processor supports.
///
/// Values other than `Portable` must only be made by [`Kernel::supported`],
/// which checks the processor first; the unsafe calls below rely on that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kernel {
    #[cfg(target_arch = "x86_64")]
    Wide,
    #[cfg(target_arch = "x86_64")]
    Narrow,
    Portable,
}

impl Kernel {
    /// The kernel this process uses.
    fn selected() -> Self {
        static SELECTED: OnceLock<Kernel> = OnceLock::new();
        *SELECTED.get_or_init(|| Self::supported().next().unwrap_or(Self::Portable))
    }

    /// Every kernel that can run here, fastest first.
    fn supported() -> impl Iterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let accelerated = [
            x86_64::wide_is_supported().then_some(Self::Wide),
            x86_64::narrow_is_supported().then_some(Self::Narrow),
        ];
        #[cfg(not(target_arch = "x86_64"))]
        let accelerated: [Option<Self>; 0] = [];
        accelerated.into_iter().flatten().chain([Self::Portable])
    }

    /// Appends `bytes` to `state`.
    fn update(self, state: u64, bytes: &[u8]) -> u64 {
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the variant exists only where the processor supports it.
            Self::Wide => unsafe { x86_64::update(&x86_64::WIDE, state, bytes) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Self::Narrow => unsafe { x86_64::update(&x86_64::NARROW, state, bytes) },
            Self::Portable => portable::update(state, bytes),
        }
    }

    /// Copies `length` bytes and appends them to `state`.
    ///
    /// # Safety
    ///
    /// As for [`Checksum::copy_raw`].
    unsafe fn copy(self, state: u64, destination: *mut u8, source: *const u8, length: usize) -> u64 {
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the variant exists only where the processor supports it,
            // and the caller vouches for the pointers.
            Self::Wide => unsafe { x86_64::copy(&x86_64::WIDE, state, destination, source, length) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Self::Narrow => unsafe { x86_64::copy(&x86_64::NARROW, state, destination, source, length) },
            // SAFETY: the caller vouches for the pointers.
            Self::Portable => unsafe { portable::copy(state, destination, source, length) },
        }
    }
}
