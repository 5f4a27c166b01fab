//! A lower tier in a map, for tests: it can hold operations back and spoil what it stores.
#![allow(dead_code)] // two test suites share it, and each uses a part

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use kvstored_core::block::{BlockHash, BlockKey, Namespace};
use kvstored_core::error::{Error, ErrorKind, Result};
use kvstored_core::events::EventSink;
use kvstored_core::tier::{Action, NamespaceInfo, Operation, Tier, TierStatistics};
use parking_lot::Mutex;

#[derive(Default)]
pub struct MapTier {
    pub blocks: Mutex<BTreeMap<BlockKey, Vec<u8>>>,
    held: Mutex<Option<Vec<Operation>>>,
    events: OnceLock<EventSink>,
}

impl MapTier {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// From now on operations wait for [`MapTier::go_on`].
    pub fn hold(&self) {
        self.held.lock().get_or_insert_default();
    }

    pub fn held_operations(&self) -> usize {
        self.held.lock().as_ref().map_or(0, Vec::len)
    }

    pub fn go_on(&self) {
        let held = self.held.lock().take();
        for operation in held.into_iter().flatten() {
            self.act(operation);
        }
    }

    /// Flips a byte of a stored image.
    pub fn spoil(&self, key: &BlockKey, offset: usize) {
        self.blocks.lock().get_mut(key).unwrap()[offset] ^= 0x40;
    }

    fn act(&self, operation: Operation) {
        let key = operation.namespace.key(operation.hash);
        let result = match operation.action {
            Action::Write(_) => {
                let mut image = vec![0; operation.buffer.length()];
                operation
                    .buffer
                    .arena()
                    .read(operation.buffer.offset(), &mut image)
                    .unwrap();
                let mut blocks = self.blocks.lock();
                if blocks.insert(key, image).is_none()
                    && let Some(events) = self.events.get()
                {
                    events.stored(&key.namespace, &key.hash);
                }
                Ok(())
            }
            Action::Read | Action::Verify => match self.blocks.lock().get(&key) {
                Some(image) => operation.buffer.arena().write(operation.buffer.offset(), image),
                None => Err(Error::new(ErrorKind::NotFound, "not here")),
            },
        };
        operation.complete(result);
    }
}

impl Tier for MapTier {
    fn name(&self) -> &'static str {
        "Map"
    }

    fn open_namespace(&self, _namespace: &Arc<NamespaceInfo>) -> Result<()> {
        Ok(())
    }

    fn lookup(&self, namespace: &NamespaceInfo, hashes: &[BlockHash], present: &mut [bool]) {
        let blocks = self.blocks.lock();
        for (hash, present) in hashes.iter().zip(present) {
            *present |= blocks.contains_key(&namespace.key(*hash));
        }
    }

    fn lookup_on_prefix(&self, namespace: &NamespaceInfo, hashes: &[BlockHash]) -> usize {
        let blocks = self.blocks.lock();
        hashes
            .iter()
            .take_while(|hash| blocks.contains_key(&namespace.key(**hash)))
            .count()
    }

    fn submit(&self, batch: Vec<Operation>) {
        for operation in batch {
            let mut held = self.held.lock();
            if let Some(held) = &mut *held {
                held.push(operation);
                continue;
            }
            drop(held);
            self.act(operation);
        }
    }

    fn remove(&self, namespace: &NamespaceInfo, hashes: &[BlockHash]) -> u64 {
        let mut blocks = self.blocks.lock();
        let gone = hashes
            .iter()
            .filter(|hash| blocks.remove(&namespace.key(**hash)).is_some());
        gone.inspect(|hash| {
            if let Some(events) = self.events.get() {
                events.removed(&namespace.namespace, hash);
            }
        })
        .count() as u64
    }

    fn purge(&self, namespace: &Namespace) -> Result<u64> {
        let mut blocks = self.blocks.lock();
        let before = blocks.len();
        blocks.retain(|key, _| key.namespace != *namespace);
        Ok((before - blocks.len()) as u64)
    }

    fn statistics(&self) -> TierStatistics {
        TierStatistics {
            blocks: self.blocks.lock().len() as u64,
            ..TierStatistics::default()
        }
    }

    fn list(&self, namespace: Option<&Namespace>, after: Option<&BlockKey>, limit: usize) -> Vec<BlockKey> {
        let blocks = self.blocks.lock();
        let keys = blocks
            .keys()
            .filter(|key| namespace.is_none_or(|wanted| key.namespace == *wanted));
        keys.filter(|key| after.is_none_or(|after| *key > after))
            .take(limit)
            .copied()
            .collect()
    }

    fn namespaces(&self) -> Vec<(Namespace, u64)> {
        let mut counts = BTreeMap::new();
        for key in self.blocks.lock().keys() {
            *counts.entry(key.namespace).or_insert(0) += 1;
        }
        counts.into_iter().collect()
    }

    fn observe(&self, events: EventSink) {
        let _ = self.events.set(events);
    }

    fn drain(&self, _deadline: Instant) -> Result<()> {
        Ok(())
    }

    fn shutdown(&self) {}
}
