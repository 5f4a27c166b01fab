//! A writer that this process owns: its journal, its open and its sealed segments.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::Arc;

use kvstored_core::{Error, ErrorKind, Namespace, Result};

use super::directory::{AllocationLock, Directory, failed, sync_directory, try_lock};
use super::format::journal::{BlockRecord, JournalHeader, Record};
use super::format::owner::{OWNER_BYTES, Owner};
use super::format::segment::{Entry, SegmentHeader, footer_pages};
use super::format::{NamespaceShape, WriterId};
use super::journal_writer::{JournalWriter, journal_name};
use super::segments::Segment;
use super::shared::Shared;

/// The right to write under a writer id: its owner file, locked.
pub struct Claim {
    /// The writer.
    pub id: WriterId,
    /// The locked file.
    pub file: File,
    /// What it says: this process, with its epoch.
    pub owner: Owner,
}

/// Tries to become the owner of a writer, new or dead; `None` if it has a live one.
pub fn claim(
    shared: &Shared,
    directory: &Directory,
    id: WriterId,
    _lock: &AllocationLock,
) -> Result<Option<Claim>> {
    let path = directory.writer(id);
    fs::create_dir_all(&path).map_err(|error| failed(error, "can't create the writer", &path))?;
    let path = path.join("owner");
    let wrong = |error: std::io::Error| failed(error, "can't take the writer over", &path);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(wrong)?;
    if !try_lock(&file)? {
        return Ok(None);
    }
    if file.metadata().map_err(wrong)?.nlink() == 0 {
        return Ok(None);
    }
    let epoch = match read_owner(&file) {
        Ok(previous) => previous.epoch,
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            return Err(error.with("path", path.display()));
        }
        Err(_) => 0,
    };
    let owner = Owner {
        epoch: epoch + 1,
        writer: id,
        process_id: shared.host.process_id,
        boot_id: shared.host.boot_id,
        unix_us: shared.unix_us(),
        host: shared.host.name.clone(),
    };
    file.write_all_at(&owner.encode(), 0)
        .and_then(|()| file.sync_all())
        .map_err(wrong)?;
    Ok(Some(Claim { id, file, owner }))
}

/// Reads an owner file.
pub fn read_owner(file: &File) -> Result<Owner> {
    let mut bytes = [0; OWNER_BYTES];
    file.read_exact_at(&mut bytes, 0)
        .map_err(|error| Error::from_io(error, "can't read the owner file"))?;
    Owner::decode(&bytes)
}

/// A segment that is being filled, or is full and waits to be sealed.
pub struct OpenSegment {
    /// As the index knows it.
    pub segment: Arc<Segment>,
    /// Its first page.
    pub header: SegmentHeader,
    /// Open for writing images.
    pub file: Arc<File>,
    /// The next free page.
    pub next_page: u32,
    /// Images that are being written.
    pub in_flight: u32,
    /// Blocks placed so far, those in flight too.
    pub placed: usize,
    /// Visible blocks by page.
    pub entries: BTreeMap<u32, Entry>,
    /// Blocks that were removed before its footer was made. Their images are still there, and a recovery would find them.
    pub removed: Vec<BlockRecord>,
    /// Namespaces that have blocks here.
    pub ordinals: HashSet<u16>,
    /// Whether nothing goes in any more.
    pub full: bool,
    /// Whether somebody is sealing it.
    pub sealing: bool,
}

impl OpenSegment {
    /// Cuts an extent; `None` if it doesn't fit beside the footer.
    pub fn place(&mut self, image_pages: u32, ordinal: u16) -> Option<u32> {
        let namespaces = self.ordinals.len() + usize::from(!self.ordinals.contains(&ordinal));
        let footer = u64::from(footer_pages(namespaces, self.placed + 1));
        let page = self.next_page;
        if u64::from(page) + u64::from(image_pages) + footer > u64::from(self.header.pages) {
            return None;
        }
        self.ordinals.insert(ordinal);
        self.next_page += image_pages;
        self.placed += 1;
        self.in_flight += 1;
        Some(page)
    }
}

/// A sealed segment of this process's own.
#[derive(Clone)]
pub struct Sealed {
    /// As the index knows it.
    pub segment: Arc<Segment>,
    /// Where its footer starts.
    pub footer_page: u32,
    /// When it was created, in microseconds since the Unix epoch.
    pub created_unix_us: u64,
}

