//! The functions of rings, files and I/O, with the names and results of the real library.

use std::ffi::{c_char, c_int, c_void};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use crate::abi::{Cqe, Ior, Iov};
use crate::exports::{mount_point, text};
use crate::files;
use crate::mounts::{Mount, lock};
use crate::rings::{Io, Ring};

/// Makes a ring.
///
/// # Safety
/// `ior` must be null or point to one; `mount` must be null or end in a zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hf3fs_iorcreate4(
    ior: *mut Ior,
    mount: *const c_char,
    entries: c_int,
    for_read: bool,
    io_depth: c_int,
    timeout: c_int,
    numa: c_int,
    flags: u64,
) -> c_int {
    // SAFETY: the caller vouches for it.
    let name = unsafe { text(mount) };
    let Some((name, mount_point)) = name.and_then(|name| Some((name, mount_point(name)?))) else {
        return -libc::EINVAL;
    };
    if ior.is_null() || timeout < 0 || entries <= 0 || io_depth > entries {
        return -libc::EINVAL;
    }
    let Some(mount) = Mount::named(name) else {
        return -libc::ENOENT;
    };
    {
        let mut rings = lock(&mount.rings);
        if *rings as i64 >= mount.switches.get("RINGS") {
            return -libc::EMFILE;
        }
        *rings += 1;
    }
    let timeout_ms = Duration::from_millis(timeout as u64);
    let ring = Ring::new(mount, entries as usize, for_read, io_depth, timeout_ms);
    // SAFETY: the caller lends it.
    unsafe {
        ior.write(Ior {
            iov: Iov {
                base: std::ptr::null_mut(),
                handle: std::ptr::null_mut(),
                id: [0; 16],
                mount_point,
                size: 0,
                block_size: 0,
                numa,
            },
            handle: Arc::into_raw(ring).cast_mut().cast(),
            mount_point,
            for_read,
            io_depth,
            priority: 0,
            timeout,
            flags,
        });
    }
    0
}

/// # Safety
/// `ior` must be null or made by `hf3fs_iorcreate4` and not destroyed.
unsafe fn ring(ior: *const Ior) -> Option<Arc<Ring>> {
    // SAFETY: the caller vouches for it.
    let handle = unsafe { ior.as_ref() }?.handle.cast_const().cast::<Ring>();
    if handle.is_null() {
        return None;
    }
    // SAFETY: it comes from `Arc::into_raw`, whose count this borrows for the call.
    unsafe {
        Arc::increment_strong_count(handle);
        Some(Arc::from_raw(handle))
    }
}

/// Frees a ring.
///
/// # Safety
/// `ior` must be null or made by `hf3fs_iorcreate4`, and nobody may use it any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hf3fs_iordestroy(ior: *mut Ior) {
    // SAFETY: the caller vouches for it.
    let Some(ring) = (unsafe { ring(ior) }) else {
        return;
    };
    ring.close();
    *lock(&ring.mount.rings) -= 1;
    // SAFETY: gives up what `hf3fs_iorcreate4` left in the handle.
    unsafe {
        Arc::decrement_strong_count((*ior).handle.cast_const().cast::<Ring>());
        (*ior).handle = std::ptr::null_mut();
    }
}

/// Registers a file. Returns 0 or less, or an error number.
#[unsafe(no_mangle)]
pub extern "C" fn hf3fs_reg_fd(descriptor: c_int, _flags: u64) -> c_int {
    files::register(descriptor)
}

/// Forgets a file.
#[unsafe(no_mangle)]
pub extern "C" fn hf3fs_dereg_fd(descriptor: c_int) {
    files::deregister(descriptor);
}

/// Puts an I/O into a ring. Returns its place, or an error number below zero.
///
/// # Safety
/// `ior` and `iov` must be null or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hf3fs_prep_io(
    ior: *const Ior,
    iov: *const Iov,
    read: bool,
    address: *mut c_void,
    descriptor: c_int,
    offset: usize,
    length: u64,
    userdata: *const c_void,
) -> c_int {
    // SAFETY: the caller vouches for it.
    let (ring, iov) = unsafe { (ring(ior), iov.as_ref()) };
    let (Some(ring), Some(iov)) = (ring, iov) else {
        return -libc::EINVAL;
    };
    let inside = (address as usize).checked_sub(iov.base as usize).filter(|start| {
        start
            .checked_add(length as usize)
            .is_some_and(|end| end <= iov.size)
    });
    let Some(memory_offset) = inside.filter(|_| read == ring.for_read && length > 0) else {
        return -libc::EINVAL;
    };
    let Some(file) = files::find(descriptor) else {
        return -libc::EBADF;
    };
    if (read && !file.readable) || (!read && !file.writable) {
        return -libc::EACCES;
    }
    ring.prepare(Io {
        memory: ring.mount.iovs.find(&iov.id),
        memory_offset,
        file,
        file_offset: offset as u64,
        length: length as usize,
        userdata: userdata as usize,
    })
}

/// Has prepared I/O started.
///
/// # Safety
/// `ior` must be null or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hf3fs_submit_ios(ior: *const Ior) -> c_int {
    // SAFETY: the caller vouches for it.
    match unsafe { ring(ior) } {
        Some(ring) => {
            ring.submit();
            0
        }
        None => -libc::EINVAL,
    }
}

/// Reaps completions. Returns how many, or an error number below zero.
///
/// # Safety
/// `ior` and `until` must be null or valid; `completions` must have room for `count`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hf3fs_wait_for_ios(
    ior: *const Ior,
    completions: *mut Cqe,
    count: c_int,
    least: c_int,
    until: *const libc::timespec,
) -> c_int {
    // SAFETY: the caller vouches for it.
    let (ring, until) = unsafe { (ring(ior), until.as_ref()) };
    let Some(ring) = ring.filter(|_| count > 0 && !completions.is_null()) else {
        return -libc::EINVAL;
    };
    let deadline = until.map(|time| {
        let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
        UNIX_EPOCH + Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
    });
    let reaped = ring.wait(count as usize, least.max(0) as usize, deadline);
    for (place, completion) in reaped.iter().enumerate() {
        // SAFETY: there's room for `count`, and no more were reaped.
        unsafe { completions.add(place).write(*completion) };
    }
    reaped.len() as c_int
}
