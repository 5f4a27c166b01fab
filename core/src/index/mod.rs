//! In-memory map from block hash to a small value: the index of a tier.
//!
//! Entries live in a chunked slab and never move; 64 open-addressing tables of tags point at them. With a value of
//! 12 bytes a block takes at most 64 bytes at any size beyond some thousands, right after a growth step too:
//! 48 for the entry and 8 / 0.61 for its bucket. A growth step rebuilds one of the 64 tables.

mod lookup;
mod slab;
mod table;
#[cfg(test)]
mod tests;

use std::fmt;

use crate::block::BlockHash;
use slab::Slab;
use table::Table;

const TABLE_BITS: u32 = 6;
const TABLES: usize = 1 << TABLE_BITS;

/// Where a hash belongs: 6 bits for the table and 32 for the tag. Its order is the order of walks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Place(u64);

impl Place {
    #[inline]
    fn of(hash: &BlockHash) -> Self {
        // the fingerprints of hashes that differ in few bits may have constant bits
        let fingerprint = hash.fingerprint();
        let mixed = (fingerprint ^ (fingerprint >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        Self(mixed >> (64 - TABLE_BITS - u32::BITS))
    }

    #[inline]
    fn table(self) -> usize {
        (self.0 >> u32::BITS) as usize
    }

    #[inline]
    fn tag(self) -> u32 {
        self.0 as u32
    }
}

/// A map from block hash to a small value, whole hashes compared. Not locked: its owner locks.
///
/// Memory of removed entries is reused, and returned only by [`BlockIndex::clear`]. At most 2^32 - 2 entries fit;
/// past that, insertions are ignored.
#[derive(Clone)]
pub struct BlockIndex<V> {
    slab: Slab<V>,
    tables: Box<[Table]>,
    table_bytes: usize,
}

impl<V: Copy> BlockIndex<V> {
    /// An empty index.
    pub fn new() -> Self {
        let tables = vec![Table::default(); TABLES].into_boxed_slice();
        Self {
            slab: Slab::new(),
            table_bytes: tables.iter().map(Table::memory_bytes).sum(),
            tables,
        }
    }

    /// The value of a block.
    pub fn get(&self, hash: &BlockHash) -> Option<V> {
        self.slab.get(self.find(hash)?).map(|(_, value)| *value)
    }

    /// Sets the value of a block and returns the one it had.
    pub fn insert(&mut self, hash: BlockHash, value: V) -> Option<V> {
        if let Some(present) = self.find(&hash).and_then(|number| self.slab.value_mut(number)) {
            return Some(std::mem::replace(present, value));
        }
        let number = self.slab.insert(hash, value)?;
        let place = Place::of(&hash);
        let table = &mut self.tables[place.table()];
        let before = table.memory_bytes();
        table.insert(place.tag(), number);
        self.table_bytes += table.memory_bytes() - before;
        None
    }

    /// Changes the value of a block in place. Returns whether the block is here.
    pub fn update(&mut self, hash: &BlockHash, change: impl FnOnce(&mut V)) -> bool {
        match self.find(hash).and_then(|number| self.slab.value_mut(number)) {
            Some(value) => {
                change(value);
                true
            }
            None => false,
        }
    }

    /// Removes a block and returns its value.
    pub fn remove(&mut self, hash: &BlockHash) -> Option<V> {
        self.remove_if(hash, |_| true)
    }

    /// Removes a block if its value satisfies `condition`, and returns the value then.
    pub fn remove_if(&mut self, hash: &BlockHash, condition: impl Fn(&V) -> bool) -> Option<V> {
        let number = self.find(hash)?;
        let (_, value) = self.slab.get(number)?;
        if !condition(value) {
            return None;
        }
        self.remove_entry(Place::of(hash), number)
    }

    /// Blocks in the index.
    pub fn len(&self) -> usize {
        self.slab.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of memory the index takes.
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.slab.memory_bytes() + self.table_bytes
    }

    /// All blocks with their values, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (&BlockHash, &V)> {
        self.slab.iter()
    }

    /// Up to `limit` hashes that follow `after` in the index's own order, which depends on the hashes alone.
    ///
    /// Calling it again with the last hash returned, until nothing comes, walks every block that's here from
    /// the beginning of the walk to its end, once. `after` itself need not be here any more.
    pub fn list_after(&self, after: Option<&BlockHash>, limit: usize) -> Vec<BlockHash> {
        let start = after.map(Place::of).unwrap_or_default();
        let mut listed = Vec::with_capacity(limit.min(self.len()));
        if limit == 0 {
            return listed;
        }
        for (number, table) in self.tables.iter().enumerate().skip(start.table()) {
            let (first_tag, bound) = if number == start.table() {
                (start.tag(), after)
            } else {
                (0, None)
            };
            let complete = table.walk(first_tag, |group| {
                let mut hashes: Vec<(u32, &BlockHash)> = group
                    .iter()
                    .filter_map(|(tag, entry)| Some((*tag, self.slab.get(*entry)?.0)))
                    .filter(|order| bound.is_none_or(|bound| *order > (first_tag, bound)))
                    .collect();
                hashes.sort_unstable();
                listed.extend(hashes.iter().take(limit - listed.len()).map(|(_, hash)| **hash));
                listed.len() < limit
            });
            if !complete {
                break;
            }
        }
        listed
    }

    /// Removes the blocks for which `keep` is false.
    pub fn retain(&mut self, mut keep: impl FnMut(&BlockHash, &V) -> bool) {
        for number in 0..self.slab.end() {
            if let Some((hash, value)) = self.slab.get(number)
                && !keep(hash, value)
            {
                let place = Place::of(hash);
                self.remove_entry(place, number);
            }
        }
    }

    /// Removes all blocks and returns the memory.
    pub fn clear(&mut self) {
        *self = Self::new();
    }

    fn find(&self, hash: &BlockHash) -> Option<u32> {
        let place = Place::of(hash);
        self.tables[place.table()].find(place.tag(), |number| self.holds(number, hash))
    }

    #[inline]
    fn holds(&self, number: u32, hash: &BlockHash) -> bool {
        self.slab.get(number).is_some_and(|(held, _)| held == hash)
    }

    fn remove_entry(&mut self, place: Place, number: u32) -> Option<V> {
        self.tables[place.table()].remove(place.tag(), number);
        self.slab.remove(number)
    }

    #[cfg(test)]
    fn check(&self) {
        self.tables.iter().for_each(Table::check);
        let table_bytes: usize = self.tables.iter().map(Table::memory_bytes).sum();
        assert_eq!(self.table_bytes, table_bytes);
        for (hash, _) in self.iter() {
            assert!(self.find(hash).is_some(), "{hash} is lost");
        }
    }
}

impl<V: Copy> Default for BlockIndex<V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<V: Copy> fmt::Debug for BlockIndex<V> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("BlockIndex")
            .field("blocks", &self.len())
            .finish_non_exhaustive()
    }
}
