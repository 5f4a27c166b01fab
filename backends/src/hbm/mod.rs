//! The `Hbm` tier: blocks in device memory that the engine doesn't need.
//!
//! One allocation on the device is cut into slots, each with a block's whole image, as the cache cuts host memory. Blocks
//! come and go through pinned host slots: a batch of operations is one call to the device, on one of several streams, and
//! each stream has a thread that waits for it. What comes back has its envelope checked.

mod health;
mod settings;
mod shared;
#[cfg(test)]
mod tests;
mod worker;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kvstored_core::device::{DeviceMemory, HostRegistration};
use kvstored_core::events::EventSink;
use kvstored_core::layout::PAGE_BYTES;
use kvstored_core::quota::QuotaLedger;
use kvstored_core::runtime::ThreadHandle;
use kvstored_core::tier::{Action, NamespaceInfo, Operation, Tier, TierStatistics};
use kvstored_core::{
    Arena, BlockHash, BlockKey, Device, Durability, Error, ErrorKind, Namespace, Result, Runtime,
};
use parking_lot::Mutex;

pub use settings::HbmSettings;

use crate::slots::{Indexes, State};
use shared::{Shared, Transfer, named, stopped};
use worker::{Worker, direction};

/// How long streams that are given up may take at the end.
const FAREWELL: Duration = Duration::from_secs(12);

/// Blocks in spare device memory.
pub struct HbmTier {
    shared: Arc<Shared>,
    threads: Mutex<Vec<ThreadHandle>>,
    // ended after the threads' streams, which copy from and to it
    registrations: Mutex<Vec<HostRegistration>>,
}

impl HbmTier {
    /// Takes the memory on the device and starts the streams' threads. Fails with `InvalidInput` for a capacity below a
    /// block's, `NoSpace` where the device hasn't got it, and as the device does.
    pub fn open(
        settings: HbmSettings,
        device: &Arc<dyn Device>,
        runtime: &Runtime,
        quotas: Option<Arc<QuotaLedger>>,
    ) -> Result<Arc<Self>> {
        let length = settings.capacity_bytes as usize / PAGE_BYTES * PAGE_BYTES;
        if length < 2 * PAGE_BYTES {
            return Err(named(Error::invalid(format!(
                "hbm_capacity {} bytes is smaller than one block",
                settings.capacity_bytes
            ))));
        }
        device.bind_thread().map_err(named)?;
        let memory = DeviceMemory::allocate(device, length).map_err(named)?;
        tracing::info!(
            device = device.name(),
            capacity_bytes = length,
            streams = settings.streams,
            "device memory taken"
        );
        let (indexes, policy) = (Indexes::default(), settings.policy.build());
        let state = State::new(
            "device memory",
            length,
            policy,
            true,
            indexes.clone(),
            quotas,
            None,
        );
        let streams = settings.streams.max(1);
        let shared = Shared::new(settings, runtime.clone(), memory, indexes, state);
        let tier = Arc::new(Self {
            shared,
            threads: Mutex::default(),
            registrations: Mutex::default(),
        });
        for number in 0..streams {
            let worker = Worker::new(tier.shared.clone());
            tier.start(&format!("hbm-{number}"), Box::new(move || worker.run()))?;
        }
        let watching = tier.shared.clone();
        tier.start("hbm-watch", Box::new(move || watching.run_watch()))?;
        Ok(tier)
    }

    fn start(&self, name: &str, body: Box<dyn FnOnce() + Send>) -> Result<()> {
        self.shared.enter();
        let started = self
            .shared
            .runtime
            .spawner
            .spawn(name, body)
            .inspect_err(|_| self.shared.leave())?;
        self.threads.lock().push(started);
        Ok(())
    }

    /// Makes the host's slots known to the device, so that copies run at full speed. A device that can't is used without.
    pub fn register(&self, arena: &Arc<Arena>) {
        match HostRegistration::of_arena(self.shared.memory.device(), arena) {
            Ok(registration) => self.registrations.lock().push(registration),
            Err(error) => {
                tracing::warn!(%error, "the host's slots are not registered with the device; copies are slower");
            }
        }
    }

