//! The tier's contract.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kvstored_core::quota::QuotaLedger;
use kvstored_core::{
    Action, BlockHash, BlockKey, Error, ErrorKind, EventSink, Namespace, NamespaceInfo, Operation, Result,
    Runtime, Tier, TierStatistics,
};
use object_store::ObjectStore;
use parking_lot::Mutex;
use tokio::runtime::Handle;

use crate::health::Health;
use crate::pending::Pending;
use crate::settings::S3Settings;
use crate::shared::Shared;
use crate::uploads::Uploads;
use crate::{follow, purge, read, store, upload};

/// How long a purge waits until everybody can know of it.
const PURGE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a shutdown waits for tasks to let their slots go.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);
/// How often it looks for what came in at the last moment.
const SHUTDOWN_STEP: Duration = Duration::from_millis(50);

/// Blocks in the objects of a bucket.
pub struct S3Tier {
    shared: Arc<Shared>,
    handle: Handle,
    tasks: Mutex<Option<tokio::runtime::Runtime>>,
    stopped: AtomicBool,
}

impl S3Tier {
    /// A tier over the settings' bucket. The service doesn't have to answer yet.
    ///
    /// Fails with `InvalidInput` for settings that can't be, and as starting threads does.
    pub fn open(
        settings: S3Settings,
        runtime: Runtime,
        ledger: Option<Arc<QuotaLedger>>,
    ) -> Result<Arc<Self>> {
        settings.validate()?;
        let store = store::connect(&settings)?;
        let uploads = Uploads::new(Arc::clone(&store))?;
        Self::run(Shared::new(settings, store, Some(uploads), runtime, ledger))
    }

    /// A tier over any object store.
    pub fn start(
        settings: S3Settings,
        store: Arc<dyn ObjectStore>,
        runtime: Runtime,
        ledger: Option<Arc<QuotaLedger>>,
    ) -> Result<Arc<Self>> {
        settings.validate()?;
        Self::run(Shared::new(settings, store, None, runtime, ledger))
    }

    fn run(shared: Shared) -> Result<Arc<Self>> {
        let shared = Arc::new(shared);
        let tasks = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(shared.settings.threads.max(1))
            .thread_name("s3")
            .enable_all()
            .build()
            .map_err(|error| Error::from_io(error, "can't start the threads of the S3 tier"))?;
        tasks.spawn(follow::run(Arc::clone(&shared)));
        Ok(Arc::new(Self {
            shared,
            handle: tasks.handle().clone(),
            tasks: Mutex::new(Some(tasks)),
            stopped: AtomicBool::new(false),
        }))
    }

    /// Reads that were asked for twice because the first answer was late.
    pub fn hedged_reads(&self) -> u64 {
        self.shared.hedging.hedges.load(Ordering::Relaxed)
    }

    fn refusal(&self, is_write: bool) -> Option<Error> {
        if self.stopped.load(Ordering::Acquire) {
            return Some(Error::new(ErrorKind::Cancelled, "the tier has stopped").with("tier", self.name()));
        }
        let (reading, writing) = (&self.shared.reading, &self.shared.writing);
        if reading.is_degraded() {
            return Some(reading.refusal());
        }
        let refused = is_write && !writing.admits(self.shared.now());
        refused.then(|| writing.refusal())
    }

    fn write(&self, block: Pending) {
        let index = self
            .shared
            .index
            .ensure(&block.namespace.namespace, block.image_bytes());
        let Some(index) = index else {
            let what = "the namespace is known with another layout";
            return block.complete(Err(Error::new(ErrorKind::Mismatch, what)));
        };
        index.learn(&block.namespace);
        if index.get(&block.hash).is_some() {
            return block.complete(Ok(()));
        }
        upload::push(&self.shared, &self.handle, &index, block);
    }

    /// Runs something to its end on the tier's threads, for a caller that waits.
    fn wait_for<T: Send + 'static>(
        &self,
        timeout: Duration,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        self.handle.spawn(async move {
            let outcome = tokio::time::timeout(timeout, work).await;
            let _ = sender.send(outcome.unwrap_or_else(|_| Err(store::late("the bucket's answer"))));
        });
        let patience = timeout + Duration::from_secs(1);
        receiver
            .recv_timeout(patience)
            .unwrap_or_else(|_| Err(store::late("the bucket's answer")))
    }
}

