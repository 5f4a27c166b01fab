//! What a client has learned of objects: that they exist, until when that is certain, and where they are.
//!
//! A positive answer of the master comes with a lease, so it stays true while the lease runs and needs no second
//! question. Locations are kept longer: when no master answers, the last known ones are tried, and the nodes
//! themselves refuse what isn't true any more.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use kvstored_master::{Found, NodeId};
use kvstored_transfer::Grant;
use parking_lot::{Mutex, RwLock};

const SHARDS: usize = 16;

/// An object that a master knew.
#[derive(Debug)]
pub(crate) struct Object {
    /// What the master said.
    pub found: Found,
    grants: Mutex<Vec<(NodeId, Grant, Instant)>>,
}

impl Object {
    pub fn new(found: Found) -> Self {
        Self {
            found,
            grants: Mutex::default(),
        }
    }

    /// A right to read that was given earlier and is still good.
    pub fn grant(&self, node: &NodeId, now: Instant) -> Option<Grant> {
        let grants = self.grants.lock();
        grants
            .iter()
            .find(|(of, _, until)| of == node && now < *until)
            .map(|(_, grant, _)| *grant)
    }

    pub fn keep_grant(&self, node: NodeId, grant: Grant, until: Instant) {
        let mut grants = self.grants.lock();
        grants.retain(|(of, _, _)| *of != node);
        grants.push((node, grant, until));
    }

    pub fn drop_grant(&self, node: &NodeId) {
        self.grants.lock().retain(|(of, _, _)| of != node);
    }
}

struct Entry {
    object: Option<Arc<Object>>,
    /// Until then it's certain that the object exists.
    until: Instant,
}

#[derive(Default)]
struct Shard {
    entries: HashMap<Arc<[u8]>, Entry>,
    order: VecDeque<Arc<[u8]>>,
}

/// What is known of objects, at most so many.
pub(crate) struct Known {
    shards: Vec<RwLock<Shard>>,
    most_per_shard: usize,
}

impl Known {
    pub fn new(most: usize) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            most_per_shard: most.div_ceil(SHARDS).max(1),
        }
    }

    /// Whether the object certainly exists now.
    pub fn exists(&self, key: &[u8], now: Instant) -> bool {
        self.shard(key)
            .read()
            .entries
            .get(key)
            .is_some_and(|entry| now < entry.until)
    }

    /// Where the object is, and whether that is certain.
    pub fn find(&self, key: &[u8], now: Instant) -> Option<(Arc<Object>, bool)> {
        let shard = self.shard(key).read();
        let entry = shard.entries.get(key)?;
        Some((entry.object.clone()?, now < entry.until))
    }

    /// The object exists until then.
    pub fn learn_existence(&self, key: &[u8], until: Instant) {
        self.update(key, |entry| entry.until = entry.until.max(until), until);
    }

    /// The object is there until then.
    pub fn learn(&self, key: &[u8], object: Arc<Object>, until: Instant) {
        self.update(
            key,
            |entry| {
                entry.object = Some(object);
                entry.until = until;
            },
            until,
        );
    }

    /// Nothing is known of the object any more.
    pub fn forget(&self, key: &[u8]) {
        self.shard(key).write().entries.remove(key);
    }

    /// Nothing is known of anything.
    pub fn clear(&self) {
        for shard in &self.shards {
            *shard.write() = Shard::default();
        }
    }

    fn update(&self, key: &[u8], change: impl FnOnce(&mut Entry), until: Instant) {
        let mut shard = self.shard(key).write();
        if let Some(entry) = shard.entries.get_mut(key) {
            change(entry);
            return;
        }
        // keys that were forgotten are still in line; they count, so the line is bounded too
        while shard.order.len() >= self.most_per_shard {
            if let Some(oldest) = shard.order.pop_front() {
                shard.entries.remove(&oldest);
            }
        }
        let name: Arc<[u8]> = key.into();
        let mut entry = Entry { object: None, until };
        change(&mut entry);
        shard.order.push_back(name.clone());
        shard.entries.insert(name, entry);
    }

    fn shard(&self, key: &[u8]) -> &RwLock<Shard> {
        // keys that differ mostly differ near their end; the table hashes the whole key, this only spreads locks
        let mut tail = key.len() as u64;
        for byte in key.iter().rev().take(8) {
            tail = (tail << 8) ^ (tail >> 56) ^ u64::from(*byte);
        }
        let index = (tail.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as usize % self.shards.len();
        #[allow(clippy::indexing_slicing, reason = "an index below the length")]
        &self.shards[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvstored_core::Runtime;
    use std::time::Duration;

    #[test]
    fn existence_ends_with_the_lease_and_locations_stay() {
        let now = Runtime::system().clock.now();
        let known = Known::new(100);
        let found = Found {
            put: 1,
            length: 1,
            checksum: 2,
            lease: Duration::from_secs(1),
            locations: Vec::new(),
            stale: false,
        };
        known.learn(b"a", Arc::new(Object::new(found)), now + Duration::from_secs(1));
        assert!(known.exists(b"a", now));
        let later = now + Duration::from_secs(2);
        assert!(!known.exists(b"a", later));
        assert!(!known.find(b"a", later).unwrap().1);
        known.learn_existence(b"a", later + Duration::from_secs(1));
        assert!(known.find(b"a", later).unwrap().1);
        known.forget(b"a");
        assert!(known.find(b"a", now).is_none());
    }

    #[test]
    fn it_is_bounded() {
        let now = Runtime::system().clock.now();
        let known = Known::new(64);
        for number in 0u32..10_000 {
            known.learn_existence(&number.to_le_bytes(), now + Duration::from_secs(1));
        }
        let kept = (0u32..10_000).filter(|number| known.exists(&number.to_le_bytes(), now));
        let kept = kept.count();
        assert!((32..=64).contains(&kept), "{kept}");
    }
}
