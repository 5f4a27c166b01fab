//! The directory that a daemon's socket lies in.

use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;

use kvstored_core::error::{Error, ErrorKind, Result};

/// Makes the directory of the socket where it's missing, for its owner alone. One below a directory that everybody may
/// write to has to be ours already.
pub fn prepare_socket_directory(socket: &Path) -> Result<()> {
    let Some(directory) = socket
        .parent()
        .filter(|directory| !directory.as_os_str().is_empty())
    else {
        return Ok(());
    };
    let failed = |error: std::io::Error, what: &str| {
        Error::from_io(error, format!("the socket's directory {what}")).with("directory", directory.display())
    };
    let created = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory);
    created.map_err(|error| failed(error, "can't be created"))?;
    let shared = directory
        .parent()
        .is_some_and(|above| std::fs::metadata(above).is_ok_and(|metadata| metadata.mode() & 0o002 != 0));
    if !shared {
        return Ok(());
    }
    let metadata =
        std::fs::symlink_metadata(directory).map_err(|error| failed(error, "can't be examined"))?;
    let ours = metadata.is_dir()
        && metadata.uid() == rustix::process::geteuid().as_raw()
        && metadata.mode() & 0o022 == 0;
    if ours {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::PermissionDenied,
        "the socket's directory lies where everybody may write, and it's somebody else's or open to others",
    )
    .with("directory", directory.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_sockets_directory_is_made_private() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("run/kvstored.sock");
        prepare_socket_directory(&socket).unwrap();
        let mode = std::fs::metadata(socket.parent().unwrap()).unwrap().mode();
        assert_eq!(mode & 0o777, 0o700);
        prepare_socket_directory(&socket).unwrap();
    }

    #[test]
    fn a_directory_that_others_may_change_is_refused_in_a_shared_place() {
        let directory = tempfile::tempdir().unwrap();
        let open = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        open(directory.path(), 0o777);
        let below = directory.path().join("run");
        prepare_socket_directory(&below.join("kvstored.sock")).unwrap();
        open(&below, 0o777);
        let error = prepare_socket_directory(&below.join("kvstored.sock")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
        std::fs::remove_dir(&below).unwrap();
        std::os::unix::fs::symlink("/", &below).unwrap();
        assert!(
            prepare_socket_directory(&below.join("kvstored.sock")).is_err(),
            "a link could lead anywhere"
        );
    }
}
