//! The memory that the tier's own tables take, held within a part of the capacity.
//!
//! Every block takes an entry in several tables, most of which never shrink. So a slot's number is given out only when
//! there's room for all that this many slots can ever take. Where blocks are small, the tables take more memory than was
//! kept aside for them: from the end of the arena, as long as nothing ever lay there.

use std::collections::HashMap;
use std::sync::Arc;

use kvstored_core::block::{BlockKey, Namespace};
use kvstored_core::error::{Error, ErrorKind, Result};
use kvstored_core::eviction::{ShadowCaches, most_map_bytes};
use kvstored_core::index::BlockIndex;
use kvstored_core::layout::PAGE_BYTES;
use kvstored_core::memory::Arena;

use super::{NamespaceIndex, Slot, SlotState, State};
use crate::slots::extents::Extents;

/// What takes no more with more slots: the state itself, and small tables.
const FIXED_BYTES: usize = 4096;
/// What a block takes in an index, when it has just grown.
const INDEX_BYTES_PER_BLOCK: usize = 64;
/// What an index may take at once for its next block: a chunk of entries, and first buckets.
const INDEX_STEP_BYTES: usize = 17 << 10;
/// More than an index takes that has nothing.
const EMPTY_INDEX_BYTES: usize = 4 << 10;
/// A namespace's place among the indexes.
const NAMESPACE_BYTES: usize = 256;
/// What a bucket takes in the map of blocks being filled.
const FILLING_BYTES: usize = size_of::<(BlockKey, u32)>() + 1;
/// How many slots are made room for at once, at least.
const FEWEST_NEW_SLOTS: usize = 32;

/// One in this many slots can always be filled at once.
const FILLED_AT_ONCE_SHARE: usize = 4;
/// For how many namespaces to come room is left, …
const NAMESPACES_TO_COME: usize = 8;
/// … unless that's more than one part of the capacity in this many.
const LARGEST_SPARE_SHARE: usize = 64;

/// What holds arena and tables together within one capacity.
pub(crate) struct TableBudget {
    /// Bytes of both.
    pub(crate) capacity: usize,
    /// The memory that the slots are cut from.
    pub(crate) arena: Arc<Arena>,
}

/// What is known of the tables' memory.
#[derive(Default)]
pub(super) struct Tables {
    /// Nothing is bounded without one.
    budget: Option<TableBudget>,
    /// The most that all tables but the indexes take with the slots that there's room for.
    slot_bytes: usize,
    namespaces: usize,
    /// Bytes that the indexes take now.
    index_bytes: usize,
    /// What they take without blocks.
    empty_index_bytes: usize,
    /// The most blocks that were being filled at once.
    most_filling: usize,
    /// Namespaces of blocks that are being filled, and of how many. They are few.
    filling_in: Vec<(Namespace, usize)>,
    /// Blocks that left an index since the last time that indexes were made smaller.
    left_indexes: usize,
}

impl Tables {
    /// What new slots leave for namespaces to come, so that those needn't wait for many blocks to go.
    fn spare_bytes(&self) -> usize {
        let capacity = self.budget.as_ref().map_or(0, |budget| budget.capacity);
        (NAMESPACES_TO_COME * INDEX_STEP_BYTES).min(capacity / LARGEST_SPARE_SHARE)
    }
}

impl State {
    /// Bounds arena and tables together by the budget's capacity from now on.
    pub(crate) fn bound_tables(&mut self, budget: TableBudget) {
        self.tables.slot_bytes = self.most_slot_bytes(0);
        self.tables.budget = Some(budget);
    }

    /// Bytes that the tables take now, the indexes included.
    pub(crate) fn table_bytes(&self) -> usize {
        self.slots.capacity() * size_of::<Slot>()
            + self.free_slots.capacity() * size_of::<u32>()
            + self.extents.memory_bytes()
            + self.policy.memory_bytes()
            + self.shadow.as_ref().map_or(0, ShadowCaches::memory_bytes)
            + self.filling.capacity() * 8 / 7 * FILLING_BYTES
            + self.tables.index_bytes
    }

