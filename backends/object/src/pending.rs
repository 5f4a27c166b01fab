//! An accepted operation, which completes exactly once, whatever becomes of the task that has it.

use std::sync::Arc;

use kvstored_core::tier::Completion;
use kvstored_core::{
    Action, BlockHash, Error, ErrorKind, ImageWriter, NamespaceInfo, Operation, Result, SlotGuard,
};
use parking_lot::Mutex;

use crate::shared::{Shared, count};

/// An operation of the tier.
pub struct Pending {
    /// The block's namespace.
    pub namespace: Arc<NamespaceInfo>,
    /// The block.
    pub hash: BlockHash,
    /// The slot to fill or store.
    pub slot: SlotGuard,
    is_write: bool,
    /// Behind a lock only so that tasks may share what holds it.
    ending: Mutex<Option<(SlotGuard, Completion)>>,
    shared: Arc<Shared>,
}

impl Pending {
    /// Takes an operation over; one that can't be completes at once, with `Busy` where there's no room.
    pub fn accept(shared: &Arc<Shared>, operation: Operation) -> Option<Self> {
        let is_write = matches!(operation.action, Action::Write(_));
        if let Err(error) = operation.namespace.check_size(&operation.buffer) {
            operation.complete(Err(error));
            return None;
        }
        let write_bytes = if is_write {
            operation.namespace.layout.image_bytes() as u64
        } else {
            0
        };
        if let Err(error) = shared.outstanding.enter(write_bytes, &shared.settings) {
            if is_write {
                count(&shared.counters.refused_writes, 1);
            }
            operation.complete(Err(error));
            return None;
        }
        Some(Self {
            namespace: operation.namespace,
            hash: operation.hash,
            slot: operation.buffer.clone(),
            is_write,
            ending: Mutex::new(Some((operation.buffer, operation.completion))),
            shared: Arc::clone(shared),
        })
    }

    /// Bytes of the block's image.
    pub fn image_bytes(&self) -> u64 {
        self.namespace.layout.image_bytes() as u64
    }

    /// Checks the slot's whole image. Fails with `Corrupt`.
    pub fn verify(&self) -> Result<()> {
        self.namespace.verify_image(self.hash, &self.slot)
    }

    /// Puts the next bytes of the image into the slot.
    pub fn fill(&self, image: &mut ImageWriter, bytes: &[u8]) -> Result<()> {
        image.write(&self.namespace, &self.slot, bytes)
    }

    /// Checks the image that filled the slot. Fails with `Corrupt`.
    pub fn verify_filled(&self, image: &ImageWriter) -> Result<()> {
        image.verify(&self.namespace, self.hash, &self.slot)
    }

    /// Ends the operation.
    pub fn complete(mut self, result: Result<()>) {
        self.end(result);
    }

    fn end(&mut self, result: Result<()>) {
        if let Some((buffer, completion)) = self.ending.get_mut().take() {
            if self.is_write && result.is_err() {
                count(&self.shared.counters.refused_writes, 1);
            }
            completion(buffer, result);
            self.shared
                .outstanding
                .leave(if self.is_write { self.image_bytes() } else { 0 });
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.end(Err(Error::new(ErrorKind::Cancelled, "the tier has stopped")));
    }
}
