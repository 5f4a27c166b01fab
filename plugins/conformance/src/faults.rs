//! A tier whose operations fail on request, whatever is behind it.

use std::sync::Arc;
use std::time::Instant;

use kvstored_core::{
    BlockHash, BlockKey, Durability, Error, ErrorKind, EventSink, Namespace, NamespaceInfo, Operation,
    Result, Tier, TierStatistics,
};
use parking_lot::Mutex;

/// How an operation fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// There is no room.
    NoSpace,
    /// An I/O error, nothing moved.
    Io,
    /// An I/O error after a part was moved.
    Short,
}

/// A decorator that fails operations instead of handing them on.
pub struct FaultyTier {
    inner: Arc<dyn Tier>,
    fault: Mutex<Option<Fault>>,
}

impl FaultyTier {
    /// Fails nothing yet.
    pub fn new(inner: Arc<dyn Tier>) -> Self {
        Self {
            inner,
            fault: Mutex::new(None),
        }
    }

    /// What happens to operations from now on.
    pub fn next(&self, fault: Option<Fault>) {
        *self.fault.lock() = fault;
    }
}

impl Tier for FaultyTier {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn keeps(&self) -> Durability {
        self.inner.keeps()
    }

    fn write_depth(&self) -> Option<usize> {
        self.inner.write_depth()
    }

    fn open_namespace(&self, namespace: &Arc<NamespaceInfo>) -> Result<()> {
        self.inner.open_namespace(namespace)
    }

    fn lookup(&self, namespace: &NamespaceInfo, hashes: &[BlockHash], present: &mut [bool]) {
        self.inner.lookup(namespace, hashes, present);
    }

    fn lookup_on_prefix(&self, namespace: &NamespaceInfo, hashes: &[BlockHash]) -> usize {
        self.inner.lookup_on_prefix(namespace, hashes)
    }

    fn submit(&self, batch: Vec<Operation>) {
        let fault = *self.fault.lock();
        let Some(fault) = fault else {
            self.inner.submit(batch);
            return;
        };
        for operation in batch {
            let error = match fault {
                Fault::NoSpace => Error::new(ErrorKind::NoSpace, "injected: no space"),
                Fault::Io => Error::new(ErrorKind::Io, "injected: I/O error"),
                Fault::Short => {
                    if operation.action == kvstored_core::Action::Read {
                        let half = vec![0x33; operation.buffer.length() / 2];
                        let _ = operation.buffer.arena().write(operation.buffer.offset(), &half);
                    }
                    Error::new(ErrorKind::Io, "injected: short transfer")
                }
            };
            operation.complete(Err(error));
        }
    }

    fn remove(&self, namespace: &NamespaceInfo, hashes: &[BlockHash]) -> u64 {
        self.inner.remove(namespace, hashes)
    }

    fn purge(&self, namespace: &Namespace) -> Result<u64> {
        self.inner.purge(namespace)
    }

    fn statistics(&self) -> TierStatistics {
        self.inner.statistics()
    }

    fn list(&self, namespace: Option<&Namespace>, after: Option<&BlockKey>, limit: usize) -> Vec<BlockKey> {
        self.inner.list(namespace, after, limit)
    }

    fn namespaces(&self) -> Vec<(Namespace, u64)> {
        self.inner.namespaces()
    }

    fn stored_namespace(&self, namespace: &Namespace) -> Option<Arc<NamespaceInfo>> {
        self.inner.stored_namespace(namespace)
    }

    fn observe(&self, events: EventSink) {
        self.inner.observe(events);
    }

    fn drain(&self, deadline: Instant) -> Result<()> {
        self.inner.drain(deadline)
    }

    fn shutdown(&self) {
        self.inner.shutdown();
    }
}
