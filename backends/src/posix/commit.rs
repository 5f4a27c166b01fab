//! Committing written images: journal records first, then the index, then the completions.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kvstored_core::{Durability, Error, ErrorKind, Result, SlotGuard};

use super::format::journal::{BlockRecord, Record};
use super::format::segment::Entry;
use super::index::Location;
use super::log::{Finished, Log};
use super::own::Own;
use super::write::{Done, Pending, Writer};
use crate::io::files::sync_data;

impl Writer {
    pub(super) fn commit(&mut self, log: &Arc<Log>, finished: Vec<Finished>, done: &mut Done) {
        let mut written = Vec::with_capacity(finished.len());
        let mut synced: Vec<(Arc<File>, Result<()>)> = Vec::new();
        for Finished {
            ticket,
            buffer,
            result,
        } in finished
        {
            let Some(pending) = self.pending.remove(&ticket) else {
                continue;
            };
            self.tickets.remove(&pending.task.key);
            let mut result = result;
            if result.is_ok() && pending.wants_flush() {
                let known = synced.iter().find(|(file, _)| Arc::ptr_eq(file, &pending.file));
                let known = known.map(|(_, outcome)| outcome.clone());
                result = known.unwrap_or_else(|| {
                    let outcome = sync_data(&pending.file);
                    synced.push((Arc::clone(&pending.file), outcome.clone()));
                    outcome
                });
            }
            written.push((pending, buffer, result));
        }
        let failed_syncs: Vec<Arc<File>> = synced
            .into_iter()
            .filter(|(_, outcome)| outcome.is_err())
            .map(|(file, _)| file)
            .collect();
        let mut own = log.own.lock();
        let mut records = Vec::new();
        let mut degrade = None;
        for (pending, _, result) in &mut written {
            settle(log, &mut own, pending, result, &mut degrade);
            if result.is_ok() {
                records.push(Record::BlockStored(pending.record()));
            }
        }
        let mut journal = None;
        if !records.is_empty()
            && let Some(active) = &mut own.active
        {
            match active.journal.append(&records) {
                Ok(bytes) => {
                    journal = Some(active.journal.file());
                    log.touch(bytes);
                    publish(log, &mut own, &written);
                }
                Err(error) => {
                    for (_, _, result) in written.iter_mut().filter(|(_, _, result)| result.is_ok()) {
                        *result = Err(error.clone());
                    }
                    degrade = Some(error);
                }
            }
        }
        let wants_chores = own
            .active
            .as_ref()
            .is_some_and(|active| active.open.iter().any(|open| open.full));
        for file in &failed_syncs {
            // what is on the medium is unknown now, so nothing in the segment counts any more
            let number = own.active.as_ref().and_then(|active| {
                active
                    .open
                    .iter()
                    .find(|open| Arc::ptr_eq(&open.file, file))
                    .map(|open| open.header.segment)
            });
            if let Some(number) = number {
                super::seal::abandon(log, &mut own, number);
            }
        }
        drop(own);
        if let Some(error) = degrade {
            log.degrade(&error);
        }
        if wants_chores {
            log.want_chores();
        }
        let flush = written
            .iter()
            .any(|(pending, _, result)| result.is_ok() && pending.wants_flush());
        let flushed = match &journal {
            Some(journal) if flush => sync_data(journal),
            _ => Ok(()),
        };
        if let Err(error) = &flushed {
            // the next journal starts from a flushed prologue
            log.degrade(error);
            if let Some(active) = &mut log.own.lock().active {
                let _ = active.rotate(&log.shared);
            }
        }
        for (pending, buffer, result) in written {
            if let Err(error) = &result {
                if pending.task.reinserted.is_none() {
                    log.shared
                        .quotas
                        .release(&pending.task.index, pending.task.index.image_bytes() as u64);
                }
                tracing::debug!(%error, key = %pending.task.key, "a block was not stored");
            }
            for task in pending.followers {
                let result = outcome(&result, &flushed, task.durability);
                done.push((task.completion, task.buffer, result));
            }
            done.push((
                pending.task.completion,
                buffer,
                outcome(&result, &flushed, pending.task.durability),
            ));
        }
    }
}

impl Pending {
    fn wants_flush(&self) -> bool {
        self.task.durability == Durability::Durable
            || self
                .followers
                .iter()
                .any(|task| task.durability == Durability::Durable)
    }

    fn record(&self) -> BlockRecord {
        BlockRecord {
            ordinal: self.ordinal,
            hash: self.task.key.hash,
            segment: self.segment,
            page: self.page,
            generation: self.generation,
        }
    }
}

fn outcome(stored: &Result<()>, flushed: &Result<()>, durability: Durability) -> Result<()> {
    stored.clone()?;
    if durability == Durability::Durable {
        flushed.clone()
    } else {
        Ok(())
    }
}

/// Decides whether a written image may become visible, and takes it off its segment's books.
fn settle(
    log: &Log,
    own: &mut Own,
    pending: &mut Pending,
    result: &mut Result<()>,
    degrade: &mut Option<Error>,
) {
    if own.incarnation != pending.incarnation {
        *result = Err(Error::new(
            ErrorKind::Fenced,
            "the log was replaced while the block was written",
        ));
        return;
    }
    let open = own
        .active
        .as_mut()
        .and_then(|active| active.open_segment(pending.segment));
    let Some(open) = open else {
        *result = Err(Error::new(ErrorKind::Io, "the block's segment was given up"));
        return;
    };
    open.in_flight = open.in_flight.saturating_sub(1);
    match result {
        Ok(()) => log.touch(pending.task.index.image_bytes() as u64),
        Err(error) => {
            if !matches!(
                error.kind(),
                ErrorKind::Busy | ErrorKind::Cancelled | ErrorKind::InvalidInput
            ) {
                *degrade = Some(error.clone());
            }
            return;
        }
    }
    if pending.generation <= pending.task.index.purged() {
        *result = Err(Error::new(
            ErrorKind::Cancelled,
            "the namespace was purged while the block was written",
        ));
    } else if let Some((from, _)) = &pending.task.reinserted
        && !pending
            .task
            .index
            .get(&pending.task.key.hash)
            .is_some_and(|now| now.is_at(from.segment, from.page))
    {
        *result = Err(Error::new(
            ErrorKind::NotFound,
            "the block was removed while it was moved",
        ));
    }
}

/// Makes journaled blocks visible.
fn publish(log: &Log, own: &mut Own, written: &[(Pending, SlotGuard, Result<()>)]) {
    let Some(active) = &mut own.active else { return };
    for (pending, _, result) in written {
        if result.is_err() {
            continue;
        }
        let Some(open) = active.open_segment(pending.segment) else {
            continue;
        };
        let hash = pending.task.key.hash;
        open.entries.insert(
            pending.page,
            Entry {
                hash,
                generation: pending.generation,
                page: pending.page,
                ordinal: pending.ordinal,
            },
        );
        let bytes = pending.task.index.image_bytes() as i64;
        open.segment.live_bytes.fetch_add(bytes, Ordering::Relaxed);
        let location = Location::new(open.segment.handle, pending.page, pending.generation);
        let previous = pending
            .task
            .index
            .get(&hash)
            .and_then(|at| log.shared.segments.get(at.segment));
        if let Some(previous) = previous {
            previous.live_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        pending.task.index.place(std::iter::once((hash, location)), true);
    }
}
