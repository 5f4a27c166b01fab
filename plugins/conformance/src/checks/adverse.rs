//! Errors, the capacity, the end, and what is there after it.

use std::sync::Arc;
use std::sync::mpsc::channel;

use kvstored_core::{Action, Durability, Layout};

use super::ensure;
use crate::Subject;
use crate::bench::{Bench, LOOK_INTERVAL, namespace};
use crate::faults::{Fault, FaultyTier};

pub fn faulty(bench: &mut Bench, _: &mut dyn Subject) -> Result<(), String> {
    let faulty = Arc::new(FaultyTier::new(bench.tier.clone()));
    let plain = std::mem::replace(&mut bench.tier, faulty.clone());
    for (number, fault) in [(0, Fault::NoSpace), (1, Fault::Io), (2, Fault::Short)] {
        faulty.next(Some(fault));
        let refused = bench.write(Bench::hash(number), 0)?;
        faulty.next(None);
        ensure(refused.is_err(), || format!("a write with {fault:?} succeeded"))?;
        ensure(bench.read(Bench::hash(number), &[0])?.is_none(), || {
            format!("a block is read whose write failed with {fault:?}")
        })?;
        bench.store(number)?;
        faulty.next(Some(fault));
        let failed = bench.read(Bench::hash(number), &[0]);
        faulty.next(None);
        ensure(failed.is_err(), || format!("a read with {fault:?} succeeded"))?;
        ensure(bench.read(Bench::hash(number), &[0])?.is_some(), || {
            format!("a block stays a miss after one read failed with {fault:?}")
        })?;
    }
    bench.tier = plain;
    Ok(())
}

pub fn capacity(bench: &mut Bench, _: &mut dyn Subject) -> Result<(), String> {
    const MOST_BYTES: u64 = 64 << 20;
    let statistics = bench.tier.statistics();
    let image_bytes = bench.namespace.layout.image_bytes() as u64;
    if statistics.capacity_bytes == 0 || statistics.capacity_bytes > MOST_BYTES {
        return Ok(()); // nothing this check could fill in reasonable time
    }
    let blocks = statistics.capacity_bytes / image_bytes + 32;
    for number in 0..blocks {
        // refused or taken: what matters is the bound
        let _ = bench.write(Bench::hash(1000 + number), 0)?;
    }
    let now = bench.tier.statistics();
    ensure(now.allocated_bytes <= now.capacity_bytes, || {
        format!(
            "{} bytes are allocated, {} are allowed",
            now.allocated_bytes, now.capacity_bytes
        )
    })?;
    let mut readable = 0;
    for number in 0..blocks {
        readable += u64::from(bench.read(Bench::hash(1000 + number), &[0])?.is_some());
    }
    ensure(readable * image_bytes <= now.capacity_bytes, || {
        format!("{readable} blocks are readable, more than fit")
    })
}

pub fn shutdown(bench: &mut Bench, _: &mut dyn Subject) -> Result<(), String> {
    let mut batch = Vec::new();
    for number in 0..32 {
        let hash = Bench::hash(number);
        let image = bench.image(&bench.namespace, hash, 0)?;
        batch.push((
            bench.namespace.clone(),
            hash,
            Action::Write(Durability::Tier),
            image,
        ));
    }
    let pending = bench.start(batch);
    bench.tier.shutdown();
    for pending in pending {
        // written or cancelled: what matters is that it ended
        let _ = pending.wait()?;
    }
    Ok(())
}

pub fn restart(bench: &mut Bench, subject: &mut dyn Subject) -> Result<(), String> {
    const BLOCKS: u64 = 8;
    let layout = bench.namespace.layout.clone();
    let purged = namespace(202, layout)?;
    open_namespace(bench, &purged)?;
    let image = bench.image(&purged, Bench::hash(1), 0)?;
    let action = Action::Write(Durability::Tier);
    for pending in bench.start(vec![(purged.clone(), Bench::hash(1), action, image)]) {
        pending.wait()?.1.map_err(|error| error.to_string())?;
    }
    for number in 0..BLOCKS {
        bench.store(number)?;
    }
    bench
        .tier
        .purge(&purged.namespace)
        .map_err(|error| format!("purge: {error}"))?;
    // only a purge has to hold for longer, but what comes back has to be whole
    bench.tier.remove(&bench.namespace, &[Bench::hash(BLOCKS - 1)]);
    let deadline = bench.runtime.deadline(bench.options.patience);
    bench
        .tier
        .drain(deadline)
        .map_err(|error| format!("drain: {error}"))?;
    bench.tier.shutdown();
    bench.tier = subject.open().map_err(|error| format!("open again: {error}"))?;
    // another layout of the same blocks is another namespace
    let wider = Layout::uniform(1, 1, 8192).map_err(|error| error.to_string())?;
    let wider = namespace(203, wider)?;
    for info in [&wider, &bench.namespace, &purged] {
        open_namespace(bench, info)?;
    }
    let deadline = bench.runtime.deadline(bench.options.patience);
    let (_sender, never) = channel::<()>();
    for number in 0..BLOCKS - 1 {
        // a tier may find out what it has while it serves already
        while !bench.present(Bench::hash(number))? {
            ensure(bench.runtime.clock.now() < deadline, || {
                format!("block {number} is not found again")
            })?;
            let _ = never.recv_timeout(LOOK_INTERVAL);
        }
        let found = bench.read(Bench::hash(number), &[0])?;
        ensure(found.is_some(), || {
            format!("block {number} was found and is a miss")
        })?;
    }
    bench.read(Bench::hash(BLOCKS - 1), &[0])?;
    let mut present = [false];
    bench.tier.lookup(&purged, &[Bench::hash(1)], &mut present);
    ensure(!present[0], || "a block of a purged namespace came back".into())
}

fn open_namespace(bench: &Bench, info: &Arc<kvstored_core::NamespaceInfo>) -> Result<(), String> {
    let opened = bench.tier.open_namespace(info);
    opened.map_err(|error| format!("open_namespace: {error}"))
}
