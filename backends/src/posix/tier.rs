//! The tier's contract.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use kvstored_core::{
    Action, BlockHash, BlockKey, Error, ErrorKind, EventSink, Namespace, NamespaceInfo, Operation, Result,
    Tier, TierStatistics,
};

use super::format::WriterId;
use super::format::journal::{BlockRecord, Record};
use super::index::{NamespaceIndex, end_of_unit, last_generation};
use super::{PosixTier, SHUTDOWN_TIMEOUT, read, store_manifest, tail};
use crate::io::files::sync_data;

impl Tier for PosixTier {
    fn name(&self) -> &'static str {
        "Posix"
    }

    fn open_namespace(&self, namespace: &Arc<NamespaceInfo>) -> Result<()> {
        let mismatch = || {
            Error::new(ErrorKind::Mismatch, "the namespace is known with another layout")
                .with("namespace", namespace.namespace)
        };
        self.shared.index.open(namespace).ok_or_else(mismatch)?;
        if self.shared.settings.read_only {
            return Ok(());
        }
        for log in &self.logs {
            match store_manifest(&self.shared, &log.directory, namespace) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::Mismatch => return Err(error),
                // it's tried again before the first block is stored
                Err(error) => {
                    tracing::warn!(%error, namespace = %namespace.namespace, "a manifest can't be written");
                }
            }
        }
        Ok(())
    }

    fn lookup(&self, namespace: &NamespaceInfo, hashes: &[BlockHash], present: &mut [bool]) {
        if let Some(index) = self.shared.index.get(&namespace.namespace) {
            index.lookup(hashes, present);
        }
    }

    fn lookup_on_prefix(&self, namespace: &NamespaceInfo, hashes: &[BlockHash]) -> usize {
        self.shared
            .index
            .get(&namespace.namespace)
            .map_or(0, |index| index.lookup_on_prefix(hashes))
    }

    fn submit(&self, batch: Vec<Operation>) {
        let mut requests = Vec::new();
        let mut index: Option<Arc<NamespaceIndex>> = None;
        for operation in batch {
            let operation = self.track(operation);
            let namespace = operation.namespace.namespace;
            if index
                .as_ref()
                .is_none_or(|index| index.shape.namespace != namespace)
            {
                index = self.shared.index.get(&namespace);
            }
            let Some(index) = &index else {
                operation
                    .complete(Err(Error::new(ErrorKind::NotFound, "the namespace is not open")
                        .with("namespace", namespace)));
                continue;
            };
            match operation.action {
                Action::Write(_) => self.write(Arc::clone(index), operation),
                Action::Read | Action::Verify => requests.extend(read::start(&self.logs, index, operation)),
            }
        }
        if !requests.is_empty() {
            self.engine
                .submit(requests.into_iter().map(|(_, request)| request).collect());
        }
    }

    fn remove(&self, namespace: &NamespaceInfo, hashes: &[BlockHash]) -> u64 {
        let Some(index) = self.shared.index.get(&namespace.namespace) else {
            return 0;
        };
        let mut removed = 0;
        let mut own: HashMap<(usize, WriterId), Vec<BlockRecord>> = HashMap::new();
        for hash in hashes {
            let Some(location) = index.remove(hash) else {
                continue;
            };
            removed += 1;
            let Some(segment) = self.shared.segments.get(location.segment) else {
                continue;
            };
            if self
                .shared
                .segments
                .block_left(location.segment, index.image_bytes())
            {
                self.shared.quotas.release(&index, index.image_bytes() as u64);
                own.entry((segment.log, segment.writer))
                    .or_default()
                    .push(BlockRecord {
                        ordinal: 0,
                        hash: *hash,
                        segment: segment.number,
                        page: location.page,
                        generation: last_generation(location.coarse()),
                    });
            }
        }
        for ((number, writer), mut blocks) in own {
            let Some(log) = self.logs.get(number) else {
                continue;
            };
            let mut owned = log.own.lock();
            let Some(writer) = owned.writer_mut(writer) else {
                continue;
            };
            let ordinal = writer.ordinals.get(&namespace.namespace).copied().unwrap_or(0);
            for block in &mut blocks {
                block.ordinal = ordinal;
            }
            match writer.record_removed(&blocks) {
                Ok(bytes) => log.touch(bytes),
                Err(error) => {
                    drop(owned);
                    log.degrade(&error);
                }
            }
        }
        removed
    }

    fn purge(&self, namespace: &Namespace) -> Result<u64> {
        if self.shared.settings.read_only {
            return Err(Error::new(ErrorKind::PermissionDenied, "the tier is read-only"));
        }
        let latest = self
            .shared
            .index
            .get(namespace)
            .map_or(0, |index| last_generation(index.latest()));
        let given = self
            .logs
            .iter()
            .map(|log| log.own.lock().last_generation)
            .max()
            .unwrap_or(0);
        let bound = end_of_unit(self.shared.unix_us().max(latest).max(given));
        for log in &self.logs {
            let lock = log.directory.lock(&self.shared.runtime)?;
            let mut manifest = log
                .directory
                .read_manifest(namespace)
                .unwrap_or_default()
                .unwrap_or_default();
            manifest.info = manifest.info.or_else(|| self.shared.index.info(namespace));
            manifest.purged_generation = manifest.purged_generation.max(bound);
            log.directory.write_manifest(namespace, &manifest, &lock)?;
        }
        let Some(first) = self.logs.first() else {
            return Ok(0);
        };
        let gone = tail::purge(first, namespace, bound);
        for log in &self.logs {
            let journal = {
                let mut own = log.own.lock();
                let Some(active) = &mut own.active else { continue };
                active.journal.append(&[Record::NamespacePurged {
                    namespace: *namespace,
                    bound,
                }])?;
                active.journal.file()
            };
            log.dirty.store(true, Ordering::Relaxed);
            sync_data(&journal)?;
            log.want_chores();
        }
        Ok(gone)
    }

    fn statistics(&self) -> TierStatistics {
        let counters = &self.shared.counters;
        let value = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let (blocks, index_bytes) = self.shared.index.totals();
        let degraded: Vec<String> = self
            .logs
            .iter()
            .filter_map(|log| log.degraded())
            .map(|degraded| degraded.reason)
            .collect();
        TierStatistics {
            allocated_bytes: self.logs.iter().map(|log| value(&log.used_bytes)).sum(),
            capacity_bytes: self.logs.iter().map(|log| log.capacity_bytes).sum(),
            blocks,
            index_bytes,
            queue_depth: self.shared.outstanding.count(),
            read_bytes: value(&counters.read_bytes),
            written_bytes: value(&counters.written_bytes),
            evicted_blocks: value(&counters.evicted_blocks),
            reinserted_blocks: value(&counters.reinserted_blocks),
            quarantined_blocks: value(&counters.quarantined_blocks),
            refused_writes: value(&counters.refused_writes),
            degraded: !degraded.is_empty(),
            degraded_reason: degraded.join("; "),
            ..TierStatistics::default()
        }
        .with_quotas(self.shared.quotas.ledger())
    }

    fn list(&self, namespace: Option<&Namespace>, after: Option<&BlockKey>, limit: usize) -> Vec<BlockKey> {
        let mut keys = Vec::new();
        for index in self.shared.index.all() {
            let name = index.shape.namespace;
            if namespace.is_some_and(|wanted| *wanted != name)
                || after.is_some_and(|after| after.namespace > name)
            {
                continue;
            }
            let behind = after
                .filter(|after| after.namespace == name)
                .map(|after| &after.hash);
            let hashes = index.list_after(behind, limit.saturating_sub(keys.len()));
            keys.extend(hashes.into_iter().map(|hash| BlockKey {
                namespace: name,
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
        all.iter()
            .map(|index| (index.shape.namespace, index.len()))
            .filter(|(_, blocks)| *blocks > 0)
            .collect()
    }

    fn stored_namespace(&self, namespace: &Namespace) -> Option<Arc<NamespaceInfo>> {
        self.shared.index.info(namespace).or_else(|| {
            self.logs
                .iter()
                .find_map(|log| log.directory.read_manifest(namespace).ok()??.info)
        })
    }

    fn observe(&self, events: EventSink) {
        self.shared.index.observe(events);
    }

    fn drain(&self, deadline: Instant) -> Result<()> {
        self.shared.outstanding.wait(&self.shared.runtime, deadline)?;
        for log in &self.logs {
            let files: Vec<_> = {
                let own = log.own.lock();
                let segments = own
                    .writers()
                    .flat_map(|writer| writer.open.iter().map(|open| Arc::clone(&open.file)));
                let journals = own.writers().map(|writer| writer.journal.file());
                segments.chain(journals).collect()
            };
            files.iter().try_for_each(|file| sync_data(file))?;
        }
        Ok(())
    }

    fn shutdown(&self) {
        let threads = std::mem::take(&mut *self.threads.lock());
        if threads.is_empty() {
            return;
        }
        self.bell.ring();
        for log in &self.logs {
            log.stop();
        }
        for thread in threads {
            thread.join();
        }
        let deadline = self.shared.runtime.deadline(SHUTDOWN_TIMEOUT);
        if let Err(error) = self.shared.outstanding.wait(&self.shared.runtime, deadline) {
            tracing::warn!(%error, "the Posix tier stops with operations under way");
        }
        self.engine.shutdown();
        for log in &self.logs {
            // open segments stay as they are: the next start finds the same as after a crash
            let mut own = log.own.lock();
            own.active = None;
            own.adopted.clear();
        }
    }
}
