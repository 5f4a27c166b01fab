//! Files registered with 3FS.
//!
//! A registration belongs to a descriptor, so the descriptor must stay open until it's given up: the table holds each
//! file, and gives up those that nobody else holds any more.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::usrbio::Mount;

/// Files that are registered at most.
const MOST_FILES: usize = 1024;

struct Known {
    file: Arc<File>,
    registered: bool,
}

/// The table.
pub(super) struct Files {
    mount: Mount,
    /// By the file's address, which is unique because the table holds the file.
    known: Mutex<HashMap<usize, Known>>,
    told: AtomicBool,
}

impl Files {
    pub fn new(mount: Mount) -> Self {
        Self {
            mount,
            known: Mutex::default(),
            told: AtomicBool::new(false),
        }
    }

    /// The file's descriptor, registered; none if it can't be.
    pub fn descriptor(&self, file: &Arc<File>) -> Option<RawFd> {
        let identity = Arc::as_ptr(file) as usize;
        let mut known = self.known.lock();
        if let Some(found) = known.get(&identity) {
            return found.registered.then(|| found.file.as_raw_fd());
        }
        self.sweep_locked(&mut known);
        if known.len() >= MOST_FILES {
            return None;
        }
        let outcome = self.mount.register(file.as_raw_fd());
        if let Err(error) = &outcome
            && !self.told.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(%error, "3FS doesn't take a file; such files are read and written on the mount");
        }
        let registered = outcome.is_ok();
        let file = Arc::clone(file);
        let descriptor = file.as_raw_fd();
        known.insert(identity, Known { file, registered });
        registered.then_some(descriptor)
    }

    /// Gives up files that nobody else holds: until then a deleted one keeps its space.
    pub fn sweep(&self) {
        self.sweep_locked(&mut self.known.lock());
    }

    fn sweep_locked(&self, known: &mut HashMap<usize, Known>) {
        known.retain(|_, entry| {
            let used = Arc::strong_count(&entry.file) > 1;
            if !used && entry.registered {
                self.mount.deregister(entry.file.as_raw_fd());
            }
            used
        });
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        for entry in self.known.get_mut().values().filter(|entry| entry.registered) {
            self.mount.deregister(entry.file.as_raw_fd());
        }
    }
}
