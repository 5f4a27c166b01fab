//! Reading what a writer left or is writing: its journal, and the footers of its segments.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use kvstored_core::{Error, ErrorKind, Namespace, PAGE_BYTES, Result};

use super::directory::failed;
use super::format::journal::{BlockRecord, HEADER_BYTES, JournalHeader, Parsed, RECORD_BYTES, Record};
use super::format::segment::{Entry, Footer, Trailer};
use super::format::{NamespaceShape, PAGE, WriterId};
use super::journal_writer::{journal_name, parse_journal_name};
use super::scratch::read_at;

/// Bytes of a journal that are read at once.
const CHUNK_BYTES: usize = 1 << 20;

/// The name of a segment.
pub fn segment_name(number: u32) -> String {
    format!("segment-{number:08x}")
}

fn parse_segment_name(name: &str) -> Option<u32> {
    let hex = name.strip_prefix("segment-")?;
    (hex.len() == 8 && !hex.contains('+'))
        .then(|| u32::from_str_radix(hex, 16).ok())
        .flatten()
}

/// The files in a writer's directory.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// Sequences of its journals.
    pub journals: BTreeSet<u64>,
    /// Numbers of its segments.
    pub segments: BTreeSet<u32>,
    /// Names of files that were never finished.
    pub unfinished: Vec<String>,
}

impl Files {
    /// Lists a writer's directory.
    pub fn list(path: &Path) -> Result<Self> {
        let mut files = Self::default();
        let entries = fs::read_dir(path).map_err(|error| failed(error, "can't list the writer", path))?;
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            if let Some(sequence) = parse_journal_name(name) {
                files.journals.insert(sequence);
            } else if let Some(number) = parse_segment_name(name) {
                files.segments.insert(number);
            } else if name.strip_suffix(".new").is_some() {
                files.unfinished.push(name.to_owned());
            }
        }
        Ok(files)
    }
}

/// What a journal says of one segment.
#[derive(Clone, Debug, Default)]
pub struct SegmentState {
    /// Where its footer starts, once it's sealed.
    pub footer_page: Option<u32>,
    /// Blocks by page, as far as the journal lists them.
    pub stored: BTreeMap<u32, BlockRecord>,
    /// Blocks removed from it.
    pub removed: Vec<BlockRecord>,
}

/// The state a journal amounts to.
#[derive(Clone, Debug, Default)]
pub struct Replay {
    /// Namespaces by ordinal.
    pub namespaces: HashMap<u16, NamespaceShape>,
    /// Segments that exist.
    pub segments: BTreeMap<u32, SegmentState>,
    /// Segments that existed and are gone.
    pub removed: HashSet<u32>,
    /// Purge bounds.
    pub purges: HashMap<Namespace, u64>,
    /// Whether the prologue is whole.
    pub whole: bool,
}

impl Replay {
    /// Takes one record in.
    pub fn apply(&mut self, record: &Record) {
        match *record {
            Record::Namespace { ordinal, shape } => {
                self.namespaces.entry(ordinal).or_insert(shape);
            }
            Record::SegmentOpened { segment, .. } => {
                self.segments.entry(segment).or_default();
            }
            Record::BlockStored(block) => {
                self.segments
                    .entry(block.segment)
                    .or_default()
                    .stored
                    .insert(block.page, block);
            }
            Record::BlockRemoved(block) => {
                if let Some(segment) = self.segments.get_mut(&block.segment) {
                    segment.stored.remove(&block.page);
                    segment.removed.push(block);
                }
            }
            Record::SegmentSealed { segment, footer_page } => {
                self.segments.entry(segment).or_default().footer_page = Some(footer_page);
            }
            Record::SegmentRemoved { segment } => {
                self.segments.remove(&segment);
                self.removed.insert(segment);
            }
            Record::NamespacePurged { namespace, bound } => {
                let known = self.purges.entry(namespace).or_default();
                *known = bound.max(*known);
            }
            Record::Rotated { .. } => {}
            Record::PrologueEnd => self.whole = true,
        }
    }
}

