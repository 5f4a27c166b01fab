//! Copies within one process: the most that shared memory can be worth.

use kvstored_core::Result;

use crate::tools::buffer::Buffer;

/// Two buffers, and the places of a batch's entries in them.
pub struct Copying {
    source: Buffer,
    target: Buffer,
}

impl Copying {
    /// Memory of that many bytes on either side.
    pub fn new(bytes: usize) -> Result<Self> {
        let mut source = Buffer::new(bytes)?;
        source.as_mut_slice().fill(0x5A);
        Ok(Self {
            source,
            target: Buffer::new(bytes)?,
        })
    }

    /// Copies entries of that many bytes, each to the place where it lies.
    pub fn batch(&mut self, bytes: usize, entries: usize) {
        for offset in super::places(bytes, entries, self.source.len()) {
            let source = self.source.as_slice().get(offset..offset + bytes);
            let target = self.target.as_mut_slice().get_mut(offset..offset + bytes);
            if let (Some(target), Some(source)) = (target, source) {
                target.copy_from_slice(source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_is_copied() {
        let mut copying = Copying::new(10_000).unwrap();
        copying.batch(3000, 2);
        let copied = copying.target.as_slice();
        assert!(copied[..6000].iter().all(|byte| *byte == 0x5A));
        assert!(copied[6000..].iter().all(|byte| *byte == 0));
        copying.batch(5000, 9);
        assert!(copying.target.as_slice().iter().all(|byte| *byte == 0x5A));
    }
}
