//! What recovery, sealing and following share: making blocks visible, writing footers, verifying images.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kvstored_core::checksum::checksum;
use kvstored_core::{BlockKey, Envelope, Error, ErrorKind, Layout, Result};

use super::format::segment::{Entry, Footer, SegmentHeader};
use super::format::{NamespaceShape, PAGE};
use super::index::Location;
use super::segments::Segment;
use super::shared::Shared;

/// Makes blocks visible. With `own` they win over other copies and count for quotas. Returns the latest
/// generation among them.
pub fn publish(
    shared: &Shared,
    segment: &Arc<Segment>,
    mut entries: Vec<Entry>,
    shapes: &HashMap<u16, NamespaceShape>,
    own: bool,
) -> u64 {
    let latest = entries.iter().map(|entry| entry.generation).max().unwrap_or(0);
    entries.sort_by_key(|entry| entry.ordinal);
    for run in entries.chunk_by(|a, b| a.ordinal == b.ordinal) {
        let shape = run.first().and_then(|entry| shapes.get(&entry.ordinal));
        let Some(index) = shape.and_then(|shape| shared.index.ensure(*shape)) else {
            continue;
        };
        let located = run.iter().map(|entry| {
            (
                entry.hash,
                Location::new(segment.handle, entry.page, entry.generation),
            )
        });
        index.place(located, own);
        let bytes = run.len() as u64 * index.image_bytes() as u64;
        segment.live_bytes.fetch_add(bytes as i64, Ordering::Relaxed);
        if own {
            shared.quotas.adopt(&index, bytes);
        }
    }
    latest
}

/// Writes a footer behind the last image and cuts the segment there; not flushed yet.
pub fn write_footer(
    file: &File,
    header: &SegmentHeader,
    footer: &Footer,
    footer_page: u32,
    epoch: u64,
    unix_us: u64,
) -> Result<u64> {
    let bytes = footer.encode(header, epoch, unix_us, footer_page);
    let start = u64::from(footer_page) * PAGE;
    file.write_all_at(&bytes, start)
        .and_then(|()| file.set_len(start + bytes.len() as u64))
        .map_err(|error| Error::from_io(error, "can't write the segment's footer"))?;
    Ok(bytes.len() as u64)
}

/// Verifies a whole image: descriptor, key, layout and every shard's checksum. Fails with `Corrupt`.
pub fn verify_image(image: &[u8], key: &BlockKey, layout: &Layout) -> Result<()> {
    let envelope = Envelope::decode(image)?;
    envelope.expect(key, layout)?;
    for (number, (shard, expected)) in layout.shards().iter().zip(&envelope.shard_checksums).enumerate() {
        let start = layout.shard_offset(number).unwrap_or(usize::MAX);
        let payload = start
            .checked_add(shard.payload_bytes())
            .and_then(|end| image.get(start..end));
        if payload.is_none_or(|payload| checksum(payload) != *expected) {
            return Err(
                Error::new(ErrorKind::Corrupt, format!("shard {number} has a wrong checksum"))
                    .with("key", key),
            );
        }
    }
    Ok(())
}
