//! The checks, one for each promise.

use std::collections::HashSet;
use std::sync::Arc;

use kvstored_core::{Action, Durability, ErrorKind, Layout};

use crate::bench::{Bench, namespace};
use crate::faults::{Fault, FaultyTier};
use crate::{Subject, model};

/// A promise and how it's tried.
pub(crate) struct Check {
    pub name: &'static str,
    pub needs_storage: bool,
    pub needs_restart: bool,
    pub body: fn(&mut Bench, &mut dyn Subject) -> Result<(), String>,
}

impl Check {
    pub fn why_skipped(&self) -> &'static str {
        if self.needs_restart {
            "the tier keeps nothing across restarts"
        } else {
            "the tier keeps nothing"
        }
    }
}

const fn check(
    name: &'static str,
    needs_storage: bool,
    needs_restart: bool,
    body: fn(&mut Bench, &mut dyn Subject) -> Result<(), String>,
) -> Check {
    Check {
        name,
        needs_storage,
        needs_restart,
        body,
    }
}

pub(crate) const ALL: [Check; 12] = [
    check("an absent block is a miss", false, false, absent),
    check("what is written is found and read whole", true, false, round_trip),
    check("every operation of a batch ends once", false, false, batches),
    check(
        "writers of one block at once leave one whole",
        true,
        false,
        writers,
    ),
    check("a removed block is a miss", true, false, removed),
    check("a purged namespace is empty, and no other", true, false, purged),
    check(
        "a buffer that is too small is refused",
        false,
        false,
        small_buffer,
    ),
    check("a damaged image is never read as good", true, false, damaged),
    check(
        "errors and short transfers are misses, and heal",
        true,
        false,
        faulty,
    ),
    check("the capacity bounds what is kept", true, false, capacity),
    check("operations under way at shutdown end", false, false, shutdown),
    check("blocks are found after a restart", true, true, restart),
];

fn ensure(condition: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if condition { Ok(()) } else { Err(what()) }
}

fn absent(bench: &mut Bench, _: &mut dyn Subject) -> Result<(), String> {
    let hash = Bench::hash(1);
    ensure(!bench.present(hash)?, || {
        "a lookup found a block that nobody wrote".into()
    })?;
    let found = bench.read(hash, &[])?;
    ensure(found.is_none(), || {
        "a read found a block that nobody wrote".into()
    })
}

fn round_trip(bench: &mut Bench, _: &mut dyn Subject) -> Result<(), String> {
    for number in 0..16 {
        bench.store(number)?;
        ensure(bench.present(Bench::hash(number))?, || {
            format!("block {number} is not found once it's written")
        })?;
    }
    for number in 0..16 {
        let found = bench.read(Bench::hash(number), &[0])?;
        ensure(found == Some(0), || format!("block {number} is a miss"))?;
    }
    // again: Ok, and nothing changes
    bench.store(3)?;
    // the namespace is part of the name
    let other = namespace(200, bench.namespace.layout.clone())?;
    bench
        .tier
        .open_namespace(&other)
        .map_err(|error| format!("open_namespace: {error}"))?;
    let mut present = [false];
    bench.tier.lookup(&other, &[Bench::hash(3)], &mut present);
    ensure(!present[0], || "another namespace has the block too".into())?;
    model::run(bench)
}

fn batches(bench: &mut Bench, _: &mut dyn Subject) -> Result<(), String> {
    let mut batch = Vec::new();
    for number in 0..64u64 {
        let hash = Bench::hash(number % 16);
        let (action, buffer) = if number % 2 == 0 {
            (
                Action::Write(Durability::Tier),
                bench.image(&bench.namespace, hash, 0)?,
            )
        } else {
            (Action::Read, Bench::buffer(bench.namespace.layout.image_bytes())?)
        };
        batch.push((bench.namespace.clone(), hash, action, buffer));
    }
    for pending in bench.start(batch) {
        let (_, outcome) = pending.wait()?;
        let fine = [
            ErrorKind::NotFound,
            ErrorKind::Busy,
            ErrorKind::NoSpace,
            ErrorKind::AlreadyExists,
        ];
        if let Err(error) = outcome
            && !fine.contains(&error.kind())
        {
            return Err(format!("an operation of a batch failed: {error}"));
        }
    }
    Ok(())
}

fn writers(bench: &mut Bench, _: &mut dyn Subject) -> Result<(), String> {
    const VERSIONS: [u64; 4] = [0, 1, 2, 3];
    for number in 0..8 {
        let hash = Bench::hash(number);
        let mut pending = Vec::new();
        for version in VERSIONS {
            let image = bench.image(&bench.namespace, hash, version)?;
            let action = Action::Write(Durability::Tier);
            pending.extend(bench.start(vec![(bench.namespace.clone(), hash, action, image)]));
        }
        let mut taken = false;
        for pending in pending {
            let (_, outcome) = pending.wait()?;
            taken |= outcome.is_ok();
        }
        ensure(taken, || "none of several writers succeeded".into())?;
        ensure(bench.read(hash, &VERSIONS)?.is_some(), || {
            "nothing was kept".into()
        })?;
    }
    Ok(())
}

