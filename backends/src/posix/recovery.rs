//! Taking a dead writer over: replay, verification of what may be torn, sealing.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kvstored_core::envelope::MAGIC;
use kvstored_core::{BlockKey, Envelope, ErrorKind, PAGE_BYTES, Result};

use super::directory::{Directory, failed};
use super::format::journal::Record;
use super::format::segment::{Entry, Footer, SegmentHeader, footer_pages};
use super::format::{NamespaceShape, PAGE};
use super::index::coarse;
use super::journal_writer::{JournalWriter, journal_name};
use super::own::{Claim, OwnWriter, Sealed, journal_header};
use super::publish::{publish, verify_image, write_footer};
use super::replay::{
    Files, Replay, SegmentState, read_footer, read_newest_journal, segment_name, without_removed,
};
use super::scratch::read_at;
use super::segments::Segment;
use super::shared::Shared;
use crate::io::files::sync_data;

/// Pages that are searched for descriptors at once.
const SCAN_PAGES: u64 = 256;

/// What was found in a dead writer's directory.
pub struct Recovered {
    /// The writer, ready to be appended to.
    pub writer: OwnWriter,
    /// The latest generation in it.
    pub last_generation: u64,
}

/// Takes over what a dead writer left. `known` are its segments as far as they are in the table already.
///
/// Fails with `Unsupported` if it is of a newer version; nothing is changed then.
pub fn recover(
    shared: &Shared,
    log: usize,
    directory: &Directory,
    claim: Claim,
    known: &HashMap<u32, Arc<Segment>>,
) -> Result<Recovered> {
    let path = directory.writer(claim.id);
    let files = Files::list(&path)?;
    let journal = read_newest_journal(&path, claim.id, &files, false)?;
    let same_boot = journal
        .as_ref()
        .is_some_and(|journal| journal.header.boot_id == shared.host.boot_id);
    let torn = journal
        .as_ref()
        .is_none_or(|journal| journal.end.torn || files.journals.last() != Some(&journal.header.sequence));
    let replay = journal.map(|journal| journal.replay).unwrap_or_default();
    for (namespace, bound) in &replay.purges {
        shared.index.purge(namespace, *bound, |_| {});
    }
    for name in &files.unfinished {
        // leftovers only take space
        let _ = fs::remove_file(path.join(name));
    }
    let mut recovery = Recovery {
        shared,
        claim: &claim,
        replay: &replay,
        shapes: replay
            .namespaces
            .iter()
            .map(|(ordinal, shape)| (*ordinal, *shape))
            .collect(),
        same_boot,
        torn,
        sealed: BTreeMap::new(),
        last_generation: 0,
    };
    for number in &files.segments {
        let segment_path = path.join(segment_name(*number));
        if replay.removed.contains(number) {
            // its removal was journaled but perhaps not done
            let _ = fs::remove_file(&segment_path);
            continue;
        }
        let segment = known
            .get(number)
            .cloned()
            .unwrap_or_else(|| shared.segments.add(log, claim.id, *number, segment_path.clone()));
        segment.own.store(true, Ordering::Relaxed);
        segment.live_bytes.store(0, Ordering::Relaxed);
        match recovery.segment(*number, &segment) {
            Ok(true) => {}
            Ok(false) => {
                shared.segments.remove(segment.handle);
                let _ = fs::remove_file(&segment_path);
            }
            Err(error) => {
                tracing::warn!(%error, "a segment is left out");
                shared.segments.remove(segment.handle);
            }
        }
    }
    let Recovery {
        shapes,
        sealed,
        last_generation,
        ..
    } = recovery;
    let next_segment = files
        .segments
        .iter()
        .chain(replay.segments.keys())
        .chain(&replay.removed)
        .max()
        .map_or(1, |last| last + 1);
    let tombstones = sealed
        .keys()
        .filter_map(|number| Some((*number, replay.segments.get(number)?.removed.clone())))
        .filter(|(_, removed)| !removed.is_empty())
        .collect();
    let sequence = files.journals.last().map_or(1, |last| last + 1);
    let mut records: Vec<Record> = shapes
        .iter()
        .map(|(ordinal, shape)| Record::Namespace {
            ordinal: *ordinal,
            shape: *shape,
        })
        .collect();
    let tombstones: HashMap<u32, Vec<_>> = tombstones;
    for (number, sealed) in &sealed {
        records.push(Record::SegmentSealed {
            segment: *number,
            footer_page: sealed.footer_page,
        });
        records.extend(
            tombstones
                .get(number)
                .into_iter()
                .flatten()
                .map(|block| Record::BlockRemoved(*block)),
        );
    }
    let journal = JournalWriter::start(&path, &journal_header(shared, &claim, sequence), &records)?;
    for old in &files.journals {
        // a leftover is ignored, being older
        let _ = fs::remove_file(path.join(journal_name(*old)));
    }
    let mut ordinals = HashMap::new();
    for (ordinal, shape) in &shapes {
        ordinals.entry(shape.namespace).or_insert(*ordinal);
    }
    let writer = OwnWriter {
        claim,
        path,
        journal,
        previous_journal: None,
        ordinals,
        shapes,
        next_segment,
        open: Vec::new(),
        prepared: None,
        sealed,
        tombstones,
    };
    Ok(Recovered {
        writer,
        last_generation,
    })
}

