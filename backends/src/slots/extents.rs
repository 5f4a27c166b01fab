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

/// What an entry takes at most in a table of used and in both tables of free ranges, whose nodes are half full.
const ENTRY_BYTES: usize = 144;
/// What an entry takes in them about.
const USUAL_USED_BYTES: usize = 40;
const USUAL_FREE_BYTES: usize = 56;

/// Free and used ranges of an arena.
#[derive(Debug)]
pub struct Extents {
    end: usize,
    /// One past the last byte that ever was in use.
    used_to: usize,
    free_by_offset: BTreeMap<usize, usize>,
    free_by_length: BTreeSet<(usize, usize)>,
    used: BTreeMap<usize, (usize, u32)>,
    free_bytes: usize,
}

impl Extents {
    /// An arena that is all free.
    pub fn new(capacity: usize) -> Self {
        let mut extents = Self {
            end: capacity,
            used_to: 0,
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

    /// One past the last byte: bytes in all.
    pub fn end(&self) -> usize {
        self.end
    }

    /// One past the last byte that ever was in use.
    #[cfg(test)]
    pub fn used_to(&self) -> usize {
        self.used_to
    }

    /// Whether nothing lies or ever lay from `end` on.
    pub fn can_end_at(&self, end: usize) -> bool {
        self.used_to <= end && end <= self.end
    }

    /// Gives up what lies from `end` on, where nothing ever lay. Returns whether it did.
    pub fn end_at(&mut self, end: usize) -> bool {
        if !self.can_end_at(end) {
            return false;
        }
        // all from there on is free, and so is what the last free range has before it
        if let Some((&offset, &length)) = self.free_by_offset.last_key_value()
            && offset + length == self.end
        {
            self.remove_free(offset, length);
            self.add_free(Range {
                offset,
                length: end - offset,
            });
        }
        self.end = end;
        true
    }

    /// Bytes of memory, about.
    pub fn memory_bytes(&self) -> usize {
        self.used.len() * USUAL_USED_BYTES + self.free_by_offset.len() * USUAL_FREE_BYTES
    }

    /// The most bytes of memory while no more than that many ranges are in use.
    pub fn most_bytes(used: usize) -> usize {
        // between, before and after used ranges lies at most one free range each
        (used + 1) * ENTRY_BYTES
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
        self.used_to = self.used_to.max(offset + length);
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

    #[test]
    fn only_what_was_never_used_is_given_up() {
        let mut extents = Extents::new(40);
        let first = extents.allocate(10, 0).unwrap();
        let second = extents.allocate(10, 1).unwrap();
        assert!(extents.end_at(30));
        assert_eq!((extents.end(), extents.free_bytes()), (30, 10));
        assert!(extents.allocate(11, 2).is_none());
        extents.release(second).unwrap();
        assert!(!extents.end_at(10) && !extents.end_at(31));
        assert!(extents.end_at(20));
        extents.release(first).unwrap();
        let all = Range {
            offset: 0,
            length: 20,
        };
        assert_eq!(extents.free_bytes(), 20);
        assert_eq!(extents.allocate(20, 3), Some(all.offset));
        assert!(extents.end_at(20) && extents.free_bytes() == 0);
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
