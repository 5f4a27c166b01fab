//! The example plugin's tier as if it were built in: the very same store of blocks, worked on by one thread, behind the
//! contract of tiers.
#![allow(unsafe_code)]

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use kvstored_core::index::BlockIndex;
use kvstored_core::runtime::ThreadHandle;
use kvstored_core::{
    Action, BlockHash, BlockKey, Durability, Error, ErrorKind, EventSink, Namespace, NamespaceInfo,
    Operation, Result, Runtime, Tier, TierStatistics,
};
use kvstored_plugin::{Key, abi};
use kvstored_plugin_memory::blocks::Blocks;
use parking_lot::{Condvar, Mutex, RwLock};

/// Operations that may wait; as many as a plugin's may.
const QUEUE_DEPTH: usize = 8192;

#[derive(Default)]
struct Queue {
    batches: VecDeque<Vec<Operation>>,
    /// Operations that haven't ended.
    under_way: usize,
    ended: bool,
}

struct Shared {
    queue: Mutex<Queue>,
    came: Condvar,
    idle: Condvar,
    blocks: Mutex<Blocks>,
    index: RwLock<HashMap<Namespace, BlockIndex<()>>>,
    events: OnceLock<EventSink>,
}

/// The tier.
pub struct Twin {
    shared: Arc<Shared>,
    runtime: Runtime,
    worker: Mutex<Option<ThreadHandle>>,
}

fn key_of(namespace: &Namespace, hash: &BlockHash) -> Key {
    Key {
        namespace_digest: namespace.0,
        hash: abi::Hash {
            bytes: *hash.padded(),
            length: hash.len() as u32,
            reserved: 0,
        },
    }
}

fn hash_of(key: &Key) -> BlockHash {
    let bytes = key.hash.bytes.get(..key.hash.length as usize);
    BlockHash::new(bytes.expect("a length")).expect("a hash")
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
            let ended = queue.ended;
            drop(queue);
            let count = batch.len();
            for operation in batch {
                let outcome = if ended {
                    Err(Error::new(ErrorKind::Cancelled, "the tier was shut down"))
                } else {
                    self.outcome(&operation)
                };
                operation.complete(outcome);
            }
            let mut queue = self.queue.lock();
            queue.under_way -= count;
            if queue.under_way == 0 {
                self.idle.notify_all();
            }
        }
    }

    fn outcome(&self, operation: &Operation) -> Result<()> {
        operation.namespace.check_size(&operation.buffer)?;
        match operation.action {
            Action::Write(_) => self.write(operation),
            Action::Read | Action::Verify => self.read(operation),
        }
    }

    fn read(&self, operation: &Operation) -> Result<()> {
        let key = key_of(&operation.namespace.namespace, &operation.hash);
        let mut blocks = self.blocks.lock();
        let image = blocks
            .get(&key)
            .ok_or_else(|| Error::new(ErrorKind::NotFound, "the block isn't here"))?;
        let bytes = image.len() as u64;
        let buffer = &operation.buffer;
        buffer.arena().write(buffer.offset(), image)?;
        blocks.statistics.read_bytes += bytes;
        drop(blocks);
        let namespace = &operation.namespace;
        let checked = match operation.action {
            Action::Verify => namespace.verify_image(operation.hash, buffer),
            _ => namespace.check_descriptor(operation.hash, buffer).map(drop),
        };
        if checked.is_err() {
            self.blocks.lock().remove(&[key]);
            let mut index = self.index.write();
            self.hide(&mut index, &namespace.namespace, &operation.hash);
        }
        checked
    }

    fn write(&self, operation: &Operation) -> Result<()> {
        let namespace = operation.namespace.namespace;
        let length = operation.namespace.layout.image_bytes();
        // SAFETY: the buffer has that size and is this operation's; nobody writes an image that is being stored.
        let image: Box<[u8]> =
            unsafe { std::slice::from_raw_parts(operation.buffer.address(), length) }.into();
        let mut blocks = self.blocks.lock();
        if length as u64 > blocks.statistics.capacity_bytes {
            blocks.statistics.refused_writes += 1;
            return Err(Error::new(ErrorKind::TooLarge, "a block that can't fit"));
        }
        let evicted = blocks.add(key_of(&namespace, &operation.hash), image);
        drop(blocks);
        let mut index = self.index.write();
        for key in evicted {
            self.hide(&mut index, &Namespace(key.namespace_digest), &hash_of(&key));
        }
        let known = index.entry(namespace).or_default().insert(operation.hash, ());
        if let (None, Some(events)) = (known, self.events.get()) {
            events.stored(&namespace, &operation.hash);
        }
        Ok(())
    }

    /// Takes a block out of the index. Returns whether it was there.
    fn hide(
        &self,
        index: &mut HashMap<Namespace, BlockIndex<()>>,
        namespace: &Namespace,
        hash: &BlockHash,
    ) -> bool {
        let there = index
            .get_mut(namespace)
            .is_some_and(|blocks| blocks.remove(hash).is_some());
        if let (true, Some(events)) = (there, self.events.get()) {
            events.removed(namespace, hash);
        }
        there
    }
}

