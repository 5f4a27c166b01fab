//! Where a socket is.

use std::fmt;
use std::fs::DirBuilder;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use kvstored_core::runtime::Random;
use kvstored_core::{Error, ErrorKind, Result};
use rustix::net::SocketAddrUnix;

use crate::time::os;

/// Bytes of a name, which the kernel's structure limits.
const MOST_BYTES: usize = 107;

/// Where a socket is. In text: the path, or `@` and the name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SocketAddress {
    /// A name that isn't in the file system, and goes with the socket. Seen within one network namespace, by
    /// all users.
    Abstract(String),
    /// A file, whose directory only this user may enter.
    File(PathBuf),
}

impl SocketAddress {
    /// An abstract name that nobody else uses, beginning with `prefix`.
    pub fn unique(prefix: &str, random: &dyn Random) -> Self {
        Self::Abstract(format!(
            "{prefix}-{:016x}{:016x}",
            random.next_u64(),
            random.next_u64()
        ))
    }

    pub(super) fn encode(&self) -> Result<SocketAddrUnix> {
        let unusable = |why: &str| Error::invalid(format!("socket address \"{self}\" {why}"));
        let (length, address) = match self {
            Self::Abstract(name) => (name.len(), SocketAddrUnix::new_abstract_name(name.as_bytes())),
            Self::File(path) => (path.as_os_str().len(), SocketAddrUnix::new(path)),
        };
        if length == 0 || length > MOST_BYTES {
            return Err(unusable("is empty or too long"));
        }
        address.map_err(|errno| unusable(&errno.to_string()))
    }
}

impl fmt::Display for SocketAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Abstract(name) => write!(formatter, "@{name}"),
            Self::File(path) => write!(formatter, "{}", path.display()),
        }
    }
}

impl FromStr for SocketAddress {
    type Err = Error;

    /// Fails with `InvalidInput` for anything but `@name` and an absolute path, and for what is too long.
    fn from_str(text: &str) -> Result<Self> {
        let address = match text.strip_prefix('@') {
            Some(name) => Self::Abstract(name.to_owned()),
            None if text.starts_with('/') => Self::File(PathBuf::from(text)),
            None => return Err(Error::invalid("a socket address is @name or an absolute path")),
        };
        address.encode()?;
        Ok(address)
    }
}

/// Makes sure that the directory is there, is this user's, and lets nobody else in. Fails with
/// `PermissionDenied`.
pub(super) fn ensure_private(directory: &Path) -> Result<()> {
    let failed = |error: std::io::Error| Error::from_io(error, "directory for a socket");
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(failed(error)),
        _ => {}
    }
    // not through a link, which somebody else could turn elsewhere
    let about = std::fs::symlink_metadata(directory).map_err(failed)?;
    let own = rustix::process::geteuid().as_raw();
    if !about.is_dir() || about.uid() != own || about.mode() & 0o077 != 0 {
        return Err(Error::new(
            ErrorKind::PermissionDenied,
            "a socket's directory must be this user's own, with mode 0700",
        )
        .with("directory", directory.display()));
    }
    Ok(())
}

/// Whether the file is a socket of this user's that nobody listens on any more.
pub(super) fn is_abandoned(path: &Path) -> Result<bool> {
    use std::os::unix::fs::FileTypeExt;
    let Ok(about) = std::fs::symlink_metadata(path) else {
        return Ok(false);
    };
    if !about.file_type().is_socket() || about.uid() != rustix::process::geteuid().as_raw() {
        return Ok(false);
    }
    let socket = super::channel::new_socket()?;
    let address = SocketAddress::File(path.to_owned()).encode()?;
    match rustix::net::connect(&socket, &address) {
        Err(rustix::io::Errno::CONNREFUSED) => Ok(true),
        Ok(()) | Err(rustix::io::Errno::AGAIN) => Ok(false),
        Err(errno) => Err(os(errno, "connect")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_back() {
        let unique = SocketAddress::unique("kvstored", &kvstored_core::runtime::SystemRandom::seeded(1));
        for address in [unique, SocketAddress::File("/run/x.socket".into())] {
            assert_eq!(address.to_string().parse::<SocketAddress>().unwrap(), address);
        }
        let long = format!("@{}", "x".repeat(108));
        for text in ["", "@", "x", "./x", "@a\0b/../", &long, "/a\0b"] {
            let outcome = text.parse::<SocketAddress>();
            if text != "@a\0b/../" {
                assert_eq!(outcome.unwrap_err().kind(), ErrorKind::InvalidInput, "{text:?}");
            }
        }
    }

    #[test]
    fn a_directory_that_others_may_enter_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("sockets");
        ensure_private(&directory).unwrap();
        assert_eq!(std::fs::metadata(&directory).unwrap().mode() & 0o777, 0o700);
        ensure_private(&directory).unwrap();
        std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o750)).unwrap();
        assert_eq!(
            ensure_private(&directory).unwrap_err().kind(),
            ErrorKind::PermissionDenied
        );
        std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o700)).unwrap();
        let link = parent.path().join("link");
        std::os::unix::fs::symlink(&directory, &link).unwrap();
        assert_eq!(
            ensure_private(&link).unwrap_err().kind(),
            ErrorKind::PermissionDenied
        );
    }
}
