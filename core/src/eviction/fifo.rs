//! First in, first out.

use super::list::Lists;
use super::{EvictionPolicy, PROBES};

/// First in, first out: uses don't matter.
#[derive(Debug)]
pub struct Fifo {
    lists: Lists<1>,
}

impl Fifo {
    /// An empty order.
    pub fn new() -> Self {
        Self { lists: Lists::new() }
    }

    #[cfg(test)]
    pub(super) fn check(&self) {
        self.lists.check();
    }
}

impl Default for Fifo {
    fn default() -> Self {
        Self::new()
    }
}

impl EvictionPolicy for Fifo {
    fn insert(&mut self, slot: u32, _fingerprint: u64) {
        self.lists.push_hot(0, slot);
    }

    fn hit(&mut self, _slot: u32) {}

    fn refresh(&mut self, _slot: u32) {}

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
