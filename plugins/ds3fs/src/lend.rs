//! A host's buffer as memory that the Posix tier reads and writes.
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::Arc;

use kvstored_core::memory::SlotOwner;
use kvstored_core::{Arena, SlotGuard};
use kvstored_plugin::Operation;

use crate::engine::Region;

/// What an arena over a lent buffer keeps: where 3FS knows it.
pub(crate) struct Lent {
    /// The host's memory that the buffer lies in.
    pub region: Option<Arc<Region>>,
}

struct Nobody;

impl SlotOwner for Nobody {
    fn release(&self, _slot: u32) {}
}

/// A guard over an operation's buffer. None for a buffer that is nowhere.
///
/// # Safety
/// The guard and its clones must be gone when the operation ends.
pub(crate) unsafe fn lend(operation: &Operation, region: Option<Arc<Region>>) -> Option<SlotGuard> {
    let base = NonNull::new(operation.address())?;
    let length = operation.length();
    // SAFETY: the buffer is valid until the operation ends, which the caller vouches for; nobody forms references to it.
    let arena = unsafe { Arena::from_mapping(base, length, Box::new(Lent { region })) };
    Some(SlotGuard::new(Arc::new(arena), Arc::new(Nobody), 0, 0, length))
}
