//! Objects, found by key and by number.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::ranges::rounded;

/// Whether a replica is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stance {
    /// It is, once its object is complete.
    Stays,
    /// A copy that is being written, by the node with that number and until then at most. It doesn't count against the
    /// tenant's quota before it's complete.
    Arrives { from: u32, until: Instant },
    /// Others are read instead. It goes then, when nobody has a lease any more who was sent here, and doesn't count against
    /// the quota any more.
    Leaves(Instant),
}

/// A replica, or the place for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Replica {
    /// The node's number.
    pub node: u32,
    /// Where it begins in the node's segment.
    pub offset: u64,
    /// The put that wrote it: the object's own, or for a copy another one.
    pub put: u64,
    /// Whether it's to be read.
    pub stance: Stance,
}

impl Replica {
    /// One that is to be read.
    pub fn new(node: u32, offset: u64, put: u64) -> Self {
        Self {
            node,
            offset,
            put,
            stance: Stance::Stays,
        }
    }

    pub fn stays(&self) -> bool {
        self.stance == Stance::Stays
    }

    pub fn arrives(&self) -> bool {
        matches!(self.stance, Stance::Arrives { .. })
    }
}

/// How far an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Being put.
    Pending {
        /// The caller's number of the attempt; `None` for a put of an earlier master that a node announced.
        attempt: Option<u64>,
        /// When it's given up.
        until: Instant,
    },
    /// Can be read.
    Complete,
}

/// In which of the queues of [`super::recency`] a complete object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Queue {
    /// In none: it's incomplete.
    None,
    /// May be evicted.
    Evictable,
    /// Soft-pinned, and may be evicted when nothing else is left.
    Pinned,
    /// Leased; looked at again at that moment.
    Leased(Instant),
}

#[derive(Debug)]
pub(super) struct Object {
    pub key: Arc<[u8]>,
    /// The tenant's number.
    pub tenant: u32,
    pub put: u64,
    pub length: u64,
    pub checksum: u64,
    pub replicas: Vec<Replica>,
    pub stage: Stage,
    /// Grows with every use.
    pub stamp: u64,
    pub lease_until: Instant,
    /// The end of the soft pin, for a soft-pinned object.
    pub pin_until: Option<Instant>,
    pub queue: Queue,
}

impl Object {
    /// Bytes that each replica takes of its segment.
    pub fn reserved(&self) -> u64 {
        rounded(self.length)
    }

    pub fn is_complete(&self) -> bool {
        self.stage == Stage::Complete
    }

    pub fn is_leased(&self, now: Instant) -> bool {
        self.lease_until > now
    }

    pub fn is_pinned(&self, now: Instant) -> bool {
        self.pin_until.is_some_and(|until| until > now)
    }

    pub fn on(&self, node: u32) -> Option<Replica> {
        self.replicas.iter().copied().find(|replica| replica.node == node)
    }

    /// The replica that a put wrote or writes.
    pub fn by_put(&self, put: u64) -> Option<Replica> {
        self.replicas.iter().copied().find(|replica| replica.put == put)
    }

    /// Whether a replica other than that node's is to be read.
    pub fn stays_beside(&self, node: u32) -> bool {
        let mut others = self.replicas.iter().filter(|replica| replica.node != node);
        others.any(Replica::stays)
    }

    /// Whether that node is copying the object elsewhere.
    pub fn is_moving_from(&self, node: u32) -> bool {
        let moving =
            |replica: &Replica| matches!(replica.stance, Stance::Arrives { from, .. } if from == node);
        self.replicas.iter().any(moving)
    }

    /// Changes what is to become of a node's replica.
    pub fn set_stance(&mut self, node: u32, stance: Stance) {
        for replica in &mut self.replicas {
            if replica.node == node {
                replica.stance = stance;
            }
        }
    }
}

/// All objects. Numbers are reused.
#[derive(Debug, Default)]
pub(super) struct Objects {
    slots: Vec<Option<Object>>,
    free: Vec<u32>,
    by_key: HashMap<Arc<[u8]>, u32>,
    complete: u64,
}

impl Objects {
    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    /// How many are complete.
    pub fn complete(&self) -> u64 {
        self.complete
    }

    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    pub fn find(&self, key: &[u8]) -> Option<u32> {
        self.by_key.get(key).copied()
    }

    pub fn get(&self, slot: u32) -> Option<&Object> {
        self.slots.get(slot as usize)?.as_ref()
    }

    /// For changing anything but the key and the stage.
    pub fn get_mut(&mut self, slot: u32) -> Option<&mut Object> {
        self.slots.get_mut(slot as usize)?.as_mut()
    }

    /// Adds an object whose key isn't there.
    pub fn insert(&mut self, object: Object) -> u32 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            (self.slots.len() - 1) as u32
        });
        self.by_key.insert(object.key.clone(), slot);
        self.complete += u64::from(object.is_complete());
        if let Some(place) = self.slots.get_mut(slot as usize) {
            *place = Some(object);
        }
        slot
    }

    pub fn set_complete(&mut self, slot: u32) {
        if let Some(object) = self.get_mut(slot)
            && !object.is_complete()
        {
            object.stage = Stage::Complete;
            self.complete += 1;
        }
    }

    pub fn remove(&mut self, slot: u32) -> Option<Object> {
        let object = self.slots.get_mut(slot as usize)?.take()?;
        self.by_key.remove(&object.key);
        self.complete -= u64::from(object.is_complete());
        self.free.push(slot);
        Some(object)
    }
}
