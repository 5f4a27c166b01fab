//! Whole dumps and loads: the tier below memory, under an engine as the daemon has it.

use std::sync::Arc;
use std::sync::mpsc::channel;

use kvstored_core::checksum::Checksum;
use kvstored_core::{
    Acquired, BlockHash, Durability, Engine, EngineSettings, Error, ErrorKind, Reservation, Reserved, Shard,
    SlotGuard,
};

use super::ensure;
use crate::Subject;
use crate::bench::Bench;
use crate::faults::{Fault, FaultyTier};

/// Memory over the tier, whose operations fail when they are told to.
struct Stack<'a> {
    bench: &'a Bench,
    engine: Arc<Engine>,
    faults: Arc<FaultyTier>,
}

impl<'a> Stack<'a> {
    fn new(bench: &'a Bench, subject: &mut dyn Subject) -> Result<Self, String> {
        let memory = subject.memory().map_err(|error| format!("memory: {error}"))?;
        let memory = memory.ok_or("no memory to stand above the tier")?;
        let faults = Arc::new(FaultyTier::new(bench.tier.clone()));
        let engine = Engine::new(
            EngineSettings::default(),
            bench.runtime.clone(),
            memory,
            true,
            vec![faults.clone()],
        );
        let info = &bench.namespace;
        engine
            .open_namespace(info.identity.clone(), info.layout.clone())
            .map_err(|error| format!("open_namespace: {error}"))?;
        Ok(Self {
            bench,
            engine,
            faults,
        })
    }

    fn reserve(&self, hash: BlockHash) -> Result<Reservation, String> {
        let (sender, reserved) = channel();
        let done = Box::new(move |outcomes: Vec<Reserved>| drop(sender.send(outcomes)));
        let deadline = self.bench.runtime.deadline(self.bench.options.patience);
        self.engine
            .reserve(&self.bench.namespace, None, &[hash], deadline, done);
        let outcomes = reserved.recv_timeout(self.bench.options.patience);
        match outcomes.ok().and_then(|mut outcomes| outcomes.pop()) {
            Some(Reserved::Slot(reservation)) => Ok(*reservation),
            Some(Reserved::Refused(error)) => Err(format!("no slot for a dump: {error}")),
            _ => Err("no slot for a dump".into()),
        }
    }

    /// Puts shards of a block in the order given.
    fn put(&self, reservation: &Reservation, image: &SlotGuard, order: &[usize]) -> Result<(), String> {
        let failed = |error: Error| error.to_string();
        let layout = &self.bench.namespace.layout;
        for shard in order {
            let length = layout.shard(*shard).map_or(0, Shard::payload_bytes);
            let offset = layout.shard_offset(*shard).unwrap_or(0);
            let mut payload = vec![0; length];
            let start = image.offset() + offset;
            image.arena().read(start, &mut payload).map_err(failed)?;
            let mut checksum = Checksum::new();
            checksum.update(&payload);
            let slot = reservation.slot();
            slot.arena()
                .write(slot.offset() + offset, &payload)
                .map_err(failed)?;
            reservation.put_shard(*shard, checksum.value()).map_err(failed)?;
        }
        Ok(())
    }

    fn commit(&self, reservation: Reservation) -> Result<(), String> {
        let (sender, committed) = channel();
        let done = Box::new(move |outcome: Result<_, Error>| drop(sender.send(outcome.map(drop))));
        self.engine.commit(reservation, Durability::Memory, done);
        let outcome = committed.recv_timeout(self.bench.options.patience);
        let outcome = outcome.map_err(|_| "a dump isn't acknowledged".to_owned())?;
        outcome.map_err(|error| format!("a dump failed: {error}"))
    }

    fn dump(&self, number: u64, order: &[usize]) -> Result<(), String> {
        let hash = Bench::hash(number);
        let image = self.bench.image(&self.bench.namespace, hash, 0)?;
        let reservation = self.reserve(hash)?;
        self.put(&reservation, &image, order)?;
        self.commit(reservation)
    }

