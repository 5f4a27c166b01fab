//! The tier's contract over a plugin.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use kvstored_core::quota::QuotaLedger;
use kvstored_core::runtime::ThreadHandle;
use kvstored_core::{
    Action, BlockHash, BlockKey, Durability, Error, ErrorKind, EventSink, Namespace, NamespaceInfo,
    Operation, Result, Runtime, Tier, TierStatistics,
};
use parking_lot::Mutex;

use crate::caller::{self, OnItsWay, Plugin, call};
use crate::directory::PluginSettings;
use crate::flow::Job;
use crate::index::Blocks;
use crate::library::{Loaded, PluginFacts};
use crate::quota::Charge;
use crate::shared::{Mode, Shared};
use crate::untold::Telling;
use crate::watch::watch;

/// How long `open` may take, which may read an index.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a look at the plugin's numbers waits before the last ones are given.
const STATISTICS_TIMEOUT: Duration = Duration::from_millis(100);

/// A plugin as a tier, named `Plugin(name)` or as its settings say.
///
/// Lookups are hash probes of an index that the host keeps: of the blocks that it wrote, and of those that the plugin
/// told of. The plugin is called from one thread. One that doesn't answer in time is left out until it has answered
/// everything; one that breaks the contract is left out for good.
pub struct PluginTier {
    shared: Arc<Shared>,
    facts: PluginFacts,
    threads: Mutex<Vec<ThreadHandle>>,
}

impl PluginTier {
    pub(crate) fn open(
        loaded: Loaded,
        settings: PluginSettings,
        quotas: Option<Arc<QuotaLedger>>,
        runtime: &Runtime,
    ) -> Result<Arc<Self>> {
        let Loaded { facts, functions, .. } = loaded;
        let functions =
            functions.ok_or_else(|| Error::invalid(format!("plugin {}: it has no tier", facts.name)))?;
        let shared = Shared::new(&facts.name, settings, quotas, runtime.clone());
        let plugin = OnItsWay(Plugin::new(functions, shared.clone()));
        let watched = shared.clone();
        let tier = Arc::new(Self {
            shared,
            facts,
            threads: Mutex::default(),
        });
        let name = format!("plugin-{}", tier.facts.name);
        let calling = runtime
            .spawner
            .spawn(&name, Box::new(move || caller::run(plugin)))?;
        tier.threads.lock().push(calling);
        let watching = runtime
            .spawner
            .spawn(&format!("{name}-watch"), Box::new(move || watch(&watched)));
        let opened = watching.and_then(|watching| {
            tier.threads.lock().push(watching);
            call(&tier.shared, "open", OPEN_TIMEOUT, Plugin::open)
        });
        if let Err(error) = opened {
            tier.shutdown();
            return Err(error);
        }
        Ok(tier)
    }

    /// What the plugin says of itself.
    pub fn facts(&self) -> &PluginFacts {
        &self.facts
    }

    fn serves(&self) -> bool {
        self.shared.mode() == Mode::Serving
    }

    /// What can be answered without the plugin, from the blocks of the operation's namespace.
    fn answer(&self, operation: &Operation, blocks: Option<&Blocks>) -> Option<Result<()>> {
        if !self.serves() {
            return Some(Err(self.shared.refusal()));
        }
        if let Err(error) = operation.namespace.check_size(&operation.buffer) {
            return Some(Err(error.with("tier", self.name())));
        }
        let here = blocks.is_some_and(|blocks| blocks.read().get(&operation.hash).is_some());
        match (operation.action, here) {
            (Action::Write(_), true) => Some(Ok(())),
            (Action::Read | Action::Verify, false) => {
                Some(Err(
                    Error::new(ErrorKind::NotFound, "the block isn't here").with("tier", self.name())
                ))
            }
            _ => None,
        }
    }

    /// Charges a write to its tenant and namespace. Fails with `QuotaExceeded`.
    fn charge(&self, operation: &Operation) -> Result<Option<Box<Charge>>> {
        if !matches!(operation.action, Action::Write(_)) {
            return Ok(None);
        }
        let namespace = &operation.namespace;
        let charged = self
            .shared
            .quotas
            .charge(namespace, namespace.key(operation.hash));
        charged.map_err(|error| {
            self.shared.over_quota.fetch_add(1, Ordering::Relaxed);
            error.with("tier", self.name())
        })
    }