/// A writer that this process owns.
pub struct OwnWriter {
    /// The right to it.
    pub claim: Claim,
    /// Its directory.
    pub path: PathBuf,
    /// Its journal.
    pub journal: JournalWriter,
    /// The journal before, until the next rotation.
    pub previous_journal: Option<u64>,
    /// Ordinals by namespace.
    pub ordinals: HashMap<Namespace, u16>,
    /// Namespaces by ordinal.
    pub shapes: BTreeMap<u16, NamespaceShape>,
    /// The next segment's number.
    pub next_segment: u32,
    /// Segments that are not sealed, oldest first.
    pub open: Vec<OpenSegment>,
    /// A preallocated segment.
    pub prepared: Option<OpenSegment>,
    /// Sealed segments by number.
    pub sealed: BTreeMap<u32, Sealed>,
    /// Blocks removed from sealed segments.
    pub tombstones: HashMap<u32, Vec<BlockRecord>>,
}

impl OwnWriter {
    /// Starts a writer that has nothing yet.
    pub fn create(shared: &Shared, directory: &Directory, claim: Claim) -> Result<Self> {
        let path = directory.writer(claim.id);
        let journal = JournalWriter::start(&path, &journal_header(shared, &claim, 1), &[])?;
        sync_directory(&directory.writers())?;
        Ok(Self {
            claim,
            path,
            journal,
            previous_journal: None,
            ordinals: HashMap::new(),
            shapes: BTreeMap::new(),
            next_segment: 1,
            open: Vec::new(),
            prepared: None,
            sealed: BTreeMap::new(),
            tombstones: HashMap::new(),
        })
    }

    /// Its identifier.
    pub fn id(&self) -> WriterId {
        self.claim.id
    }

    /// The ordinal of a namespace, journaled when it's new.
    pub fn ordinal(&mut self, shape: &NamespaceShape) -> Result<u16> {
        if let Some(ordinal) = self.ordinals.get(&shape.namespace) {
            return Ok(*ordinal);
        }
        let next = self
            .shapes
            .last_key_value()
            .map_or(Some(0), |(last, _)| last.checked_add(1));
        let ordinal =
            next.ok_or_else(|| Error::new(ErrorKind::TooLarge, "a writer has more than 65536 namespaces"))?;
        self.journal.append(&[Record::Namespace {
            ordinal,
            shape: *shape,
        }])?;
        self.define(ordinal, *shape);
        Ok(ordinal)
    }

    /// Gives an ordinal its meaning.
    pub fn define(&mut self, ordinal: u16, shape: NamespaceShape) {
        self.ordinals.entry(shape.namespace).or_insert(ordinal);
        self.shapes.entry(ordinal).or_insert(shape);
    }

    /// The state as the records of a prologue.
    fn prologue(&self) -> Vec<Record> {
        let mut records = Vec::new();
        for (ordinal, shape) in &self.shapes {
            records.push(Record::Namespace {
                ordinal: *ordinal,
                shape: *shape,
            });
        }
        for (segment, sealed) in &self.sealed {
            records.push(Record::SegmentSealed {
                segment: *segment,
                footer_page: sealed.footer_page,
            });
            for block in self.tombstones.get(segment).into_iter().flatten() {
                records.push(Record::BlockRemoved(*block));
            }
        }
        for open in self.open.iter().chain(&self.prepared) {
            let segment = open.header.segment;
            records.push(Record::SegmentOpened {
                segment,
                pages: open.header.pages,
            });
            records.extend(open.entries.values().map(|entry| {
                Record::BlockStored(BlockRecord {
                    ordinal: entry.ordinal,
                    hash: entry.hash,
                    segment,
                    page: entry.page,
                    generation: entry.generation,
                })
            }));
            let while_sealing = self.tombstones.get(&segment).into_iter().flatten();
            let removed = open.removed.iter().chain(while_sealing);
            records.extend(removed.map(|block| Record::BlockRemoved(*block)));
        }
        records
    }

