//! Index entries in chunks of one size: growth allocates one chunk, and nothing moves.

use crate::block::BlockHash;

/// Entries in a chunk; the last one is what the slab may hold in excess.
const CHUNK_ENTRIES: usize = 256;
/// No entry.
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
enum Entry<V> {
    Used { hash: BlockHash, value: V },
    Free { next: u32 },
}

/// Hashes with their values, addressed by a number that stays the same while the entry lives.
#[derive(Clone, Debug)]
pub(super) struct Slab<V> {
    chunks: Vec<Vec<Entry<V>>>,
    free: u32,
    used: usize,
}

impl<V: Copy> Slab<V> {
    pub(super) fn new() -> Self {
        Self {
            chunks: Vec::new(),
            free: NONE,
            used: 0,
        }
    }

    /// Entries in use.
    pub(super) fn len(&self) -> usize {
        self.used
    }

    /// One past the highest number ever used.
    pub(super) fn end(&self) -> u32 {
        match self.chunks.last() {
            Some(last) => ((self.chunks.len() - 1) * CHUNK_ENTRIES + last.len()) as u32,
            None => 0,
        }
    }

    /// The entry with that number.
    #[inline]
    pub(super) fn get(&self, number: u32) -> Option<(&BlockHash, &V)> {
        match self
            .chunks
            .get(number as usize / CHUNK_ENTRIES)?
            .get(number as usize % CHUNK_ENTRIES)?
        {
            Entry::Used { hash, value } => Some((hash, value)),
            Entry::Free { .. } => None,
        }
    }

    /// The value of the entry with that number.
    pub(super) fn value_mut(&mut self, number: u32) -> Option<&mut V> {
        match self.entry_mut(number)? {
            Entry::Used { value, .. } => Some(value),
            Entry::Free { .. } => None,
        }
    }

    /// Adds an entry. Returns its number, or `None` if the numbers are used up.
    pub(super) fn insert(&mut self, hash: BlockHash, value: V) -> Option<u32> {
        let used = Entry::Used { hash, value };
        let reused = self.free;
        if let Some(entry) = self.entry_mut(reused) {
            if let Entry::Free { next } = std::mem::replace(entry, used) {
                self.free = next;
            }
            self.used += 1;
            return Some(reused);
        }
        let number = self.end();
        // numbers are stored plus one, next to a tag, in 32 bits
        if number >= NONE - 1 {
            return None;
        }
        match self.chunks.last_mut() {
            Some(last) if last.len() < CHUNK_ENTRIES => last.push(used),
            _ => {
                let mut chunk = Vec::with_capacity(CHUNK_ENTRIES);
                chunk.push(used);
                self.chunks.push(chunk);
            }
        }
        self.used += 1;
        Some(number)
    }

    /// Removes an entry.
    pub(super) fn remove(&mut self, number: u32) -> Option<V> {
        let next = self.free;
        let entry = self.entry_mut(number)?;
        let Entry::Used { value, .. } = *entry else {
            return None;
        };
        *entry = Entry::Free { next };
        self.free = number;
        self.used -= 1;
        Some(value)
    }

    /// The entries in the order of their numbers.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&BlockHash, &V)> {
        self.chunks.iter().flatten().filter_map(|entry| match entry {
            Entry::Used { hash, value } => Some((hash, value)),
            Entry::Free { .. } => None,
        })
    }

    /// Bytes of memory.
    pub(super) fn memory_bytes(&self) -> usize {
        self.chunks.capacity() * size_of::<Vec<Entry<V>>>()
            + self.chunks.len() * CHUNK_ENTRIES * size_of::<Entry<V>>()
    }

    fn entry_mut(&mut self, number: u32) -> Option<&mut Entry<V>> {
        self.chunks
            .get_mut(number as usize / CHUNK_ENTRIES)?
            .get_mut(number as usize % CHUNK_ENTRIES)
    }
}

const _: () = assert!(
    size_of::<Entry<[u32; 3]>>() == 48,
    "an entry with a 12-byte value takes 48 bytes"
);
