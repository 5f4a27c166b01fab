//! The daemon's socket in the file system: one owner, private to the user, replaced when stale.

use std::fs::{File, FileType};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use kvstored_core::error::{Error, ErrorKind, Result};
use rustix::fs::{FlockOperation, Mode, fchmod, flock};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// A bound socket. Its file goes with it.
pub(super) struct BoundSocket {
    pub(super) listener: UnixListener,
    path: PathBuf,
    /// Held for the daemon's life, so that two starting at once can't both replace a stale socket.
    _lock: File,
}

impl Drop for BoundSocket {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "socket file not removed");
        }
    }
}

/// Binds the socket, readable and writable by its owner alone.
///
/// Fails with `AlreadyExists` when another daemon listens there or the path is something else than a socket.
pub(super) fn bind_socket(path: &Path) -> Result<BoundSocket> {
    let failed = |what: &str, error: std::io::Error| {
        Error::from_io(error, what.to_owned()).with("socket", path.display())
    };
    let address = SocketAddrUnix::new(path).map_err(|_| {
        Error::invalid("the socket's path is too long for the system").with("socket", path.display())
    })?;
    let taken =
        |why: &str| Error::new(ErrorKind::AlreadyExists, why.to_owned()).with("socket", path.display());
    let lock = lock(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::WouldBlock => taken("another daemon listens there"),
        _ => failed("can't lock the socket's path", error),
    })?;
    match file_type(path).map_err(|error| failed("can't look at the socket's path", error))? {
        Some(kind) if !kind.is_socket() => return Err(taken("the path exists and is not a socket")),
        Some(_) if somebody_listens(&address) => return Err(taken("another daemon listens there")),
        Some(_) => {
            std::fs::remove_file(path).map_err(|error| failed("can't remove a stale socket", error))?;
            tracing::info!(path = %path.display(), "stale socket replaced");
        }
        None => {}
    }
    let system = |what: &'static str| move |error: rustix::io::Errno| failed(what, error.into());
    let socket = new_socket().map_err(system("can't open a socket"))?;
    // the mode of the socket itself becomes that of its file: at no moment is it open to others
    fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(system("can't restrict the socket"))?;
    bind(&socket, &address).map_err(system("can't bind the socket"))?;
    listen(&socket, BACKLOG).map_err(system("can't listen on the socket"))?;
    let listener = UnixListener::from(socket);
    listener
        .set_nonblocking(true)
        .map_err(|error| failed("can't set the socket up", error))?;
    Ok(BoundSocket {
        listener,
        path: path.to_owned(),
        _lock: lock,
    })
}

fn new_socket() -> rustix::io::Result<OwnedFd> {
    socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
}

fn lock(path: &Path) -> std::io::Result<File> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(name)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    Ok(file)
}

fn file_type(path: &Path) -> std::io::Result<Option<FileType>> {
    match std::fs::symlink_metadata(path) {
        Ok(about) => Ok(Some(about.file_type())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn somebody_listens(address: &SocketAddrUnix) -> bool {
    let Ok(socket) = new_socket() else { return true };
    // a full backlog is somebody, too
    !matches!(
        rustix::io::ioctl_fionbio(&socket, true).and_then(|()| connect(&socket, address)),
        Err(rustix::io::Errno::CONNREFUSED | rustix::io::Errno::NOENT)
    )
}
