//! The file system's own speed: direct reads and writes of a plain file, without anything of the store around them.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use kvstored_backends::cache::map_arena;
use kvstored_backends::io::files::{allocate, open_direct};
use kvstored_backends::io::{Direction, IoEngine, IoRequest, IoSettings, open_io_engine};
use kvstored_core::memory::SlotOwner;
use kvstored_core::{Arena, Error, ErrorKind, Result, Runtime, SlotGuard};

const TIMEOUT: Duration = Duration::from_mins(2);

struct NoOwner;

impl SlotOwner for NoOwner {
    fn release(&self, _slot: u32) {}
}

/// A plain file of so many blocks, and memory to move them from and to.
pub struct DirectFile {
    engine: Arc<dyn IoEngine>,
    arena: Arc<Arena>,
    path: PathBuf,
    file: Option<Arc<File>>,
    block_bytes: usize,
    blocks: usize,
    slots: usize,
}

impl DirectFile {
    /// A file in `directory` for `blocks` blocks, with memory for `slots` of them that are used in turn.
    pub fn new(
        directory: &Path,
        block_bytes: usize,
        blocks: usize,
        slots: usize,
        runtime: &Runtime,
    ) -> Result<Self> {
        let slots = slots.clamp(1, blocks.max(1));
        let arena = map_arena(block_bytes * slots, false, true)?.arena;
        let filling = vec![0xA5u8; block_bytes];
        for slot in 0..slots {
            arena.write(slot * block_bytes, &filling)?;
        }
        let engine = open_io_engine(&IoSettings::default(), runtime, "bench-direct")?;
        Ok(Self {
            engine,
            arena,
            path: directory.join("direct"),
            file: None,
            block_bytes,
            blocks,
            slots,
        })
    }

    /// Makes the file anew, its space reserved and nothing written.
    pub fn renew(&mut self) -> Result<()> {
        self.file = None;
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::from_io(error, "the plain file can't be removed"));
            }
            _ => {}
        }
        let (file, _) = open_direct(&self.path, true)?;
        allocate(&file, (self.block_bytes * self.blocks) as u64)?;
        self.file = Some(Arc::new(file));
        Ok(())
    }

    /// Writes or reads the whole file, as many blocks at a time as the engine keeps in flight.
    pub fn transfer(&self, direction: Direction) -> Result<()> {
        let file = self
            .file
            .as_ref()
            .ok_or_else(|| Error::internal("the plain file is not open"))?;
        let (outcomes, results) = channel();
        let request = |block: usize| {
            let (slot, outcomes) = (block % self.slots, outcomes.clone());
            let offset = slot * self.block_bytes;
            IoRequest {
                file: file.clone(),
                direction,
                file_offset: (block * self.block_bytes) as u64,
                buffer: SlotGuard::new(
                    self.arena.clone(),
                    Arc::new(NoOwner),
                    slot as u32,
                    offset,
                    self.block_bytes,
                ),
                buffer_offset: 0,
                length: self.block_bytes,
                completion: Box::new(move |_, result| drop(outcomes.send(result))),
            }
        };
        self.engine
            .submit((0..self.slots.min(self.blocks)).map(request).collect());
        for finished in 0..self.blocks {
            match results.recv_timeout(TIMEOUT) {
                Ok(result) => result?,
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    return Err(Error::new(ErrorKind::TimedOut, "direct I/O didn't end"));
                }
            }
            if finished + self.slots < self.blocks {
                self.engine.submit(vec![request(finished + self.slots)]);
            }
        }
        Ok(())
    }
}

impl Drop for DirectFile {
    fn drop(&mut self) {
        self.engine.shutdown();
        // its directory goes anyway
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_is_written_and_read() {
        let directory = tempfile::tempdir().unwrap();
        let mut direct = DirectFile::new(directory.path(), 8192, 20, 3, &Runtime::system()).unwrap();
        assert!(direct.transfer(Direction::Read).is_err());
        direct.renew().unwrap();
        direct.transfer(Direction::Write).unwrap();
        direct.transfer(Direction::Read).unwrap();
        let bytes = std::fs::read(directory.path().join("direct")).unwrap();
        assert_eq!(bytes.len(), 20 * 8192);
        assert!(bytes.iter().all(|byte| *byte == 0xA5));
        direct.renew().unwrap();
        assert!(
            std::fs::read(directory.path().join("direct"))
                .unwrap()
                .iter()
                .all(|byte| *byte == 0)
        );
        drop(direct);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
