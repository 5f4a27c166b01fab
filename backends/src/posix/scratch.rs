//! Memory of the tier's own: page-aligned bytes for direct I/O, and slots for reads and writes it starts itself.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use kvstored_core::memory::SlotOwner;
use kvstored_core::{Arena, PAGE_BYTES, Result, SlotGuard};

struct Nobody;

impl SlotOwner for Nobody {
    fn release(&self, _slot: u32) {}
}

/// A slot of its own arena, freed with its last guard.
pub fn scratch_slot(bytes: usize) -> Result<SlotGuard> {
    let arena = Arc::new(Arena::heap(bytes)?);
    Ok(SlotGuard::new(arena, Arc::new(Nobody), 0, 0, bytes))
}

/// Page-aligned bytes.
pub struct AlignedBytes {
    storage: Vec<u8>,
    start: usize,
    length: usize,
}

impl AlignedBytes {
    /// Zeroed bytes, page-aligned.
    pub fn new(length: usize) -> Self {
        let storage = vec![0u8; length + PAGE_BYTES];
        let start = storage.as_ptr().align_offset(PAGE_BYTES).min(PAGE_BYTES);
        Self {
            storage,
            start,
            length,
        }
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.storage[self.start..self.start + self.length]
    }

    /// The bytes, to fill.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.storage[self.start..self.start + self.length]
    }
}

/// Reads up to `length` bytes at any offset of a file that may be open for direct I/O. Shorter at the end.
pub fn read_at(file: &File, offset: u64, length: usize) -> std::io::Result<Vec<u8>> {
    let page = PAGE_BYTES as u64;
    let start = offset - offset % page;
    let skip = (offset - start) as usize;
    let mut bytes = AlignedBytes::new((skip + length).next_multiple_of(PAGE_BYTES));
    let mut filled = 0;
    while let Some(rest) = bytes.as_mut_slice().get_mut(filled..) {
        if rest.is_empty() {
            break;
        }
        match file.read_at(rest, start + filled as u64) {
            Ok(0) => break,
            Ok(count) => {
                filled += count;
                // direct reads can't go on from an unaligned place, and there is nothing behind it
                if count % PAGE_BYTES != 0 {
                    break;
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let end = filled.min(skip + length);
    Ok(bytes.as_slice().get(skip..end).unwrap_or_default().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn reads_at_any_offset_and_stops_at_the_end() {
        let mut file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..10_000u32).map(|index| index as u8).collect();
        file.write_all(&content).unwrap();
        for (offset, length) in [(0u64, 10_000usize), (1, 5), (4095, 2), (9_990, 100), (20_000, 10)] {
            let end = (offset as usize + length).min(content.len());
            let expected = content.get(offset as usize..end).unwrap_or_default();
            assert_eq!(
                read_at(&file, offset, length).unwrap(),
                expected,
                "{offset}+{length}"
            );
        }
        assert_eq!(
            AlignedBytes::new(5).as_slice().as_ptr().align_offset(PAGE_BYTES),
            0
        );
    }
}
