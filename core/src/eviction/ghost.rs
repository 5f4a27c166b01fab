//! Ghost lists: fingerprints of blocks that left, oldest first out.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::list::Lists;
use super::{most_array_bytes, most_map_bytes};

/// Spreads fingerprints over a hash table with one multiplication.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FingerprintHasher(u64);

impl Hasher for FingerprintHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        let product = (self.0 ^ value).wrapping_mul(0xD6E8_FEB8_6659_FD93);
        self.0 = product ^ (product >> 32);
    }
}

/// A map whose keys are fingerprints.
pub(super) type FingerprintMap<V> = HashMap<u64, V, BuildHasherDefault<FingerprintHasher>>;

/// `LISTS` ghost lists; a fingerprint is in at most one of them.
#[derive(Debug)]
pub(super) struct Ghosts<const LISTS: usize> {
    lists: Lists<LISTS>,
    fingerprints: Vec<u64>,
    places: FingerprintMap<u32>,
    free: Vec<u32>,
}

impl<const LISTS: usize> Ghosts<LISTS> {
    pub(super) fn new() -> Self {
        Self {
            lists: Lists::new(),
            fingerprints: Vec::new(),
            places: FingerprintMap::default(),
            free: Vec::new(),
        }
    }

    /// Ghosts in one list.
    pub(super) fn len(&self, list: usize) -> usize {
        self.lists.len(list)
    }

    /// Ghosts in all lists.
    pub(super) fn total(&self) -> usize {
        self.lists.total()
    }

    /// The list a fingerprint is in.
    pub(super) fn list_of(&self, fingerprint: u64) -> Option<usize> {
        self.lists.list_of(*self.places.get(&fingerprint)?)
    }

    /// Remembers a fingerprint as the newest of a list.
    pub(super) fn push(&mut self, list: usize, fingerprint: u64) {
        self.take(fingerprint);
        let place = self.free.pop().unwrap_or_else(|| {
            self.fingerprints.push(0);
            (self.fingerprints.len() - 1) as u32
        });
        self.fingerprints[place as usize] = fingerprint;
        self.places.insert(fingerprint, place);
        self.lists.push_hot(list, place);
    }

    /// Forgets a fingerprint. Returns the list it was in.
    pub(super) fn take(&mut self, fingerprint: u64) -> Option<usize> {
        let place = self.places.remove(&fingerprint)?;
        self.free.push(place);
        self.lists.unlink(place)
    }

    /// Forgets the oldest fingerprint of a list. Returns whether there was one.
    pub(super) fn drop_oldest(&mut self, list: usize) -> bool {
        let Some(place) = self.lists.coldest(list) else {
            return false;
        };
        self.take(self.fingerprints[place as usize]).is_some()
    }

    /// Bytes of memory.
    pub(super) fn memory_bytes(&self) -> usize {
        self.lists.memory_bytes()
            + self.fingerprints.capacity() * size_of::<u64>()
            + self.free.capacity() * size_of::<u32>()
            + map_bytes(&self.places)
    }

    /// The most bytes of memory while there are never more than that many.
    pub(super) fn most_bytes(ghosts: usize) -> usize {
        Lists::<LISTS>::most_bytes(ghosts)
            + most_array_bytes::<u64>(ghosts)
            + most_array_bytes::<u32>(ghosts)
            + most_map_bytes(ghosts, size_of::<(u64, u32)>() + 1)
    }

    #[cfg(test)]
    pub(super) fn check(&self) {
        self.lists.check();
        assert_eq!(self.total(), self.places.len());
        assert_eq!(self.total() + self.free.len(), self.fingerprints.len());
    }
}

/// Bytes a map's table takes, about: entries and one control byte each, at most 7/8 full.
pub(super) fn map_bytes<V>(map: &FingerprintMap<V>) -> usize {
    map.capacity() * 8 / 7 * (size_of::<(u64, V)>() + 1)
}
