//! A tier in a hash map that fails, holds and flips as told.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use kvstored_core::tier::{Action, Operation};
use kvstored_core::{
    BlockHash, BlockKey, Envelope, Error, ErrorKind, Namespace, NamespaceInfo, PAGE_BYTES, Result, Tier,
    TierStatistics,
};
use parking_lot::Mutex;

#[derive(Default)]
pub struct ScriptedTier {
    images: Mutex<HashMap<BlockKey, Vec<u8>>>,
    held: Mutex<Option<Vec<Operation>>>,
    read_error: Mutex<Option<Error>>,
    write_error: Mutex<Option<Error>>,
    reads: AtomicUsize,
    writes: AtomicUsize,
}

impl ScriptedTier {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    pub fn hold(&self, hold: bool) {
        let held = std::mem::replace(&mut *self.held.lock(), hold.then(Vec::new));
        self.submit(held.unwrap_or_default());
    }

    pub fn fail_reads(&self, error: Option<Error>) {
        *self.read_error.lock() = error;
    }

    pub fn fail_writes(&self, error: Option<Error>) {
        *self.write_error.lock() = error;
    }

    pub fn flip_byte(&self, hash: BlockHash) {
        for (key, image) in self.images.lock().iter_mut() {
            if key.hash == hash {
                image[PAGE_BYTES + 17] ^= 1;
            }
        }
    }

    pub fn reads(&self) -> usize {
        self.reads.load(Ordering::SeqCst)
    }

    pub fn writes(&self) -> usize {
        self.writes.load(Ordering::SeqCst)
    }

    fn read(&self, operation: &Operation) -> Result<()> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        if let Some(error) = self.read_error.lock().clone() {
            return Err(error);
        }
        let key = operation.namespace.key(operation.hash);
        let image = self.images.lock().get(&key).cloned();
        let image = image.ok_or_else(|| Error::new(ErrorKind::NotFound, "absent"))?;
        Envelope::decode(&image)?.expect(&key, &operation.namespace.layout)?;
        operation.buffer.arena().write(operation.buffer.offset(), &image)
    }

    fn verify(&self, operation: &Operation) -> Result<()> {
        self.read(operation)?;
        let key = operation.namespace.key(operation.hash);
        let envelope = Envelope::decode(&operation.buffer.descriptor()?[..])?;
        for (shard, expected) in envelope.shard_checksums.iter().enumerate() {
            let layout = &operation.namespace.layout;
            let offset = operation.buffer.offset() + layout.shard_offset(shard).unwrap();
            let length = layout.shards()[shard].payload_bytes();
            if operation.buffer.arena().checksum(offset, length)? != *expected {
                self.images.lock().remove(&key);
                return Err(Error::new(ErrorKind::Corrupt, "flipped"));
            }
        }
        Ok(())
    }

    fn write(&self, operation: &Operation) -> Result<()> {
        self.writes.fetch_add(1, Ordering::SeqCst);
        if let Some(error) = self.write_error.lock().clone() {
            return Err(error);
        }
        let mut image = vec![0u8; operation.buffer.length()];
        operation
            .buffer
            .arena()
            .read(operation.buffer.offset(), &mut image)?;
        self.images
            .lock()
            .insert(operation.namespace.key(operation.hash), image);
        Ok(())
    }
}

impl Tier for ScriptedTier {
    fn name(&self) -> &'static str {
        "Scripted"
    }

    fn open_namespace(&self, _namespace: &Arc<NamespaceInfo>) -> Result<()> {
        Ok(())
    }

    fn lookup(&self, namespace: &NamespaceInfo, hashes: &[BlockHash], present: &mut [bool]) {
        let images = self.images.lock();
        for (hash, found) in hashes.iter().zip(present) {
            *found |= images.contains_key(&namespace.key(*hash));
        }
    }

    fn lookup_on_prefix(&self, namespace: &NamespaceInfo, hashes: &[BlockHash]) -> usize {
        let images = self.images.lock();
        hashes
            .iter()
            .take_while(|hash| images.contains_key(&namespace.key(**hash)))
            .count()
    }

    fn submit(&self, batch: Vec<Operation>) {
        for operation in batch {
            let mut held = self.held.lock();
            if let Some(held) = held.as_mut() {
                held.push(operation);
                continue;
            }
            drop(held);
            let result = match operation.action {
                Action::Read => self.read(&operation),
                Action::Write(_) => self.write(&operation),
                Action::Verify => self.verify(&operation),
            };
            operation.complete(result);
        }
    }

    fn remove(&self, namespace: &NamespaceInfo, hashes: &[BlockHash]) -> u64 {
        let mut images = self.images.lock();
        hashes
            .iter()
            .filter(|hash| images.remove(&namespace.key(**hash)).is_some())
            .count() as u64
    }

    fn purge(&self, namespace: &Namespace) -> Result<u64> {
        let mut images = self.images.lock();
        let before = images.len();
        images.retain(|key, _| key.namespace != *namespace);
        Ok((before - images.len()) as u64)
    }

    fn statistics(&self) -> TierStatistics {
        TierStatistics {
            blocks: self.images.lock().len() as u64,
            ..TierStatistics::default()
        }
    }

    fn list(&self, _namespace: Option<&Namespace>, after: Option<&BlockKey>, limit: usize) -> Vec<BlockKey> {
        let mut keys: Vec<_> = self.images.lock().keys().copied().collect();
        keys.sort();
        keys.into_iter()
            .filter(|key| after.is_none_or(|after| key > after))
            .take(limit)
            .collect()
    }

    fn namespaces(&self) -> Vec<(Namespace, u64)> {
        Vec::new()
    }

    fn drain(&self, _deadline: Instant) -> Result<()> {
        Ok(())
    }

    fn shutdown(&self) {}
}