    /// Queues operations for the plugin, unless nothing is queued any more.
    fn queue(&self, tickets: &[u64], deadline: Instant) -> bool {
        let shared = &self.shared;
        let mut flow = shared.flow.lock();
        if flow.ending || flow.has_ended() {
            return false;
        }
        flow.queue_operations(tickets, deadline);
        shared.watch_until(&mut flow, deadline);
        drop(flow);
        shared.job_came.notify_one();
        true
    }

    /// Waits until nobody waits for an operation any more.
    fn wait_idle(&self, deadline: Instant) -> Result<()> {
        let mut flow = self.shared.flow.lock();
        loop {
            let waiting = self.shared.untold();
            if waiting == 0 {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(self.shared.runtime.clock.now());
            if left.is_zero() {
                return Err(
                    Error::new(ErrorKind::TimedOut, format!("{waiting} operations are under way"))
                        .with("tier", self.name()),
                );
            }
            self.shared.idle.wait_for(&mut flow, left);
        }
    }
}

impl Tier for PluginTier {
    fn name(&self) -> &str {
        &self.shared.name
    }

    fn keeps(&self) -> Durability {
        self.facts.keeps.unwrap_or(Durability::Memory)
    }

    fn open_namespace(&self, namespace: &Arc<NamespaceInfo>) -> Result<()> {
        if !self.serves() {
            return Err(self.shared.refusal());
        }
        let info = namespace.clone();
        call(
            &self.shared,
            "open_namespace",
            self.shared.settings.timeout,
            move |plugin| plugin.open_namespace(&info),
        )?;
        self.shared.quotas.belongs(namespace);
        Ok(())
    }

    fn lookup(&self, namespace: &NamespaceInfo, hashes: &[BlockHash], present: &mut [bool]) {
        if self.serves()
            && let Some(blocks) = self.shared.index.get(&namespace.namespace)
        {
            blocks.read().lookup(hashes, present);
        }
    }

    fn lookup_on_prefix(&self, namespace: &NamespaceInfo, hashes: &[BlockHash]) -> usize {
        if !self.serves() {
            return 0;
        }
        let blocks = self.shared.index.get(&namespace.namespace);
        blocks.map_or(0, |blocks| blocks.read().lookup_on_prefix(hashes))
    }

    fn submit(&self, batch: Vec<Operation>) {
        let shared = &self.shared;
        let deadline = shared.runtime.deadline(shared.settings.timeout);
        let mut answered = Vec::new();
        let mut places = shared.tickets.reserve(batch.len());
        shared.entering(places.len());
        let mut entered = Vec::with_capacity(places.len());
        let mut of: Option<(Namespace, Option<Blocks>)> = None;
        for operation in batch {
            let namespace = &operation.namespace.namespace;
            if of.as_ref().is_none_or(|(last, _)| last != namespace) {
                of = Some((*namespace, shared.index.get(namespace)));
            }
            let blocks = of.as_ref().and_then(|(_, blocks)| blocks.as_ref());
            if let Some(answer) = self.answer(&operation, blocks) {
                answered.push((operation, answer));
                continue;
            }
            let Some(place) = places.pop() else {
                let full = Error::new(ErrorKind::Busy, "the plugin's queue is full");
                answered.push((operation, Err(full.with("tier", self.name()))));
                continue;
            };
            match self.charge(&operation) {
                Ok(charge) => entered.push(shared.tickets.enter(place, operation, charge, deadline)),
                Err(error) => {
                    places.push(place);
                    answered.push((operation, Err(error)));
                }
            }
        }
        shared.tickets.give_back(&places);
        shared.left_out(places.len());
        if !entered.is_empty() && !self.queue(&entered, deadline) {
            shared.withdraw(&entered, &shared.refusal());
        }
        for (operation, outcome) in answered {
            operation.complete(outcome);
        }
    }

    fn remove(&self, namespace: &NamespaceInfo, hashes: &[BlockHash]) -> u64 {
        let keys: HashSet<BlockKey> = hashes.iter().map(|hash| namespace.key(*hash)).collect();
        self.shared.tickets.revoke(|key| keys.contains(key));
        let gone: Vec<BlockKey> = keys
            .into_iter()
            .filter(|key| self.shared.index.remove(&key.namespace, &key.hash))
            .collect();
        if !gone.is_empty() {
            self.shared.forget(&gone);
        }
        gone.len() as u64
    }

