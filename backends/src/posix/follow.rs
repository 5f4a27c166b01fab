//! Following one other writer's journal.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvstored_core::Result;
use rustix::fs::{AtFlags, CWD, StatxFlags};

use super::format::journal::{BlockRecord, HEADER_BYTES, RECORD_BYTES, Record};
use super::format::segment::Entry;
use super::format::{NamespaceShape, WriterId};
use super::index::{Location, NamespaceIndex};
use super::journal_writer::journal_name;
use super::log::Log;
use super::publish::publish;
use super::replay::{
    Files, Replay, SegmentState, open_journal, read_footer, read_newest_journal, read_records, segment_name,
    without_removed,
};
use super::segments::Segment;
use super::shared::Shared;
use super::tail::{Round, purge};

/// A journal without news is checked for a successor only every so many rounds.
const SUCCESSOR_ROUNDS: u32 = 16;

/// One other writer.
pub(super) struct Followed {
    path: PathBuf,
    journal: Option<Position>,
    ordinals: HashMap<u16, Arc<NamespaceIndex>>,
    pub(super) segments: HashMap<u32, Arc<Segment>>,
    quiet_rounds: u32,
}

/// Where reading goes on.
struct Position {
    file: File,
    sequence: u64,
    offset: u64,
}

impl Followed {
    /// Reads a writer from the beginning; `None` if it has nothing readable yet.
    pub(super) fn load(log: &Log, id: WriterId) -> Result<Option<Self>> {
        let path = log.directory.writer(id);
        let files = Files::list(&path)?;
        let force = log.shared.settings.force_sync;
        let journal = read_newest_journal(&path, id, &files, force)?;
        if journal.is_none() && files.segments.is_empty() {
            return Ok(None);
        }
        let mut followed = Self {
            path,
            journal: None,
            ordinals: HashMap::new(),
            segments: HashMap::new(),
            quiet_rounds: 0,
        };
        let mut replay = Replay::default();
        if let Some(journal) = journal {
            replay = journal.replay;
            followed.journal = Some(Position {
                file: journal.file,
                sequence: journal.header.sequence,
                offset: journal.end.offset,
            });
        } else {
            // without a journal only what has a footer is known
            let sealed = SegmentState {
                footer_page: Some(0),
                ..SegmentState::default()
            };
            replay.segments = files
                .segments
                .iter()
                .map(|number| (*number, sealed.clone()))
                .collect();
        }
        followed.take_over(log, id, &replay);
        Ok(Some(followed))
    }

    fn take_over(&mut self, log: &Log, id: WriterId, replay: &Replay) {
        for (ordinal, shape) in &replay.namespaces {
            self.define(&log.shared, *ordinal, *shape);
        }
        for (namespace, bound) in &replay.purges {
            purge(log, namespace, *bound);
        }
        for (number, state) in &replay.segments {
            let segment = self.segment(log, id, *number);
            if state.footer_page.is_some() && state.stored.is_empty() {
                match read_footer(&segment.path, id, *number) {
                    Ok((_, footer)) => {
                        let shapes = footer.namespaces.iter().copied().collect();
                        publish(
                            &log.shared,
                            &segment,
                            without_removed(&footer, &state.removed),
                            &shapes,
                            false,
                        );
                    }
                    Err(error) => tracing::debug!(%error, "a segment of another writer is left out"),
                }
            } else {
                let entries = state.stored.values().map(|block| Entry {
                    hash: block.hash,
                    generation: block.generation,
                    page: block.page,
                    ordinal: block.ordinal,
                });
                publish(
                    &log.shared,
                    &segment,
                    entries.collect(),
                    &replay.namespaces,
                    false,
                );
            }
        }
    }

    /// Reads on. `false` if the writer must be read from the beginning.
    pub(super) fn follow(&mut self, log: &Log, round: &mut Round) -> bool {
        let force = log.shared.settings.force_sync;
        for _ in 0..64 {
            let Some(position) = &self.journal else {
                // nothing to follow; a new owner starts a journal some time
                self.quiet_rounds += 1;
                return !self.quiet_rounds.is_multiple_of(16 * SUCCESSOR_ROUNDS);
            };
            let path = self.path.join(journal_name(position.sequence));
            let Some((length, links)) = size(&position.file, &path, force) else {
                return false;
            };
            if length <= position.offset {
                self.quiet_rounds += 1;
                let successor = || self.path.join(journal_name(position.sequence + 1)).exists();
                return links > 0 && !(self.quiet_rounds.is_multiple_of(SUCCESSOR_ROUNDS) && successor());
            }
            let mut records = Vec::new();
            let Ok(end) = read_records(&position.file, position.offset, |record| records.push(record)) else {
                return false;
            };
            if records.is_empty() {
                // half of a batch, or a damaged record: the rest comes, or a new journal does
                self.quiet_rounds += 1;
                let successor = || self.path.join(journal_name(position.sequence + 1)).exists();
                return links > 0 && !(self.quiet_rounds.is_multiple_of(SUCCESSOR_ROUNDS) && successor());
            }
            self.quiet_rounds = 0;
            round.news = true;
            let next = records.iter().find_map(|record| match record {
                Record::Rotated { next_sequence } => Some(*next_sequence),
                _ => None,
            });
            if let Some(position) = &mut self.journal {
                position.offset = end.offset;
            }
            self.apply(log, &records, round);
            match next {
                Some(sequence) if !self.turn(log, sequence, force) => return false,
                None if end.torn => return true,
                Some(_) | None => {}
            }
        }
        true
    }

