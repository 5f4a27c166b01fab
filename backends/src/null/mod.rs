//! The tiers `Empty` and `Fake`, which keep nothing.
//!
//! Both accept every dump, acknowledge it at the level its caller asks for and forget it at once, and answer every
//! lookup with a miss. So a dump that ends in one of them is *not* safe, whatever level was asked for: they stand for
//! "no storage below" (`Cache|Empty`) and for measuring all that lies above a tier.
//!
//! - `Empty` is the absence of storage and counts nothing.
//! - `Fake` counts what a storage device would have been asked to write. The store that it takes its name from answers
//!   its lookups with "present" and its loads with whatever was in the buffer; returning bytes that nobody dumped is
//!   what this project never does, so ours misses.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use kvstored_core::tier::{Action, NamespaceInfo, Operation, Tier, TierStatistics};
use kvstored_core::{BlockHash, BlockKey, Error, ErrorKind, Namespace, Result, TierKind};

/// A tier that keeps nothing; see the module's page for what its two names mean.
#[derive(Debug)]
pub struct NullTier {
    kind: TierKind,
    written_bytes: AtomicU64,
    stopped: AtomicBool,
}

impl NullTier {
    /// The tier `Empty`: no storage at all.
    pub fn empty() -> Self {
        Self::of(TierKind::Empty)
    }

    /// The tier `Fake`: counts what it would have stored.
    pub fn fake() -> Self {
        Self::of(TierKind::Fake)
    }

    fn of(kind: TierKind) -> Self {
        Self {
            kind,
            written_bytes: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
        }
    }

    fn outcome(&self, operation: &Operation) -> Result<()> {
        if self.stopped.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Cancelled, "the tier has stopped").with("tier", self.name()));
        }
        match operation.action {
            Action::Write(_) => {
                if self.kind == TierKind::Fake {
                    let bytes = operation.namespace.layout.image_bytes() as u64;
                    self.written_bytes.fetch_add(bytes, Ordering::Relaxed);
                }
                Ok(())
            }
            Action::Read | Action::Verify => {
                Err(Error::new(ErrorKind::NotFound, "the tier keeps nothing").with("tier", self.name()))
            }
        }
    }
}

impl Tier for NullTier {
    fn name(&self) -> &str {
        self.kind.name()
    }

    fn open_namespace(&self, _namespace: &Arc<NamespaceInfo>) -> Result<()> {
        Ok(())
    }

    fn lookup(&self, _namespace: &NamespaceInfo, _hashes: &[BlockHash], _present: &mut [bool]) {}

    fn lookup_on_prefix(&self, _namespace: &NamespaceInfo, _hashes: &[BlockHash]) -> usize {
        0
    }

    fn submit(&self, batch: Vec<Operation>) {
        for operation in batch {
            let outcome = self.outcome(&operation);
            operation.complete(outcome);
        }
    }

    fn remove(&self, _namespace: &NamespaceInfo, _hashes: &[BlockHash]) -> u64 {
        0
    }

    fn purge(&self, _namespace: &Namespace) -> Result<u64> {
        Ok(0)
    }

    fn statistics(&self) -> TierStatistics {
        TierStatistics {
            written_bytes: self.written_bytes.load(Ordering::Relaxed),
            ..TierStatistics::default()
        }
    }

    fn list(
        &self,
        _namespace: Option<&Namespace>,
        _after: Option<&BlockKey>,
        _limit: usize,
    ) -> Vec<BlockKey> {
        Vec::new()
    }

    fn namespaces(&self) -> Vec<(Namespace, u64)> {
        Vec::new()
    }

    fn drain(&self, _deadline: Instant) -> Result<()> {
        Ok(())
    }

    fn shutdown(&self) {
        self.stopped.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests;
