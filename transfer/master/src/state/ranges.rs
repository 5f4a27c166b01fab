//! The free ranges of one segment: best fit, neighbours joined.

use std::collections::{BTreeMap, BTreeSet};

/// Ranges are given out in multiples of this, in bytes.
pub const GRANULE: u64 = 256;

/// What a range of that many bytes takes. Saturates near 2^64.
pub fn rounded(length: u64) -> u64 {
    length.checked_next_multiple_of(GRANULE).unwrap_or(u64::MAX)
}

/// The free ranges of a segment.
#[derive(Debug)]
pub struct FreeRanges {
    by_offset: BTreeMap<u64, u64>,
    by_length: BTreeSet<(u64, u64)>,
    free_bytes: u64,
}

impl FreeRanges {
    /// All of a segment is free.
    pub fn new(capacity: u64) -> Self {
        let mut ranges = Self {
            by_offset: BTreeMap::new(),
            by_length: BTreeSet::new(),
            free_bytes: 0,
        };
        ranges.insert(0, capacity - capacity % GRANULE);
        ranges
    }

    /// Bytes that are free.
    pub fn free_bytes(&self) -> u64 {
        self.free_bytes
    }

    /// The longest free range.
    pub fn longest(&self) -> u64 {
        self.by_length.last().map_or(0, |(length, _)| *length)
    }

    /// Takes a range of `length` bytes, which must be a multiple of the granule. Returns where it begins.
    pub fn allocate(&mut self, length: u64) -> Option<u64> {
        let (found, offset) = *self.by_length.range((length.max(1), 0)..).next()?;
        self.remove(offset, found);
        self.insert(offset + length, found - length);
        Some(offset)
    }

    /// Takes one particular range. Returns whether all of it was free.
    pub fn reserve(&mut self, offset: u64, length: u64) -> bool {
        let Some(end) = offset.checked_add(length).filter(|_| length > 0) else {
            return false;
        };
        let Some((&start, &found)) = self.by_offset.range(..=offset).next_back() else {
            return false;
        };
        if start + found < end {
            return false;
        }
        self.remove(start, found);
        self.insert(start, offset - start);
        self.insert(end, start + found - end);
        true
    }

    /// Gives a range back that was taken.
    pub fn release(&mut self, offset: u64, length: u64) {
        let (mut offset, mut length) = (offset, length);
        if let Some((&before, &its)) = self.by_offset.range(..offset).next_back()
            && before + its == offset
        {
            self.remove(before, its);
            offset = before;
            length += its;
        }
        if let Some(&its) = self.by_offset.get(&(offset + length)) {
            self.remove(offset + length, its);
            length += its;
        }
        self.insert(offset, length);
    }

    fn insert(&mut self, offset: u64, length: u64) {
        if length > 0 {
            self.by_offset.insert(offset, length);
            self.by_length.insert((length, offset));
            self.free_bytes += length;
        }
    }

    fn remove(&mut self, offset: u64, length: u64) {
        self.by_offset.remove(&offset);
        self.by_length.remove(&(length, offset));
        self.free_bytes -= length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_given_back_joins_its_neighbours() {
        let mut ranges = FreeRanges::new(1024 + 7);
        let offsets: Vec<u64> = (0..4).map(|_| ranges.allocate(256).unwrap()).collect();
        assert_eq!(offsets, [0, 256, 512, 768]);
        assert_eq!(ranges.allocate(256), None);
        for offset in [256, 768, 0, 512] {
            ranges.release(offset, 256);
        }
        assert_eq!((ranges.longest(), ranges.free_bytes()), (1024, 1024));
    }

    #[test]
    fn a_range_can_be_reserved_once() {
        let mut ranges = FreeRanges::new(4096);
        assert!(ranges.reserve(512, 256));
        assert!(!ranges.reserve(512, 256));
        assert!(!ranges.reserve(256, 512));
        assert!(!ranges.reserve(4000, 256));
        assert!(!ranges.reserve(u64::MAX, 256));
        assert!(!ranges.reserve(0, 0));
        assert!(ranges.reserve(768, 4096 - 768));
        assert_eq!(ranges.free_bytes(), 512);
    }

    proptest! {
        #[test]
        fn ranges_never_overlap(steps in prop::collection::vec((any::<bool>(), 1_u64..20, any::<prop::sample::Index>()), 1..200)) {
            let capacity = 64 * GRANULE;
            let mut ranges = FreeRanges::new(capacity);
            let mut taken: Vec<(u64, u64)> = Vec::new();
            for (take, granules, which) in steps {
                if take || taken.is_empty() {
                    let length = granules * GRANULE;
                    let fits = ranges.longest() >= length;
                    let offset = ranges.allocate(length);
                    prop_assert_eq!(offset.is_some(), fits);
                    if let Some(offset) = offset {
                        prop_assert!(offset + length <= capacity);
                        prop_assert!(taken.iter().all(|(o, l)| offset + length <= *o || o + l <= offset));
                        taken.push((offset, length));
                    }
                } else {
                    let (offset, length) = taken.swap_remove(which.index(taken.len()));
                    ranges.release(offset, length);
                }
                let used: u64 = taken.iter().map(|(_, length)| length).sum();
                prop_assert_eq!(ranges.free_bytes() + used, capacity);
            }
            for (offset, length) in taken {
                ranges.release(offset, length);
            }
            prop_assert_eq!(ranges.longest(), capacity);
        }
    }
}