    /// Goes on in the next journal, whose prologue says what is known already.
    fn turn(&mut self, log: &Log, sequence: u64, force: bool) -> bool {
        let Some(id) = self
            .path
            .file_name()
            .and_then(|name| WriterId::from_hex(name.to_str()?).ok())
        else {
            return false;
        };
        let Ok((file, _)) = open_journal(&self.path, id, sequence, force) else {
            return false;
        };
        let (mut prologue, mut rest, mut whole) = (Vec::new(), Vec::new(), false);
        let read = read_records(&file, HEADER_BYTES as u64, |record| {
            if whole {
                rest.push(record);
            } else if record == Record::PrologueEnd {
                whole = true;
            } else {
                prologue.push(record);
            }
        });
        if read.is_err() || !whole {
            return false;
        }
        // What follows the prologue is read again by the next round of the caller's loop.
        let offset = (HEADER_BYTES + (prologue.len() + 1) * RECORD_BYTES) as u64;
        for record in &prologue {
            if let Record::Namespace { ordinal, shape } = record {
                self.define(&log.shared, *ordinal, *shape);
            }
        }
        self.journal = Some(Position {
            file,
            sequence,
            offset,
        });
        true
    }

    fn apply(&mut self, log: &Log, records: &[Record], round: &mut Round) {
        let id = self
            .path
            .file_name()
            .and_then(|name| WriterId::from_hex(name.to_str()?).ok());
        let Some(id) = id else { return };
        let mut run: Vec<BlockRecord> = Vec::new();
        for record in records {
            if let Record::BlockStored(block) = record {
                if run.first().is_some_and(|first| first.ordinal != block.ordinal) {
                    self.store(log, id, &mut run);
                }
                run.push(*block);
                continue;
            }
            self.store(log, id, &mut run);
            match *record {
                Record::Namespace { ordinal, shape } => self.define(&log.shared, ordinal, shape),
                Record::SegmentOpened { segment, .. } => {
                    self.segment(log, id, segment);
                }
                Record::BlockRemoved(block) => {
                    if let (Some(index), Some(segment)) = (
                        self.ordinals.get(&block.ordinal),
                        self.segments.get(&block.segment),
                    ) {
                        index.remove_at(&block.hash, segment.handle, block.page);
                    }
                }
                Record::SegmentRemoved { segment } => {
                    if let Some(segment) = self.segments.remove(&segment) {
                        round.gone.insert(segment.handle);
                    }
                }
                Record::NamespacePurged { namespace, bound } => {
                    purge(log, &namespace, bound);
                }
                Record::BlockStored(_)
                | Record::SegmentSealed { .. }
                | Record::Rotated { .. }
                | Record::PrologueEnd => {}
            }
        }
        self.store(log, id, &mut run);
    }

    /// Makes a run of blocks of one namespace visible.
    fn store(&mut self, log: &Log, id: WriterId, run: &mut Vec<BlockRecord>) {
        let Some(index) = run
            .first()
            .and_then(|first| self.ordinals.get(&first.ordinal))
            .cloned()
        else {
            run.clear();
            return;
        };
        let located: Vec<_> = run
            .drain(..)
            .map(|block| {
                let segment = self.segment(log, id, block.segment);
                (
                    block.hash,
                    Location::new(segment.handle, block.page, block.generation),
                )
            })
            .collect();
        index.place(located.into_iter(), false);
    }

    fn define(&mut self, shared: &Shared, ordinal: u16, shape: NamespaceShape) {
        if !self.ordinals.contains_key(&ordinal)
            && let Some(index) = shared.index.ensure(shape)
        {
            self.ordinals.insert(ordinal, index);
        }
    }

    fn segment(&mut self, log: &Log, id: WriterId, number: u32) -> Arc<Segment> {
        let path = &self.path;
        let segment = self.segments.entry(number).or_insert_with(|| {
            log.shared
                .segments
                .add(log.number, id, number, path.join(segment_name(number)))
        });
        Arc::clone(segment)
    }

    /// Hands its segments over to be dropped.
    pub(super) fn leave(&mut self, round: &mut Round) {
        round
            .gone
            .extend(self.segments.drain().map(|(_, segment)| segment.handle));
    }
}

/// Length and link count of a journal; asked of the server where the file system may have them stale.
fn size(file: &File, path: &Path, force: bool) -> Option<(u64, u64)> {
    if force {
        let wanted = StatxFlags::SIZE | StatxFlags::NLINK;
        let status = rustix::fs::statx(CWD, path, AtFlags::STATX_FORCE_SYNC, wanted).ok()?;
        return Some((status.stx_size, u64::from(status.stx_nlink)));
    }
    let metadata = file.metadata().ok()?;
    Some((metadata.len(), metadata.nlink()))
}
