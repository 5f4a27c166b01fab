//! Blocks in memory, oldest out first.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};

use kvstored_plugin::{Key, Statistics};

/// Removed keys that are never worth going through.
const FEW: usize = 64;

struct Image {
    /// Counts writes.
    number: u64,
    bytes: Box<[u8]>,
}

/// What the tier keeps.
#[derive(Default)]
pub struct Blocks {
    images: HashMap<Key, Image>,
    /// Oldest first; those that were removed stay until their turn comes, or until they are most of them.
    order: VecDeque<(u64, Key)>,
    writes: u64,
    /// What there is, and what became of it.
    pub statistics: Statistics,
}

impl Blocks {
    /// None yet, and never more than so many bytes of images.
    pub fn bounded(capacity_bytes: u64) -> Self {
        let mut blocks = Self::default();
        blocks.statistics.capacity_bytes = capacity_bytes;
        blocks
    }

    /// A block's image.
    pub fn get(&self, key: &Key) -> Option<&[u8]> {
        self.images.get(key).map(|image| &*image.bytes)
    }

    /// Adds an image, unless the block is here, and makes room for it. Returns what had to go.
    pub fn add(&mut self, key: Key, bytes: Box<[u8]>) -> Vec<Key> {
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
                self.drop_image(&oldest.1);
                self.statistics.evicted_blocks += 1;
                evicted.push(oldest.1);
            }
        }
        self.order.push_back((number, key));
        evicted
    }

    /// Removes blocks, if they are here.
    pub fn remove(&mut self, keys: &[Key]) {
        for key in keys {
            self.drop_image(key);
        }
        self.tidy();
    }

    /// Removes all blocks of a namespace.
    pub fn purge(&mut self, namespace: &[u8; 32]) {
        let of_it = |key: &&Key| key.namespace_digest == *namespace;
        let gone: Vec<Key> = self.images.keys().filter(of_it).copied().collect();
        self.remove(&gone);
    }

    fn drop_image(&mut self, key: &Key) {
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
}

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

    #[test]
    fn a_block_that_was_removed_and_written_again_is_as_young_as_that() {
        let mut blocks = Blocks::bounded(20);
        assert!(blocks.add(key(1), image()).is_empty());
        blocks.remove(&[key(1)]);
        assert!(blocks.add(key(2), image()).is_empty());
        assert!(blocks.add(key(1), image()).is_empty());
        assert_eq!(blocks.add(key(3), image()), [key(2)]);
        assert!(blocks.get(&key(1)).is_some() && blocks.get(&key(3)).is_some());
        assert_eq!(blocks.statistics.allocated_bytes, 20);
    }

    #[test]
    fn what_was_removed_takes_no_memory() {
        let mut blocks = Blocks::bounded(80);
        blocks.add(key(0), image());
        for _ in 0..10 * FEW {
            blocks.add(key(1), image());
            blocks.remove(&[key(1)]);
        }
        assert!(blocks.order.len() <= 2 + FEW);
        assert!(Blocks::is_here(&blocks.images, &blocks.order[0]));
    }
}
