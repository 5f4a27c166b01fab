//! An example of a plugin in Rust: a tier that keeps blocks in memory of its own, oldest out first.
//!
//! One setting: `capacity_bytes` (default 1 GiB).

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use kvstored_plugin::{Action, Durability, Failure, Host, Key, Kind, Operation, Settings, Statistics, Tier};

const DEFAULT_CAPACITY_BYTES: u64 = 1 << 30;
/// Removed keys that are never worth going through.
const FEW: usize = 64;

struct Image {
    /// Counts writes.
    number: u64,
    bytes: Box<[u8]>,
}

#[derive(Default)]
struct Blocks {
    images: HashMap<Key, Image>,
    /// Oldest first; those that were removed stay until their turn comes, or until they are most of them.
    order: VecDeque<(u64, Key)>,
    writes: u64,
    statistics: Statistics,
}

impl Blocks {
    fn remove(&mut self, key: &Key) {
        if let Some(image) = self.images.remove(key) {
            self.statistics.allocated_bytes -= image.bytes.len() as u64;
        }
    }

    /// Whether a place in the order is that of an image that's still here.
    fn is_here(images: &HashMap<Key, Image>, (number, key): &(u64, Key)) -> bool {
        images.get(key).is_some_and(|image| image.number == *number)
    }

    /// Forgets the order of what was removed, once that is more than what is left.
    fn tidy(&mut self) {
        if self.order.len() > 2 * self.images.len() + FEW {
            let images = &self.images;
            self.order.retain(|place| Self::is_here(images, place));
        }
    }

    /// Adds an image, unless the block is here, and makes room for it. Returns what had to go.
    fn add(&mut self, key: Key, bytes: Box<[u8]>) -> Vec<Key> {
        let mut evicted = Vec::new();
        let Entry::Vacant(free) = self.images.entry(key) else {
            return evicted;
        };
        self.writes += 1;
        self.statistics.allocated_bytes += bytes.len() as u64;
        self.statistics.written_bytes += bytes.len() as u64;
        let number = self.writes;
        free.insert(Image { number, bytes });
        while self.statistics.allocated_bytes > self.statistics.capacity_bytes {
            // the new one isn't in the order yet
            let Some(oldest) = self.order.pop_front() else {
                break;
            };
            if Self::is_here(&self.images, &oldest) {
                self.remove(&oldest.1);
                self.statistics.evicted_blocks += 1;
                evicted.push(oldest.1);
            }
        }
        self.order.push_back((number, key));
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
        if image.bytes.len() != operation.length() {
            return Err(Failure::new(Kind::Mismatch, "the block has another size"));
        }
        operation.copy_in(0, &image.bytes)?;
        blocks.statistics.read_bytes += operation.length() as u64;
        Ok(())
    }

    fn write(&self, operation: &Operation) -> Result<(), Failure> {
        let bytes = operation.length() as u64;
        let image = operation.image()?;
        let mut blocks = self.blocks();
        if bytes > blocks.statistics.capacity_bytes {
            blocks.statistics.refused_writes += 1;
            return Err(Failure::new(
                Kind::TooLarge,
                format!("a block of {bytes} bytes can't fit"),
            ));
        }
        let evicted = blocks.add(*operation.key(), image);
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
        blocks.tidy();
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
        blocks.tidy();
        Ok(())
    }

    fn statistics(&self, statistics: &mut Statistics) {
        *statistics = self.blocks().statistics;
    }
}

kvstored_plugin::kvstored_plugin! { name: "memory", version: "0.1.0", tier: MemoryTier }

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u8) -> Key {
        Key {
            namespace_digest: [1; 32],
            hash: kvstored_plugin::abi::Hash {
                bytes: [number; 32],
                length: 32,
                reserved: 0,
            },
        }
    }

    fn image() -> Box<[u8]> {
        vec![7; 10].into_boxed_slice()
    }

    fn room_for(blocks: u64) -> Blocks {
        let mut made = Blocks::default();
        made.statistics.capacity_bytes = blocks * 10;
        made
    }

    #[test]
    fn a_block_that_was_removed_and_written_again_is_as_young_as_that() {
        let mut blocks = room_for(2);
        assert!(blocks.add(key(1), image()).is_empty());
        blocks.remove(&key(1));
        assert!(blocks.add(key(2), image()).is_empty());
        assert!(blocks.add(key(1), image()).is_empty());
        assert_eq!(blocks.add(key(3), image()), [key(2)]);
        assert!(blocks.images.contains_key(&key(1)) && blocks.images.contains_key(&key(3)));
        assert_eq!(blocks.statistics.allocated_bytes, 20);
    }

    #[test]
    fn what_was_removed_takes_no_memory() {
        let mut blocks = room_for(8);
        blocks.add(key(0), image());
        for _ in 0..10 * FEW {
            blocks.add(key(1), image());
            blocks.remove(&key(1));
            blocks.tidy();
        }
        assert!(blocks.order.len() <= 2 + FEW);
        assert!(Blocks::is_here(&blocks.images, &blocks.order[0]));
    }
}