struct Recovery<'a> {
    shared: &'a Shared,
    claim: &'a Claim,
    replay: &'a Replay,
    shapes: BTreeMap<u16, NamespaceShape>,
    same_boot: bool,
    torn: bool,
    sealed: BTreeMap<u32, Sealed>,
    last_generation: u64,
}

impl Recovery<'_> {
    /// Makes a segment's blocks visible. `false` if there's nothing in it and it can go.
    fn segment(&mut self, number: u32, segment: &Arc<Segment>) -> Result<bool> {
        let state = self.replay.segments.get(&number);
        let said_sealed = state.is_some_and(|state| state.footer_page.is_some());
        match read_footer(&segment.path, self.claim.id, number) {
            Ok((trailer, footer)) if said_sealed || self.same_boot => {
                let entries = without_removed(&footer, state.map_or(&[][..], |state| &state.removed));
                let shapes: HashMap<u16, NamespaceShape> = footer.namespaces.iter().copied().collect();
                for (ordinal, shape) in &shapes {
                    // tombstones name namespaces by the journal's ordinals, which are the same unless it was lost
                    self.shapes.entry(*ordinal).or_insert(*shape);
                }
                let sealed = Sealed {
                    segment: Arc::clone(segment),
                    footer_page: trailer.footer_page,
                    created_unix_us: trailer.sealed_unix_us,
                };
                self.publish(segment, entries, &shapes);
                self.sealed.insert(number, sealed);
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::Unsupported => Err(error),
            _ => self.unsealed(number, segment, state),
        }
    }

    fn unsealed(
        &mut self,
        number: u32,
        segment: &Arc<Segment>,
        state: Option<&SegmentState>,
    ) -> Result<bool> {
        let path = &segment.path;
        let wrong = |error: std::io::Error| failed(error, "can't recover the segment", path);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(wrong)?;
        let pages = file.metadata().map_err(wrong)?.len() / PAGE;
        let page = read_at(&file, 0, PAGE_BYTES).map_err(wrong)?;
        let header = match SegmentHeader::decode(&page) {
            Ok(header) => header,
            Err(error) if error.kind() == ErrorKind::Unsupported => return Err(error),
            Err(_) => SegmentHeader {
                writer: self.claim.id,
                segment: number,
                epoch: self.claim.owner.epoch,
                created_unix_us: self.shared.unix_us(),
                pages: pages as u32,
            },
        };
        let (mut entries, mut end) = (Vec::new(), 1u64);
        let mut known = BTreeMap::new();
        for block in state
            .into_iter()
            .flat_map(|state| state.stored.values().chain(&state.removed))
        {
            let shape = self.replay.namespaces.get(&block.ordinal);
            let image_pages = shape.map_or(1, |shape| u64::from(shape.image_pages));
            known.insert(u64::from(block.page), image_pages);
            end = end.max(u64::from(block.page) + image_pages);
        }
        for block in state.into_iter().flat_map(|state| state.stored.values()) {
            let Some(shape) = self.replay.namespaces.get(&block.ordinal) else {
                continue;
            };
            if u64::from(block.page) + u64::from(shape.image_pages) > pages {
                continue;
            }
            let entry = Entry {
                hash: block.hash,
                generation: block.generation,
                page: block.page,
                ordinal: block.ordinal,
            };
            let key = BlockKey {
                namespace: shape.namespace,
                hash: block.hash,
            };
            if self.same_boot || self.is_whole(&file, block.page, &key) {
                entries.push(entry);
            }
        }
        let next = read_at(&file, end * PAGE, MAGIC.len()).map_err(wrong)?;
        if !self.same_boot || self.torn || state.is_none() {
            // blocks are recorded as their writes end, so a lost record's block may lie before known ones
            let last = self.scan(&file, 1, pages, &known, &mut entries).map_err(wrong)?;
            end = end.max(last);
        } else if next == MAGIC {
            end = self
                .scan(&file, end, pages, &known, &mut entries)
                .map_err(wrong)?;
        }
        entries.retain(|entry| {
            let bound = self
                .shapes
                .get(&entry.ordinal)
                .and_then(|shape| self.shared.index.get(&shape.namespace));
            bound.is_none_or(|index| index.purged() == 0 || coarse(entry.generation) > coarse(index.purged()))
        });
        if entries.is_empty() {
            return Ok(false);
        }
        let footer = Footer {
            namespaces: self
                .shapes
                .iter()
                .filter(|(ordinal, _)| entries.iter().any(|entry| entry.ordinal == **ordinal))
                .map(|(ordinal, shape)| (*ordinal, *shape))
                .collect(),
            entries,
        };
        // A dead process's writes may still be on their way to the pages behind its last known image, but never to
        // those it kept free for the footer.
        let last = u64::from(header.pages).saturating_sub(u64::from(footer_pages(
            footer.namespaces.len(),
            footer.entries.len(),
        )));
        let footer_page = end.max(last).min(u64::from(u32::MAX)) as u32;
        give_back(&file, end, u64::from(footer_page));
        write_footer(
            &file,
            &header,
            &footer,
            footer_page,
            self.claim.owner.epoch,
            self.shared.unix_us(),
        )
        .and_then(|_| sync_data(&file))
        .map_err(|error| error.with("path", path.display()))?;
        segment.close();
        let shapes = footer.namespaces.iter().copied().collect();
        self.publish(segment, footer.entries, &shapes);
        let sealed = Sealed {
            segment: Arc::clone(segment),
            footer_page,
            created_unix_us: header.created_unix_us,
        };
        self.sealed.insert(number, sealed);
        Ok(true)
    }

    /// Looks for whole images between and behind the known ones (first page to pages); returns where the last one
    /// found ends.
    fn scan(
        &mut self,
        file: &File,
        from: u64,
        pages: u64,
        known: &BTreeMap<u64, u64>,
        entries: &mut Vec<Entry>,
    ) -> std::io::Result<u64> {
        let (mut page, mut end) = (from, from);
        while page < pages {
            // unwritten space is skipped where the file system can tell
            match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(page * PAGE)) {
                Ok(data) => page = page.max(data / PAGE),
                Err(rustix::io::Errno::NXIO) => break,
                Err(_) => {}
            }
            if let Some((start, length)) = known.range(..=page).next_back()
                && start + length > page
            {
                page = start + length;
                continue;
            }
            let border = known
                .range(page..)
                .next()
                .map_or(pages, |(start, _)| (*start).min(pages));
            let window = SCAN_PAGES.min(border.saturating_sub(page));
            let bytes = read_at(file, page * PAGE, window as usize * PAGE_BYTES)?;
            let mut step = window.max(1);
            for (index, descriptor) in bytes.chunks_exact(PAGE_BYTES).enumerate() {
                if !descriptor.starts_with(&MAGIC) {
                    continue;
                }
                let Ok(envelope) = Envelope::decode(descriptor) else {
                    continue;
                };
                let at = page + index as u64;
                let image_pages = (envelope.image_bytes / PAGE).max(1);
                // the descriptor is right about the extent's length even where the payload is torn
                let fits = at + image_pages <= border;
                step = index as u64 + if fits { image_pages } else { 1 };
                if fits && let Some(entry) = self.scanned(file, at as u32, &envelope) {
                    self.last_generation = self.last_generation.max(entry.generation);
                    entries.push(entry);
                    end = at + image_pages;
                }
                break;
            }
            page += step;
        }
        Ok(end)
    }

    fn scanned(&mut self, file: &File, page: u32, envelope: &Envelope) -> Option<Entry> {
        let info = self.shared.index.info(&envelope.key.namespace)?;
        if !self.is_whole(file, page, &envelope.key) {
            return None;
        }
        let shape = NamespaceShape::of(&info);
        let known = self
            .shapes
            .iter()
            .find(|(_, known)| **known == shape)
            .map(|(ordinal, _)| *ordinal);
        let ordinal = known.or_else(|| {
            let next = self
                .shapes
                .last_key_value()
                .map_or(Some(0), |(last, _)| last.checked_add(1))?;
            self.shapes.insert(next, shape);
            Some(next)
        })?;
        let generation = envelope
            .created_unix_ms
            .saturating_mul(1000)
            .min(self.shared.unix_us());
        Some(Entry {
            hash: envelope.key.hash,
            generation,
            page,
            ordinal,
        })
    }

    fn is_whole(&self, file: &File, page: u32, key: &BlockKey) -> bool {
        self.shared.index.info(&key.namespace).is_some_and(|info| {
            read_at(file, u64::from(page) * PAGE, info.layout.image_bytes())
                .is_ok_and(|image| verify_image(&image, key, &info.layout).is_ok())
        })
    }

    fn publish(
        &mut self,
        segment: &Arc<Segment>,
        entries: Vec<Entry>,
        shapes: &HashMap<u16, NamespaceShape>,
    ) {
        let latest = publish(self.shared, segment, entries, shapes, true);
        self.last_generation = self.last_generation.max(latest);
    }
}

/// Gives unused pages of a segment back to the file system, where it can. On local file systems this also waits for
/// direct writes under way, which would otherwise collide with the cached pages of the footer (EIO at its flush).
fn give_back(file: &File, from: u64, to: u64) {
    if from < to {
        let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        if let Err(error) = rustix::fs::fallocate(file, flags, from * PAGE, (to - from) * PAGE) {
            tracing::debug!(%error, "unused pages of a segment stay allocated");
        }
    }
}
