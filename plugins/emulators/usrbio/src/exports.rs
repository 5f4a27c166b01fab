//! The functions of mounts and memory, with the names and results of the real library, and two for tests.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::fs::OpenOptions;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::abi::Iov;
use crate::iovs::{hexadecimal, map_file};
use crate::mounts::Mount;

/// # Safety
/// `text` must be null or end in a zero.
pub(crate) unsafe fn text<'a>(text: *const c_char) -> Option<&'a str> {
    if text.is_null() {
        return None;
    }
    // SAFETY: the caller vouches for it.
    unsafe { CStr::from_ptr(text) }.to_str().ok()
}

pub(crate) fn mount_point(name: &str) -> Option<[u8; 256]> {
    let mut bytes = [0; 256];
    let place = bytes.get_mut(..name.len()).filter(|_| name.len() < 256)?;
    place.copy_from_slice(name.as_bytes());
    Some(bytes)
}

/// Makes a directory play a mount: for tests, the real library has no such function. Returns 0 or -1.
///
/// # Safety
/// `path` must be null or end in a zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvstored_usrbio_mount(path: *const c_char) -> c_int {
    // SAFETY: the caller vouches for it.
    let path = unsafe { text(path) };
    path.and_then(|path| Mount::add(Path::new(path)))
        .map_or(-1, |_| 0)
}

/// Turns a switch of a mount, named as in the environment without the prefix: for tests, the real library has no such
/// function. Returns 0, or -1 where there's no such mount or switch.
///
/// # Safety
/// Both texts must be null or end in a zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvstored_usrbio_set(path: *const c_char, name: *const c_char, value: i64) -> c_int {
    // SAFETY: the caller vouches for it.
    let (path, name) = unsafe { (text(path), text(name)) };
    let mount = path.and_then(|path| Mount::around(Path::new(path)));
    match (mount, name) {
        (Some(mount), Some(name)) if mount.switches.set(name, value) => 0,
        _ => -1,
    }
}

/// The mount that a path lies in. Returns its length with the zero, or -1 outside of any.
///
/// # Safety
/// `out` must have `size` bytes; `path` must be null or end in a zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hf3fs_extract_mount_point(
    out: *mut c_char,
    size: c_int,
    path: *const c_char,
) -> c_int {
    // SAFETY: the caller vouches for it.
    let path = unsafe { text(path) };
    let Some(mount) = path.and_then(|path| Mount::around(Path::new(path))) else {
        return -1;
    };
    let name = mount.path.as_os_str().as_bytes();
    if (name.len() as c_int) < size {
        // SAFETY: it fits with the zero.
        unsafe {
            std::ptr::copy_nonoverlapping(name.as_ptr().cast(), out, name.len());
            *out.add(name.len()) = 0;
        }
    }
    name.len() as c_int + 1
}

/// What the library keeps of memory that it made.
struct Made {
    mount: Arc<Mount>,
    link: PathBuf,
    base: *mut u8,
    size: usize,
}

fn random_id() -> Option<[u8; 16]> {
    use std::io::Read;
    let mut id = [0; 16];
    let mut source = std::fs::File::open("/dev/urandom").ok()?;
    source.read_exact(&mut id).ok()?;
    Some(id)
}

/// Makes shared memory and tells the mount of it.
///
/// # Safety
/// `iov` must be null or point to one; `mount` must be null or end in a zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hf3fs_iovcreate(
    iov: *mut Iov,
    mount: *const c_char,
    size: usize,
    block_size: usize,
    numa: c_int,
) -> c_int {
    // SAFETY: the caller vouches for it.
    let Some(name) = (unsafe { text(mount) }) else {
        return -libc::EINVAL;
    };
    let Some(mount_point) = mount_point(name).filter(|_| !iov.is_null()) else {
        return -libc::EINVAL;
    };
    let Some(mount) = Mount::named(name) else {
        return -libc::ENOENT;
    };
    if size == 0 || block_size > size {
        return -libc::EIO;
    }
    let Some(id) = random_id() else { return -libc::EIO };
    let link = mount.iovs.link(&id, block_size);
    let path = PathBuf::from(format!("/dev/shm/kvstored-usrbio-{}", hexadecimal(&id)));
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path);
    let Ok(file) = opened else { return -libc::EIO };
    let made = file
        .set_len(size as u64)
        .ok()
        .and_then(|()| map_file(&file, size));
    let Some(base) = made.filter(|_| std::os::unix::fs::symlink(&path, &link).is_ok()) else {
        // nothing else refers to it
        let _ = std::fs::remove_file(&path);
        return -libc::EIO;
    };
    // the other side maps it here and now, so that its name isn't left behind by a process that's killed
    let mapped = mount.iovs.find(&id).is_some();
    let _ = std::fs::remove_file(&path);
    if !mapped {
        let _ = std::fs::remove_file(&link);
        return -libc::EIO;
    }
    let made = Box::new(Made {
        mount,
        link,
        base,
        size,
    });
    // SAFETY: the caller lends it.
    unsafe {
        iov.write(Iov {
            base,
            handle: Box::into_raw(made).cast(),
            id,
            mount_point,
            size,
            block_size,
            numa,
        });
    }
    0
}

/// Describes memory that the caller made and linked.
///
/// # Safety
/// `iov` must be null or point to one, `id` must have 16 bytes, `mount` must be null or end in a zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hf3fs_iovwrap(
    iov: *mut Iov,
    base: *mut c_void,
    id: *const u8,
    mount: *const c_char,
    size: usize,
    block_size: usize,
    numa: c_int,
) -> c_int {
    // SAFETY: the caller vouches for it.
    let Some(mount_point) = unsafe { text(mount) }.and_then(mount_point) else {
        return -libc::EINVAL;
    };
    if iov.is_null() || id.is_null() {
        return -libc::EINVAL;
    }
    // SAFETY: the caller lends both.
    unsafe {
        iov.write(Iov {
            base: base.cast(),
            handle: std::ptr::null_mut(),
            id: id.cast::<[u8; 16]>().read(),
            mount_point,
            size,
            block_size,
            numa,
        });
    }
    0
}

/// Frees what `hf3fs_iovcreate` made.
///
/// # Safety
/// `iov` must be null or one of those, with nothing under way.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hf3fs_iovdestroy(iov: *mut Iov) {
    // SAFETY: the caller vouches for it.
    let Some(iov) = (unsafe { iov.as_mut() }) else {
        return;
    };
    if iov.handle.is_null() {
        return;
    }
    // SAFETY: made above, freed once.
    let made = unsafe { Box::from_raw(iov.handle.cast::<Made>()) };
    iov.handle = std::ptr::null_mut();
    // what is gone already needn't be removed
    let _ = std::fs::remove_file(&made.link);
    made.mount.iovs.forget(&iov.id);
    // SAFETY: mapped above.
    unsafe { libc::munmap(made.base.cast(), made.size) };
}
