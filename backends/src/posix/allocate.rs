//! Segments from preallocation to sealing.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kvstored_core::{Error, ErrorKind, Result};

use super::directory::{Usage, failed, sync_directory};
use super::format::PAGE;
use super::format::journal::Record;
use super::format::segment::{SegmentHeader, footer_pages};
use super::log::Log;
use super::own::OpenSegment;
use super::replay::segment_name;
use crate::io::files::{allocate, open_direct};

const LARGEST_SEGMENT_BYTES: u64 = 1 << 30;
const SMALLEST_SEGMENT_BYTES: u64 = 64 << 10;
/// Images of the size at hand that a segment holds at least, if the capacity allows.
const IMAGES_PER_SEGMENT: u64 = 4;
/// Eviction cures this one, so it's no reason to degrade.
const CAPACITY_USED_UP: &str = "the directory's capacity is used up";

/// What each writer's journals may take between two allocations, in bytes.
pub fn journal_allowance(capacity_bytes: u64) -> u64 {
    (capacity_bytes / 512).clamp(64 << 10, 8 << 20)
}

/// Bytes of the next segment in a directory with that many writers.
fn segment_bytes(log: &Log, usage: &Usage, image_pages: u32) -> Result<u64> {
    let image_bytes = u64::from(image_pages) * PAGE;
    let needed =
        |images: u64| PAGE * (1 + u64::from(footer_pages(1, images as usize))) + images * image_bytes;
    let writers = usage.writers.len().max(1) as u64;
    // Several writers have a segment open each; together they must leave room for sealed ones.
    let share = log.capacity_bytes / 32 / writers.div_ceil(2);
    let base = log
        .shared
        .settings
        .segment_bytes
        .unwrap_or_else(|| share.clamp(SMALLEST_SEGMENT_BYTES, LARGEST_SEGMENT_BYTES));
    let fixed = journal_allowance(log.capacity_bytes) * writers;
    let most = log.capacity_bytes.saturating_sub(fixed);
    if needed(1) > most {
        return Err(Error::new(
            ErrorKind::TooLarge,
            format!(
                "a block of {image_bytes} bytes doesn't fit the directory's capacity of {}",
                log.capacity_bytes
            ),
        ));
    }
    let wanted = base
        .max(needed(IMAGES_PER_SEGMENT))
        .min((most / 4).max(needed(1)));
    Ok(wanted / PAGE * PAGE)
}

/// Preallocates the active writer's next segment, big enough for such an image, unless there is one.
///
/// Fails with `NoSpace` when the capacity doesn't allow it now (which has the next eviction make room), with
/// `TooLarge` when it never does.
pub fn prepare(log: &Log, image_pages: u32) -> Result<()> {
    let _one = log.preparing.lock();
    let smallest = u64::from(image_pages) + 1 + u64::from(footer_pages(1, 1));
    let (number, incarnation, path, claim) = {
        let mut own = log.own.lock();
        let incarnation = own.incarnation;
        let active = own
            .active
            .as_mut()
            .ok_or_else(|| Error::new(ErrorKind::Unavailable, "the storage directory has no writer"))?;
        if active
            .prepared
            .as_ref()
            .is_some_and(|ready| u64::from(ready.header.pages) >= smallest)
        {
            return Ok(());
        }
        let number = active.next_segment;
        active.next_segment = number
            .checked_add(1)
            .ok_or_else(|| Error::internal("segment numbers are used up"))?;
        (
            number,
            incarnation,
            active.path.join(segment_name(number)),
            (active.id(), active.claim.owner.epoch),
        )
    };
    let made = make(log, number, claim, &path, image_pages);
    let (header, file) = match made {
        Ok(made) => made,
        Err(error) => {
            // a part of it may have been allocated
            let _ = fs::remove_file(&path);
            return Err(error);
        }
    };
    let segment = log.shared.segments.add(log.number, claim.0, number, path.clone());
    segment.own.store(true, Ordering::Relaxed);
    let open = OpenSegment {
        segment: Arc::clone(&segment),
        header,
        file: Arc::new(file),
        next_page: 1,
        in_flight: 0,
        placed: 0,
        entries: std::collections::BTreeMap::new(),
        removed: Vec::new(),
        ordinals: std::collections::HashSet::new(),
        full: false,
        sealing: false,
    };
    let mut own = log.own.lock();
    let current = own.incarnation == incarnation;
    let record = Record::SegmentOpened {
        segment: number,
        pages: header.pages,
    };
    let outcome = match own.active.as_mut().filter(|_| current) {
        Some(active) => active
            .journal
            .append(&[record])
            .map(|_| active.prepared.replace(open)),
        None => Err(Error::new(ErrorKind::Fenced, "the log was replaced")),
    };
    drop(own);
    match outcome {
        Ok(smaller) => {
            if let Some(smaller) = smaller {
                forget(log, &smaller);
            }
            log.touch(PAGE);
            Ok(())
        }
        Err(error) => {
            log.shared.segments.remove(segment.handle);
            let _ = fs::remove_file(&path);
            if error.kind() != ErrorKind::Fenced {
                log.degrade(&error);
            }
            Err(error)
        }
    }
}

