//! Blocks that failed verification: removed from the index at once, copied aside and journaled afterwards.

use std::fs::{self, File};
use std::sync::Arc;

use kvstored_core::{BlockHash, Error, Result};

use super::directory::{Directory, failed};
use super::format::PAGE;
use super::format::journal::BlockRecord;
use super::index::NamespaceIndex;
use super::log::Log;
use super::scratch::read_at;
use super::segments::Segment;
use super::shared::count;

/// A corrupt extent.
pub struct Suspect {
    /// The block's namespace.
    pub index: Arc<NamespaceIndex>,
    /// The block.
    pub hash: BlockHash,
    /// The segment it's in.
    pub segment: Arc<Segment>,
    /// First page of its image.
    pub page: u32,
}

/// Takes a corrupt block out of the index and counts it. The rest is for the maintenance thread.
pub fn condemn(log: &Log, suspect: Suspect, error: &Error) {
    if !suspect
        .index
        .remove_at(&suspect.hash, suspect.segment.handle, suspect.page)
    {
        return;
    }
    let bytes = suspect.index.image_bytes();
    if log.shared.segments.block_left(suspect.segment.handle, bytes) {
        log.shared.quotas.release(&suspect.index, bytes as u64);
    }
    count(&log.shared.counters.quarantined_blocks, 1);
    tracing::warn!(%error, hash = %suspect.hash, namespace = %suspect.index.shape.namespace,
        path = %suspect.segment.path.display(), page = suspect.page, "a corrupt block is quarantined");
    log.suspect(suspect);
}

/// Journals a corrupt block's removal, if the segment is this process's own, and keeps a copy.
pub fn settle(log: &Log, suspect: &Suspect) {
    let segment = &suspect.segment;
    let bytes = suspect.index.image_bytes() as u64;
    {
        let mut own = log.own.lock();
        if let Some(writer) = own.writer_mut(segment.writer) {
            let ordinal = writer
                .ordinals
                .get(&suspect.index.shape.namespace)
                .copied()
                .unwrap_or_default();
            let block = BlockRecord {
                ordinal,
                hash: suspect.hash,
                segment: segment.number,
                page: suspect.page,
                generation: 0,
            };
            match writer.record_removed(&[block]) {
                Ok(written) => log.touch(written),
                Err(error) => tracing::warn!(%error, "a corrupt block's removal is not journaled"),
            }
        }
    }
    if log.shared.settings.read_only || log.shared.settings.quarantine_capacity_bytes < bytes {
        return;
    }
    if let Err(error) = keep_copy(log, suspect, bytes) {
        tracing::debug!(%error, "no copy of a corrupt block is kept");
    }
}

fn keep_copy(log: &Log, suspect: &Suspect, bytes: u64) -> Result<()> {
    let segment = &suspect.segment;
    let _lock = log.directory.lock(&log.shared.runtime)?;
    if log.directory.usage()?.total_bytes + bytes > log.capacity_bytes {
        return Ok(());
    }
    make_room(
        &log.directory,
        log.shared.settings.quarantine_capacity_bytes - bytes,
    )?;
    let name = format!(
        "{}-{}-{:08x}-{}.block",
        log.shared.runtime.clock.unix_ms(),
        segment.writer,
        segment.number,
        suspect.page
    );
    let path = log.directory.quarantine().join(name);
    let wrong = |error: std::io::Error| failed(error, "can't copy a corrupt block", &path);
    let file = File::open(&segment.path).map_err(wrong)?;
    let image = read_at(&file, u64::from(suspect.page) * PAGE, bytes as usize).map_err(wrong)?;
    fs::write(&path, image).map_err(wrong)?;
    log.touch(bytes);
    Ok(())
}

/// Deletes the oldest copies until the rest takes at most `most` bytes.
fn make_room(directory: &Directory, most: u64) -> Result<()> {
    let path = directory.quarantine();
    let entries = fs::read_dir(&path).map_err(|error| failed(error, "can't list the quarantine", &path))?;
    let mut copies: Vec<_> = entries
        .flatten()
        .filter_map(|entry| {
            let metadata = entry.metadata().ok()?;
            Some((
                metadata.modified().ok()?,
                crate::io::files::physical_bytes(&metadata),
                entry.path(),
            ))
        })
        .collect();
    copies.sort();
    let mut total: u64 = copies.iter().map(|(_, bytes, _)| bytes).sum();
    for (_, bytes, path) in copies {
        if total <= most {
            break;
        }
        if fs::remove_file(&path).is_ok() {
            total -= bytes;
        }
    }
    Ok(())
}