    fn purge(&self, namespace: &Namespace) -> Result<u64> {
        if !self.serves() {
            return Err(self.shared.refusal());
        }
        let digest = *namespace;
        self.shared.tickets.revoke(|key| key.namespace == digest);
        let gone = self.shared.index.clear(Some(namespace));
        call(
            &self.shared,
            "purge",
            self.shared.settings.timeout,
            move |plugin| plugin.purge(&digest),
        )?;
        Ok(gone)
    }

    fn statistics(&self) -> TierStatistics {
        let shared = &self.shared;
        if self.serves()
            && let Ok(told) = call(shared, "statistics", STATISTICS_TIMEOUT, Plugin::statistics)
        {
            *shared.statistics.lock() = TierStatistics {
                allocated_bytes: told.allocated_bytes,
                capacity_bytes: told.capacity_bytes,
                read_bytes: told.read_bytes,
                written_bytes: told.written_bytes,
                evicted_blocks: told.evicted_blocks,
                refused_writes: told.refused_writes,
                degraded: told.degraded != 0,
                degraded_reason: if told.degraded == 0 {
                    String::new()
                } else {
                    "the plugin says so".to_owned()
                },
                ..TierStatistics::default()
            };
        }
        let mut statistics = shared
            .statistics
            .lock()
            .clone()
            .with_quotas(shared.quotas.ledger());
        (statistics.blocks, statistics.index_bytes) = shared.index.totals();
        statistics.refused_writes += shared.over_quota.load(Ordering::Relaxed);
        statistics.queue_depth = shared.untold() as u64;
        statistics.held_bytes = shared.tickets.held().1;
        statistics.quarantined_blocks = shared.quarantined.load(Ordering::Relaxed);
        statistics.faults = shared.faults.load(Ordering::Relaxed);
        if matches!(shared.mode(), Mode::Stalled | Mode::Out) {
            statistics.degraded = true;
            statistics.degraded_reason.clone_from(&shared.reason.lock());
        }
        statistics
    }

    fn list(&self, namespace: Option<&Namespace>, after: Option<&BlockKey>, limit: usize) -> Vec<BlockKey> {
        self.shared.index.list(namespace, after, limit)
    }

    fn namespaces(&self) -> Vec<(Namespace, u64)> {
        self.shared.index.namespaces()
    }

    fn stored_namespace(&self, namespace: &Namespace) -> Option<Arc<NamespaceInfo>> {
        self.shared.described.read().get(namespace).cloned()
    }

    fn observe(&self, events: EventSink) {
        self.shared.index.observe(events);
    }

    fn drain(&self, deadline: Instant) -> Result<()> {
        self.wait_idle(deadline)?;
        if !self.serves() {
            return Err(self.shared.refusal());
        }
        let left = deadline.saturating_duration_since(self.shared.runtime.clock.now());
        call(&self.shared, "drain", left, move |plugin| plugin.drain(left))
    }

    fn shutdown(&self) {
        if !self.shared.enter(Mode::Stopped, "it was shut down") {
            return;
        }
        let deadline = self.shared.runtime.deadline(self.shared.settings.timeout);
        if let Err(error) = self.wait_idle(deadline) {
            tracing::warn!(%error, "the plugin stops with operations under way");
        }
        let (done, wait) = sync_channel(1);
        // there's always room for this one
        let queued = self
            .shared
            .flow
            .lock()
            .queue(Job::Close(done), usize::MAX)
            .is_ok();
        self.shared.job_came.notify_one();
        let closed = queued && wait.recv_timeout(self.shared.settings.timeout).is_ok();
        // what never ended ends now; buffers that the plugin has stay its own
        let cancelled = {
            let mut flow = self.shared.flow.lock();
            flow.ending = true;
            self.shared.watch.notify_all();
            self.shared.tickets.expire(None).0
        };
        for (buffer, completion, _) in cancelled {
            let _telling = Telling(&*self.shared);
            let error = Error::new(ErrorKind::Cancelled, "the tier was shut down");
            completion(buffer, Err(error.with("tier", self.name())));
        }
        let mut threads = std::mem::take(&mut *self.threads.lock());
        if let Some(watching) = (threads.len() > 1).then(|| threads.pop()).flatten() {
            watching.join();
        }
        match threads.pop() {
            Some(calling) if closed => calling.join(),
            _ => tracing::error!(
                tier = self.name(),
                "the plugin didn't close; its thread is left behind"
            ),
        }
    }
}

impl Drop for PluginTier {
    fn drop(&mut self) {
        self.shutdown();
    }
}