    /// Makes room for a namespace's index. Fails with `NoSpace`.
    pub(crate) fn open_namespace(&mut self, namespace: &Namespace) -> Result<()> {
        if self.indexes.get(namespace).is_some() {
            return Ok(());
        }
        let empty = BlockIndex::<u32>::new().memory_bytes() + NAMESPACE_BYTES;
        if !self.make_table_room(0, empty) {
            let why = format!("the {}'s capacity has no room for another namespace", self.place);
            return Err(Error::new(ErrorKind::NoSpace, why).with("namespace", namespace));
        }
        self.indexes.open(namespace);
        self.tables.namespaces += 1;
        self.tables.index_bytes += empty;
        self.tables.empty_index_bytes += empty;
        Ok(())
    }

    /// A number for a slot, evicting blocks where tables have no room for more; `None` where nothing can be evicted.
    pub(super) fn take_number(&mut self) -> Option<u32> {
        if !self.make_table_room(1, 0) {
            return None;
        }
        loop {
            if let Some(number) = self.free_slots.pop() {
                return Some(number);
            }
            if self.slots.len() < self.slots.capacity() || self.add_slots() {
                return Some(self.slots.len() as u32);
            }
            if !self.evict_one() {
                return None;
            }
        }
    }

    /// Adds a block to an index. Returns whether it's new there.
    pub(super) fn list(&mut self, index: &NamespaceIndex, key: &BlockKey, number: u32) -> bool {
        let mut index = index.write();
        let before = index.memory_bytes();
        let new = index.insert(key.hash, number).is_none();
        self.tables.index_bytes += index.memory_bytes() - before;
        new
    }

    /// A block is being filled.
    pub(super) fn is_filling(&mut self, key: BlockKey, number: u32) {
        self.filling.insert(key, number);
        let tables = &mut self.tables;
        tables.most_filling = tables.most_filling.max(self.filling.len());
        match tables
            .filling_in
            .iter_mut()
            .find(|(known, _)| *known == key.namespace)
        {
            Some((_, blocks)) => *blocks += 1,
            None => tables.filling_in.push((key.namespace, 1)),
        }
    }

    /// A block isn't being filled any more.
    pub(super) fn is_filled(&mut self, key: &BlockKey) {
        if self.filling.remove(key).is_none() {
            return;
        }
        let filling_in = &mut self.tables.filling_in;
        if let Some(place) = filling_in.iter().position(|(known, _)| *known == key.namespace)
            && let Some((_, blocks)) = filling_in.get_mut(place)
        {
            *blocks -= 1;
            if *blocks == 0 {
                filling_in.swap_remove(place);
            }
        }
    }

    /// A block has left an index.
    pub(super) fn left_index(&mut self) {
        self.tables.left_indexes += 1;
    }

    /// Tells policy and shadow caches how many blocks there are when the arena is full, as far as there's room for what
    /// they remember of them.
    pub(super) fn plan_for(&mut self, blocks: usize) {
        let slots = self.slots.capacity();
        self.policy.set_capacity(blocks.min(slots.max(1)));
        if let Some(shadow) = &mut self.shadow {
            shadow.set_capacity(blocks.min(shadowed(slots)));
        }
    }

    /// Makes room for the tables of some more slots, or of one. Returns whether there is some now.
    fn add_slots(&mut self) -> bool {
        let known = self.slots.len();
        for more in [FEWEST_NEW_SLOTS.max(known / 8), 1] {
            let slot_bytes = self.most_slot_bytes(known + more);
            // as if each new slot's block were a new one in its index
            let coming = self.filling.len() + more;
            let index_bytes = self.tables.index_bytes + coming * INDEX_BYTES_PER_BLOCK;
            // a part of them may be filled at once, more than ever before
            let filling = most_map_bytes((known + more) / FILLED_AT_ONCE_SHARE, FILLING_BYTES);
            let spare = self.tables.spare_bytes() + filling;
            if self.fits(slot_bytes + self.most_other_bytes(index_bytes, 1) + spare) {
                self.tables.slot_bytes = slot_bytes;
                self.slots.reserve_exact(more);
                self.free_slots.reserve_exact(self.slots.capacity());
                return true;
            }
        }
        false
    }