    /// Waits until the tier has what was dumped, and forgets it in memory.
    fn sink(&self, number: u64) -> Result<(), String> {
        let deadline = self.bench.runtime.deadline(self.bench.options.patience);
        let drained = self.engine.drain(deadline);
        drained.map_err(|error| format!("drain: {error}"))?;
        let (namespace, hash) = (&self.bench.namespace, Bench::hash(number));
        let forgotten = self.engine.evict(namespace, &[hash], Some("Cache"));
        forgotten.map(drop).map_err(|error| format!("evict: {error}"))
    }

    fn load(&self, number: u64) -> Result<Result<Acquired, Error>, String> {
        let (sender, acquired) = channel();
        let done = Box::new(move |outcomes| drop(sender.send(outcomes)));
        let hash = Bench::hash(number);
        self.engine.acquire(&self.bench.namespace, &[hash], done);
        let outcomes: Vec<Result<Acquired, Error>> = acquired
            .recv_timeout(self.bench.options.patience)
            .map_err(|_| "a load doesn't end".to_owned())?;
        outcomes
            .into_iter()
            .next()
            .ok_or_else(|| "a load without an outcome".into())
    }

    /// A load that has to come from the tier, whole.
    fn expect_below(&self, number: u64) -> Result<(), String> {
        let found = self.load(number)?;
        let found = found.map_err(|error| format!("block {number} is a miss: {error}"))?;
        ensure(found.tier == 1, || format!("block {number} came from memory"))?;
        let expected = self.bench.image(&self.bench.namespace, Bench::hash(number), 0)?;
        ensure(self.bench.same_payload(&found.slot, &expected)?, || {
            format!("block {number} has other bytes than were dumped")
        })
    }

    fn end(self) {
        // the tier has to live on: it's cleaned up after the check
        let deadline = self.bench.runtime.deadline(self.bench.options.patience);
        let _ = self.engine.drain(deadline);
    }
}

pub fn shards_in_any_order(bench: &mut Bench, subject: &mut dyn Subject) -> Result<(), String> {
    let stack = Stack::new(bench, subject)?;
    for (number, order) in [(0, [0, 1]), (1, [1, 0])] {
        stack.dump(number, &order)?;
        stack.sink(number)?;
        stack.expect_below(number)?;
    }
    stack.end();
    Ok(())
}

pub fn given_up(bench: &mut Bench, subject: &mut dyn Subject) -> Result<(), String> {
    let stack = Stack::new(bench, subject)?;
    let hash = Bench::hash(0);
    let image = bench.image(&bench.namespace, hash, 0)?;
    for shards in [&[][..], &[1][..]] {
        let reservation = stack.reserve(hash)?;
        stack.put(&reservation, &image, shards)?;
        drop(reservation);
        let outcome = stack.load(0)?;
        ensure(
            outcome
                .as_ref()
                .is_err_and(|error| error.kind() == ErrorKind::NotFound),
            || {
                format!(
                    "a dump that was given up after {} of 2 shards isn't a miss",
                    shards.len()
                )
            },
        )?;
        ensure(bench.absent(hash)?, || {
            "a dump that was given up is in the tier".into()
        })?;
    }
    stack.dump(0, &[0, 1])?;
    stack.sink(0)?;
    stack.expect_below(0)?;
    stack.end();
    Ok(())
}

pub fn faults_below(bench: &mut Bench, subject: &mut dyn Subject) -> Result<(), String> {
    let stack = Stack::new(bench, subject)?;
    for (number, fault) in [(0, Fault::NoSpace), (1, Fault::Io), (2, Fault::Short)] {
        stack.faults.next(Some(fault));
        stack.dump(number, &[0, 1])?;
        stack.sink(number)?;
        stack.faults.next(None);
        ensure(stack.load(number)?.is_err(), || {
            format!("a block is there although the tier answered {fault:?} to its write")
        })?;
        stack.dump(number, &[0, 1])?;
        stack.sink(number)?;
        stack.faults.next(Some(fault));
        let failed = stack.load(number)?;
        stack.faults.next(None);
        ensure(failed.is_err(), || {
            format!("a block is there although the tier answered {fault:?} to its read")
        })?;
        stack.expect_below(number)?;
    }
    stack.end();
    Ok(())
}
