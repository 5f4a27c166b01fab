//! The example plugin's tier as if it were built in: blocks in a map, worked on by one thread.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use kvstored_core::index::BlockIndex;
use kvstored_core::runtime::ThreadHandle;
use kvstored_core::{
    Action, BlockHash, BlockKey, Durability, Error, ErrorKind, Namespace, NamespaceInfo, Operation, Result,
    Runtime, Tier, TierStatistics,
};
use parking_lot::{Condvar, Mutex, RwLock};

#[derive(Default)]
struct Queue {
    batches: VecDeque<Vec<Operation>>,
    ended: bool,
}

struct Shared {
    queue: Mutex<Queue>,
    came: Condvar,
    images: Mutex<HashMap<BlockKey, Box<[u8]>>>,
    index: RwLock<HashMap<Namespace, BlockIndex<()>>>,
    capacity_bytes: u64,
}

/// The tier.
pub struct Twin {
    shared: Arc<Shared>,
    worker: Mutex<Option<ThreadHandle>>,
}

impl Shared {
    fn work(&self) {
        loop {
            let mut queue = self.queue.lock();
            let batch = loop {
                match queue.batches.pop_front() {
                    Some(batch) => break batch,
                    None if queue.ended => return,
                    None => self.came.wait(&mut queue),
                }
            };
            drop(queue);
            for operation in batch {
                let outcome = match operation.action {
                    Action::Write(_) => self.write(&operation),
                    _ => self.read(&operation),
                };
                operation.complete(outcome);
            }
        }
    }

    fn read(&self, operation: &Operation) -> Result<()> {
        let key = operation.namespace.key(operation.hash);
        let images = self.images.lock();
        let image = images
            .get(&key)
            .ok_or_else(|| Error::new(ErrorKind::NotFound, "the block isn't here"))?;
        let buffer = &operation.buffer;
        buffer.arena().write(buffer.offset(), image)?;
        drop(images);
        operation
            .namespace
            .check_descriptor(operation.hash, buffer)
            .map(drop)
    }

    fn write(&self, operation: &Operation) -> Result<()> {
        let key = operation.namespace.key(operation.hash);
        let mut image = vec![0; operation.namespace.layout.image_bytes()].into_boxed_slice();
        operation
            .buffer
            .arena()
            .read(operation.buffer.offset(), &mut image)?;
        self.images.lock().insert(key, image);
        let mut index = self.index.write();
        index.entry(key.namespace).or_default().insert(key.hash, ());
        Ok(())
    }
}

impl Twin {
    /// Starts it.
    pub fn start(capacity_bytes: u64, runtime: &Runtime) -> Arc<dyn Tier> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            came: Condvar::new(),
            images: Mutex::default(),
            index: RwLock::default(),
            capacity_bytes,
        });
        let worker = shared.clone();
        let worker = runtime
            .spawner
            .spawn("twin", Box::new(move || worker.work()))
            .unwrap();
        Arc::new(Self {
            shared,
            worker: Mutex::new(Some(worker)),
        })
    }
}

impl Tier for Twin {
    fn name(&self) -> &'static str {
        "Twin"
    }

    fn keeps(&self) -> Durability {
        Durability::Memory
    }

    fn open_namespace(&self, _namespace: &Arc<NamespaceInfo>) -> Result<()> {
        Ok(())
    }

    fn lookup(&self, namespace: &NamespaceInfo, hashes: &[BlockHash], present: &mut [bool]) {
        if let Some(blocks) = self.shared.index.read().get(&namespace.namespace) {
            blocks.lookup(hashes, present);
        }
    }

    fn lookup_on_prefix(&self, namespace: &NamespaceInfo, hashes: &[BlockHash]) -> usize {
        let index = self.shared.index.read();
        index
            .get(&namespace.namespace)
            .map_or(0, |blocks| blocks.lookup_on_prefix(hashes))
    }

    fn submit(&self, batch: Vec<Operation>) {
        self.shared.queue.lock().batches.push_back(batch);
        self.shared.came.notify_one();
    }

    fn remove(&self, _namespace: &NamespaceInfo, _hashes: &[BlockHash]) -> u64 {
        0
    }

    fn purge(&self, namespace: &Namespace) -> Result<u64> {
        self.shared
            .images
            .lock()
            .retain(|key, _| key.namespace != *namespace);
        let gone = self.shared.index.write().remove(namespace);
        Ok(gone.map_or(0, |blocks| blocks.len() as u64))
    }

    fn statistics(&self) -> TierStatistics {
        TierStatistics {
            capacity_bytes: self.shared.capacity_bytes,
            ..TierStatistics::default()
        }
    }

    fn list(
        &self,
        _namespace: Option<&Namespace>,
        _after: Option<&BlockKey>,
        _limit: usize,
    ) -> Vec<BlockKey> {
        Vec::new()
    }

    fn namespaces(&self) -> Vec<(Namespace, u64)> {
        Vec::new()
    }

    fn drain(&self, _deadline: Instant) -> Result<()> {
        Ok(())
    }

    fn shutdown(&self) {
        self.shared.queue.lock().ended = true;
        self.shared.came.notify_all();
        if let Some(worker) = self.worker.lock().take() {
            worker.join();
        }
    }
}
