//! Lookups of many blocks at once, arranged so that their cache misses overlap.

use super::{BlockIndex, Place};
use crate::block::BlockHash;

/// Blocks probed together: about as many misses as a core keeps in flight, twice over.
const GROUP: usize = 32;
/// No entry.
const NONE: u32 = u32::MAX;

impl<V: Copy> BlockIndex<V> {
    /// Sets `present[i]` for every block that's here, and leaves the others as they are. The shorter of the two
    /// slices bounds the work.
    pub fn lookup(&self, hashes: &[BlockHash], present: &mut [bool]) {
        for (hashes, present) in hashes.chunks(GROUP).zip(present.chunks_mut(GROUP)) {
            let found = self.probe(hashes);
            for (present, found) in present.iter_mut().zip(found).take(hashes.len()) {
                *present |= found;
            }
        }
    }

    /// How many blocks at the start of `hashes` are here without a gap.
    pub fn lookup_on_prefix(&self, hashes: &[BlockHash]) -> usize {
        let mut length = 0;
        for group in hashes.chunks(GROUP) {
            let found = self.probe(group);
            let present = found.iter().take(group.len()).take_while(|found| **found).count();
            length += present;
            if present < group.len() {
                break;
            }
        }
        length
    }

    /// Which of up to `GROUP` blocks are here. Each step does its independent loads for the whole group.
    fn probe(&self, hashes: &[BlockHash]) -> [bool; GROUP] {
        let mut places = [Place::default(); GROUP];
        for (place, hash) in places.iter_mut().zip(hashes) {
            *place = Place::of(hash);
        }
        let places = &places[..hashes.len().min(GROUP)];
        let mut touched = 0;
        for place in places {
            touched |= self.tables[place.table()].touch(place.tag());
        }
        std::hint::black_box(touched);
        // the first entry with the tag is the block but for one collision in 2^32 / buckets
        let mut candidates = [NONE; GROUP];
        for (candidate, place) in candidates.iter_mut().zip(places) {
            *candidate = self.tables[place.table()]
                .first_with_tag(place.tag())
                .unwrap_or(NONE);
        }
        let mut entries = [None; GROUP];
        let mut touched = 0;
        for (entry, candidate) in entries.iter_mut().zip(candidates).take(places.len()) {
            *entry = self.slab.get(candidate).map(|(hash, _)| hash);
            // an entry may lie on two cache lines
            touched |= entry.map_or(0, BlockHash::len);
        }
        std::hint::black_box(touched);
        let mut found = [false; GROUP];
        for ((found, entry), hash) in found.iter_mut().zip(entries).zip(hashes) {
            *found = match entry {
                Some(held) => held == hash || self.find(hash).is_some(),
                None => false,
            };
        }
        found
    }
}
