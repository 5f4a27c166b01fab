//! Windows through which a peer may touch registered memory.

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use kvstored_core::{Error, ErrorKind, Result};

use super::last_error;
use super::layout::{ACCESS_REMOTE_READ, ACCESS_REMOTE_WRITE, RawWindow, WINDOW_TYPE_2};
use super::memory::{Domain, Slice};

/// What a window lets the peer do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposure {
    /// Read.
    Readable,
    /// Write.
    Writable,
}

impl Exposure {
    pub(super) fn bits(self) -> std::ffi::c_uint {
        match self {
            Self::Readable => ACCESS_REMOTE_READ,
            Self::Writable => ACCESS_REMOTE_WRITE,
        }
    }
}

/// A memory window of type 2: while it's bound, the peer of one queue pair may touch exactly one range with its key.
pub struct Window {
    domain: Arc<Domain>,
    raw: NonNull<RawWindow>,
    /// What the peer may touch: held until the key is known to be worthless.
    pub(super) exposed: Option<Slice>,
}

// SAFETY: the library's objects may be used from any thread; changes take `&mut`.
unsafe impl Send for Window {}
// SAFETY: as above.
unsafe impl Sync for Window {}

impl Window {
    /// A window that isn't bound. Fails with `Unsupported` where the provider has none.
    pub fn new(domain: &Arc<Domain>) -> Result<Self> {
        let context = domain.device().context();
        // SAFETY: the context is open.
        let allocate = unsafe { (*context.as_ptr()).operations.allocate_window };
        let allocate = allocate
            .ok_or_else(|| Error::new(ErrorKind::Unsupported, "this RDMA provider has no memory windows"))?;
        // SAFETY: the domain is alive.
        let raw = NonNull::new(unsafe { allocate(domain.raw().as_ptr(), WINDOW_TYPE_2) })
            .ok_or_else(|| last_error("can't make a memory window"))?;
        Ok(Self {
            domain: domain.clone(),
            raw,
            exposed: None,
        })
    }

    /// The key that the peer uses, or used last.
    pub fn key(&self) -> u32 {
        // SAFETY: the window lives as long as this.
        unsafe { (*self.raw.as_ptr()).key }
    }

    /// Whether a peer may be able to touch something through it.
    pub fn is_bound(&self) -> bool {
        self.exposed.is_some()
    }

    pub(super) fn raw(&self) -> NonNull<RawWindow> {
        self.raw
    }

    /// The key of the next binding: its low 8 bits are the program's to choose and must change each time.
    pub(super) fn next_key(&self) -> u32 {
        let key = self.key();
        (key & !0xff) | (key.wrapping_add(1) & 0xff)
    }

    /// Notes that a binding was posted.
    pub(super) fn bound(&mut self, key: u32, slice: Slice) {
        // SAFETY: the window lives as long as this, and nobody else holds it.
        unsafe { (*self.raw.as_ptr()).key = key };
        self.exposed = Some(slice);
    }

    /// Notes that the key is worthless: a completion said so.
    pub(crate) fn invalidated(&mut self) {
        self.exposed = None;
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: the context is open as long as the domain lives.
        let free = unsafe { (*self.domain.device().context().as_ptr()).operations.free_window };
        // SAFETY: the window is freed once. What it exposed is held until after this.
        let code = free.map_or(0, |free| unsafe { free(self.raw.as_ptr()) });
        if code != 0 {
            tracing::error!(code, "a memory window can't be freed");
            // the peer may still hold a key that works
            std::mem::forget(self.exposed.take());
        }
    }
}

impl fmt::Debug for Window {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Window")
            .field("is_bound", &self.is_bound())
            .finish_non_exhaustive()
    }
}
