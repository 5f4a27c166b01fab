//! Adaptive replacement (Megiddo and Modha, FAST 2003) over slots.

use super::ghost::Ghosts;
use super::list::Lists;
use super::{EvictionPolicy, PROBES, most_array_bytes, set_at};

/// Seen once lately (T1, and its ghosts B1).
const RECENT: usize = 0;
/// Seen at least twice lately (T2, and its ghosts B2).
const FREQUENT: usize = 1;

/// Adaptive replacement: two LRU lists, and ghosts of what each evicted, whose hits shift the balance.
///
/// A refresh moves a block to the hot end of its own list and promotes nothing.
#[derive(Debug)]
pub struct AdaptiveReplacement {
    resident: Lists<2>,
    ghosts: Ghosts<2>,
    fingerprints: Vec<u64>,
    capacity: usize,
    /// How many blocks the recent list should hold.
    target_recent: usize,
}

impl AdaptiveReplacement {
    /// An empty order, whose capacity grows with its blocks until it's set.
    pub fn new() -> Self {
        Self {
            resident: Lists::new(),
            ghosts: Ghosts::new(),
            fingerprints: Vec::new(),
            capacity: 0,
            target_recent: 0,
        }
    }

    /// Shifts the balance after a ghost hit and names the list the block goes to.
    fn adapt(&mut self, ghost: Option<usize>) -> usize {
        let recent = self.ghosts.len(RECENT);
        let frequent = self.ghosts.len(FREQUENT);
        match ghost {
            Some(RECENT) => {
                let step = (frequent / recent.max(1)).max(1);
                self.target_recent = (self.target_recent + step).min(self.capacity);
                FREQUENT
            }
            Some(_) => {
                let step = (recent / frequent.max(1)).max(1);
                self.target_recent = self.target_recent.saturating_sub(step);
                FREQUENT
            }
            None => RECENT,
        }
    }

    /// Keeps |T1| + |B1| within the capacity and everything together within twice the capacity.
    fn trim_ghosts(&mut self) {
        while self.resident.len(RECENT) + self.ghosts.len(RECENT) > self.capacity
            && self.ghosts.drop_oldest(RECENT)
        {}
        while self.resident.total() + self.ghosts.total() > 2 * self.capacity
            && (self.ghosts.drop_oldest(FREQUENT) || self.ghosts.drop_oldest(RECENT))
        {}
    }

    #[cfg(test)]
    pub(super) fn check(&self) {
        self.resident.check();
        self.ghosts.check();
        assert!(self.target_recent <= self.capacity);
        assert!(self.resident.total() + self.ghosts.total() <= 2 * self.capacity);
    }
}

impl Default for AdaptiveReplacement {
    fn default() -> Self {
        Self::new()
    }
}

impl EvictionPolicy for AdaptiveReplacement {
    fn insert(&mut self, slot: u32, fingerprint: u64) {
        self.resident.unlink(slot);
        self.capacity = self.capacity.max(self.resident.total() + 1);
        set_at(&mut self.fingerprints, slot, fingerprint);
        // the step is a ratio of list lengths from before the ghost leaves its list
        let ghost = self.ghosts.list_of(fingerprint);
        let list = self.adapt(ghost);
        self.ghosts.take(fingerprint);
        self.resident.push_hot(list, slot);
        self.trim_ghosts();
    }

    fn hit(&mut self, slot: u32) {
        if self.resident.list_of(slot).is_some() {
            self.resident.push_hot(FREQUENT, slot);
        }
    }

    fn refresh(&mut self, slot: u32) {
        if let Some(list) = self.resident.list_of(slot) {
            self.resident.push_hot(list, slot);
        }
    }

    fn remove(&mut self, slot: u32) {
        self.resident.unlink(slot);
    }

    fn evict(&mut self, evictable: &mut dyn FnMut(u32) -> bool) -> Option<u32> {
        let recent = self.resident.len(RECENT);
        let first = if recent > 0 && recent > self.target_recent {
            RECENT
        } else {
            FREQUENT
        };
        let victim = self
            .resident
            .find_cold(first, PROBES, evictable)
            .or_else(|| self.resident.find_cold(1 - first, PROBES, evictable))?;
        if let Some(list) = self.resident.unlink(victim) {
            self.ghosts.push(list, self.fingerprints[victim as usize]);
        }
        self.trim_ghosts();
        Some(victim)
    }

    fn set_capacity(&mut self, blocks: usize) {
        self.capacity = blocks.max(self.resident.total());
        self.target_recent = self.target_recent.min(self.capacity);
        self.trim_ghosts();
    }

    fn len(&self) -> usize {
        self.resident.total()
    }

    fn memory_bytes(&self) -> usize {
        self.resident.memory_bytes()
            + self.ghosts.memory_bytes()
            + self.fingerprints.capacity() * size_of::<u64>()
    }

    fn most_bytes(&self, slots: usize) -> usize {
        // all that is here and all ghosts are twice the capacity, and one more before the ghosts are trimmed
        Lists::<2>::most_bytes(slots)
            + Ghosts::<2>::most_bytes(2 * slots + 1)
            + most_array_bytes::<u64>(slots)
    }
}
