//! Files that are registered for I/O.

use std::collections::HashMap;
use std::fs::File;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex};

use crate::mounts::{Mount, lock};

/// A registered file: a descriptor of the library's own, and what it was opened for.
pub struct Registered {
    pub file: File,
    pub readable: bool,
    pub writable: bool,
}

/// By descriptor and by alias: the alias and the file.
type Table = HashMap<RawFd, (RawFd, Arc<Registered>)>;

static FILES: LazyLock<Mutex<Table>> = LazyLock::new(Mutex::default);

/// Whether a descriptor's file lies in a mount.
pub fn mount_of(descriptor: RawFd) -> Option<Arc<Mount>> {
    let path: PathBuf = std::fs::read_link(format!("/proc/self/fd/{descriptor}")).ok()?;
    let text = path.to_str()?;
    // a file that was deleted meanwhile still lay there
    let path = text
        .strip_suffix(" (deleted)")
        .map_or(path.clone(), PathBuf::from);
    Mount::around(&path).or_else(|| Mount::around(path.parent()?))
}

/// Registers a descriptor. Returns its alias, below zero, or an error number.
pub fn register(descriptor: RawFd) -> i32 {
    if descriptor < 0 || mount_of(descriptor).is_none() {
        return libc::EBADF;
    }
    let mut files = lock(&FILES);
    if files.contains_key(&descriptor) {
        return libc::EINVAL;
    }
    // SAFETY: asks for the flags of a descriptor that was just looked at.
    let flags = unsafe { libc::fcntl(descriptor, libc::F_GETFL) };
    // SAFETY: the caller's descriptor isn't owned, so it isn't closed either.
    let theirs = ManuallyDrop::new(unsafe { File::from_raw_fd(descriptor) });
    let Ok(file) = theirs.try_clone() else {
        return libc::EMFILE;
    };
    let access = flags & libc::O_ACCMODE;
    let alias = file.as_raw_fd();
    let registered = Arc::new(Registered {
        file,
        readable: access != libc::O_WRONLY,
        writable: access != libc::O_RDONLY,
    });
    files.insert(descriptor, (alias, Arc::clone(&registered)));
    files.insert(alias, (alias, registered));
    -alias
}

/// Forgets a descriptor.
pub fn deregister(descriptor: RawFd) {
    let mut files = lock(&FILES);
    if let Some((alias, _)) = files.remove(&descriptor) {
        files.remove(&alias);
    }
}

/// The file of a descriptor or an alias.
pub fn find(descriptor: RawFd) -> Option<Arc<Registered>> {
    let files = lock(&FILES);
    files.get(&descriptor.abs()).map(|(_, file)| Arc::clone(file))
}