fn make(
    log: &Log,
    number: u32,
    (writer, epoch): (super::format::WriterId, u64),
    path: &Path,
    image_pages: u32,
) -> Result<(SegmentHeader, File)> {
    let result = make_locked(log, number, writer, epoch, path, image_pages);
    match &result {
        Err(error) if error.message() == CAPACITY_USED_UP => {}
        Err(error) if !matches!(error.kind(), ErrorKind::TooLarge | ErrorKind::TimedOut) => {
            log.degrade(error);
        }
        _ => {}
    }
    result
}

fn make_locked(
    log: &Log,
    number: u32,
    writer: super::format::WriterId,
    epoch: u64,
    path: &Path,
    image_pages: u32,
) -> Result<(SegmentHeader, File)> {
    let _lock = log.directory.lock(&log.shared.runtime)?;
    let usage = log.directory.usage()?;
    let bytes = segment_bytes(log, &usage, image_pages)?;
    let journals = journal_allowance(log.capacity_bytes) * usage.writers.len().max(1) as u64;
    log.used_bytes.store(usage.total_bytes, Ordering::Relaxed);
    if usage.total_bytes + bytes + journals > log.capacity_bytes {
        log.starving.store(true, Ordering::Relaxed);
        return Err(Error::new(ErrorKind::NoSpace, CAPACITY_USED_UP)
            .with("used_bytes", usage.total_bytes)
            .with("capacity_bytes", log.capacity_bytes));
    }
    let header = SegmentHeader {
        writer,
        segment: number,
        epoch,
        created_unix_us: log.shared.unix_us(),
        pages: (bytes / PAGE) as u32,
    };
    let wrong = |error: std::io::Error| failed(error, "can't create the segment", path);
    let file = OpenOptions::new()
        .write(true)
        .read(true)
        .create_new(true)
        .open(path)
        .map_err(wrong)?;
    allocate(&file, bytes).map_err(|error| error.with("path", path.display()))?;
    // durable dumps flush only data: that the file is there must be durable before
    file.write_all_at(&header.encode(), 0)
        .and_then(|()| file.sync_all())
        .map_err(wrong)?;
    if let Some(parent) = path.parent() {
        sync_directory(parent)?;
    }
    log.used_bytes.store(usage.total_bytes + bytes, Ordering::Relaxed);
    let file = if log.shared.settings.direct {
        open_direct(path, true)?.0
    } else {
        file
    };
    Ok((header, file))
}

/// Drops a segment that nothing was written to.
fn forget(log: &Log, open: &OpenSegment) {
    let mut own = log.own.lock();
    if let Some(active) = &mut own.active {
        // an unrecorded removal is found at the next start: the file is not there
        let _ = active.journal.append(&[Record::SegmentRemoved {
            segment: open.header.segment,
        }]);
    }
    drop(own);
    log.shared.segments.remove(open.segment.handle);
    let _ = fs::remove_file(&open.segment.path);
}

/// Keeps a segment ready, so that writes don't wait for its allocation; not when that would start an eviction.
pub fn prepare_ahead(log: &Log) {
    let image_pages = {
        let own = log.own.lock();
        let Some(active) = &own.active else { return };
        if active.prepared.is_some() || active.open.is_empty() {
            return;
        }
        active
            .shapes
            .values()
            .map(|shape| shape.image_pages)
            .max()
            .unwrap_or(1)
    };
    if log.degraded().is_some() {
        return;
    }
    if let Err(error) = prepare(log, image_pages) {
        tracing::debug!(%error, "no segment is prepared ahead");
    }
}
