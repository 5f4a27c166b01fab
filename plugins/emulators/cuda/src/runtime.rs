//! Starting, and contexts: a device's number and one more.

use std::ffi::{c_char, c_int, c_uint, c_void};

use kvstored_emulated_ascendcl as beneath;

use crate::{INVALID_VALUE, NO_DEVICE, OK, Status, translated};

/// Starts; again is fine.
#[unsafe(no_mangle)]
pub extern "C" fn cuInit(_flags: c_uint) -> Status {
    translated(beneath::aclInit(std::ptr::null()))
}

/// How many devices there are.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> Status {
    let mut devices = 0;
    // SAFETY: the caller passes a place for the result.
    unsafe {
        let status = beneath::aclrtGetDeviceCount(&raw mut devices);
        *count = devices as c_int;
        translated(status)
    }
}

/// A device's handle: its number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGet(device: *mut c_int, number: c_int) -> Status {
    // SAFETY: the caller passes a place for the result.
    unsafe { *device = number };
    OK
}

/// The context that all of a process share.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut *mut c_void, device: c_int) -> Status {
    let Ok(number) = usize::try_from(device) else {
        return NO_DEVICE;
    };
    // SAFETY: the caller passes a place for the result.
    unsafe { *context = std::ptr::without_provenance_mut(number + 1) };
    OK
}

/// Gives it back.
#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxRelease_v2(_device: c_int) -> Status {
    OK
}

/// Makes a context this thread's.
#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetCurrent(context: *mut c_void) -> Status {
    match (context as usize).checked_sub(1) {
        Some(number) => translated(beneath::aclrtSetDevice(number as i32)),
        None => translated(beneath::aclrtResetDevice(0)),
    }
}

/// Words for an error: always the same.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorString(_status: Status, words: *mut *const c_char) -> Status {
    if words.is_null() {
        return INVALID_VALUE;
    }
    // SAFETY: the caller passes a place for the result.
    unsafe { *words = c"said by the emulator".as_ptr() };
    OK
}
