//! The memory behind the arena: private with huge pages, or a memfd that clients map too.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use kvstored_core::memory::Arena;
use kvstored_core::{Error, Result};
use rustix::fs::{FallocateFlags, MemfdFlags, Mode, OFlags, SealFlags};
use rustix::fs::{fallocate, fcntl_add_seals, ftruncate, memfd_create, open};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

/// Which pages back the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageKind {
    /// Reserved 2 MiB pages (hugetlbfs).
    Huge,
    /// Transparent huge pages, as far as the kernel finds any.
    TransparentHuge,
    /// 4 KiB pages.
    Base,
}

impl PageKind {
    /// The name in the log.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Huge => "2MiB huge pages",
            Self::TransparentHuge => "transparent huge pages",
            Self::Base => "4KiB pages",
        }
    }
}

const HUGE_PAGE_BYTES: usize = 2 << 20;

/// A mapped arena, and the file to share it by.
pub struct Mapping {
    /// The memory.
    pub arena: Arc<Arena>,
    /// The memfd, where the arena is shared.
    pub file: Option<Arc<OwnedFd>>,
    /// What backs it.
    pub pages: PageKind,
}

struct Unmap {
    base: NonNull<u8>,
    length: usize,
}

// SAFETY: it only owns a mapping, which any thread may unmap.
unsafe impl Send for Unmap {}
// SAFETY: nothing is accessed through it.
unsafe impl Sync for Unmap {}

impl Drop for Unmap {
    fn drop(&mut self) {
        // SAFETY: mapped in this module with this base and length; the arena that used it is gone.
        let result = unsafe { munmap(self.base.as_ptr().cast::<c_void>(), self.length) };
        if let Err(error) = result {
            tracing::warn!(%error, "arena not unmapped");
        }
    }
}

/// Maps `length` bytes, shareable or private, with the largest pages to be had.
pub fn map_arena(length: usize, shared: bool, huge_pages: bool) -> Result<Mapping> {
    if shared {
        map_shared(length, huge_pages)
    } else {
        map_private(length, huge_pages)
    }
}

fn arena(address: *mut c_void, length: usize, file: Option<Arc<OwnedFd>>) -> Result<Arc<Arena>> {
    let base = NonNull::new(address.cast::<u8>()).ok_or_else(|| Error::internal("mmap returned null"))?;
    let mapping = Unmap { base, length };
    // SAFETY: the mapping is readable and writable for its length and lives inside the arena.
    let arena = unsafe { Arena::from_mapping(base, length, Box::new(mapping)) };
    Ok(Arc::new(match file {
        Some(file) => arena.mapping_file(file),
        None => arena,
    }))
}

fn failed(length: usize) -> impl Fn(rustix::io::Errno) -> Error {
    move |error| {
        Error::from_io(
            error.into(),
            format!("can't map a cache buffer of {length} bytes"),
        )
    }
}

fn map_private(length: usize, huge_pages: bool) -> Result<Mapping> {
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: a fresh anonymous mapping touches no existing memory.
    let address = unsafe {
        mmap_anonymous(
            std::ptr::null_mut(),
            length,
            ProtFlags::READ | ProtFlags::WRITE,
            flags,
        )
    }
    .map_err(failed(length))?;
    let arena = arena(address, length, None)?;
    // SAFETY: advice about our own fresh mapping.
    let advised = huge_pages && unsafe { madvise(address, length, Advice::LinuxHugepage) }.is_ok();
    let enabled = advised && setting("enabled").is_some_and(|word| word != "never");
    Ok(Mapping {
        arena,
        file: None,
        pages: if enabled {
            PageKind::TransparentHuge
        } else {
            PageKind::Base
        },
    })
}

fn map_shared(length: usize, huge_pages: bool) -> Result<Mapping> {
    if huge_pages
        && length.is_multiple_of(HUGE_PAGE_BYTES)
        && let Ok(mapping) = map_memfd(length, MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB, PageKind::Huge)
    {
        // such pages are set aside for the mapping when it's made
        mapping.arena.claim(length);
        return Ok(mapping);
    }
    let mut mapping = map_memfd(length, MemfdFlags::ALLOW_SEALING, PageKind::Base)?;
    let address = mapping.arena.base().cast::<c_void>();
    // SAFETY: advice about our own fresh mapping.
    let advised = huge_pages && unsafe { madvise(address, length, Advice::LinuxHugepage) }.is_ok();
    if advised && setting("shmem_enabled").is_some_and(|word| !matches!(word.as_str(), "never" | "deny")) {
        mapping.pages = PageKind::TransparentHuge;
    }
    Ok(mapping)
}

fn map_memfd(length: usize, flags: MemfdFlags, pages: PageKind) -> Result<Mapping> {
    let file = memfd_create("kvstored-arena", MemfdFlags::CLOEXEC | flags).map_err(failed(length))?;
    ftruncate(&file, length as u64).map_err(failed(length))?;
    if flags.contains(MemfdFlags::ALLOW_SEALING) {
        // a client that shrank the file would kill its fellow users with SIGBUS
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
            .map_err(failed(length))?;
    }
    map_file(length, file, pages)
}

fn map_file(length: usize, file: OwnedFd, pages: PageKind) -> Result<Mapping> {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a fresh mapping of our own file touches no existing memory.
    let address = unsafe {
        mmap(
            std::ptr::null_mut(),
            length,
            protection,
            MapFlags::SHARED,
            &file,
            0,
        )
    }
    .map_err(failed(length))?;
    let file = Arc::new(file);
    Ok(Mapping {
        arena: arena(address, length, Some(file.clone()))?,
        file: Some(file),
        pages,
    })
}

/// Maps `length` bytes of a file in `/dev/shm` that has no name and can be given one, all of them allocated. Fails as
/// the system does, with `NoSpace` where there isn't so much.
///
/// Files there can't be sealed: a client that shrank it would kill its fellow users with SIGBUS.
pub fn map_linkable(length: usize, huge_pages: bool) -> Result<Mapping> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = open("/dev/shm", flags, Mode::RUSR | Mode::WUSR).map_err(failed(length))?;
    loop {
        match fallocate(&file, FallocateFlags::empty(), 0, length as u64) {
            Ok(()) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(failed(length)(error)),
        }
    }
    let mapping = map_file(length, file, PageKind::Base)?;
    mapping.arena.claim(length);
    if huge_pages {
        // heeded only where /dev/shm is mounted so, which nobody can ask; nothing depends on it
        // SAFETY: advice about our own fresh mapping.
        let _ = unsafe {
            madvise(
                mapping.arena.base().cast::<c_void>(),
                length,
                Advice::LinuxHugepage,
            )
        };
    }
    Ok(mapping)
}

/// The chosen word of a transparent-huge-page setting, e.g. `madvise` in `always [madvise] never`.
fn setting(name: &str) -> Option<String> {
    let text = std::fs::read_to_string(format!("/sys/kernel/mm/transparent_hugepage/{name}")).ok()?;
    let (_, rest) = text.split_once('[')?;
    Some(rest.split_once(']')?.0.to_owned())
}

impl Mapping {
    /// The memfd to hand to clients.
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(|file| file.as_fd())
    }
}