impl Twin {
    /// Starts it.
    pub fn start(capacity_bytes: u64, runtime: &Runtime) -> Arc<dyn Tier> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            came: Condvar::new(),
            idle: Condvar::new(),
            blocks: Mutex::new(Blocks::bounded(capacity_bytes)),
            index: RwLock::default(),
            events: OnceLock::new(),
        });
        let worker = shared.clone();
        let worker = runtime.spawner.spawn("twin", Box::new(move || worker.work()));
        Arc::new(Self {
            shared,
            runtime: runtime.clone(),
            worker: Mutex::new(Some(worker.expect("a thread"))),
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
        let mut queue = self.shared.queue.lock();
        let refusal = if queue.ended {
            Error::new(ErrorKind::Cancelled, "the tier was shut down")
        } else if queue.under_way + batch.len() > QUEUE_DEPTH {
            Error::new(ErrorKind::Busy, "the queue is full")
        } else {
            queue.under_way += batch.len();
            queue.batches.push_back(batch);
            drop(queue);
            self.shared.came.notify_one();
            return;
        };
        drop(queue);
        for operation in batch {
            operation.complete(Err(refusal.clone()));
        }
    }

    fn remove(&self, namespace: &NamespaceInfo, hashes: &[BlockHash]) -> u64 {
        let namespace = &namespace.namespace;
        let keys: Vec<Key> = hashes.iter().map(|hash| key_of(namespace, hash)).collect();
        self.shared.blocks.lock().remove(&keys);
        let mut index = self.shared.index.write();
        let gone = hashes
            .iter()
            .filter(|hash| self.shared.hide(&mut index, namespace, hash));
        gone.count() as u64
    }

    fn purge(&self, namespace: &Namespace) -> Result<u64> {
        self.shared.blocks.lock().purge(&namespace.0);
        let gone = self.shared.index.write().remove(namespace);
        if let (Some(gone), Some(events)) = (&gone, self.shared.events.get()) {
            gone.iter().for_each(|(hash, ())| events.removed(namespace, hash));
        }
        Ok(gone.map_or(0, |blocks| blocks.len() as u64))
    }

    fn statistics(&self) -> TierStatistics {
        let told = self.shared.blocks.lock().statistics;
        let index = self.shared.index.read();
        TierStatistics {
            allocated_bytes: told.allocated_bytes,
            capacity_bytes: told.capacity_bytes,
            read_bytes: told.read_bytes,
            written_bytes: told.written_bytes,
            evicted_blocks: told.evicted_blocks,
            refused_writes: told.refused_writes,
            blocks: index.values().map(|blocks| blocks.len() as u64).sum(),
            queue_depth: self.shared.queue.lock().under_way as u64,
            ..TierStatistics::default()
        }
    }

    fn list(&self, namespace: Option<&Namespace>, after: Option<&BlockKey>, limit: usize) -> Vec<BlockKey> {
        let index = self.shared.index.read();
        let mut keys: Vec<BlockKey> = index
            .iter()
            .filter(|(digest, _)| namespace.is_none_or(|wanted| wanted == *digest))
            .flat_map(|(digest, blocks)| {
                let namespace = *digest;
                blocks.iter().map(move |(hash, ())| BlockKey {
                    namespace,
                    hash: *hash,
                })
            })
            .filter(|key| after.is_none_or(|after| key > after))
            .collect();
        keys.sort_unstable();
        keys.truncate(limit);
        keys
    }

    fn namespaces(&self) -> Vec<(Namespace, u64)> {
        let index = self.shared.index.read();
        let counted = index
            .iter()
            .map(|(digest, blocks)| (*digest, blocks.len() as u64));
        counted.filter(|(_, blocks)| *blocks > 0).collect()
    }

    fn observe(&self, events: EventSink) {
        let _ = self.shared.events.set(events);
    }

    fn drain(&self, deadline: Instant) -> Result<()> {
        let mut queue = self.shared.queue.lock();
        while queue.under_way > 0 {
            let left = deadline.saturating_duration_since(self.runtime.clock.now());
            if self.shared.idle.wait_for(&mut queue, left).timed_out() {
                return Err(Error::new(ErrorKind::TimedOut, "operations are under way"));
            }
        }
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
