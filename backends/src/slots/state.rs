//! Slots, their states and who goes first: everything behind the lock of a tier of slots.

mod leave;
mod room;
mod tables;

use std::collections::HashMap;
use std::sync::Arc;

use kvstored_core::block::{BlockHash, BlockKey, Namespace};
use kvstored_core::error::{Error, ErrorKind, Result};
use kvstored_core::events::EventSink;
use kvstored_core::eviction::{EvictionPolicy, ShadowCaches};
use kvstored_core::index::BlockIndex;
use kvstored_core::quota::QuotaLedger;
use kvstored_core::tier::NamespaceInfo;
use parking_lot::RwLock;

use super::extents::{Extents, Range};
use super::indexes::Indexes;
pub(crate) use tables::TableBudget;
use tables::Tables;

/// The visible blocks of one namespace: hash to slot. Locked on its own, so that lookups don't wait for
/// evictions; always taken after the state's lock, never before.
pub(crate) type NamespaceIndex = Arc<RwLock<BlockIndex<u32>>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SlotState {
    Free,
    /// Cut, being filled; invisible.
    Filling,
    /// In the index.
    Visible,
    /// Invisible for good; freed when the last pin goes.
    Doomed,
}

struct Slot {
    offset: usize,
    length: usize,
    state: SlotState,
    pins: u32,
    /// Grows with each reuse, so that a child's link to a former tenant is noticed.
    serial: u32,
    parent: Option<(u32, u32)>,
    owner: Option<(Arc<NamespaceInfo>, BlockHash)>,
    in_policy: bool,
    charged: bool,
}

/// Counters that only grow.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) evicted_blocks: u64,
    pub(crate) refused_writes: u64,
}

pub(crate) struct State {
    /// What the slots are cut from, in messages.
    place: &'static str,
    slots: Vec<Slot>,
    free_slots: Vec<u32>,
    extents: Extents,
    policy: Box<dyn EvictionPolicy>,
    keep: bool,
    filling: HashMap<BlockKey, u32>,
    indexes: Indexes,
    quotas: Option<Arc<QuotaLedger>>,
    pub(crate) shadow: Option<ShadowCaches>,
    tables: Tables,
    pub(crate) counts: Counts,
    /// Somebody was told `Busy` and wants to know of room.
    starved: bool,
    /// Where to tell of blocks that become visible or leave.
    pub(crate) events: Option<EventSink>,
}

/// A slot that was cut or pinned: its number, offset and length.
pub(crate) type Cut = (u32, usize, usize);

impl State {
    pub(crate) fn new(
        place: &'static str,
        capacity: usize,
        policy: Box<dyn EvictionPolicy>,
        keep: bool,
        indexes: Indexes,
        quotas: Option<Arc<QuotaLedger>>,
        shadow: Option<ShadowCaches>,
    ) -> Self {
        Self {
            place,
            slots: Vec::new(),
            free_slots: Vec::new(),
            extents: Extents::new(capacity),
            policy,
            keep,
            filling: HashMap::new(),
            indexes,
            quotas,
            shadow,
            tables: Tables::default(),
            counts: Counts::default(),
            starved: false,
            events: None,
        }
    }

    pub(crate) fn used_bytes(&self) -> u64 {
        (self.extents.end() - self.extents.free_bytes()) as u64
    }

    /// One past the last byte that ever was in use.
    #[cfg(test)]
    pub(crate) fn used_to(&self) -> usize {
        self.extents.used_to()
    }

    fn index(&self, namespace: &Namespace) -> Option<NamespaceIndex> {
        self.indexes.get(namespace)
    }

    /// Pins the visible blocks of a run and counts the use, tail first.
    pub(crate) fn pin(&mut self, namespace: &NamespaceInfo, hashes: &[BlockHash]) -> Vec<Option<Cut>> {
        if let Some(shadow) = &mut self.shadow {
            let fingerprints: Vec<u64> = hashes
                .iter()
                .map(|hash| fingerprint(&namespace.namespace, hash))
                .collect();
            shadow.access_run(&fingerprints);
        }
        let Some(index) = self.index(&namespace.namespace) else {
            return vec![None; hashes.len()];
        };
        let index = index.read();
        let mut pinned: Vec<Option<Cut>> = Vec::with_capacity(hashes.len());
        for hash in hashes {
            let slot = index
                .get(hash)
                .and_then(|number| Some((number, self.slots.get_mut(number as usize)?)));
            pinned.push(slot.map(|(number, slot)| {
                slot.pins += 1;
                (number, slot.offset, slot.length)
            }));
        }
        for (number, ..) in pinned.iter().rev().flatten() {
            self.policy.hit(*number);
        }
        pinned
    }

