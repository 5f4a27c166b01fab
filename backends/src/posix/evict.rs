//! Eviction by segment, oldest first, with the blocks that were read since written again.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kvstored_core::{BlockHash, BlockKey, Durability, Result};
use parking_lot::{Condvar, Mutex};

use super::directory::Usage;
use super::format::PAGE;
use super::format::journal::Record;
use super::format::segment::Footer;
use super::index::{Location, NamespaceIndex};
use super::log::{Log, WriteTask};
use super::own::Sealed;
use super::publish::verify_image;
use super::replay::read_footer;
use super::scratch::{read_at, scratch_slot};
use super::shared::count;
use crate::io::files::physical_bytes;

/// Part of a segment's bytes that is written again at most: one in so many.
const REINSERTED_SHARE: u64 = 4;
/// Reinsertions in flight at once.
const REINSERTED_AT_ONCE: usize = 4;

/// Evicts when the directory is fuller than the high watermark, or a segment couldn't be had.
pub fn run(log: &Log) -> Result<()> {
    let starving = log.starving.swap(false, Ordering::Relaxed);
    if !starving && !log.dirty.swap(false, Ordering::Relaxed) {
        return Ok(());
    }
    let usage = log.directory.usage()?;
    log.used_bytes.store(usage.total_bytes, Ordering::Relaxed);
    drop_dead(log);
    let settings = &log.shared.settings;
    let part = |watermark: f64| (log.capacity_bytes as f64 * watermark) as u64;
    let mut used = log.directory.usage()?.total_bytes;
    if used <= part(settings.high_watermark) && !starving {
        return Ok(());
    }
    if !starving && !holds_fair_share(log, &usage) {
        // the fuller writers evict; look again in a while
        log.dirty.store(true, Ordering::Relaxed);
        return Ok(());
    }
    let low = part(settings.low_watermark);
    let mut evicted = false;
    while used > low || (starving && !evicted) {
        if log.is_stopped() {
            return Ok(());
        }
        let Some((sealed, ..)) = oldest(log) else { break };
        let bytes = fs::metadata(&sealed.segment.path).map_or(0, |metadata| physical_bytes(&metadata));
        let spare = log.capacity_bytes.saturating_sub(used);
        evict(log, &sealed, !starving && spare > bytes / REINSERTED_SHARE);
        evicted = true;
        used = log.directory.usage()?.total_bytes;
        log.used_bytes.store(used, Ordering::Relaxed);
    }
    Ok(())
}

/// Whether this process holds at least its part of the writers' bytes.
fn holds_fair_share(log: &Log, usage: &Usage) -> bool {
    let own = log.own.lock();
    let held: u64 = own
        .writers()
        .filter_map(|writer| usage.writers.get(&writer.id()))
        .sum();
    let others = usage.writers.len().saturating_sub(own.writers().count()) as u64;
    let total: u64 = usage.writers.values().sum();
    u128::from(held) * u128::from(others + 1) >= u128::from(total)
}

fn oldest(log: &Log) -> Option<(Sealed, u64)> {
    let own = log.own.lock();
    let sealed = own.writers().flat_map(|writer| writer.sealed.values());
    let oldest = sealed.min_by_key(|sealed| (sealed.created_unix_us, sealed.segment.number))?;
    Some((oldest.clone(), oldest.created_unix_us))
}

/// Deletes sealed segments that no block is left in, and adopted writers without segments.
fn drop_dead(log: &Log) {
    let dead: Vec<Sealed> = {
        let own = log.own.lock();
        let sealed = own.writers().flat_map(|writer| writer.sealed.values());
        sealed
            .filter(|sealed| sealed.segment.live_bytes.load(Ordering::Relaxed) <= 0)
            .cloned()
            .collect()
    };
    for sealed in dead {
        evict(log, &sealed, false);
    }
    let empty = log
        .own
        .lock()
        .adopted
        .iter()
        .any(|writer| writer.sealed.is_empty());
    if !empty {
        return;
    }
    let Ok(_lock) = log.directory.lock(&log.shared.runtime) else {
        return;
    };
    log.own.lock().adopted.retain(|writer| {
        let keep = !writer.sealed.is_empty() || !writer.open.is_empty();
        if !keep && let Err(error) = fs::remove_dir_all(&writer.path) {
            tracing::debug!(%error, writer = %writer.id(), "an empty writer can't be deleted");
        }
        keep
    });
}