    /// The most that the tables take with the slots there are and indexes of that size, once blocks being filled and `more`
    /// are in them.
    fn needed(&self, index_bytes: usize, more: usize) -> usize {
        let coming = self.filling.len() + more;
        self.tables.slot_bytes + self.most_other_bytes(index_bytes + coming * INDEX_BYTES_PER_BLOCK, more)
    }

    fn most_slot_bytes(&self, slots: usize) -> usize {
        FIXED_BYTES
            + slots * (size_of::<Slot>() + size_of::<u32>())
            + Extents::most_bytes(slots)
            + self.policy.most_bytes(slots.max(1))
            + self
                .shadow
                .as_ref()
                .map_or(0, |shadow| shadow.most_bytes(shadowed(slots)))
    }

    /// The most that indexes of that size and the map of blocks being filled take.
    fn most_other_bytes(&self, index_bytes: usize, more: usize) -> usize {
        let Tables {
            namespaces,
            most_filling,
            ref filling_in,
            ..
        } = self.tables;
        // one that grows takes an eighth more at most
        index_bytes
            + index_bytes / 8
            + (filling_in.len() + more).min(namespaces) * INDEX_STEP_BYTES
            + most_map_bytes(most_filling.max(self.filling.len() + more), FILLING_BYTES)
    }

    /// Makes indexes smaller and evicts blocks until there's room for `more` blocks' entries and `bytes` else. Returns whether
    /// there is. Nobody's blocks go where that's no help, because what takes the room is blocks being filled.
    fn make_table_room(&mut self, more: usize, bytes: usize) -> bool {
        while !self.fits(self.needed(self.tables.index_bytes, more) + bytes) {
            let without_blocks = self.needed(self.tables.empty_index_bytes, more) + bytes;
            if !self.fits(without_blocks) || (!self.shrink_indexes() && !self.evict_one()) {
                return false;
            }
        }
        true
    }

    /// Whether tables of that size fit, taking memory from the end of the arena if need be and possible.
    fn fits(&mut self, bytes: usize) -> bool {
        let Some(budget) = &self.tables.budget else {
            return true;
        };
        let Some(left) = budget.capacity.checked_sub(bytes) else {
            return false;
        };
        let end = left / PAGE_BYTES * PAGE_BYTES;
        self.extents.end() <= left
            || (self.extents.can_end_at(end) && budget.arena.give_up(end) && self.extents.end_at(end))
    }

    fn evict_one(&mut self) -> bool {
        let slots = &self.slots;
        let unpinned = |number: u32| slots.get(number as usize).is_some_and(|slot| slot.pins == 0);
        let Some(victim) = self.policy.evict(&mut { unpinned }) else {
            return false;
        };
        self.evicted(victim);
        true
    }

    /// Builds indexes anew that take much more than their blocks need, once many blocks have left. Returns whether that
    /// gave memory back.
    fn shrink_indexes(&mut self) -> bool {
        if self.tables.left_indexes <= self.policy.len() / 64 {
            return false;
        }
        self.tables.left_indexes = 0;
        let all = self.indexes.all();
        let mut wasteful = HashMap::new();
        for (namespace, index) in &all {
            let mut index = index.write();
            let step = if index.is_empty() { 0 } else { INDEX_STEP_BYTES };
            let modest = EMPTY_INDEX_BYTES + step + index.len() * INDEX_BYTES_PER_BLOCK * 3 / 2;
            if index.memory_bytes() > modest {
                self.tables.index_bytes -= index.memory_bytes();
                index.clear();
                wasteful.insert(*namespace, index);
            }
        }
        let visible = self.slots.iter().enumerate();
        for (number, slot) in visible.filter(|(_, slot)| slot.state == SlotState::Visible) {
            if let Some((namespace, hash)) = &slot.owner
                && let Some(index) = wasteful.get_mut(&namespace.namespace)
            {
                index.insert(*hash, number as u32);
            }
        }
        let rebuilt = wasteful.values().map(|index| index.memory_bytes());
        self.tables.index_bytes += rebuilt.sum::<usize>();
        !wasteful.is_empty()
    }
}

/// How many blocks the shadow caches are to reckon with at most: more than there are slots now, because they are to show
/// what the full cache does.
fn shadowed(slots: usize) -> usize {
    (2 * slots).max(64)
}
