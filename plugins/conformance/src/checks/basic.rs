//! What a tier does while all goes well, and with input that it has to refuse.

use kvstored_core::{Action, Durability, ErrorKind};

use super::ensure;
use crate::bench::{Bench, namespace};
use crate::{Subject, model};

pub fn absent(bench: &mut Bench, _: &mut dyn Subject) -> Result<(), String> {
    let hash = Bench::hash(1);
    ensure(bench.absent(hash)?, || {
        "a lookup found a block that nobody wrote".into()
    })?;
    let found = bench.read(hash, &[])?;
    ensure(found.is_none(), || {
        "a read found a block that nobody wrote".into()
    })
}

pub fn round_trip(bench: &mut Bench, _: &mut dyn Subject) -> Result<(), String> {
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

pub fn batches(bench: &mut Bench, _: &mut dyn Subject) -> Result<(), String> {
    let mut batch = Vec::new();
    for number in 0..64u64 {
        let hash = Bench::hash(number % 16);
        let (action, buffer) = if number % 2 == 0 {
            (
                Action::Write(Durability::Tier),
                bench.image(&bench.namespace, hash, 0)?,
            )
        } else {
            (Action::Read, bench.buffer(bench.namespace.layout.image_bytes())?)
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

pub fn writers(bench: &mut Bench, _: &mut dyn Subject) -> Result<(), String> {
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

pub fn removed(bench: &mut Bench, _: &mut dyn Subject) -> Result<(), String> {
    bench.store(1)?;
    bench.store(2)?;
    let dropped = bench
        .tier
        .remove(&bench.namespace, &[Bench::hash(1), Bench::hash(9)]);
    ensure(dropped == 1, || format!("remove dropped {dropped} blocks, not 1"))?;
    ensure(bench.absent(Bench::hash(1))?, || {
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

pub fn purged(bench: &mut Bench, _: &mut dyn Subject) -> Result<(), String> {
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
        ensure(bench.absent(Bench::hash(number))?, || {
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

pub fn small_buffer(bench: &mut Bench, _: &mut dyn Subject) -> Result<(), String> {
    let half = bench.namespace.layout.image_bytes() / 2;
    for action in [Action::Read, Action::Write(Durability::Tier)] {
        let hash = Bench::hash(7);
        let batch = vec![(bench.namespace.clone(), hash, action, bench.buffer(half)?)];
        for pending in bench.start(batch) {
            let (_, outcome) = pending.wait()?;
            // a tier that keeps nothing needn't look at what it forgets
            ensure(outcome.is_err() || bench.absent(hash)?, || {
                format!("{action:?} with a buffer of {half} bytes succeeded")
            })?;
        }
    }
    Ok(())
}

pub fn damaged(bench: &mut Bench, _: &mut dyn Subject) -> Result<(), String> {
    let hash = Bench::hash(8);
    let image = bench.image(&bench.namespace, hash, 0)?;
    let offset = bench.namespace.layout.shard_offset(1).unwrap_or(0);
    image
        .arena()
        .write(image.offset() + offset + 17, &[0xAA; 9])
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
    let buffer = bench.buffer(bench.namespace.layout.image_bytes())?;
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
    ensure(bench.absent(hash)?, || {
        "a block known to be damaged is found".into()
    })
}
