//! Copies within one process: the most that shared memory can be worth.

use std::sync::Arc;

use kvstored_core::{Result, Runtime};
use kvstored_transfer::{Region, TransferEngine};

use super::asking::{engine_settings, fill};
use super::cases::Transport;
use super::memory::Memory;
use super::serving::FILLING;

/// Two regions of the kind that engines move bytes between: files in memory, with the pages that the system gives such
/// files. Private memory with huge pages is copied faster, and no transfer can be.
pub struct Copying {
    source: Region,
    target: Region,
    /// Whose the regions are.
    _engine: Arc<TransferEngine>,
}

impl Copying {
    /// Memory of that many bytes on either side.
    pub fn new(bytes: usize, runtime: &Runtime) -> Result<Self> {
        let engine = TransferEngine::start(engine_settings(Transport::Tcp), runtime.clone())?;
        let (source, target) = (engine.allocate(bytes)?, engine.allocate(bytes)?);
        // no later access pays for a fault
        fill(&Memory::Allocated(source.clone()), FILLING)?;
        fill(&Memory::Allocated(target.clone()), 0)?;
        Ok(Self {
            source,
            target,
            _engine: engine,
        })
    }

    /// Copies entries of that many bytes, each to the place where it lies.
    pub fn batch(&self, bytes: usize, entries: usize) -> Result<()> {
        for offset in super::places(bytes, entries, self.source.length()) {
            self.target
                .copy_from(offset as u64, &self.source, offset as u64, bytes)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_is_copied() {
        let copying = Copying::new(10_000, &Runtime::system()).unwrap();
        let copied = || {
            let mut bytes = vec![0xFF; 10_000];
            copying.target.read(0, &mut bytes).unwrap();
            bytes
        };
        copying.batch(3000, 2).unwrap();
        assert!(copied()[..6000].iter().all(|byte| *byte == FILLING));
        assert!(copied()[6000..].iter().all(|byte| *byte == 0));
        copying.batch(5000, 9).unwrap();
        assert!(copied().iter().all(|byte| *byte == FILLING));
        assert!(copying.batch(10_001, 1).is_err());
    }
}