    /// What keeps an operation from the device.
    fn refusal(&self, operation: &Operation) -> Option<Error> {
        if self.shared.is_stopped() {
            return Some(stopped());
        }
        operation
            .namespace
            .check_size(&operation.buffer)
            .and_then(|()| self.shared.health.admit(&self.shared.runtime))
            .err()
    }

    /// Finds or cuts the places of a run of operations of one namespace and one direction; the others end here.
    fn place(&self, run: Vec<Operation>) -> Vec<Transfer> {
        let Some(first) = run.first() else {
            return Vec::new();
        };
        let namespace = first.namespace.clone();
        let hashes: Vec<BlockHash> = run.iter().map(|operation| operation.hash).collect();
        let places: Vec<Result<_>> = if matches!(first.action, Action::Write(_)) {
            self.shared.state.lock().allocate(&namespace, None, &hashes)
        } else {
            let absent = || Error::new(ErrorKind::NotFound, "block is not in device memory");
            let pinned = self.shared.state.lock().pin(&namespace, &hashes);
            pinned.into_iter().map(|cut| cut.ok_or_else(absent)).collect()
        };
        let mut placed = Vec::with_capacity(run.len());
        for (operation, place) in run.into_iter().zip(places) {
            match place {
                Ok(cut) => placed.push(Transfer {
                    operation,
                    slot: self.shared.slot(cut),
                }),
                Err(error) if error.kind() == ErrorKind::AlreadyExists && self.has(&operation) => {
                    operation.complete(Ok(()));
                }
                Err(error) => operation.complete(Err(named(error))),
            }
        }
        placed
    }

    fn has(&self, operation: &Operation) -> bool {
        let mut present = [false];
        self.shared
            .indexes
            .lookup(&operation.namespace, &[operation.hash], &mut present);
        present[0]
    }

    /// Queues transfers of one direction, in as few calls as their bytes allow.
    fn queue(&self, transfers: Vec<Transfer>) {
        let mut rest = transfers.into_iter().peekable();
        while let Some(first) = rest.peek() {
            let direction = direction(first.operation.action);
            let (mut bytes, mut part) = (0, Vec::new());
            while let Some(next) = rest.next_if(|next| {
                let more = next.operation.namespace.layout.image_bytes() as u64;
                bytes += more;
                bytes == more || bytes <= self.shared.settings.call_bytes
            }) {
                part.push(next);
            }
            if let Err((refused, error)) = self.shared.push(direction, part) {
                for Transfer { operation, slot } in refused {
                    if matches!(operation.action, Action::Write(_)) {
                        self.shared.discard(&slot);
                    }
                    drop(slot);
                    operation.complete(Err(named(error.clone())));
                }
            }
        }
    }
}

