//! Memory for I/O as the other side sees it: found through links below the mount, and mapped by itself.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::mounts::lock;

/// Memory that's mapped here.
pub struct Mapped {
    base: *mut u8,
    pub size: usize,
    /// No I/O may cross a multiple of this.
    pub block: usize,
    link: PathBuf,
}

// SAFETY: plain shared memory, which is only handed to system calls.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

impl Mapped {
    /// The address of a range, or none if it leaves the memory.
    pub fn address(&self, offset: usize, length: usize) -> Option<*mut u8> {
        let end = offset.checked_add(length)?;
        // SAFETY: within the mapping.
        (end <= self.size).then(|| unsafe { self.base.add(offset) })
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: mapped below with this size; nobody uses it any more.
        unsafe { libc::munmap(self.base.cast(), self.size) };
    }
}

/// An id in hexadecimal digits.
pub fn hexadecimal(id: &[u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(*id))
}

/// Maps a whole file.
pub fn map_file(file: &File, size: usize) -> Option<*mut u8> {
    // SAFETY: a fresh mapping touches no existing memory.
    let address = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            size,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    (address != libc::MAP_FAILED).then(|| address.cast())
}

/// The memory that a mount knows.
pub struct Iovs {
    folder: PathBuf,
    mapped: Mutex<HashMap<[u8; 16], Arc<Mapped>>>,
}

impl Iovs {
    /// Looks for links in that folder.
    pub fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            mapped: Mutex::default(),
        }
    }

    /// The link's name for memory with that id.
    pub fn link(&self, id: &[u8; 16], block: usize) -> PathBuf {
        let mut name = hexadecimal(id);
        if block > 0 {
            name = format!("{name}.b{block}");
        }
        self.folder.join(name)
    }

    /// Memory by its id, as long as its link is there.
    pub fn find(&self, id: &[u8; 16]) -> Option<Arc<Mapped>> {
        let known = lock(&self.mapped).get(id).cloned();
        if let Some(known) = known {
            if known.link.symlink_metadata().is_ok() {
                return Some(known);
            }
            self.forget(id);
            return None;
        }
        let mapped = Arc::new(self.open(id)?);
        lock(&self.mapped).insert(*id, Arc::clone(&mapped));
        Some(mapped)
    }

    /// Unmaps memory once what is under way with it has ended.
    pub fn forget(&self, id: &[u8; 16]) {
        lock(&self.mapped).remove(id);
    }

    fn open(&self, id: &[u8; 16]) -> Option<Mapped> {
        let wanted = self.link(id, 0);
        let wanted = wanted.file_name()?.to_str()?;
        for entry in std::fs::read_dir(&self.folder).ok()?.flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            let mut parts = name.split('.');
            // ids are written with dashes or without
            if parts.next().unwrap_or_default().replace('-', "") != wanted {
                continue;
            }
            let block = parts
                .find_map(|part| part.strip_prefix('b')?.parse::<usize>().ok())
                .unwrap_or(0);
            let target = std::fs::read_link(entry.path()).ok()?;
            let shared = target.parent() == Some(Path::new("/dev/shm"));
            if !shared {
                return None;
            }
            let file = OpenOptions::new().read(true).write(true).open(&target).ok()?;
            let metadata = file.metadata().ok()?;
            if !metadata.is_file() {
                return None;
            }
            let size = metadata.len() as usize;
            return Some(Mapped {
                base: map_file(&file, size)?,
                size,
                block: if block == 0 { size } else { block },
                link: entry.path(),
            });
        }
        None
    }
}
