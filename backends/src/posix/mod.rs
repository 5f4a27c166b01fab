//! The Posix tier: a crash-safe segment log that many processes share, in one or several directories.
//!
//! `docs/format.md` fixes every byte on disk. Each process appends to a writer directory of its own and follows the
//! journals of the others; one index in memory covers all of them, so that lookups never touch the disk.

mod allocate;
mod commit;
mod directory;
mod evict;
mod follow;
pub mod format;
mod index;
mod journal_writer;
mod log;
mod maintenance;
mod open;
mod own;
mod publish;
mod quarantine;
mod quota;
mod read;
mod recovery;
mod replay;
mod scratch;
mod seal;
mod segments;
mod settings;
mod shared;
mod tail;
mod tier;
mod write;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use kvstored_core::runtime::ThreadHandle;
use kvstored_core::{Action, BlockHash, Error, ErrorKind, NamespaceInfo, Operation, Result, Tier};
use parking_lot::Mutex;

use self::directory::Directory;
use self::format::NamespaceShape;
use self::format::manifest::Manifest;
use self::index::NamespaceIndex;
use self::log::{Log, WriteTask};
use self::maintenance::Bell;
use self::shared::{Shared, count};
use crate::io::IoEngine;

pub use self::settings::PosixSettings;

/// How long a shutdown waits for the disk.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(30);

/// The Posix tier.
pub struct PosixTier {
    shared: Arc<Shared>,
    engine: Arc<dyn IoEngine>,
    logs: Vec<Arc<Log>>,
    bell: Arc<Bell>,
    threads: Mutex<Vec<ThreadHandle>>,
}

impl PosixTier {
    /// The identifier this process writes under in each directory; none where it can't write now.
    pub fn writer_ids(&self) -> Vec<Option<String>> {
        self.logs
            .iter()
            .map(|log| {
                log.own
                    .lock()
                    .active
                    .as_ref()
                    .map(|active| active.id().to_string())
            })
            .collect()
    }

    /// The directories' capacities in bytes, as given or as derived from free space.
    pub fn capacities_bytes(&self) -> Vec<u64> {
        self.logs.iter().map(|log| log.capacity_bytes).collect()
    }

    /// The log a new block goes to: chosen by its hash among those that work.
    fn log_for(&self, hash: &BlockHash) -> Option<&Arc<Log>> {
        let healthy: Vec<&Arc<Log>> = self.logs.iter().filter(|log| log.degraded().is_none()).collect();
        let choices = if healthy.is_empty() {
            self.logs.iter().collect()
        } else {
            healthy
        };
        let number = (hash.fingerprint() >> 40) as usize % choices.len().max(1);
        choices.get(number).copied()
    }

    fn write(&self, index: Arc<NamespaceIndex>, operation: Operation) {
        let refuse = |operation: Operation, error: Error| {
            count(&self.shared.counters.refused_writes, 1);
            operation.complete(Err(error));
        };
        if self.shared.settings.read_only {
            let error = Error::new(ErrorKind::PermissionDenied, "the tier is read-only");
            return refuse(operation, error);
        }
        if NamespaceShape::of(&operation.namespace) != index.shape {
            let error = Error::new(ErrorKind::Mismatch, "the namespace is known with another layout");
            return refuse(operation, error);
        }
        let Some(log) = self.log_for(&operation.hash) else {
            return refuse(operation, Error::internal("no storage directory"));
        };
        let Operation {
            namespace,
            hash,
            action,
            buffer,
            completion,
        } = operation;
        let Action::Write(durability) = action else {
            return completion(buffer, Err(Error::internal("not a write")));
        };
        let task = WriteTask {
            index,
            info: namespace,
            hash,
            durability,
            reinserted: None,
            buffer,
            completion,
        };
        if let Err((task, error)) = log.push(task) {
            count(&self.shared.counters.refused_writes, 1);
            (task.completion)(task.buffer, Err(error));
        }
    }

    /// Counts an operation until it completes.
    fn track(&self, mut operation: Operation) -> Operation {
        self.shared.outstanding.add();
        let shared = Arc::clone(&self.shared);
        let completion = operation.completion;
        operation.completion = Box::new(move |buffer, result| {
            completion(buffer, result);
            shared.outstanding.done();
        });
        operation
    }
}

impl Drop for PosixTier {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// Writes a namespace's manifest unless it's there. Fails with `Mismatch` if it's there with another layout.
fn store_manifest(shared: &Shared, directory: &Directory, info: &Arc<NamespaceInfo>) -> Result<()> {
    let known = |manifest: Option<Manifest>| manifest.and_then(|manifest| manifest.info);
    if let Some(stored) = directory.read_manifest(&info.namespace).ok().and_then(known) {
        if stored.layout.digest() == info.layout.digest() {
            return Ok(());
        }
        return Err(
            Error::new(ErrorKind::Mismatch, "the namespace is stored with another layout")
                .with("namespace", info.namespace),
        );
    }
    let lock = directory.lock(&shared.runtime)?;
    let purged = directory
        .read_manifest(&info.namespace)
        .ok()
        .flatten()
        .map_or(0, |found| found.purged_generation);
    let purged_generation = shared
        .index
        .get(&info.namespace)
        .map_or(0, |index| index.purged())
        .max(purged);
    let manifest = Manifest {
        info: Some(Arc::clone(info)),
        purged_generation,
    };
    directory.write_manifest(&info.namespace, &manifest, &lock)
}
