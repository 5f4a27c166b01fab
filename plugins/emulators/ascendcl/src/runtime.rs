//! Starting, and the device of a thread.

use std::cell::Cell;
use std::ffi::c_char;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::faults::{DEVICES, read_environment};
use crate::statuses::{NO_CONTEXT, NO_DEVICE, OK, REPEATED_INITIALIZE, Status, UNINITIALIZED};

static INITIALIZED: AtomicBool = AtomicBool::new(false);

thread_local! {
    static CURRENT: Cell<Option<u32>> = const { Cell::new(None) };
}

/// The device of this thread.
pub(crate) fn current() -> Result<u32, Status> {
    CURRENT.get().ok_or(NO_CONTEXT)
}

/// Starts; twice is an error.
#[unsafe(no_mangle)]
pub extern "C" fn aclInit(_configuration: *const c_char) -> Status {
    if INITIALIZED.swap(true, Ordering::AcqRel) {
        return REPEATED_INITIALIZE;
    }
    read_environment();
    OK
}

/// Ends.
#[unsafe(no_mangle)]
pub extern "C" fn aclFinalize() -> Status {
    if INITIALIZED.swap(false, Ordering::AcqRel) {
        OK
    } else {
        UNINITIALIZED
    }
}

/// How many devices there are.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aclrtGetDeviceCount(count: *mut u32) -> Status {
    if !INITIALIZED.load(Ordering::Acquire) {
        return UNINITIALIZED;
    }
    // SAFETY: the caller passes a place for the result.
    unsafe { *count = DEVICES.get() as u32 };
    OK
}

/// Makes a device this thread's.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtSetDevice(device: i32) -> Status {
    if !INITIALIZED.load(Ordering::Acquire) {
        return UNINITIALIZED;
    }
    match u32::try_from(device) {
        Ok(device) if u64::from(device) < DEVICES.get() => {
            CURRENT.set(Some(device));
            OK
        }
        _ => NO_DEVICE,
    }
}

/// This thread's device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aclrtGetDevice(device: *mut i32) -> Status {
    match current() {
        Ok(current) => {
            // SAFETY: the caller passes a place for the result.
            unsafe { *device = current as i32 };
            OK
        }
        Err(status) => status,
    }
}

/// Takes the device from this thread.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtResetDevice(_device: i32) -> Status {
    CURRENT.set(None);
    OK
}

/// Words for the latest error: always the same.
#[unsafe(no_mangle)]
pub extern "C" fn aclGetRecentErrMsg() -> *const c_char {
    c"said by the emulator".as_ptr()
}
