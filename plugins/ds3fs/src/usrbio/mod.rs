//! 3FS's USRBIO library, loaded at run time: declarations of our own, and safe types over them.
//!
//! Rules that the types keep: a ring has one direction; memory and ring outlive what is under way in them, which is for
//! [`crate::engine`] to see to; I/O across a block of memory made in blocks doesn't occur, because none is made so.
#![allow(unsafe_code)]

pub mod abi;
mod memory;
mod ring;

use std::ffi::{CString, c_char, c_int, c_void};
use std::mem::ManuallyDrop;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvstored_core::{Error, ErrorKind, Result};
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

pub use memory::{Memory, remove_stale_links};
pub use ring::{Completion, Ring};

/// What the loader looks for.
pub const LIBRARY: &str = "libhf3fs_api_shared.so";

/// The library's functions.
#[allow(missing_docs)] // the names are the library's
pub struct Library3fs {
    pub extract_mount_point: unsafe extern "C" fn(*mut c_char, c_int, *const c_char) -> c_int,
    pub iovcreate: unsafe extern "C" fn(*mut abi::Iov, *const c_char, usize, usize, c_int) -> c_int,
    pub iovwrap: unsafe extern "C" fn(
        *mut abi::Iov,
        *mut c_void,
        *const u8,
        *const c_char,
        usize,
        usize,
        c_int,
    ) -> c_int,
    pub iovdestroy: unsafe extern "C" fn(*mut abi::Iov),
    pub iorcreate4:
        unsafe extern "C" fn(*mut abi::Ior, *const c_char, c_int, bool, c_int, c_int, c_int, u64) -> c_int,
    pub iordestroy: unsafe extern "C" fn(*mut abi::Ior),
    pub reg_fd: unsafe extern "C" fn(c_int, u64) -> c_int,
    pub dereg_fd: unsafe extern "C" fn(c_int),
    pub prep_io: unsafe extern "C" fn(
        *const abi::Ior,
        *const abi::Iov,
        bool,
        *mut c_void,
        c_int,
        usize,
        u64,
        *const c_void,
    ) -> c_int,
    pub submit_ios: unsafe extern "C" fn(*const abi::Ior) -> c_int,
    pub wait_for_ios:
        unsafe extern "C" fn(*const abi::Ior, *mut abi::Cqe, c_int, c_int, *const libc::timespec) -> c_int,
}

macro_rules! symbols {
    ($library:ident, $($field:ident),+ $(,)?) => {
        Library3fs {
            $($field: {
                let name = concat!("hf3fs_", stringify!($field), "\0");
                // SAFETY: the library's interface fixes the function's type.
                *unsafe { $library.get(name.as_bytes()) }.map_err(|error| {
                    Error::new(ErrorKind::Unsupported, format!("it lacks hf3fs_{}: {error}", stringify!($field)))
                })?
            },)+
        }
    };
}

impl Library3fs {
    /// Loads the library, for good: its threads may outlive every use. Fails with `NotFound`, or with `Unsupported` for
    /// one that lacks a function.
    pub fn load(path: &str) -> Result<Arc<Self>> {
        // SAFETY: the library's initialisers run here; the operator has named it, or installed it as 3FS's.
        let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }
            .map_err(|error| Error::new(ErrorKind::NotFound, error.to_string()))?;
        let library = ManuallyDrop::new(library);
        let functions = symbols!(
            library,
            extract_mount_point,
            iovcreate,
            iovwrap,
            iovdestroy,
            iorcreate4,
            iordestroy,
            reg_fd,
            dereg_fd,
            prep_io,
            submit_ios,
            wait_for_ios,
        );
        Ok(Arc::new(functions))
    }
}

/// A mount of 3FS, through the library.
#[derive(Clone)]
pub struct Mount {
    library: Arc<Library3fs>,
    name: CString,
}

impl Mount {
    /// The mount that a directory lies in. Fails with `NotFound` outside of any.
    pub fn around(library: &Arc<Library3fs>, directory: &Path) -> Result<Self> {
        const MOST_BYTES: usize = 256;
        let not_there = || {
            Error::new(ErrorKind::NotFound, "the directory isn't on a mount of 3FS")
                .with("path", directory.display())
        };
        let path = CString::new(directory.as_os_str().as_bytes()).map_err(|_| not_there())?;
        let mut name = [0u8; MOST_BYTES];
        // SAFETY: the room is as large as said; the path ends in a zero.
        let length = unsafe {
            (library.extract_mount_point)(name.as_mut_ptr().cast(), MOST_BYTES as c_int, path.as_ptr())
        };
        let name = usize::try_from(length)
            .ok()
            .filter(|length| (2..=MOST_BYTES).contains(length))
            .and_then(|length| CString::new(name.get(..length - 1)?).ok())
            .ok_or_else(not_there)?;
        Ok(Self {
            library: library.clone(),
            name,
        })
    }

    /// The library.
    pub fn library(&self) -> &Library3fs {
        &self.library
    }

    /// The mount's directory.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(std::ffi::OsStr::from_bytes(self.name.as_bytes()))
    }

    /// Registers an open file for I/O. Fails as the library says, with an I/O error.
    pub fn register(&self, descriptor: RawFd) -> Result<()> {
        // SAFETY: takes no pointers.
        let outcome = unsafe { (self.library.reg_fd)(descriptor, 0) };
        // 0 and less is fine, an error number isn't
        if outcome <= 0 {
            return Ok(());
        }
        Err(failed(outcome, "a file can't be registered"))
    }

    /// Forgets a registered file, before it's closed.
    pub fn deregister(&self, descriptor: RawFd) {
        // SAFETY: takes no pointers.
        unsafe { (self.library.dereg_fd)(descriptor) }
    }
}

/// An error number of the library, with or without its sign.
fn failed(errno: c_int, what: &str) -> Error {
    Error::from_io(std::io::Error::from_raw_os_error(errno.abs()), what.to_owned())
}
