//! An example of a plugin in Rust: a tier that keeps blocks in memory of its own, oldest out first.
//!
//! One setting: `capacity_bytes` (default 1 GiB).

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use kvstored_plugin::{Action, Durability, Failure, Host, Key, Kind, Operation, Settings, Statistics, Tier};

const DEFAULT_CAPACITY_BYTES: u64 = 1 << 30;

#[derive(Default)]
struct Blocks {
    images: HashMap<Key, Box<[u8]>>,
    /// Oldest first; keys that were removed stay until their turn comes.
    order: VecDeque<Key>,
    statistics: Statistics,
}

impl Blocks {
    fn remove(&mut self, key: &Key) -> bool {
        let Some(image) = self.images.remove(key) else {
            return false;
        };
        self.statistics.allocated_bytes -= image.len() as u64;
        true
    }

    /// Makes room for an image. Returns what had to go.
    fn make_room(&mut self, bytes: u64) -> Vec<Key> {
        let mut evicted = Vec::new();
        while self.statistics.allocated_bytes + bytes > self.statistics.capacity_bytes {
            let Some(oldest) = self.order.pop_front() else {
                break;
            };
            if self.remove(&oldest) {
                self.statistics.evicted_blocks += 1;
                evicted.push(oldest);
            }
        }
        evicted
    }
}

struct MemoryTier {
    host: Host,
    blocks: Mutex<Blocks>,
}

impl MemoryTier {
    fn blocks(&self) -> MutexGuard<'_, Blocks> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, operation: &mut Operation) -> Result<(), Failure> {
        let mut blocks = self.blocks();
        let image = blocks
            .images
            .get(operation.key())
            .ok_or_else(|| Failure::new(Kind::NotFound, "the block isn't here"))?;
        if image.len() != operation.length() {
            return Err(Failure::new(Kind::Mismatch, "the block has another size"));
        }
        operation.copy_in(0, image)?;
        blocks.statistics.read_bytes += operation.length() as u64;
        Ok(())
    }

    fn write(&self, operation: &Operation) -> Result<(), Failure> {
        let bytes = operation.length() as u64;
        let mut image = vec![0; operation.length()].into_boxed_slice();
        operation.copy_out(0, &mut image)?;
        let mut blocks = self.blocks();
        if bytes > blocks.statistics.capacity_bytes {
            blocks.statistics.refused_writes += 1;
            return Err(Failure::new(
                Kind::TooLarge,
                format!("a block of {bytes} bytes can't fit"),
            ));
        }
        if blocks.images.contains_key(operation.key()) {
            return Ok(());
        }
        let evicted = blocks.make_room(bytes);
        blocks.statistics.allocated_bytes += bytes;
        blocks.statistics.written_bytes += bytes;
        blocks.order.push_back(*operation.key());
        blocks.images.insert(*operation.key(), image);
        drop(blocks);
        if !evicted.is_empty() {
            self.host.removed(&evicted);
        }
        Ok(())
    }
}

impl Tier for MemoryTier {
    const KEEPS: Durability = Durability::Memory;

    fn open(host: Host, settings: Settings) -> Result<Self, Failure> {
        settings.expect(&["capacity_bytes"])?;
        let mut blocks = Blocks::default();
        blocks.statistics.capacity_bytes = settings.parse("capacity_bytes", DEFAULT_CAPACITY_BYTES)?;
        Ok(Self {
            host,
            blocks: Mutex::new(blocks),
        })
    }

    fn submit(&self, mut operation: Operation) {
        let outcome = match operation.action() {
            Action::Read => self.read(&mut operation),
            Action::Write(_) => self.write(&operation),
        };
        operation.end(outcome);
    }

    fn remove(&self, keys: &[Key]) -> Result<(), Failure> {
        let mut blocks = self.blocks();
        for key in keys {
            blocks.remove(key);
        }
        Ok(())
    }

    fn purge(&self, namespace: &[u8; 32]) -> Result<(), Failure> {
        let mut blocks = self.blocks();
        let gone: Vec<Key> = blocks
            .images
            .keys()
            .filter(|key| key.namespace_digest == *namespace)
            .copied()
            .collect();
        for key in gone {
            blocks.remove(&key);
        }
        Ok(())
    }

    fn statistics(&self, statistics: &mut Statistics) {
        *statistics = self.blocks().statistics;
    }
}

kvstored_plugin::kvstored_plugin! { name: "memory", version: "0.1.0", tier: MemoryTier }
