//! Opening and allocating files for the engines.

use std::fs::{File, Metadata, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use kvstored_core::{Error, Result};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

/// Opens a file for direct I/O, past the page cache; `true` says that it is direct.
///
/// Where the file system knows no direct I/O the file is opened without it. With `write` the file is opened for
/// reading and writing and created if it's absent.
pub fn open_direct(path: &Path, write: bool) -> Result<(File, bool)> {
    let mut options = OpenOptions::new();
    options.read(true);
    if write {
        options.write(true).create(true).truncate(false);
    }
    let mut opened = options
        .clone()
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .map(|file| (file, true));
    if opened
        .as_ref()
        .is_err_and(|error| error.raw_os_error() == Some(libc::EINVAL))
    {
        opened = options.open(path).map(|file| (file, false));
    }
    opened.map_err(|error| Error::from_io(error, "can't open the file").with("path", path.display()))
}

/// Makes the file `bytes` long with its space reserved; `true` says that it is reserved.
///
/// Where the file system can't reserve, the file only gets its length and writes may still run out of space.
/// Fails with `NoSpace` where there's none; the file may then hold a part of the space.
pub fn allocate(file: &File, bytes: u64) -> Result<bool> {
    loop {
        match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes) {
            Ok(()) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => break,
            Err(errno) => {
                return Err(Error::from_io(errno.into(), "can't allocate the file").with("bytes", bytes));
            }
        }
    }
    let extend = || {
        if file.metadata()?.len() < bytes {
            file.set_len(bytes)
        } else {
            Ok(())
        }
    };
    extend().map_err(|error| Error::from_io(error, "can't extend the file").with("bytes", bytes))?;
    Ok(false)
}

/// Bytes that the file really takes on its file system.
pub fn physical_bytes(metadata: &Metadata) -> u64 {
    // Blocks are 512 bytes here, whatever the file system's own block size.
    metadata.blocks().saturating_mul(512)
}

/// Forces the file's data, and what is needed to read it back, to the device.
///
/// After an error the state of the data is unknown and calling again proves nothing: give the file up.
pub fn sync_data(file: &File) -> Result<()> {
    file.sync_data()
        .map_err(|error| Error::from_io(error, "can't sync the file"))
}
