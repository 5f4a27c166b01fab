//! The host's memory, as far as 3FS knows it.
//!
//! A mapping that an operation's buffer lies in is linked below the mount once, on a thread of its own: 3FS maps and
//! registers all of it meanwhile. Until then, and where it isn't taken, buffers are copied.
#![allow(unsafe_code)]

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};

use kvstored_core::runtime::ThreadHandle;
use kvstored_core::{Error, Result, Runtime};
use kvstored_plugin::Memory as HostMemory;
use parking_lot::Mutex;

use crate::usrbio::{Memory, Mount, remove_stale_links};

const PENDING: u8 = 0;
const LINKED: u8 = 1;
const PROVEN: u8 = 2;
const REFUSED: u8 = 3;

/// One mapping of the host.
pub struct Region {
    memory: OnceLock<Memory>,
    state: AtomicU8,
}

impl Region {
    /// The memory, if I/O may go from and to that range of it.
    pub fn usable(&self, address: *mut u8, length: usize) -> Option<&Memory> {
        if !matches!(self.state.load(Ordering::Acquire), LINKED | PROVEN) {
            return None;
        }
        self.memory
            .get()
            .filter(|memory| memory.contains(address, length))
    }

    /// Whether an I/O has gone well.
    pub fn is_proven(&self) -> bool {
        self.state.load(Ordering::Acquire) == PROVEN
    }

    /// An I/O went well: the other side has the memory, so nobody needs its name any more.
    pub fn prove(&self) {
        let first = self
            .state
            .compare_exchange(LINKED, PROVEN, Ordering::AcqRel, Ordering::Acquire);
        if first.is_ok()
            && let Some(memory) = self.memory.get()
        {
            memory.forget_name();
            tracing::info!(
                bytes = memory.length(),
                "3FS moves blocks from and to the host's memory without a copy"
            );
        }
    }

    /// The first I/O failed, or a later one so that the memory must be gone: buffers are copied from now on.
    pub fn refuse(&self, errno: i64) {
        if self.state.swap(REFUSED, Ordering::AcqRel) != REFUSED {
            if let Some(memory) = self.memory.get() {
                memory.forget_name();
            }
            let error = std::io::Error::from_raw_os_error(errno as i32);
            tracing::warn!(%error, "3FS doesn't move bytes from and to the host's memory: every block is copied once more");
        }
    }
}

/// What makes mappings known.
pub struct Regions {
    mount: Mount,
    runtime: Runtime,
    linking: Mutex<Vec<ThreadHandle>>,
    told: AtomicBool,
}

impl Regions {
    /// Below that mount. Gives back what dead processes left.
    pub fn new(mount: Mount, runtime: Runtime) -> Self {
        remove_stale_links();
        Self {
            mount,
            runtime,
            linking: Mutex::default(),
            told: AtomicBool::new(false),
        }
    }

    /// Begins to link a mapping, once, while the host lends its descriptor. Returns its region, through which nothing goes
    /// before it's linked.
    pub fn begin(&self, memory: &HostMemory) -> Arc<Region> {
        let region = Arc::new(Region {
            memory: OnceLock::new(),
            state: AtomicU8::new(PENDING),
        });
        let outcome = duplicate(memory.file).and_then(|file| self.link(Arc::clone(&region), *memory, file));
        if let Err(error) = outcome {
            self.tell(&error);
        }
        region
    }

    fn link(&self, region: Arc<Region>, memory: HostMemory, file: OwnedFd) -> Result<()> {
        let mount = self.mount.clone();
        let id = identifier(&self.runtime);
        let body = move || {
            // SAFETY: I/O is prepared only for operations that lie in this very mapping, which the host keeps for as
            // long as it lends them.
            let wrapped = unsafe {
                Memory::wrap(
                    &mount,
                    std::os::fd::AsFd::as_fd(&file),
                    memory.base as *mut u8,
                    memory.length,
                    id,
                )
            };
            match wrapped {
                Ok(wrapped) => {
                    let _ = region.memory.set(wrapped);
                    region.state.store(LINKED, Ordering::Release);
                }
                Err(error) => {
                    region.state.store(REFUSED, Ordering::Release);
                    tracing::warn!(%error, "every block is copied once more on its way to 3FS");
                }
            }
        };
        let thread = self.runtime.spawner.spawn("ds3fs-link", Box::new(body))?;
        self.linking.lock().push(thread);
        Ok(())
    }

    fn tell(&self, error: &Error) {
        if !self.told.swap(true, Ordering::Relaxed) {
            tracing::warn!(%error, "the host's memory can't be shared with 3FS: every block is copied once more");
        }
    }

    /// Waits for links that are being made.
    pub fn settle(&self) {
        let threads = std::mem::take(&mut *self.linking.lock());
        for thread in threads {
            thread.join();
        }
    }
}

impl Drop for Regions {
    fn drop(&mut self) {
        self.settle();
    }
}

/// A descriptor of our own.
fn duplicate(descriptor: i32) -> Result<OwnedFd> {
    if descriptor < 0 {
        return Err(Error::invalid("the host's memory has no file"));
    }
    // SAFETY: the host lends the descriptor for the call that brought the operation, which this is part of.
    let borrowed = unsafe { BorrowedFd::borrow_raw(descriptor) };
    rustix::io::fcntl_dupfd_cloexec(borrowed, 3)
        .map_err(|errno| Error::from_io(errno.into(), "the host's memory can't be kept"))
}

/// A random identifier, marked as one as such identifiers are.
fn identifier(runtime: &Runtime) -> [u8; 16] {
    let halves = [runtime.random.next_u64(), runtime.random.next_u64()];
    let mut id = [0; 16];
    for (place, half) in id.chunks_exact_mut(8).zip(halves) {
        place.copy_from_slice(&half.to_le_bytes());
    }
    id[6] = id[6] & 0x0F | 0x40;
    id[8] = id[8] & 0x3F | 0x80;
    id
}
