//! What goes on beside reads and writes: following and adopting other writers, sealing, eviction, healing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvstored_core::{Error, ErrorKind, Result};
use parking_lot::{Condvar, Mutex};

use super::allocate::prepare_ahead;
use super::directory::Directory;
use super::format::{PAGE, WriterId};
use super::log::Log;
use super::own::{OwnWriter, claim};
use super::recovery::recover;
use super::scratch::scratch_slot;
use super::seal::{rotate_if_long, seal_full};
use super::{evict, quarantine};
use crate::io::{Direction, IoRequest};

/// How often, at least, dead writers are looked for and the own epoch is checked.
const ADOPTION_INTERVAL: Duration = Duration::from_secs(3);
/// Rounds without news until the tailing interval doubles, and doubles again.
const QUIET_ROUNDS: u32 = 40;
/// How long a probe of a degraded directory may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// Something to wait on that a shutdown wakes.
#[derive(Default)]
pub struct Bell {
    rung: Mutex<bool>,
    changed: Condvar,
}

impl Bell {
    /// Wakes everybody, for good.
    pub fn ring(&self) {
        *self.rung.lock() = true;
        self.changed.notify_all();
    }

    /// Waits; `true` once it has rung.
    pub fn wait(&self, timeout: Duration) -> bool {
        let mut rung = self.rung.lock();
        if !*rung {
            self.changed.wait_for(&mut rung, timeout);
        }
        *rung
    }
}

/// Follows other writers, adopts dead ones and notices when another process has taken over.
pub fn run_tail(logs: &[Arc<Log>], bell: &Bell) {
    let Some(first) = logs.first() else { return };
    let clock = Arc::clone(&first.shared.runtime.clock);
    let interval = Duration::from_millis(first.shared.settings.tail_interval_ms);
    let adoption_interval = ADOPTION_INTERVAL.min(interval * 60);
    let (mut quiet, mut adopted_at) = (0u32, clock.now());
    loop {
        let factor = if quiet > 2 * QUIET_ROUNDS {
            4
        } else if quiet > QUIET_ROUNDS {
            2
        } else {
            1
        };
        if bell.wait(interval * factor) {
            return;
        }
        let mut news = false;
        for log in logs {
            match log.tailer.lock().round(log) {
                Ok(round) => news |= round.news,
                Err(error) => tracing::debug!(%error, "other writers can't be followed now"),
            }
        }
        quiet = if news { 0 } else { quiet.saturating_add(1) };
        let now = clock.now();
        if now.saturating_duration_since(adopted_at) >= adoption_interval && !first.shared.settings.read_only
        {
            adopted_at = now;
            for log in logs {
                check_ownership(log);
                adopt_dead(log);
            }
        }
    }
}

/// Adopts every dead writer for its blocks.
pub fn adopt_dead(log: &Log) {
    let followed = log.tailer.lock().writers();
    for id in followed {
        match adopt(log, id) {
            Ok(Some(writer)) => {
                tracing::info!(writer = %id, segments = writer.sealed.len(), "a dead writer is adopted");
                log.own.lock().adopted.push(writer);
                log.tailer.lock().forget(id);
                log.touch(0);
            }
            Ok(None) => {}
            Err(error) => tracing::debug!(%error, writer = %id, "a writer can't be adopted"),
        }
    }
}

/// Takes a writer over if it's dead; `None` if it isn't, or if it's this process's own.
pub fn adopt(log: &Log, id: WriterId) -> Result<Option<OwnWriter>> {
    let claimed = {
        let lock = log.directory.lock(&log.shared.runtime)?;
        if log.own.lock().writer_mut(id).is_some() {
            return Ok(None);
        }
        claim(&log.shared, &log.directory, id, &lock)?
    };
    let Some(claimed) = claimed else { return Ok(None) };
    let known = log.tailer.lock().segments(id);
    let recovered = recover(&log.shared, log.number, &log.directory, claimed, &known)?;
    let mut own = log.own.lock();
    own.last_generation = own.last_generation.max(recovered.last_generation);
    Ok(Some(recovered.writer))
}

/// Gives the active writer up if another process has taken it over.
fn check_ownership(log: &Log) {
    let lost = {
        let own = log.own.lock();
        let Some(active) = &own.active else { return };
        // a deleted directory is the maintenance thread's business
        !active.is_gone() && matches!(active.is_owner(), Ok(false))
    };
    if lost {
        let error = Error::new(ErrorKind::Fenced, "another process has taken this writer over");
        log.degrade(&error);
        leave(log);
    }
}

/// Drops the active writer; its writes in flight fail when they end.
fn leave(log: &Log) {
    let left = {
        let mut own = log.own.lock();
        own.incarnation += 1;
        own.active.take()
    };
    let Some(left) = left else { return };
    let handles = left.handles();
    for handle in &handles {
        log.shared.segments.remove(*handle);
    }
    log.shared
        .index
        .drop_segments(&|handle| handles.contains(&handle), &|index, blocks| {
            log.shared
                .quotas
                .release(index, blocks * index.image_bytes() as u64);
        });
}

