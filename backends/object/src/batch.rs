//! Blocks that wait for company: one open object per namespace.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use kvstored_core::Namespace;
use parking_lot::Mutex;

use crate::format::MAX_BLOCKS;
use crate::index::NamespaceIndex;
use crate::pending::Pending;

/// Blocks of one namespace that go into one object.
pub struct Batch {
    /// Tells it from other batches of the namespace.
    pub generation: u64,
    /// The namespace.
    pub index: Arc<NamespaceIndex>,
    /// The blocks, in the order in which they came.
    pub blocks: Vec<Pending>,
}

impl Batch {
    fn bytes(&self) -> u64 {
        self.blocks.len() as u64 * self.index.image_bytes
    }
}

/// What became of a block.
pub enum Pushed {
    /// It waits in a batch that was open already.
    Joined,
    /// It began that batch, which somebody has to close in a while.
    Began(u64),
    /// It filled its batch.
    Filled(Batch),
}

/// All open batches.
#[derive(Default)]
pub struct Batches {
    open: Mutex<HashMap<Namespace, Batch>>,
}

impl Batches {
    /// Adds a block; `generation` is for the batch that it may begin.
    pub fn push(
        &self,
        index: &Arc<NamespaceIndex>,
        block: Pending,
        object_bytes: u64,
        generation: impl FnOnce() -> u64,
    ) -> Pushed {
        let mut open = self.open.lock();
        let (mut entry, began) = match open.entry(index.namespace) {
            Entry::Occupied(entry) => (entry, false),
            Entry::Vacant(entry) => {
                let batch = Batch {
                    generation: generation(),
                    index: Arc::clone(index),
                    blocks: Vec::new(),
                };
                (entry.insert_entry(batch), true)
            }
        };
        let batch = entry.get_mut();
        batch.blocks.push(block);
        if batch.bytes() >= object_bytes || batch.blocks.len() >= MAX_BLOCKS {
            return Pushed::Filled(entry.remove());
        }
        if began {
            Pushed::Began(batch.generation)
        } else {
            Pushed::Joined
        }
    }

    /// Closes a batch, if it's still that one.
    pub fn take(&self, namespace: &Namespace, generation: u64) -> Option<Batch> {
        let mut open = self.open.lock();
        match open.entry(*namespace) {
            Entry::Occupied(entry) if entry.get().generation == generation => Some(entry.remove()),
            _ => None,
        }
    }

    /// Closes a namespace's batch.
    pub fn take_namespace(&self, namespace: &Namespace) -> Option<Batch> {
        self.open.lock().remove(namespace)
    }

    /// Closes all.
    pub fn take_all(&self) -> Vec<Batch> {
        self.open.lock().drain().map(|(_, batch)| batch).collect()
    }
}
