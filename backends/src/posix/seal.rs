//! Sealing full segments, giving up failed ones, and turning journals over.

use std::fs::{self, OpenOptions};
use std::sync::Arc;

use kvstored_core::Result;

use super::allocate::journal_allowance;
use super::directory::failed;
use super::format::journal::Record;
use super::format::segment::Footer;
use super::log::Log;
use super::own::{Own, Sealed};
use super::publish::write_footer;
use crate::io::files::sync_data;

/// Seals every full segment whose images are all written.
pub fn seal_full(log: &Log) {
    loop {
        let found = {
            let mut own = log.own.lock();
            let incarnation = own.incarnation;
            own.active.as_mut().and_then(|active| {
                let epoch = active.claim.owner.epoch;
                let shapes = active.shapes.clone();
                let open = active
                    .open
                    .iter_mut()
                    .find(|open| open.full && open.in_flight == 0 && !open.sealing)?;
                open.sealing = true;
                let used = |ordinal: &u16| open.ordinals.contains(ordinal);
                let footer = Footer {
                    namespaces: shapes.into_iter().filter(|(ordinal, _)| used(ordinal)).collect(),
                    entries: open.entries.values().copied().collect(),
                };
                Some((
                    incarnation,
                    epoch,
                    open.header,
                    open.next_page,
                    Arc::clone(&open.segment),
                    footer,
                ))
            })
        };
        let Some((incarnation, epoch, header, footer_page, segment, footer)) = found else {
            return;
        };
        if footer.entries.is_empty() {
            let mut own = log.own.lock();
            if own.incarnation == incarnation {
                abandon(log, &mut own, header.segment);
            }
            continue;
        }
        let written = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&segment.path)
            .map_err(|error| failed(error, "can't seal the segment", &segment.path))
            .and_then(|file| {
                let bytes = write_footer(&file, &header, &footer, footer_page, epoch, log.shared.unix_us())?;
                Ok((bytes, sync_data(&file)))
            });
        let mut own = log.own.lock();
        if own.incarnation != incarnation {
            return;
        }
        match written {
            Ok((bytes, Ok(()))) => {
                log.touch(bytes);
                let sealed = Sealed {
                    segment,
                    footer_page,
                    created_unix_us: header.created_unix_us,
                };
                if let Err(error) = sealed_now(log, &mut own, header.segment, sealed) {
                    drop(own);
                    log.degrade(&error);
                }
            }
            Ok((_, Err(error))) => {
                tracing::warn!(%error, segment = header.segment, "a segment can't be flushed and is given up");
                abandon(log, &mut own, header.segment);
                drop(own);
                log.degrade(&error);
            }
            Err(error) => {
                // its blocks are readable; the next chores try again
                if let Some(open) = own
                    .active
                    .as_mut()
                    .and_then(|active| active.open_segment(header.segment))
                {
                    open.sealing = false;
                }
                drop(own);
                log.degrade(&error);
                return;
            }
        }
    }
}

fn sealed_now(log: &Log, own: &mut Own, number: u32, sealed: Sealed) -> Result<()> {
    let Some(active) = &mut own.active else {
        return Ok(());
    };
    active.open.retain(|open| open.header.segment != number);
    let footer_page = sealed.footer_page;
    active.sealed.insert(number, sealed);
    active.journal.append(&[Record::SegmentSealed {
        segment: number,
        footer_page,
    }])?;
    let bytes = active.rotate(&log.shared)?;
    log.touch(bytes);
    Ok(())
}

/// Gives an open segment up with all its blocks.
pub fn abandon(log: &Log, own: &mut Own, number: u32) {
    let Some(active) = &mut own.active else { return };
    let Some(position) = active.open.iter().position(|open| open.header.segment == number) else {
        return;
    };
    let open = active.open.remove(position);
    active.tombstones.remove(&number);
    if let Err(error) = active
        .journal
        .append(&[Record::SegmentRemoved { segment: number }])
    {
        tracing::debug!(%error, "a segment's removal is not journaled");
    }
    for entry in open.entries.values() {
        let shape = active.shapes.get(&entry.ordinal);
        let Some(index) = shape.and_then(|shape| log.shared.index.get(&shape.namespace)) else {
            continue;
        };
        if index.remove_at(&entry.hash, open.segment.handle, entry.page) {
            log.shared.quotas.release(&index, index.image_bytes() as u64);
        }
    }
    log.shared.segments.remove(open.segment.handle);
    let _ = fs::remove_file(&open.segment.path);
}

/// Starts a new journal when the current one has grown past what its prologue needs.
pub fn rotate_if_long(log: &Log) {
    let allowance = journal_allowance(log.capacity_bytes);
    let mut own = log.own.lock();
    let mut failure = None;
    for writer in own.writers_mut() {
        let (bytes, prologue) = writer.journal.bytes();
        if bytes > allowance / 2 && bytes > 4 * prologue {
            match writer.rotate(&log.shared) {
                Ok(bytes) => log.touch(bytes),
                Err(error) => failure = Some(error),
            }
        }
    }
    drop(own);
    if let Some(error) = failure {
        log.degrade(&error);
    }
}
