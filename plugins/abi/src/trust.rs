//! Whether a file may be loaded: who can write it and every folder above it, and whether it's the one that was listed.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use kvstored_core::{Error, ErrorKind, Result};
use rustix::fs::{Mode, OFlags};

/// The list of sums in a plugin directory, as `sha256sum *.so` writes it.
pub(crate) const SUMS_FILE: &str = "SHA256SUMS";
/// The longest list that is read.
const MOST_SUMS_BYTES: u64 = 1 << 20;
/// The largest plugin.
const MOST_PLUGIN_BYTES: u64 = 1 << 30;

/// Opens a file of the directory after checking the directory, everything above it and the file.
///
/// Fails with `NotFound`, or with `PermissionDenied`, naming the path and why it isn't trusted.
pub(crate) fn open_trusted(directory: &Path, name: &OsStr) -> Result<File> {
    let resolved = directory.canonicalize().map_err(|error| {
        Error::from_io(error, "the plugin directory can't be used")
            .with("plugin_directory", directory.display())
    })?;
    for (depth, folder) in resolved.ancestors().enumerate() {
        let metadata = std::fs::metadata(folder).map_err(|error| {
            Error::from_io(error, "a folder above the plugins can't be checked")
                .with("path", folder.display())
        })?;
        // a folder above may be everybody's if none can rename what is another's there, as in /tmp
        let shared_but_sticky = depth > 0 && metadata.mode() & 0o1000 != 0;
        check_owner(&metadata, folder)?;
        if !shared_but_sticky {
            check_writers(&metadata, folder)?;
        }
    }
    let path = resolved.join(name);
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file: File = rustix::fs::open(&path, flags, Mode::empty())
        .map_err(|error| Error::from_io(error.into(), "can't be opened").with("path", path.display()))?
        .into();
    let metadata = file
        .metadata()
        .map_err(|error| Error::from_io(error, "can't be checked").with("path", path.display()))?;
    if !metadata.is_file() {
        return Err(distrusted(&path, "it isn't a regular file"));
    }
    check_owner(&metadata, &path)?;
    check_writers(&metadata, &path)?;
    Ok(file)
}

fn check_owner(metadata: &Metadata, path: &Path) -> Result<()> {
    let user = rustix::process::geteuid().as_raw();
    if metadata.uid() == user || metadata.uid() == 0 {
        return Ok(());
    }
    let message = format!(
        "user {} owns it, who is neither root nor user {user} that runs",
        metadata.uid()
    );
    Err(distrusted(path, &message))
}

fn check_writers(metadata: &Metadata, path: &Path) -> Result<()> {
    let mode = metadata.mode() & 0o7777;
    if mode & 0o022 == 0 {
        return Ok(());
    }
    let message = format!("its mode is {mode:o}: its group or everybody can write it");
    Err(distrusted(path, &message))
}

fn distrusted(path: &Path, why: &str) -> Error {
    Error::new(ErrorKind::PermissionDenied, format!("not trusted: {why}")).with("path", path.display())
}

/// Checks an open plugin against the directory's list. Fails with `Mismatch` for another sum, and with
/// `PermissionDenied` where no sum is listed.
pub(crate) fn check_sum(directory: &Path, name: &str, plugin: &mut File) -> Result<()> {
    let listed = listed_sum(directory, name)?;
    let found = hex(&digest(plugin)?);
    if found != listed {
        return Err(Error::new(
            ErrorKind::Mismatch,
            format!("{name} has the SHA-256 {found}, but {SUMS_FILE} lists {listed}"),
        )
        .with("plugin_directory", directory.display()));
    }
    Ok(())
}

fn listed_sum(directory: &Path, name: &str) -> Result<String> {
    let file = open_trusted(directory, OsStr::new(SUMS_FILE))?;
    let mut text = String::new();
    file.take(MOST_SUMS_BYTES)
        .read_to_string(&mut text)
        .map_err(|error| {
            Error::from_io(error, format!("{SUMS_FILE} can't be read"))
                .with("plugin_directory", directory.display())
        })?;
    for line in text.lines() {
        // "SUM  NAME", or "SUM *NAME" for a sum made in binary mode
        if let Some((sum, rest)) = line.split_once(' ')
            && rest.trim_start_matches([' ', '*']) == name
        {
            return Ok(sum.to_ascii_lowercase());
        }
    }
    Err(Error::new(
        ErrorKind::PermissionDenied,
        format!("{SUMS_FILE} doesn't list {name}"),
    )
    .with("plugin_directory", directory.display()))
}

fn digest(file: &mut File) -> Result<Vec<u8>> {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    let mut part = vec![0u8; 1 << 16];
    let mut total = 0u64;
    loop {
        let count = file
            .read(&mut part)
            .map_err(|error| Error::from_io(error, "the plugin can't be read"))?;
        total += count as u64;
        if total > MOST_PLUGIN_BYTES {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!("the plugin is larger than {MOST_PLUGIN_BYTES} bytes"),
            ));
        }
        match part.get(..count) {
            Some(bytes) if count > 0 => context.update(bytes),
            _ => return Ok(context.finish().as_ref().to_vec()),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