/// Evicts blocks from a segment, all of them; with `reinsert` those read since are written again.
pub fn evict(log: &Log, sealed: &Sealed, reinsert: bool) {
    let segment = &sealed.segment;
    let footer = read_footer(&segment.path, segment.writer, segment.number)
        .ok()
        .map(|(_, footer)| footer);
    if reinsert && let Some(footer) = &footer {
        reinsert_hot(log, sealed, footer);
    }
    let gone = match &footer {
        Some(footer) => drop_entries(log, sealed, footer),
        None => log
            .shared
            .index
            .drop_segments(&|handle| handle == segment.handle, &|index, blocks| {
                log.shared
                    .quotas
                    .release(index, blocks * index.image_bytes() as u64);
            }),
    };
    count(&log.shared.counters.evicted_blocks, gone);
    let mut own = log.own.lock();
    if let Some(writer) = own.writer_mut(segment.writer) {
        writer.sealed.remove(&segment.number);
        writer.tombstones.remove(&segment.number);
        match writer.journal.append(&[Record::SegmentRemoved {
            segment: segment.number,
        }]) {
            Ok(bytes) => log.touch(bytes),
            // readers find the file gone
            Err(error) => tracing::debug!(%error, "a segment's removal is not journaled"),
        }
    }
    drop(own);
    log.shared.segments.remove(segment.handle);
    if let Err(error) = fs::remove_file(&segment.path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(%error, path = %segment.path.display(), "an evicted segment can't be deleted");
    }
    *log.no_room_until.lock() = None;
}

fn drop_entries(log: &Log, sealed: &Sealed, footer: &Footer) -> u64 {
    let mut gone = 0;
    for (ordinal, shape) in &footer.namespaces {
        let Some(index) = log.shared.index.get(&shape.namespace) else {
            continue;
        };
        let hashes: Vec<BlockHash> = footer
            .entries
            .iter()
            .filter(|entry| entry.ordinal == *ordinal)
            .map(|entry| entry.hash)
            .collect();
        let removed = index.remove_in(hashes.iter(), sealed.segment.handle);
        log.shared
            .quotas
            .release(&index, removed * index.image_bytes() as u64);
        gone += removed;
    }
    gone
}

/// A hot block and its image.
struct Hot {
    index: Arc<NamespaceIndex>,
    hash: BlockHash,
    location: Location,
    generation: u64,
}

fn reinsert_hot(log: &Log, sealed: &Sealed, footer: &Footer) {
    let budget = u64::from(sealed.footer_page) * PAGE / REINSERTED_SHARE;
    let mut hot: Vec<Hot> = Vec::new();
    let mut bytes = 0;
    for entry in &footer.entries {
        let shape = footer
            .namespaces
            .iter()
            .find(|(ordinal, _)| *ordinal == entry.ordinal);
        let Some(index) = shape.and_then(|(_, shape)| log.shared.index.get(&shape.namespace)) else {
            continue;
        };
        let Some(location) = index.get(&entry.hash) else {
            continue;
        };
        if !location.is_at(sealed.segment.handle, entry.page) || !location.is_referenced() {
            continue;
        }
        bytes += index.image_bytes() as u64;
        if bytes > budget {
            break;
        }
        hot.push(Hot {
            index,
            hash: entry.hash,
            location,
            generation: entry.generation,
        });
    }
    let Ok(file) = fs::File::open(&sealed.segment.path) else {
        return;
    };
    for batch in hot.chunks(REINSERTED_AT_ONCE) {
        if log.is_stopped() || log.degraded().is_some() {
            return;
        }
        let waiter = Arc::new((Mutex::new(0usize), Condvar::new()));
        for block in batch {
            if let Some(task) = reinsertion(log, &file, block, &waiter) {
                *waiter.0.lock() += 1;
                if let Err((task, error)) = log.push(task) {
                    (task.completion)(task.buffer, Err(error));
                }
            }
        }
        let deadline = log.shared.runtime.deadline(Duration::from_secs(30));
        let mut left = waiter.0.lock();
        while *left > 0 && log.shared.runtime.clock.now() < deadline {
            waiter.1.wait_for(&mut left, Duration::from_millis(500));
        }
    }
}

fn reinsertion(
    log: &Log,
    file: &fs::File,
    block: &Hot,
    waiter: &Arc<(Mutex<usize>, Condvar)>,
) -> Option<WriteTask> {
    let info = block.index.info()?;
    let length = block.index.image_bytes();
    let image = read_at(file, u64::from(block.location.page) * PAGE, length).ok()?;
    let key = BlockKey {
        namespace: info.namespace,
        hash: block.hash,
    };
    verify_image(&image, &key, &info.layout).ok()?;
    let buffer = scratch_slot(length).ok()?;
    buffer.arena().write(0, &image).ok()?;
    count(&log.shared.counters.read_bytes, length as u64);
    let (shared, waiter) = (Arc::clone(&log.shared), Arc::clone(waiter));
    Some(WriteTask {
        index: Arc::clone(&block.index),
        info,
        hash: block.hash,
        durability: Durability::Tier,
        reinserted: Some((block.location, block.generation)),
        buffer,
        completion: Box::new(move |_, result| {
            if result.is_ok() {
                count(&shared.counters.reinserted_blocks, 1);
            }
            let mut left = waiter.0.lock();
            *left = left.saturating_sub(1);
            waiter.1.notify_all();
        }),
    })
}