    /// Cuts a slot for each block of a run that isn't here; see `MemoryTier::allocate`.
    pub(crate) fn allocate(
        &mut self,
        namespace: &Arc<NamespaceInfo>,
        parent: Option<&BlockHash>,
        hashes: &[BlockHash],
    ) -> Vec<Result<Cut>> {
        let Some(index) = self.index(&namespace.namespace) else {
            let unknown = Error::new(
                ErrorKind::NotFound,
                format!("namespace is not open in the {}", self.place),
            )
            .with("namespace", namespace.namespace);
            return hashes.iter().map(|_| Err(unknown.clone())).collect();
        };
        let mut ancestor = parent.and_then(|hash| self.resident(&index, namespace, hash));
        self.refresh(ancestor);
        let head = ancestor;
        let mut outcomes = Vec::with_capacity(hashes.len());
        let mut cut = Vec::new();
        for hash in hashes {
            if self.keep
                && let Some(number) = self.resident(&index, namespace, hash)
            {
                ancestor = Some(number);
                outcomes.push(Err(Error::new(
                    ErrorKind::AlreadyExists,
                    format!("block is in the {} or on its way", self.place),
                )));
                continue;
            }
            let outcome = self.cut(namespace, Some(*hash), ancestor);
            if let Ok((number, ..)) = outcome {
                if self.keep {
                    self.is_filling(namespace.key(*hash), number);
                    cut.push((number, fingerprint(&namespace.namespace, hash)));
                }
                ancestor = Some(number);
            }
            outcomes.push(outcome);
        }
        // tail first, and then the ancestors, so that a tail is always colder than what it hangs on
        for (number, fingerprint) in cut.into_iter().rev() {
            self.policy.insert(number, fingerprint);
            if let Some(slot) = self.slots.get_mut(number as usize) {
                slot.in_policy = true;
            }
        }
        let room = self.extents.free_bytes() / namespace.layout.image_bytes().max(1);
        self.plan_for(self.policy.len().max(1) + room);
        self.refresh(head);
        outcomes
    }

    /// The slot of a block that's visible or being filled.
    fn resident(&self, index: &NamespaceIndex, namespace: &NamespaceInfo, hash: &BlockHash) -> Option<u32> {
        index
            .read()
            .get(hash)
            .or_else(|| self.filling.get(&namespace.key(*hash)).copied())
    }

    /// Warms a block's chain of ancestors, the block first and the head of the prompt last.
    fn refresh(&mut self, mut number: Option<u32>) {
        let mut steps = 0;
        while let Some(current) = number {
            let Some(slot) = self.slots.get(current as usize) else {
                return;
            };
            if slot.in_policy {
                self.policy.refresh(current);
            }
            number = slot.parent.and_then(|(parent, serial)| {
                let alive = self
                    .slots
                    .get(parent as usize)
                    .is_some_and(|slot| slot.serial == serial);
                alive.then_some(parent)
            });
            steps += 1;
            if steps > self.slots.len() {
                return;
            }
        }
    }

