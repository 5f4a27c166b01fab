//! Blocks' images as objects of the pool.

use kvstored_core::{Action, Error, ErrorKind, Operation, Result, SlotGuard};

use super::index::object_key;
use crate::memory::Piece;

/// The keys of a batch, and where its images lie.
pub(super) fn parts(batch: &[Operation]) -> (Vec<Box<[u8]>>, Vec<Piece>) {
    let one = |operation: &Operation| {
        let namespace = &operation.namespace;
        let piece = image(&operation.buffer, namespace.layout.image_bytes());
        (object_key(namespace, &operation.hash), piece)
    };
    batch.iter().map(one).unzip()
}

fn image(slot: &SlotGuard, bytes: usize) -> Piece {
    Piece {
        address: slot.address() as usize,
        length: bytes.min(slot.length()),
    }
}

/// Whether what was loaded is the block that was asked for. Its bytes are those that were put; this is about what was
/// put under that name. To verify it means to look at all of it.
pub(super) fn check(operation: &Operation, bytes: u64) -> Result<()> {
    let layout = &operation.namespace.layout;
    if bytes != layout.image_bytes() as u64 {
        return Err(Error::new(
            ErrorKind::Corrupt,
            "an object of the pool is no image of that block",
        ));
    }
    let (namespace, hash, slot) = (&operation.namespace, operation.hash, &operation.buffer);
    if operation.action == Action::Verify {
        return namespace.verify_image(hash, slot);
    }
    namespace.check_descriptor(hash, slot).map(drop)
}
