//! S3-FIFO (Yang et al., SOSP 2023) over slots.

use super::ghost::Ghosts;
use super::list::Lists;
use super::{EvictionPolicy, PROBES, most_array_bytes, set_at};

/// Where new blocks prove themselves.
const SMALL: usize = 0;
/// Where blocks live that were used again.
const MAIN: usize = 1;
/// The small queue's share of the capacity is one in this many.
const SMALL_ONE_IN: usize = 10;
/// Uses are counted up to this.
const MAX_FREQUENCY: u8 = 3;
/// How many used blocks one eviction may move on before it takes a victim whatever its frequency.
const MAX_MOVES: usize = 4096;

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    fingerprint: u64,
    frequency: u8,
}

/// S3-FIFO: a small queue that filters blocks used once, a main queue with second chances, and a ghost queue.
///
/// A refresh does nothing: the order within a queue is the order of insertion.
#[derive(Debug)]
pub struct S3Fifo {
    queues: Lists<2>,
    ghosts: Ghosts<1>,
    entries: Vec<Entry>,
    capacity: usize,
}

impl S3Fifo {
    /// An empty order, whose capacity grows with its blocks until it's set.
    pub fn new() -> Self {
        Self {
            queues: Lists::new(),
            ghosts: Ghosts::new(),
            entries: Vec::new(),
            capacity: 0,
        }
    }

    /// Finds a victim in one queue, moving used blocks on. It stays linked.
    fn find_victim(&mut self, queue: usize, evictable: &mut dyn FnMut(u32) -> bool) -> Option<u32> {
        let keep_above = u8::from(queue == SMALL);
        let mut skipped = 0;
        let mut moved = 0;
        let mut next = self.queues.coldest(queue);
        while let Some(slot) = next {
            next = self.queues.warmer(slot);
            let entry = &mut self.entries[slot as usize];
            if entry.frequency > keep_above && moved < MAX_MOVES {
                moved += 1;
                entry.frequency = if queue == SMALL { 0 } else { entry.frequency - 1 };
                self.queues.push_hot(MAIN, slot);
                // the walk may have reached the hot end, and in the main queue it goes round
                if queue == MAIN {
                    next = next.or(Some(slot));
                }
            } else if evictable(slot) {
                return Some(slot);
            } else {
                skipped += 1;
                if skipped == PROBES {
                    break;
                }
            }
        }
        None
    }

    fn trim_ghosts(&mut self) {
        let limit = self.capacity - self.capacity / SMALL_ONE_IN;
        while self.ghosts.total() > limit && self.ghosts.drop_oldest(0) {}
    }

    #[cfg(test)]
    pub(super) fn check(&self) {
        self.queues.check();
        self.ghosts.check();
        assert!(self.ghosts.total() <= self.capacity);
    }
}

impl Default for S3Fifo {
    fn default() -> Self {
        Self::new()
    }
}

impl EvictionPolicy for S3Fifo {
    fn insert(&mut self, slot: u32, fingerprint: u64) {
        self.queues.unlink(slot);
        self.capacity = self.capacity.max(self.queues.total() + 1);
        set_at(
            &mut self.entries,
            slot,
            Entry {
                fingerprint,
                frequency: 0,
            },
        );
        let queue = if self.ghosts.take(fingerprint).is_some() {
            MAIN
        } else {
            SMALL
        };
        self.queues.push_hot(queue, slot);
    }

    fn hit(&mut self, slot: u32) {
        if let Some(entry) = self.entries.get_mut(slot as usize) {
            entry.frequency = MAX_FREQUENCY.min(entry.frequency + 1);
        }
    }

    fn refresh(&mut self, _slot: u32) {}

    fn remove(&mut self, slot: u32) {
        self.queues.unlink(slot);
    }

    fn evict(&mut self, evictable: &mut dyn FnMut(u32) -> bool) -> Option<u32> {
        let small_is_full = self.queues.len(SMALL) >= (self.capacity / SMALL_ONE_IN).max(1);
        let first = if small_is_full { SMALL } else { MAIN };
        let mut victim = self.find_victim(first, evictable);
        if victim.is_none() {
            let before = self.queues.len(MAIN);
            victim = self.find_victim(1 - first, evictable);
            // all that was in the small queue may have moved on to the main one, which was looked through before
            if victim.is_none() && self.queues.len(MAIN) > before {
                victim = self.find_victim(MAIN, evictable);
            }
        }
        let victim = victim?;
        if self.queues.unlink(victim) == Some(SMALL) {
            self.ghosts.push(0, self.entries[victim as usize].fingerprint);
            self.trim_ghosts();
        }
        Some(victim)
    }

    fn set_capacity(&mut self, blocks: usize) {
        self.capacity = blocks.max(self.queues.total());
        self.trim_ghosts();
    }

    fn len(&self) -> usize {
        self.queues.total()
    }

    fn memory_bytes(&self) -> usize {
        self.queues.memory_bytes() + self.ghosts.memory_bytes() + self.entries.capacity() * size_of::<Entry>()
    }

    fn most_bytes(&self, slots: usize) -> usize {
        Lists::<2>::most_bytes(slots) + Ghosts::<1>::most_bytes(slots + 1) + most_array_bytes::<Entry>(slots)
    }
}