/// Seals, evicts, prepares, keeps copies of corrupt blocks, and heals.
pub fn run_chores(log: &Arc<Log>) {
    let mut looked_at = log.shared.runtime.clock.now();
    loop {
        let timeout = if log.degraded().is_some() {
            log.retry_interval() / 4
        } else {
            log.retry_interval()
        };
        let (suspects, stopped) = log.next_chores(timeout);
        if stopped {
            return;
        }
        for suspect in &suspects {
            quarantine::settle(log, suspect);
        }
        if log.shared.settings.read_only {
            continue;
        }
        chores(log, &mut looked_at);
    }
}

fn chores(log: &Arc<Log>, looked_at: &mut Instant) {
    let now = log.shared.runtime.clock.now();
    if now.saturating_duration_since(*looked_at) >= log.retry_interval() / 2 {
        *looked_at = now;
        let gone = log.own.lock().active.as_ref().is_some_and(OwnWriter::is_gone);
        if gone {
            log.degrade(&Error::new(
                ErrorKind::Unavailable,
                "the storage directory was deleted",
            ));
            leave(log);
            leave_adopted(log);
        }
    }
    seal_full(log);
    if let Err(error) = evict::run(log) {
        log.degrade(&error);
    }
    prepare_ahead(log);
    rotate_if_long(log);
    if let Some(degraded) = log.degraded()
        && now >= degraded.retry_at
    {
        match heal(log) {
            Ok(()) => log.heal(),
            Err(error) => log.degrade(&error),
        }
    }
}

/// Drops adopted writers whose directories are gone too.
fn leave_adopted(log: &Log) {
    let mut handles = std::collections::HashSet::new();
    log.own.lock().adopted.retain(|writer| {
        if writer.is_gone() {
            handles.extend(writer.handles());
        }
        !writer.is_gone()
    });
    for handle in &handles {
        log.shared.segments.remove(*handle);
    }
    log.shared
        .index
        .drop_segments(&|handle| handles.contains(&handle), &|index, blocks| {
            log.shared
                .quotas
                .release(index, blocks * index.image_bytes() as u64);
        });
}

/// Tries whether the directory can be written again.
fn heal(log: &Arc<Log>) -> Result<()> {
    if log.own.lock().active.is_none() {
        let directory = Directory::open(log.directory.path(), false)?;
        let id = random_id(log);
        let claimed = {
            let lock = directory.lock(&log.shared.runtime)?;
            claim(&log.shared, &directory, id, &lock)?
        };
        let claimed = claimed.ok_or_else(|| Error::new(ErrorKind::Busy, "a new writer's lock is taken"))?;
        let writer = OwnWriter::create(&log.shared, &directory, claimed)?;
        let mut own = log.own.lock();
        own.incarnation += 1;
        own.active = Some(writer);
        return Ok(());
    }
    let target = {
        let own = log.own.lock();
        own.active.as_ref().and_then(|active| {
            let open = active.open.iter().chain(&active.prepared).next_back()?;
            Some((Arc::clone(&open.file), open.header))
        })
    };
    match target {
        // the header page says what it said before
        Some((file, header)) => probe(log, file, &header.encode()),
        None => super::allocate::prepare(log, 1).or_else(|error| {
            // a directory whose capacity is used up can be written
            if log.starving.load(std::sync::atomic::Ordering::Relaxed) {
                Ok(())
            } else {
                Err(error)
            }
        }),
    }
}

fn probe(log: &Log, file: Arc<std::fs::File>, page: &[u8]) -> Result<()> {
    let buffer = scratch_slot(page.len())?;
    buffer.arena().write(0, page)?;
    let outcome = Arc::new((Mutex::new(None), Condvar::new()));
    let told = Arc::clone(&outcome);
    log.engine.submit(vec![IoRequest {
        file,
        direction: Direction::Write,
        file_offset: 0,
        buffer,
        buffer_offset: 0,
        length: PAGE as usize,
        completion: Box::new(move |_, result| {
            *told.0.lock() = Some(result);
            told.1.notify_all();
        }),
    }]);
    let deadline = log.shared.runtime.deadline(PROBE_TIMEOUT);
    let mut result = outcome.0.lock();
    while result.is_none() && log.shared.runtime.clock.now() < deadline {
        outcome.1.wait_for(&mut result, Duration::from_millis(200));
    }
    result.take().unwrap_or_else(|| {
        Err(Error::new(
            ErrorKind::TimedOut,
            "the probe of the directory takes too long",
        ))
    })
}

/// A writer id that nobody has.
pub fn random_id(log: &Log) -> WriterId {
    let random = &log.shared.runtime.random;
    let (high, low) = (random.next_u64(), random.next_u64());
    WriterId(((u128::from(high) << 64) | u128::from(low)).to_be_bytes())
}
