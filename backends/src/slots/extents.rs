//! Cutting an arena into slots: best fit over free ranges, exact sizes in whole pages.
//!
//! Blocks of one layout all have one size, so holes left by evictions fit the next block exactly; with several
//! layouts in use, the neighbours of a victim are evicted too until the hole is large enough.

use std::collections::{BTreeMap, BTreeSet};

/// A range of the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Range {
    /// First byte.
    pub offset: usize,
    /// Bytes.
    pub length: usize,
}

/// Free and used ranges of an arena.
#[derive(Debug)]
pub struct Extents {
    capacity: usize,
    free_by_offset: BTreeMap<usize, usize>,
    free_by_length: BTreeSet<(usize, usize)>,
    used: BTreeMap<usize, (usize, u32)>,
    free_bytes: usize,
}

impl Extents {
    /// An arena that is all free.
    pub fn new(capacity: usize) -> Self {
        let mut extents = Self {
            capacity,
            free_by_offset: BTreeMap::new(),
            free_by_length: BTreeSet::new(),
            used: BTreeMap::new(),
            free_bytes: 0,
        };
        extents.add_free(Range {
            offset: 0,
            length: capacity,
        });
        extents
    }

    /// Bytes not in use.
    pub fn free_bytes(&self) -> usize {
        self.free_bytes
    }

    /// Bytes in all.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Cuts the best-fitting range for a slot; `None` when no free range is long enough.
    pub fn allocate(&mut self, length: usize, slot: u32) -> Option<usize> {
        let (free_length, offset) = self.free_by_length.range((length, 0)..).next().copied()?;
        self.remove_free(offset, free_length);
        if free_length > length {
            self.add_free(Range {
                offset: offset + length,
                length: free_length - length,
            });
        }
        self.used.insert(offset, (length, slot));
        Some(offset)
    }

    /// Returns a used range; gives the free range it became part of.
    pub fn release(&mut self, offset: usize) -> Option<Range> {
        let (mut length, _) = self.used.remove(&offset)?;
        let mut start = offset;
        if let Some((&before, &before_length)) = self.free_by_offset.range(..offset).next_back()
            && before + before_length == offset
        {
            self.remove_free(before, before_length);
            start = before;
            length += before_length;
        }
        if let Some(&after_length) = self.free_by_offset.get(&(start + length)) {
            self.remove_free(start + length, after_length);
            length += after_length;
        }
        let range = Range {
            offset: start,
            length,
        };
        self.add_free(range);
        Some(range)
    }

    /// The slot that begins where a range ends.
    pub fn slot_after(&self, range: Range) -> Option<u32> {
        self.used
            .get(&(range.offset + range.length))
            .map(|(_, slot)| *slot)
    }

    /// The slot that ends where a range begins.
    pub fn slot_before(&self, range: Range) -> Option<u32> {
        let (offset, (length, slot)) = self.used.range(..range.offset).next_back()?;
        (offset + length == range.offset).then_some(*slot)
    }

    fn add_free(&mut self, range: Range) {
        if range.length > 0 {
            self.free_by_offset.insert(range.offset, range.length);
            self.free_by_length.insert((range.length, range.offset));
            self.free_bytes += range.length;
        }
    }

    fn remove_free(&mut self, offset: usize, length: usize) {
        self.free_by_offset.remove(&offset);
        self.free_by_length.remove(&(length, offset));
        self.free_bytes -= length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn freed_neighbours_coalesce() {
        let mut extents = Extents::new(30);
        let offsets: Vec<_> = (0..3).map(|slot| extents.allocate(10, slot).unwrap()).collect();
        assert!(extents.allocate(1, 9).is_none());
        extents.release(offsets[0]).unwrap();
        extents.release(offsets[2]).unwrap();
        assert!(extents.allocate(20, 9).is_none());
        assert_eq!(
            extents.release(offsets[1]).unwrap(),
            Range {
                offset: 0,
                length: 30
            }
        );
        assert_eq!(extents.allocate(30, 9), Some(0));
    }

    proptest! {
        #[test]
        fn ranges_never_overlap_and_nothing_is_lost(steps in proptest::collection::vec((1usize..9, any::<bool>()), 1..200)) {
            let mut extents = Extents::new(64);
            let mut held: Vec<(usize, usize)> = Vec::new();
            for (length, give_back) in steps {
                if give_back && !held.is_empty() {
                    let (offset, _) = held.remove(length % held.len());
                    prop_assert!(extents.release(offset).is_some());
                } else if let Some(offset) = extents.allocate(length, 0) {
                    for (other, other_length) in &held {
                        prop_assert!(offset + length <= *other || other + other_length <= offset);
                    }
                    prop_assert!(offset + length <= 64);
                    held.push((offset, length));
                }
                let used: usize = held.iter().map(|(_, length)| length).sum();
                prop_assert_eq!(extents.free_bytes(), 64 - used);
            }
        }
    }
}
