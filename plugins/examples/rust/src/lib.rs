//! An example of a plugin in Rust: a tier that keeps blocks in memory of its own, oldest out first.
//!
//! One setting: `capacity_bytes` (default 1 GiB).

pub mod blocks;

use std::sync::{Mutex, MutexGuard, PoisonError};

use kvstored_plugin::{Action, Durability, Failure, Host, Key, Kind, Operation, Settings, Statistics, Tier};

use blocks::Blocks;

const DEFAULT_CAPACITY_BYTES: u64 = 1 << 30;

struct MemoryTier {
    host: Host,
    blocks: Mutex<Blocks>,
}

impl MemoryTier {
    fn blocks(&self) -> MutexGuard<'_, Blocks> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, operation: &mut Operation) -> Result<(), Failure> {
        let mut blocks = self.blocks();
        let image = blocks
            .get(operation.key())
            .ok_or_else(|| Failure::new(Kind::NotFound, "the block isn't here"))?;
        if image.len() != operation.length() {
            return Err(Failure::new(Kind::Mismatch, "the block has another size"));
        }
        operation.copy_in(0, image)?;
        blocks.statistics.read_bytes += operation.length() as u64;
        Ok(())
    }

    fn write(&self, operation: &Operation) -> Result<(), Failure> {
        let bytes = operation.length() as u64;
        let image = operation.image()?;
        let mut blocks = self.blocks();
        if bytes > blocks.statistics.capacity_bytes {
            blocks.statistics.refused_writes += 1;
            return Err(Failure::new(
                Kind::TooLarge,
                format!("a block of {bytes} bytes can't fit"),
            ));
        }
        let evicted = blocks.add(*operation.key(), image);
        drop(blocks);
        if !evicted.is_empty() {
            self.host.removed(&evicted);
        }
        Ok(())
    }
}

impl Tier for MemoryTier {
    const KEEPS: Durability = Durability::Memory;

    fn open(host: Host, settings: Settings) -> Result<Self, Failure> {
        settings.expect(&["capacity_bytes"])?;
        let capacity_bytes = settings.parse("capacity_bytes", DEFAULT_CAPACITY_BYTES)?;
        Ok(Self {
            host,
            blocks: Mutex::new(Blocks::bounded(capacity_bytes)),
        })
    }

    fn submit(&self, mut operation: Operation) {
        let outcome = match operation.action() {
            Action::Read => self.read(&mut operation),
            Action::Write(_) => self.write(&operation),
        };
        operation.end(outcome);
    }

    fn remove(&self, keys: &[Key]) -> Result<(), Failure> {
        self.blocks().remove(keys);
        Ok(())
    }

    fn purge(&self, namespace: &[u8; 32]) -> Result<(), Failure> {
        self.blocks().purge(namespace);
        Ok(())
    }

    fn statistics(&self, statistics: &mut Statistics) {
        *statistics = self.blocks().statistics;
    }
}

kvstored_plugin::kvstored_plugin! { name: "memory", version: "0.1.0", tier: MemoryTier }
