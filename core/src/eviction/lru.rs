//! Least recently used.

use super::list::Lists;
use super::{EvictionPolicy, PROBES};

/// Least recently used: a hit and a refresh move a block to the hot end.
#[derive(Debug)]
pub struct Lru {
    lists: Lists<1>,
}

impl Lru {
    /// An empty order.
    pub fn new() -> Self {
        Self { lists: Lists::new() }
    }

    #[cfg(test)]
    pub(super) fn check(&self) {
        self.lists.check();
    }
}

impl Default for Lru {
    fn default() -> Self {
        Self::new()
    }
}

impl EvictionPolicy for Lru {
    fn insert(&mut self, slot: u32, _fingerprint: u64) {
        self.lists.push_hot(0, slot);
    }

    fn hit(&mut self, slot: u32) {
        if self.lists.list_of(slot).is_some() {
            self.lists.push_hot(0, slot);
        }
    }

    fn refresh(&mut self, slot: u32) {
        self.hit(slot);
    }

    fn remove(&mut self, slot: u32) {
        self.lists.unlink(slot);
    }

    fn evict(&mut self, evictable: &mut dyn FnMut(u32) -> bool) -> Option<u32> {
        let victim = self.lists.find_cold(0, PROBES, evictable)?;
        self.lists.unlink(victim);
        Some(victim)
    }

    fn set_capacity(&mut self, _blocks: usize) {}

    fn len(&self) -> usize {
        self.lists.total()
    }

    fn memory_bytes(&self) -> usize {
        self.lists.memory_bytes()
    }

    fn most_bytes(&self, slots: usize) -> usize {
        Lists::<1>::most_bytes(slots)
    }
}