impl Tier for HbmTier {
    fn name(&self) -> &'static str {
        "Hbm"
    }

    fn keeps(&self) -> Durability {
        Durability::Memory
    }

    fn takes_promotions(&self) -> bool {
        true
    }

    fn open_namespace(&self, namespace: &Arc<NamespaceInfo>) -> Result<()> {
        self.shared.state.lock().open_namespace(&namespace.namespace)
    }

    fn lookup(&self, namespace: &NamespaceInfo, hashes: &[BlockHash], present: &mut [bool]) {
        if self.shared.health.is_asked(&self.shared.runtime) {
            self.shared.indexes.lookup(namespace, hashes, present);
        }
    }

    fn lookup_on_prefix(&self, namespace: &NamespaceInfo, hashes: &[BlockHash]) -> usize {
        if !self.shared.health.is_asked(&self.shared.runtime) {
            return 0;
        }
        self.shared.indexes.lookup_on_prefix(namespace, hashes)
    }

    fn submit(&self, batch: Vec<Operation>) {
        // runs of one namespace and direction, in order; all of one direction go to the device together
        let (mut writes, mut reads) = (Vec::new(), Vec::new());
        let mut runs: HashMap<(Namespace, bool), Vec<Operation>> = HashMap::new();
        for operation in batch {
            if let Some(error) = self.refusal(&operation) {
                operation.complete(Err(named(error)));
                continue;
            }
            let writing = matches!(operation.action, Action::Write(_));
            let run = runs.entry((operation.namespace.namespace, writing)).or_default();
            run.push(operation);
        }
        for ((_, writing), run) in runs {
            let placed = self.place(run);
            if writing {
                writes.extend(placed);
            } else {
                reads.extend(placed);
            }
        }
        self.queue(writes);
        self.queue(reads);
    }

    fn remove(&self, namespace: &NamespaceInfo, hashes: &[BlockHash]) -> u64 {
        let mut state = self.shared.state.lock();
        let removed = state.remove(&namespace.namespace, hashes);
        state.revoke(|key| key.namespace == namespace.namespace && hashes.contains(&key.hash));
        removed
    }

    fn purge(&self, namespace: &Namespace) -> Result<u64> {
        self.shared.state.lock().revoke(|key| key.namespace == *namespace);
        let Some(index) = self.shared.indexes.get(namespace) else {
            return Ok(0);
        };
        let mut dropped = 0;
        loop {
            let some = index.read().list_after(None, 4096);
            if some.is_empty() {
                return Ok(dropped);
            }
            dropped += self.shared.state.lock().remove(namespace, &some);
        }
    }

    fn statistics(&self) -> TierStatistics {
        let shared = &self.shared;
        let blocks = shared.indexes.blocks();
        let device = shared.memory.device().counts();
        let trouble = shared.health.trouble();
        let queue_depth = shared.operations() as u64;
        let state = shared.state.lock();
        let index_bytes = state.table_bytes() as u64;
        TierStatistics {
            allocated_bytes: state.used_bytes(),
            capacity_bytes: shared.settings.capacity_bytes,
            blocks,
            index_bytes,
            queue_depth,
            read_bytes: shared.counts.read_bytes.load(Ordering::Relaxed),
            written_bytes: shared.counts.written_bytes.load(Ordering::Relaxed),
            evicted_blocks: state.counts.evicted_blocks,
            refused_writes: state.counts.refused_writes,
            quarantined_blocks: shared.counts.quarantined_blocks.load(Ordering::Relaxed),
            faults: shared.counts.faults.load(Ordering::Relaxed),
            held_bytes: shared.counts.held_bytes.load(Ordering::Relaxed),
            device_calls: device.batch_calls + device.single_calls,
            device_copies: device.copies,
            degraded: trouble.is_some(),
            degraded_reason: trouble.unwrap_or_default(),
            ..TierStatistics::default()
        }
        .with_quotas(state.quotas())
    }

    fn list(&self, namespace: Option<&Namespace>, after: Option<&BlockKey>, limit: usize) -> Vec<BlockKey> {
        self.shared.indexes.list(namespace, after, limit)
    }

    fn namespaces(&self) -> Vec<(Namespace, u64)> {
        self.shared.indexes.namespaces()
    }

    fn observe(&self, events: EventSink) {
        self.shared.state.lock().events = Some(events);
    }

    fn drain(&self, deadline: Instant) -> Result<()> {
        self.shared.wait_idle(deadline)
    }

    fn shutdown(&self) {
        if !self.shared.stop() {
            return;
        }
        // what is under way ends by its deadline at the latest, and a stream's farewell takes a while
        let patience = self.shared.settings.timeout.saturating_mul(2) + FAREWELL;
        let outcome = self.shared.wait_left(self.shared.runtime.deadline(patience));
        let threads = std::mem::take(&mut *self.threads.lock());
        match outcome {
            Ok(()) => threads.into_iter().for_each(ThreadHandle::join),
            Err(error) => {
                tracing::error!(%error, "the device doesn't answer; threads and memory are left behind");
                std::mem::forget(std::mem::take(&mut *self.registrations.lock()));
            }
        }
    }
}

impl Drop for HbmTier {
    fn drop(&mut self) {
        self.shutdown();
    }
}
