//! Memory that 3FS's client process maps too: made by the library, or the host's own.

use std::cell::UnsafeCell;
use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use kvstored_core::{Error, ErrorKind, Result};
use rustix::fs::{AtFlags, CWD, linkat};
use rustix::process::{Pid, test_kill_process};

use super::{Mount, abi, failed};

/// Where 3FS's client process finds memory by name.
const SHARED_MEMORY: &str = "/dev/shm";
/// What names of ours begin with; the process follows, so that another one can tell what is left behind.
const NAME_PREFIX: &str = "kvstored-iov-";

/// Memory for I/O.
pub struct Memory {
    mount: Mount,
    raw: Box<UnsafeCell<MaybeUninit<abi::Iov>>>,
    base: *mut u8,
    length: usize,
    origin: Origin,
}

enum Origin {
    /// The library's.
    Made,
    /// The host's, with the link below the mount and the name in shared memory.
    Wrapped { link: PathBuf, name: PathBuf },
}

// SAFETY: the library's struct is only read once it's made; the memory behind it is only copied from and to.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Has the library make memory. Fails as it does.
    pub fn create(mount: &Mount, length: usize, block: usize) -> Result<Self> {
        let raw = Box::new(UnsafeCell::new(MaybeUninit::<abi::Iov>::zeroed()));
        // SAFETY: the room is the struct's, the name ends in a zero.
        let outcome =
            unsafe { (mount.library().iovcreate)(raw.get().cast(), mount.name.as_ptr(), length, block, -1) };
        if outcome != 0 {
            return Err(failed(outcome, "memory for I/O can't be made").with("bytes", length));
        }
        // SAFETY: the library has filled it.
        let base = unsafe { (*raw.get().cast::<abi::Iov>()).base };
        Ok(Self {
            mount: mount.clone(),
            raw,
            base,
            length,
            origin: Origin::Made,
        })
    }

    /// Tells the mount of memory of the host: a file in `/dev/shm`, mapped whole at `base`. The file gets a name for as
    /// long as [`Memory::forget_name`] isn't called.
    ///
    /// Fails with `Unsupported` for files elsewhere, and as the system does.
    ///
    /// # Safety
    /// `length` bytes at `base` must be a mapping of the file for as long as I/O is prepared with this.
    pub unsafe fn wrap(
        mount: &Mount,
        file: BorrowedFd<'_>,
        base: *mut u8,
        length: usize,
        id: [u8; 16],
    ) -> Result<Self> {
        let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
        let lies = fs::read_link(&path).map_err(|error| Error::from_io(error, "the host's memory"))?;
        if lies.parent() != Some(Path::new(SHARED_MEMORY)) {
            return Err(
                Error::new(ErrorKind::Unsupported, "the host's memory isn't in /dev/shm")
                    .with("file", lies.display()),
            );
        }
        let digits = format!("{:032x}", u128::from_be_bytes(id));
        let name = Path::new(SHARED_MEMORY).join(format!("{NAME_PREFIX}{}-{digits}", std::process::id()));
        linkat(CWD, &path, CWD, &name, AtFlags::SYMLINK_FOLLOW)
            .map_err(|errno| Error::from_io(errno.into(), "the host's memory can't be named"))?;
        let link = mount.path().join("3fs-virt/iovs").join(dashed(&digits));
        // whatever fails from here on takes the names away again
        let raw = Box::new(UnsafeCell::new(MaybeUninit::<abi::Iov>::zeroed()));
        let memory = Self {
            mount: mount.clone(),
            raw,
            base,
            length,
            origin: Origin::Wrapped {
                link: link.clone(),
                name: name.clone(),
            },
        };
        // SAFETY: the room is the struct's; id and name are lent for the call; the caller vouches for the memory.
        let outcome = unsafe {
            (mount.library().iovwrap)(
                memory.raw.get().cast(),
                base.cast(),
                id.as_ptr(),
                mount.name.as_ptr(),
                length,
                0,
                -1,
            )
        };
        if outcome != 0 {
            return Err(failed(outcome, "the host's memory can't be wrapped"));
        }
        std::os::unix::fs::symlink(&name, &link)
            .map_err(|error| Error::from_io(error, "3FS doesn't take the host's memory"))?;
        Ok(memory)
    }

    /// Takes the name in shared memory away, once the other side has mapped the file: should this process die, nothing
    /// is left behind.
    pub fn forget_name(&self) {
        if let Origin::Wrapped { name, .. } = &self.origin {
            // it may be gone already
            let _ = fs::remove_file(name);
        }
    }

    /// The first byte.
    pub fn base(&self) -> *mut u8 {
        self.base
    }

    /// Bytes.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Whether the range lies in this memory.
    pub fn contains(&self, address: *mut u8, length: usize) -> bool {
        (address as usize)
            .checked_sub(self.base as usize)
            .and_then(|start| start.checked_add(length))
            .is_some_and(|end| end <= self.length)
    }

    /// The library's struct.
    pub(super) fn raw(&self) -> *const abi::Iov {
        self.raw.get().cast::<abi::Iov>().cast_const()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.forget_name();
        match &self.origin {
            // SAFETY: made in `create`; whoever drops it has no I/O under way in it.
            Origin::Made => unsafe { (self.mount.library().iovdestroy)(self.raw.get().cast()) },
            Origin::Wrapped { link, .. } => {
                // it may never have been made
                let _ = fs::remove_file(link);
            }
        }
    }
}

/// 32 hexadecimal digits as people write such identifiers.
fn dashed(digits: &str) -> String {
    let part = |range: std::ops::Range<usize>| digits.get(range).unwrap_or_default();
    [part(0..8), part(8..12), part(12..16), part(16..20), part(20..32)].join("-")
}

/// Removes names that processes left behind that died before they could: each keeps a whole cache buffer in memory.
pub fn remove_stale_links() {
    let Ok(entries) = fs::read_dir(SHARED_MEMORY) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner = name
            .to_str()
            .and_then(|name| name.strip_prefix(NAME_PREFIX)?.split('-').next()?.parse().ok())
            .and_then(Pid::from_raw);
        let dead = owner.is_some_and(|pid| test_kill_process(pid) == Err(rustix::io::Errno::SRCH));
        // another process may be quicker, and what isn't ours can't be removed
        if dead && fs::remove_file(entry.path()).is_ok() {
            tracing::info!(name = ?name, "memory of a dead process is given back");
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn identifiers_are_written_with_dashes() {
        assert_eq!(
            super::dashed("00112233445566778899aabbccddeeff"),
            "00112233-4455-6677-8899-aabbccddeeff"
        );
    }
}
