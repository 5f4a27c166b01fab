//! A slot's bytes as the body of a request, without a copy.
#![allow(unsafe_code)]

use bytes::Bytes;
use kvstored_core::SlotGuard;

/// Keeps the slot pinned as long as somebody may read its bytes, also after a request that was given up.
struct Image {
    slot: SlotGuard,
    length: usize,
}

impl AsRef<[u8]> for Image {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `length` is at most the slot's, which its owner has checked against the arena, and the guard keeps the
        // slot in place. A slot that is being stored has no writer; a process that breaks that rule changes what the
        // block's checksums say, so readers of the object refuse it.
        unsafe { std::slice::from_raw_parts(self.slot.address(), self.length) }
    }
}

/// The first `length` bytes of a slot, at most all of it.
pub fn bytes_of(slot: &SlotGuard, length: usize) -> Bytes {
    Bytes::from_owner(Image {
        slot: slot.clone(),
        length: length.min(slot.length()),
    })
}
