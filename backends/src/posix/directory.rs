//! A storage directory: its paths, its version, its locks, its manifests and how much it takes.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kvstored_core::{Error, ErrorKind, Namespace, Result, Runtime};
use parking_lot::{Condvar, Mutex};
use rustix::fs::FlockOperation;

use super::format::WriterId;
use super::format::manifest::{MAX_MANIFEST_BYTES, Manifest};
use crate::io::files::physical_bytes;

const FORMAT_VERSION: u64 = 1;
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// A storage directory.
#[derive(Clone, Debug)]
pub struct Directory {
    path: PathBuf,
}

/// Holds `allocation.lock` until dropped.
pub struct AllocationLock {
    _file: File,
}

/// What a directory takes at one moment.
#[derive(Clone, Debug, Default)]
pub struct Usage {
    /// Physical bytes of everything.
    pub total_bytes: u64,
    /// Physical bytes of each writer's files.
    pub writers: HashMap<WriterId, u64>,
}

impl Directory {
    /// Opens a directory, and creates what is missing of it unless `read_only`.
    ///
    /// Fails with `Unsupported` if it has a newer format, with `NotFound` or `PermissionDenied` naming the path.
    pub fn open(path: &Path, read_only: bool) -> Result<Self> {
        let directory = Self {
            path: path.to_owned(),
        };
        let format = path.join("FORMAT");
        if !read_only {
            for part in [
                path.to_owned(),
                directory.namespaces(),
                directory.writers(),
                directory.quarantine(),
            ] {
                fs::create_dir_all(&part)
                    .map_err(|error| failed(error, "can't create the storage directory", &part))?;
            }
            if !format.exists() {
                // flushes the directory, too
                write_whole(&format, format!("kvstored storage {FORMAT_VERSION}\n").as_bytes())?;
            }
            let lock = directory.lock_path();
            OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&lock)
                .map_err(|error| failed(error, "the storage directory is not writable", &lock))?;
        }
        let mut text = String::new();
        File::open(&format)
            .and_then(|file| file.take(256).read_to_string(&mut text))
            .map_err(|error| failed(error, "can't read the storage directory's format", &format))?;
        let version = text
            .strip_prefix("kvstored storage ")
            .and_then(|rest| rest.trim_end().parse::<u64>().ok());
        match version {
            Some(FORMAT_VERSION) => Ok(directory),
            Some(version) => Err(Error::new(
                ErrorKind::Unsupported,
                format!("the storage directory has format {version}, this build reads {FORMAT_VERSION}"),
            )
            .with("path", path.display())),
            None => Err(
                Error::new(ErrorKind::Corrupt, "the file FORMAT names no kvstored format")
                    .with("path", format.display()),
            ),
        }
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the writers are.
    pub fn writers(&self) -> PathBuf {
        self.path.join("writers")
    }

    /// One writer's directory.
    pub fn writer(&self, writer: WriterId) -> PathBuf {
        self.writers().join(writer.to_string())
    }

    /// Where corrupt extents are kept.
    pub fn quarantine(&self) -> PathBuf {
        self.path.join("quarantine")
    }

    fn namespaces(&self) -> PathBuf {
        self.path.join("namespaces")
    }

    fn lock_path(&self) -> PathBuf {
        self.path.join("allocation.lock")
    }

    fn manifest_path(&self, namespace: &Namespace) -> PathBuf {
        self.namespaces().join(format!("{namespace}.json"))
    }

