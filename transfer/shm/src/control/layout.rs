//! Where things are in the pages.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use kvstored_core::{Error, ErrorKind, Result};

use crate::memory::{Mapping, PAGE_BYTES};

/// The most slots that a page may have.
pub const MAX_SLOTS: u32 = 1 << 20;

/// In the first page of either file: what it is, so that files passed in the wrong order are noticed.
const MAGIC_AT: usize = 0;
const SLOTS_AT: usize = 8;
/// In the first page of counts: whether the peer has done with it.
const CLOSED_AT: usize = 12;

pub(super) const EPOCHS: u64 = u64::from_le_bytes(*b"kvsepoc1");
pub(super) const COUNTS: u64 = u64::from_le_bytes(*b"kvscoun1");

/// Bytes of a file with a word of `width` bytes for each slot. Fails with `InvalidInput` for none and for too
/// many.
pub(super) fn length(slots: u32, width: usize) -> Result<usize> {
    if slots == 0 || slots > MAX_SLOTS {
        return Err(Error::invalid(format!("a control page of {slots} slots")));
    }
    Ok(PAGE_BYTES + slots as usize * width)
}

fn cut_short() -> Error {
    Error::internal("a control page is shorter than its header")
}

/// Writes a new file's header.
pub(super) fn write_header(mapping: &Mapping, magic: u64, slots: u32) -> Result<()> {
    let word = mapping.word(SLOTS_AT).ok_or_else(cut_short)?;
    word.store(slots, Ordering::Relaxed);
    let word = mapping.double(MAGIC_AT).ok_or_else(cut_short)?;
    word.store(magic, Ordering::Release);
    Ok(())
}

/// Checks a passed file's header. Fails with `Mismatch` for another kind of file, version, or number of
/// slots.
pub(super) fn check_header(mapping: &Mapping, magic: u64, slots: u32) -> Result<()> {
    let told = mapping.double(MAGIC_AT).map(|word| word.load(Ordering::Acquire));
    let sized = mapping.word(SLOTS_AT).map(|word| word.load(Ordering::Relaxed));
    if told == Some(magic) && sized == Some(slots) {
        Ok(())
    } else {
        Err(Error::new(
            ErrorKind::Mismatch,
            "a peer passed something else than its control page",
        ))
    }
}

/// The epoch of a slot.
pub(super) fn epoch(mapping: &Mapping, slot: u32) -> Option<&AtomicU64> {
    mapping.double(PAGE_BYTES + slot as usize * 8)
}

/// One peer's count at a slot.
pub(super) fn count(mapping: &Mapping, slot: u32) -> Option<&AtomicU32> {
    mapping.word(PAGE_BYTES + slot as usize * 4)
}

/// Not 0 once the peer has done with its counts.
pub(super) fn closed(mapping: &Mapping) -> Option<&AtomicU32> {
    mapping.word(CLOSED_AT)
}