impl Tier for S3Tier {
    fn name(&self) -> &'static str {
        "S3"
    }

    fn write_depth(&self) -> Option<usize> {
        // small blocks fill an object only if there are many
        Some(self.shared.settings.queue_depth / 2)
    }

    fn open_namespace(&self, namespace: &Arc<NamespaceInfo>) -> Result<()> {
        let image_bytes = namespace.layout.image_bytes() as u64;
        let index = self
            .shared
            .index
            .ensure(&namespace.namespace, image_bytes)
            .ok_or_else(|| {
                Error::new(ErrorKind::Mismatch, "the namespace is known with another layout")
                    .with("namespace", namespace.namespace)
            })?;
        index.learn(namespace);
        // it's put into the bucket before the first block is
        self.shared.namespaces.learn(namespace);
        Ok(())
    }

    fn lookup(&self, namespace: &NamespaceInfo, hashes: &[BlockHash], present: &mut [bool]) {
        if self.shared.reading.is_degraded() {
            return;
        }
        if let Some(index) = self.shared.index.get(&namespace.namespace) {
            index.lookup(hashes, present);
        }
    }

    fn lookup_on_prefix(&self, namespace: &NamespaceInfo, hashes: &[BlockHash]) -> usize {
        if self.shared.reading.is_degraded() {
            return 0;
        }
        let index = self.shared.index.get(&namespace.namespace);
        index.map_or(0, |index| index.lookup_on_prefix(hashes))
    }

    fn submit(&self, batch: Vec<Operation>) {
        let mut reads = Vec::new();
        for operation in batch {
            let is_write = matches!(operation.action, Action::Write(_));
            if let Some(error) = self.refusal(is_write) {
                operation.complete(Err(error));
                continue;
            }
            match Pending::accept(&self.shared, operation) {
                Some(block) if is_write => self.write(block),
                Some(block) => reads.push(block),
                None => {}
            }
        }
        if !reads.is_empty() {
            read::start(&self.shared, &self.handle, reads);
        }
    }

    fn remove(&self, namespace: &NamespaceInfo, hashes: &[BlockHash]) -> u64 {
        let Some(index) = self.shared.index.get(&namespace.namespace) else {
            return 0;
        };
        hashes.iter().filter(|hash| index.remove(hash)).count() as u64
    }

    fn purge(&self, namespace: &Namespace) -> Result<u64> {
        let shared = &self.shared;
        let bound = purge::bound(shared, namespace);
        // blocks that come from now on don't share an object with older ones
        if let Some(batch) = shared.batches.take_namespace(namespace) {
            self.handle.spawn(upload::store(Arc::clone(shared), batch));
        }
        let gone = purge::apply(shared, namespace, bound);
        let (shared, namespace) = (Arc::clone(shared), *namespace);
        self.wait_for(PURGE_TIMEOUT, async move {
            purge::publish(&shared, &namespace, bound).await
        })
        .map_err(|error| error.with("tier", self.name()))?;
        Ok(gone)
    }

    fn statistics(&self) -> TierStatistics {
        let shared = &self.shared;
        let (blocks, index_bytes) = shared.index.totals();
        let failing = [&shared.reading, &shared.writing].map(Health::reason);
        let reasons: Vec<String> = failing.into_iter().filter(|reason| !reason.is_empty()).collect();
        let value = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        TierStatistics {
            allocated_bytes: shared.objects.allocated_bytes(),
            capacity_bytes: shared.settings.capacity_bytes,
            blocks,
            index_bytes: index_bytes + shared.objects.memory_bytes(),
            queue_depth: shared.outstanding.depth(),
            read_bytes: value(&shared.counters.read_bytes),
            written_bytes: value(&shared.counters.written_bytes),
            evicted_blocks: value(&shared.counters.evicted_blocks),
            quarantined_blocks: value(&shared.counters.quarantined_blocks),
            refused_writes: value(&shared.counters.refused_writes),
            degraded: shared.reading.is_degraded() || shared.writing.is_degraded(),
            degraded_reason: reasons.join("; "),
            ..TierStatistics::default()
        }
        .with_quotas(shared.ledger.as_deref())
    }

    fn list(&self, namespace: Option<&Namespace>, after: Option<&BlockKey>, limit: usize) -> Vec<BlockKey> {
        let mut keys = Vec::new();
        for index in self.shared.index.all() {
            let before = after.is_some_and(|after| index.namespace < after.namespace);
            if before || namespace.is_some_and(|wanted| *wanted != index.namespace) {
                continue;
            }
            let from = after
                .filter(|after| after.namespace == index.namespace)
                .map(|after| &after.hash);
            let hashes = index.list_after(from, limit - keys.len());
            keys.extend(hashes.into_iter().map(|hash| BlockKey {
                namespace: index.namespace,
                hash,
            }));
            if keys.len() >= limit {
                break;
            }
        }
        keys
    }

    fn namespaces(&self) -> Vec<(Namespace, u64)> {
        let all = self.shared.index.all();
        let counted = all.iter().map(|index| (index.namespace, index.len()));
        counted.filter(|(_, blocks)| *blocks > 0).collect()
    }

    fn stored_namespace(&self, namespace: &Namespace) -> Option<Arc<NamespaceInfo>> {
        self.shared.namespaces.get(namespace)
    }

    fn observe(&self, events: EventSink) {
        self.shared.index.observe(events);
    }

    fn drain(&self, deadline: Instant) -> Result<()> {
        for batch in self.shared.batches.take_all() {
            self.handle.spawn(upload::store(Arc::clone(&self.shared), batch));
        }
        if self.shared.outstanding.wait_idle(deadline) {
            return Ok(());
        }
        Err(
            Error::new(ErrorKind::TimedOut, "blocks are still on their way to the bucket")
                .with("tier", self.name()),
        )
    }

    fn shutdown(&self) {
        self.stopped.store(true, Ordering::Release);
        let Some(tasks) = self.tasks.lock().take() else {
            return;
        };
        let (shared, outstanding) = (&self.shared, &self.shared.outstanding);
        outstanding.close();
        // whatever a task had completes as cancelled when it's dropped
        tasks.shutdown_background();
        let deadline = shared.runtime.deadline(SHUTDOWN_TIMEOUT);
        loop {
            // whoever came before the end may put a block into a batch still
            drop(shared.batches.take_all());
            let soon = shared.runtime.deadline(SHUTDOWN_STEP).min(deadline);
            if outstanding.wait_idle(soon) {
                break;
            }
            if shared.now() >= deadline {
                tracing::warn!("operations of the S3 tier haven't ended");
                break;
            }
        }
    }
}

impl Drop for S3Tier {
    fn drop(&mut self) {
        self.shutdown();
    }
}