    /// Waits for the lock over allocation, writers and manifests. Fails with `TimedOut` after ten seconds.
    pub fn lock(&self, runtime: &Runtime) -> Result<AllocationLock> {
        let path = self.lock_path();
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|error| failed(error, "can't open the lock", &path))?;
        let deadline = runtime.deadline(LOCK_TIMEOUT);
        let (mutex, condition) = (Mutex::new(()), Condvar::new());
        while !try_lock(&file)? {
            if runtime.clock.now() >= deadline {
                return Err(Error::new(ErrorKind::TimedOut, "another process holds the lock")
                    .with("path", path.display()));
            }
            condition.wait_for(&mut mutex.lock(), Duration::from_millis(2));
        }
        Ok(AllocationLock { _file: file })
    }

    /// The writers there are.
    pub fn list_writers(&self) -> Result<Vec<WriterId>> {
        let path = self.writers();
        let entries = fs::read_dir(&path).map_err(|error| failed(error, "can't list the writers", &path))?;
        let mut writers: Vec<WriterId> = entries
            .filter_map(|entry| WriterId::from_hex(entry.ok()?.file_name().to_str()?).ok())
            .collect();
        writers.sort_unstable();
        Ok(writers)
    }

    /// Adds up what all files take.
    pub fn usage(&self) -> Result<Usage> {
        let mut usage = Usage::default();
        let mut stack = vec![(self.path.clone(), None)];
        while let Some((path, writer)) = stack.pop() {
            let entries = match fs::read_dir(&path) {
                Ok(entries) => entries,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound && path != self.path => continue,
                Err(error) => return Err(failed(error, "can't add up the directory", &path)),
            };
            for entry in entries.flatten() {
                let Ok(metadata) = entry.metadata() else { continue };
                let bytes = physical_bytes(&metadata);
                usage.total_bytes += bytes;
                let owner = writer.or_else(|| {
                    let parent = path.file_name().and_then(|name| name.to_str());
                    (parent == Some("writers"))
                        .then(|| WriterId::from_hex(entry.file_name().to_str()?).ok())
                        .flatten()
                });
                if let Some(owner) = owner {
                    *usage.writers.entry(owner).or_default() += bytes;
                }
                if metadata.is_dir() && stack.len() < 4096 {
                    stack.push((entry.path(), owner));
                }
            }
        }
        Ok(usage)
    }

    /// Bytes that are free on the file system, and the file system's number.
    pub fn free_bytes(&self) -> Result<(u64, u64)> {
        let wrong = |error: std::io::Error| failed(error, "can't ask for free space", &self.path);
        let status = rustix::fs::statvfs(&self.path).map_err(|errno| wrong(errno.into()))?;
        let device = fs::metadata(&self.path).map_err(wrong)?.dev();
        Ok((status.f_bavail.saturating_mul(status.f_frsize), device))
    }

    /// Reads a manifest; `None` if there's none.
    pub fn read_manifest(&self, namespace: &Namespace) -> Result<Option<Manifest>> {
        let path = self.manifest_path(namespace);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error, "can't read the manifest", &path)),
        };
        let mut bytes = Vec::new();
        file.take(MAX_MANIFEST_BYTES)
            .read_to_end(&mut bytes)
            .map_err(|error| failed(error, "can't read the manifest", &path))?;
        Manifest::decode(namespace, &bytes)
            .map(Some)
            .map_err(|error| error.with("path", path.display()))
    }

    /// Replaces a manifest durably. The caller holds the lock.
    pub fn write_manifest(
        &self,
        namespace: &Namespace,
        manifest: &Manifest,
        _lock: &AllocationLock,
    ) -> Result<()> {
        write_whole(&self.manifest_path(namespace), &manifest.encode()?)
    }

    /// Every manifest that can be read.
    pub fn manifests(&self) -> Vec<(Namespace, Manifest)> {
        let Ok(entries) = fs::read_dir(self.namespaces()) else {
            return Vec::new();
        };
        let mut found = Vec::new();
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(namespace) = name
                .to_str()
                .and_then(|name| name.strip_suffix(".json"))
                .and_then(|hex| Namespace::from_hex(hex).ok())
            else {
                continue;
            };
            match self.read_manifest(&namespace) {
                Ok(Some(manifest)) => found.push((namespace, manifest)),
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, %namespace, "a manifest is left out"),
            }
        }
        found
    }
}

/// Tries to lock a file for this open description alone.
pub fn try_lock(file: &File) -> Result<bool> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => Ok(false),
        Err(errno) => Err(Error::from_io(errno.into(), "can't lock a file")),
    }
}

/// Writes a file under a temporary name, flushes it and renames it.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.new", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    let outcome = write().map_err(|error| failed(error, "can't write a file", path));
    if outcome.is_err() {
        // nothing refers to it, and the next attempt truncates it
        let _ = fs::remove_file(&temporary);
    } else if let Some(parent) = path.parent() {
        sync_directory(parent)?;
    }
    outcome
}

/// Makes renames and new files in a directory durable.
pub fn sync_directory(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(|error| failed(error, "can't flush a directory", path))
}

/// An I/O error with what failed and where.
pub fn failed(error: std::io::Error, what: &str, path: &Path) -> Error {
    Error::from_io(error, what).with("path", path.display())
}