    /// Goes on in a new journal that starts with the whole state. Returns the bytes written.
    pub fn rotate(&mut self, shared: &Shared) -> Result<u64> {
        let before = self.journal.sequence();
        let header = journal_header(shared, &self.claim, before + 1);
        let next = JournalWriter::start(&self.path, &header, &self.prologue())?;
        // Readers that miss this record start over from the new journal, so a failure costs only time.
        if let Err(error) = self.journal.append(&[Record::Rotated {
            next_sequence: before + 1,
        }]) {
            tracing::debug!(%error, "the old journal doesn't name its successor");
        }
        let written = next.bytes().0;
        self.journal = next;
        if let Some(older) = self.previous_journal.replace(before) {
            // a leftover is removed at the next start
            let _ = fs::remove_file(self.path.join(journal_name(older)));
        }
        Ok(written)
    }

    /// Journals that blocks are gone, and forgets them.
    pub fn record_removed(&mut self, blocks: &[BlockRecord]) -> Result<u64> {
        for block in blocks {
            if let Some(open) = self
                .open
                .iter_mut()
                .find(|open| open.header.segment == block.segment)
            {
                open.entries.remove(&block.page);
                if !open.sealing {
                    open.removed.push(*block);
                    continue;
                }
            }
            self.tombstones.entry(block.segment).or_default().push(*block);
        }
        let records: Vec<Record> = blocks.iter().map(|block| Record::BlockRemoved(*block)).collect();
        self.journal.append(&records)
    }

    /// The open segment with that number.
    pub fn open_segment(&mut self, number: u32) -> Option<&mut OpenSegment> {
        self.open.iter_mut().find(|open| open.header.segment == number)
    }

    /// Handles of all its segments.
    pub fn handles(&self) -> HashSet<u32> {
        let open = self
            .open
            .iter()
            .chain(&self.prepared)
            .map(|open| open.segment.handle);
        open.chain(self.sealed.values().map(|sealed| sealed.segment.handle))
            .collect()
    }

    /// Whether the owner file still names this process; otherwise another one has taken over, or it's gone.
    pub fn is_owner(&self) -> Result<bool> {
        let path = self.path.join("owner");
        let file = File::open(&path).map_err(|error| failed(error, "can't read the owner file", &path))?;
        let found = read_owner(&file)?;
        Ok(found.epoch == self.claim.owner.epoch
            && found.process_id == self.claim.owner.process_id
            && found.boot_id == self.claim.owner.boot_id)
    }

    /// Whether its directory was deleted.
    pub fn is_gone(&self) -> bool {
        self.claim
            .file
            .metadata()
            .map_or(true, |metadata| metadata.nlink() == 0)
    }
}

/// The header of a writer's next journal.
pub fn journal_header(shared: &Shared, claim: &Claim, sequence: u64) -> JournalHeader {
    JournalHeader {
        writer: claim.id,
        epoch: claim.owner.epoch,
        sequence,
        boot_id: shared.host.boot_id,
        created_unix_us: shared.unix_us(),
    }
}

/// All that this process owns in one directory.
#[derive(Default)]
pub struct Own {
    /// The writer that takes new blocks; none while the tier is degraded or only reads.
    pub active: Option<OwnWriter>,
    /// Writers of dead processes, kept for their blocks.
    pub adopted: Vec<OwnWriter>,
    /// Grows whenever the active writer is replaced.
    pub incarnation: u64,
    /// The last generation given.
    pub last_generation: u64,
}

impl Own {
    /// The next generation for a namespace that was purged up to `purged`.
    pub fn next_generation(&mut self, unix_us: u64, purged: u64) -> u64 {
        self.last_generation = unix_us
            .max(self.last_generation + 1)
            .max(purged.saturating_add(1));
        self.last_generation
    }

    /// Every writer.
    pub fn writers(&self) -> impl Iterator<Item = &OwnWriter> {
        self.active.iter().chain(&self.adopted)
    }

    /// Every writer.
    pub fn writers_mut(&mut self) -> impl Iterator<Item = &mut OwnWriter> {
        self.active.iter_mut().chain(&mut self.adopted)
    }

    /// The writer with that id, if it's owned.
    pub fn writer_mut(&mut self, id: WriterId) -> Option<&mut OwnWriter> {
        self.writers_mut().find(|writer| writer.id() == id)
    }
}
