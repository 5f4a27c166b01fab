//! The segments this process knows, its own and other writers', by a handle that fits the index.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering};

use kvstored_core::Result;
use parking_lot::{Mutex, RwLock};

use super::directory::failed;
use super::format::WriterId;
use crate::io::files::open_direct;

/// Files that are kept open for reading; one more closes the one opened first.
const OPEN_FILES: usize = 256;

/// A segment of some writer.
pub struct Segment {
    /// The handle in locations; never used again for another segment.
    pub handle: u32,
    /// Number of the directory it's in.
    pub log: usize,
    /// Its writer.
    pub writer: WriterId,
    /// Its number at the writer.
    pub number: u32,
    /// Its file.
    pub path: PathBuf,
    /// Bytes of images that the index refers to, as far as this process accounts for them.
    pub live_bytes: AtomicI64,
    /// Whether this process owns the writer.
    pub own: AtomicBool,
    file: Mutex<Option<Arc<File>>>,
}

/// All known segments.
pub struct SegmentTable {
    segments: RwLock<HashMap<u32, Arc<Segment>>>,
    next: AtomicU32,
    opened: Mutex<VecDeque<Arc<Segment>>>,
    direct: bool,
}

impl SegmentTable {
    /// An empty table; `direct` says how files are opened.
    pub fn new(direct: bool) -> Self {
        Self {
            segments: RwLock::new(HashMap::new()),
            next: AtomicU32::new(1),
            opened: Mutex::new(VecDeque::new()),
            direct,
        }
    }

    /// Makes a segment known.
    pub fn add(&self, log: usize, writer: WriterId, number: u32, path: PathBuf) -> Arc<Segment> {
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        let segment = Arc::new(Segment {
            handle,
            log,
            writer,
            number,
            path,
            live_bytes: AtomicI64::new(0),
            own: AtomicBool::new(false),
            file: Mutex::new(None),
        });
        self.segments.write().insert(handle, Arc::clone(&segment));
        segment
    }

    /// The segment of a handle, unless it's gone.
    pub fn get(&self, handle: u32) -> Option<Arc<Segment>> {
        self.segments.read().get(&handle).cloned()
    }

    /// Forgets a segment; reads under way keep its file.
    pub fn remove(&self, handle: u32) {
        let removed = self.segments.write().remove(&handle);
        if let Some(segment) = removed {
            segment.close();
        }
    }

    /// Takes a block that left the index off its segment's books; says whether the segment is this process's own.
    pub fn block_left(&self, handle: u32, image_bytes: usize) -> bool {
        self.get(handle).is_some_and(|segment| {
            segment
                .live_bytes
                .fetch_sub(image_bytes as i64, Ordering::Relaxed);
            segment.own.load(Ordering::Relaxed)
        })
    }

    /// The segment's file, opened for reading. Fails with `NotFound` when it has vanished.
    pub fn open(&self, segment: &Arc<Segment>) -> Result<Arc<File>> {
        let mut slot = segment.file.lock();
        if let Some(file) = &*slot {
            return Ok(Arc::clone(file));
        }
        let file = if self.direct {
            open_direct(&segment.path, false)?.0
        } else {
            File::open(&segment.path)
                .map_err(|error| failed(error, "can't open the segment", &segment.path))?
        };
        let file = Arc::new(file);
        *slot = Some(Arc::clone(&file));
        drop(slot);
        let closed = {
            let mut opened = self.opened.lock();
            opened.push_back(Arc::clone(segment));
            if opened.len() > OPEN_FILES {
                opened.pop_front()
            } else {
                None
            }
        };
        if let Some(other) = closed {
            other.close();
        }
        Ok(file)
    }
}

impl Segment {
    /// Closes the file, so that the next read opens it again.
    pub fn close(&self) {
        *self.file.lock() = None;
    }
}
