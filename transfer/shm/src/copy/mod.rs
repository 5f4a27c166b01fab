//! Moving bytes between local memory and a peer's that is mapped here.
//!
//! Both may change while they are copied, by a process that breaks the rules or a device: no references are
//! formed, and the checksum is that of the bytes which arrived.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod streaming;

use kvstored_core::checksum::Checksum;
use kvstored_core::{Error, ErrorKind, Result};

/// Bytes that are copied between two questions whether to go on: 0.1 ms or so.
const STEP_BYTES: usize = 1 << 20;
/// From so many bytes on, a transfer's destination is not likely to be in the nearer caches, before or after.
const STREAMING_BYTES: u64 = 1 << 20;

/// How bytes are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stores {
    /// Through the caches: much faster while everything is in them (256 KiB: 46 GB/s, past them 20), and
    /// slower otherwise.
    Cached,
    /// Past the caches, where the processor can: 1.4 times as fast for 1 MiB pieces of a large range (8.2
    /// GB/s to 5.8), as the destination's lines aren't fetched before they are overwritten.
    Streaming,
}

impl Stores {
    /// What suits a transfer of so many bytes in all.
    pub const fn suiting(bytes: u64) -> Self {
        if bytes < STREAMING_BYTES {
            Self::Cached
        } else {
            Self::Streaming
        }
    }
}

/// Copies `length` bytes, with the stores that suit this length. `goes_on` is asked before each MiB. With a
/// checksum, the bytes are appended to it on their way, and it chooses the stores itself. All stores come
/// before whatever this thread stores afterwards.
///
/// Fails with `Fenced` when it's not to go on; some of the bytes may have been copied then.
///
/// # Safety
/// `source` must be valid for reads and `destination` for writes of `length` bytes, and they must not
/// overlap. Nothing in this process may hold references to bytes that are written, nor write to those that
/// are read.
pub unsafe fn copy(
    destination: *mut u8,
    source: *const u8,
    length: usize,
    checksum: Option<&mut Checksum>,
    goes_on: impl FnMut() -> bool,
) -> Result<()> {
    let stores = Stores::suiting(length as u64);
    // SAFETY: as the caller promises.
    unsafe { copy_with(stores, destination, source, length, checksum, goes_on) }
}

/// Copies as [`copy`] does, for a caller who knows better: the piece of a large transfer is itself small,
/// say.
///
/// # Safety
/// As for [`copy`].
pub unsafe fn copy_with(
    stores: Stores,
    destination: *mut u8,
    source: *const u8,
    length: usize,
    mut checksum: Option<&mut Checksum>,
    mut goes_on: impl FnMut() -> bool,
) -> Result<()> {
    let mut done = 0;
    while done < length {
        if !goes_on() {
            return Err(Error::new(ErrorKind::Fenced, "the peer takes its memory back"));
        }
        let step = (length - done).min(STEP_BYTES);
        let (to, from) = (destination.wrapping_add(done), source.wrapping_add(done));
        // SAFETY: the caller promises both ranges.
        unsafe {
            match &mut checksum {
                Some(checksum) => checksum.copy_raw(to, from, step),
                None => copy_step(to, from, step, stores),
            }
        }
        done += step;
    }
    Ok(())
}

/// # Safety
/// As for [`copy`].
unsafe fn copy_step(destination: *mut u8, source: *const u8, length: usize, stores: Stores) {
    #[cfg(target_arch = "x86_64")]
    if stores == Stores::Streaming && streaming::is_supported() {
        // SAFETY: the processor can, and the caller promises both ranges.
        return unsafe { streaming::copy(destination, source, length) };
    }
    let _ = stores;
    // SAFETY: the caller promises both ranges.
    unsafe { std::ptr::copy_nonoverlapping(source, destination, length) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn copied(from: &[u8], shift: usize, stores: Stores, checksum: Option<&mut Checksum>) -> Vec<u8> {
        let mut to = vec![0xa5; from.len() + shift + 64];
        // SAFETY: the destination has room behind the shift, and is another allocation.
        unsafe {
            copy_with(
                stores,
                to.as_mut_ptr().add(shift),
                from.as_ptr(),
                from.len(),
                checksum,
                || true,
            )
        }
        .unwrap();
        assert!(to[..shift].iter().all(|byte| *byte == 0xa5));
        assert!(to[shift + from.len()..].iter().all(|byte| *byte == 0xa5));
        to[shift..shift + from.len()].to_vec()
    }

    proptest! {
        #[test]
        fn every_length_and_alignment_is_copied(
            bytes in prop::collection::vec(any::<u8>(), 0..6000),
            skipped in 0_usize..70,
            shift in 0_usize..70,
        ) {
            let from = bytes.get(skipped..).unwrap_or_default();
            for stores in [Stores::Cached, Stores::Streaming] {
                prop_assert!(copied(from, shift, stores, None) == from);
            }
            let mut checksum = Checksum::new();
            prop_assert!(copied(from, shift, Stores::Cached, Some(&mut checksum)) == from);
            prop_assert_eq!(checksum.value(), kvstored_core::checksum::checksum(from));
        }
    }

    #[test]
    fn a_long_copy_is_whole_and_can_be_stopped_at_each_step() {
        let from: Vec<u8> = (0..3 * STEP_BYTES + 77)
            .map(|index| (index % 251) as u8)
            .collect();
        assert!(copied(&from, 3, Stores::Streaming, None) == from);
        let mut to = vec![0; from.len()];
        let mut steps = 2;
        // SAFETY: two allocations of that length.
        let outcome = unsafe {
            copy(to.as_mut_ptr(), from.as_ptr(), from.len(), None, || {
                steps -= 1;
                steps >= 0
            })
        };
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Fenced);
        assert!(to[..2 * STEP_BYTES] == from[..2 * STEP_BYTES]);
        assert!(to[2 * STEP_BYTES..].iter().all(|byte| *byte == 0));
    }
}