fn removed(bench: &mut Bench, _: &mut dyn Subject) -> Result<(), String> {
    bench.store(1)?;
    bench.store(2)?;
    let dropped = bench
        .tier
        .remove(&bench.namespace, &[Bench::hash(1), Bench::hash(9)]);
    ensure(dropped == 1, || format!("remove dropped {dropped} blocks, not 1"))?;
    ensure(!bench.present(Bench::hash(1))?, || {
        "a removed block is found".into()
    })?;
    ensure(bench.read(Bench::hash(1), &[0])?.is_none(), || {
        "a removed block is read".into()
    })?;
    ensure(bench.read(Bench::hash(2), &[0])?.is_some(), || {
        "its neighbour went too".into()
    })?;
    // it may come again
    bench.store(1)?;
    ensure(bench.read(Bench::hash(1), &[0])?.is_some(), || {
        "a block can't be written again once it was removed".into()
    })
}

fn purged(bench: &mut Bench, _: &mut dyn Subject) -> Result<(), String> {
    let other = namespace(201, bench.namespace.layout.clone())?;
    bench
        .tier
        .open_namespace(&other)
        .map_err(|error| format!("open_namespace: {error}"))?;
    let hash = Bench::hash(5);
    let image = bench.image(&other, hash, 0)?;
    for pending in bench.start(vec![(
        other.clone(),
        hash,
        Action::Write(Durability::Tier),
        image,
    )]) {
        pending.wait()?.1.map_err(|error| error.to_string())?;
    }
    for number in 0..4 {
        bench.store(number)?;
    }
    let dropped = bench
        .tier
        .purge(&bench.namespace.namespace)
        .map_err(|error| format!("purge: {error}"))?;
    ensure(dropped == 4, || format!("purge dropped {dropped} blocks, not 4"))?;
    for number in 0..4 {
        ensure(!bench.present(Bench::hash(number))?, || {
            "a purged block is found".into()
        })?;
    }
    let mut present = [false];
    bench.tier.lookup(&other, &[hash], &mut present);
    ensure(present[0], || "another namespace was purged too".into())?;
    bench
        .tier
        .purge(&other.namespace)
        .map_err(|error| format!("purge: {error}"))?;
    let listed = bench.tier.list(Some(&bench.namespace.namespace), None, 10);
    ensure(listed.is_empty(), || "a purged block is listed".into())
}

fn small_buffer(bench: &mut Bench, _: &mut dyn Subject) -> Result<(), String> {
    let half = bench.namespace.layout.image_bytes() / 2;
    for action in [Action::Read, Action::Write(Durability::Tier)] {
        let hash = Bench::hash(7);
        let batch = vec![(bench.namespace.clone(), hash, action, Bench::buffer(half)?)];
        for pending in bench.start(batch) {
            let (_, outcome) = pending.wait()?;
            // a tier that keeps nothing needn't look at what it forgets
            ensure(outcome.is_err() || !bench.present(hash)?, || {
                format!("{action:?} with a buffer of {half} bytes succeeded")
            })?;
        }
    }
    Ok(())
}

fn damaged(bench: &mut Bench, _: &mut dyn Subject) -> Result<(), String> {
    let hash = Bench::hash(8);
    let image = bench.image(&bench.namespace, hash, 0)?;
    let offset = bench.namespace.layout.shard_offset(1).unwrap_or(0);
    image
        .arena()
        .write(offset + 17, &[0xAA; 9])
        .map_err(|error| error.to_string())?;
    let batch = vec![(
        bench.namespace.clone(),
        hash,
        Action::Write(Durability::Tier),
        image,
    )];
    let taken = bench
        .start(batch)
        .into_iter()
        .next()
        .ok_or("no operation")?
        .wait()?
        .1
        .is_ok();
    if !taken {
        return Ok(());
    }
    let buffer = Bench::buffer(bench.namespace.layout.image_bytes())?;
    let batch = vec![(bench.namespace.clone(), hash, Action::Verify, buffer)];
    let outcome = bench
        .start(batch)
        .into_iter()
        .next()
        .ok_or("no operation")?
        .wait()?
        .1;
    match outcome {
        Err(error) if error.kind() == ErrorKind::Corrupt => {}
        Err(error) => return Err(format!("a damaged block was verified as {error}")),
        Ok(()) => return Err("a damaged block was verified as good".into()),
    }
    ensure(!bench.present(hash)?, || {
        "a block known to be damaged is found".into()
    })
}

fn faulty(bench: &mut Bench, _: &mut dyn Subject) -> Result<(), String> {
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

fn capacity(bench: &mut Bench, _: &mut dyn Subject) -> Result<(), String> {
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

fn shutdown(bench: &mut Bench, _: &mut dyn Subject) -> Result<(), String> {
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

fn restart(bench: &mut Bench, subject: &mut dyn Subject) -> Result<(), String> {
    for number in 0..8 {
        bench.store(number)?;
    }
    bench.tier.remove(&bench.namespace, &[Bench::hash(7)]);
    let deadline = bench.runtime.deadline(bench.options.patience);
    bench
        .tier
        .drain(deadline)
        .map_err(|error| format!("drain: {error}"))?;
    bench.tier.shutdown();
    bench.tier = subject.open().map_err(|error| format!("open again: {error}"))?;
    // another layout of the same block is another namespace
    let wider = namespace(
        202,
        Layout::uniform(1, 1, 8192).map_err(|error| error.to_string())?,
    )?;
    bench
        .tier
        .open_namespace(&wider)
        .and_then(|()| bench.tier.open_namespace(&bench.namespace))
        .map_err(|error| format!("open_namespace: {error}"))?;
    let mut found = HashSet::new();
    for number in 0..7 {
        if bench.read(Bench::hash(number), &[0])?.is_some() {
            found.insert(number);
        }
    }
    ensure(found.len() == 7, || {
        format!("of 7 blocks these were found again: {found:?}")
    })?;
    ensure(bench.read(Bench::hash(7), &[0])?.is_none(), || {
        "a removed block came back".into()
    })
}