/// Opens a journal and checks its header against its place.
pub fn open_journal(
    directory: &Path,
    writer: WriterId,
    sequence: u64,
    force_sync: bool,
) -> Result<(File, JournalHeader)> {
    let path = directory.join(journal_name(sequence));
    let mut options = OpenOptions::new();
    options.read(true);
    let opened = if force_sync {
        // past the page cache, which a network file system may keep stale
        options
            .clone()
            .custom_flags(libc::O_DIRECT)
            .open(&path)
            .or_else(|_| options.open(&path))
    } else {
        options.open(&path)
    };
    let file = opened.map_err(|error| failed(error, "can't open the journal", &path))?;
    let bytes =
        read_at(&file, 0, HEADER_BYTES).map_err(|error| failed(error, "can't read the journal", &path))?;
    let header = JournalHeader::decode(&bytes).map_err(|error| error.with("path", path.display()))?;
    if header.writer != writer || header.sequence != sequence {
        return Err(
            Error::new(ErrorKind::Corrupt, "the journal belongs elsewhere").with("path", path.display())
        );
    }
    Ok((file, header))
}

/// Where reading a journal stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalEnd {
    /// Behind the last whole record.
    pub offset: u64,
    /// Whether there are more bytes, which are no whole record.
    pub torn: bool,
}

/// Gives every whole record from `offset` on to `each`, up to the first that isn't.
pub fn read_records(
    file: &File,
    mut offset: u64,
    mut each: impl FnMut(Record),
) -> std::io::Result<JournalEnd> {
    loop {
        let bytes = read_at(file, offset, CHUNK_BYTES)?;
        for record in bytes.chunks(RECORD_BYTES) {
            match Record::parse(record) {
                Parsed::Record(record) => each(record),
                Parsed::Unknown => {}
                Parsed::End => return Ok(JournalEnd { offset, torn: true }),
            }
            offset += RECORD_BYTES as u64;
        }
        if bytes.len() < CHUNK_BYTES {
            return Ok(JournalEnd { offset, torn: false });
        }
    }
}

/// A writer's newest usable journal, read to its end.
pub struct Journal {
    /// The open file.
    pub file: File,
    /// Its header.
    pub header: JournalHeader,
    /// What it amounts to.
    pub replay: Replay,
    /// Where it ended.
    pub end: JournalEnd,
}

/// Reads the newest journal whose header and prologue are whole; `None` if there's none.
///
/// Fails with `Unsupported` if the newest one has a newer version.
pub fn read_newest_journal(
    directory: &Path,
    writer: WriterId,
    files: &Files,
    force_sync: bool,
) -> Result<Option<Journal>> {
    for sequence in files.journals.iter().rev() {
        let (file, header) = match open_journal(directory, writer, *sequence, force_sync) {
            Ok(opened) => opened,
            Err(error) if error.kind() == ErrorKind::Unsupported => return Err(error),
            Err(_) => continue,
        };
        let mut replay = Replay::default();
        let end = read_records(&file, HEADER_BYTES as u64, |record| replay.apply(&record))
            .map_err(|error| failed(error, "can't read the journal", directory))?;
        if replay.whole {
            return Ok(Some(Journal {
                file,
                header,
                replay,
                end,
            }));
        }
    }
    Ok(None)
}

/// Reads the footer of a sealed segment. Fails with `NotFound`, `Corrupt` or `Unsupported`.
pub fn read_footer(path: &Path, writer: WriterId, number: u32) -> Result<(Trailer, Footer)> {
    let file = File::open(path).map_err(|error| failed(error, "can't open the segment", path))?;
    let wrong = |error: std::io::Error| failed(error, "can't read the segment's footer", path);
    let length = file.metadata().map_err(wrong)?.len();
    let at = |error: Error| error.with("path", path.display());
    if length < 3 * PAGE || length % PAGE != 0 {
        return Err(at(Error::new(
            ErrorKind::Corrupt,
            format!("a segment of {length} bytes has no footer"),
        )));
    }
    let bytes = read_at(&file, length - PAGE, PAGE_BYTES).map_err(wrong)?;
    let trailer = Trailer::decode(&bytes).map_err(at)?;
    if trailer.writer != writer || trailer.segment != number || !trailer.fits(length) {
        return Err(at(Error::new(
            ErrorKind::Corrupt,
            "the segment's footer belongs elsewhere",
        )));
    }
    let tables = read_at(
        &file,
        u64::from(trailer.footer_page) * PAGE,
        trailer.tables_bytes() as usize,
    )
    .map_err(wrong)?;
    Footer::decode(&trailer, &tables)
        .map(|footer| (trailer, footer))
        .map_err(at)
}

/// The entries of a footer that the journal doesn't say are removed.
pub fn without_removed(footer: &Footer, removed: &[BlockRecord]) -> Vec<Entry> {
    if removed.is_empty() {
        return footer.entries.clone();
    }
    let pages: HashSet<u32> = removed.iter().map(|block| block.page).collect();
    footer
        .entries
        .iter()
        .filter(|entry| !pages.contains(&entry.page))
        .copied()
        .collect()
}