    /// Cuts one slot, evicting as needed. `hash` is `None` for a scratch slot.
    pub(crate) fn cut(
        &mut self,
        namespace: &Arc<NamespaceInfo>,
        hash: Option<BlockHash>,
        ancestor: Option<u32>,
    ) -> Result<Cut> {
        let length = namespace.layout.image_bytes();
        if length > self.extents.end() {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!(
                    "a block takes {length} bytes but the {} holds {}",
                    self.place,
                    self.extents.end()
                ),
            ));
        }
        let charged = hash.is_some() && self.charge(namespace, length)?;
        let Some((number, offset)) = self.place_slot(length) else {
            if charged {
                self.discharge(namespace, length);
            }
            self.counts.refused_writes += 1;
            return Err(self.no_room());
        };
        let serial = self
            .slots
            .get(number as usize)
            .map_or(0, |slot| slot.serial.wrapping_add(1));
        let parent = ancestor.and_then(|parent| Some((parent, self.slots.get(parent as usize)?.serial)));
        let slot = Slot {
            offset,
            length,
            state: if hash.is_some() {
                SlotState::Filling
            } else {
                SlotState::Doomed
            },
            pins: 1,
            serial,
            parent,
            owner: hash.map(|hash| (namespace.clone(), hash)),
            in_policy: false,
            charged,
        };
        match self.slots.get_mut(number as usize) {
            Some(place) => *place = slot,
            None => self.slots.push(slot),
        }
        Ok((number, offset, length))
    }

    /// A slot's number and where it begins, evicting as needed.
    fn place_slot(&mut self, length: usize) -> Option<(u32, usize)> {
        let number = self.take_number()?;
        let mut offset = self.extents.allocate(length, number);
        if offset.is_none() && self.make_room(length) {
            offset = self.extents.allocate(length, number);
        }
        if offset.is_none() && (number as usize) < self.slots.len() {
            self.free_slots.push(number);
        }
        Some((number, offset?))
    }

    /// Takes a block that the policy has let go out of the index and frees its slot.
    fn evicted(&mut self, number: u32) -> Option<Range> {
        self.counts.evicted_blocks += 1;
        if let Some(slot) = self.slots.get_mut(number as usize) {
            slot.in_policy = false;
        }
        self.unlist(number);
        self.free(number)
    }

    fn unlist(&mut self, number: u32) {
        let Some(slot) = self.slots.get_mut(number as usize) else {
            return;
        };
        let visible = slot.state == SlotState::Visible;
        slot.state = SlotState::Doomed;
        if slot.in_policy {
            slot.in_policy = false;
            self.policy.remove(number);
        }
        let Some((namespace, hash)) = &slot.owner else {
            return;
        };
        let (namespace, hash) = (namespace.clone(), *hash);
        if !visible {
            let key = namespace.key(hash);
            if self.filling.get(&key) == Some(&number) {
                self.is_filled(&key);
            }
        } else if let Some(index) = self.index(&namespace.namespace)
            && index.write().remove_if(&hash, |slot| *slot == number).is_some()
        {
            self.left_index();
            if let Some(events) = &self.events {
                events.removed(&namespace.namespace, &hash);
            }
        }
    }

    fn free(&mut self, number: u32) -> Option<Range> {
        let slot = self.slots.get_mut(number as usize)?;
        if slot.state == SlotState::Free {
            return None;
        }
        slot.state = SlotState::Free;
        let (offset, length, owner, charged) = (slot.offset, slot.length, slot.owner.take(), slot.charged);
        slot.serial = slot.serial.wrapping_add(1);
        if let (true, Some((namespace, _))) = (charged, owner) {
            self.discharge(&namespace, length);
        }
        self.free_slots.push(number);
        self.extents.release(offset)
    }

    /// Makes a filled slot visible; returns whether it is (a staging area keeps nothing).
    pub(crate) fn publish(&mut self, number: u32) -> bool {
        if !self.keep {
            return false;
        }
        let Some(slot) = self.slots.get_mut(number as usize) else {
            return false;
        };
        let (SlotState::Filling, Some((namespace, hash))) = (slot.state, slot.owner.clone()) else {
            return false;
        };
        slot.state = SlotState::Visible;
        self.is_filled(&namespace.key(hash));
        if let Some(index) = self.index(&namespace.namespace)
            && self.list(&index, &namespace.key(hash), number)
            && let Some(events) = &self.events
        {
            events.stored(&namespace.namespace, &hash);
        }
        true
    }
}

/// A block's fingerprint across namespaces.
fn fingerprint(namespace: &Namespace, hash: &BlockHash) -> u64 {
    let mut word = [0u8; 8];
    word.copy_from_slice(&namespace.0[..8]);
    hash.fingerprint() ^ u64::from_le_bytes(word)
}
