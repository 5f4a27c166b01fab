//! Streams and events.

use std::ffi::{c_uint, c_void};

use kvstored_emulated_ascendcl as beneath;

use crate::{NOT_READY, OK, Status, translated};

/// A new stream.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreate(handle: *mut *mut c_void, flags: c_uint) -> Status {
    // SAFETY: the caller passes a place for the result.
    translated(unsafe { beneath::aclrtCreateStreamWithConfig(handle, 0, flags) })
}

/// Ends a stream once it has done what it was given.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamDestroy_v2(handle: *mut c_void) -> Status {
    // SAFETY: the caller vouches for the handle.
    translated(unsafe { beneath::aclrtDestroyStream(handle) })
}

/// Whether a stream has done everything.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamQuery(handle: *mut c_void) -> Status {
    let mut busy = 0;
    // SAFETY: the caller vouches for the handle.
    let status = unsafe { beneath::aclrtStreamQuery(handle, &raw mut busy) };
    match translated(status) {
        OK if busy != 0 => NOT_READY,
        status => status,
    }
}

/// Has a stream call a function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchHostFunc(
    handle: *mut c_void,
    function: unsafe extern "C" fn(*mut c_void),
    argument: *mut c_void,
) -> Status {
    // SAFETY: the caller vouches for the handle and for the function.
    translated(unsafe { beneath::aclrtLaunchHostFunc(handle, function, argument) })
}

/// A new event.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventCreate(handle: *mut *mut c_void, flags: c_uint) -> Status {
    // SAFETY: the caller passes a place for the result.
    translated(unsafe { beneath::aclrtCreateEventExWithFlag(handle, flags) })
}

/// Ends an event.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventDestroy_v2(handle: *mut c_void) -> Status {
    // SAFETY: the caller vouches for the handle.
    translated(unsafe { beneath::aclrtDestroyEvent(handle) })
}

/// Marks a stream's present end.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventRecord(event: *mut c_void, handle: *mut c_void) -> Status {
    // SAFETY: the caller vouches for both handles.
    translated(unsafe { beneath::aclrtRecordEvent(event, handle) })
}

/// Lets a stream wait for an event's latest record.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamWaitEvent(
    handle: *mut c_void,
    event: *mut c_void,
    _flags: c_uint,
) -> Status {
    // SAFETY: the caller vouches for both handles.
    translated(unsafe { beneath::aclrtStreamWaitEvent(handle, event) })
}

/// Whether the latest record has been reached.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventQuery(event: *mut c_void) -> Status {
    let mut reached = 0;
    // SAFETY: the caller vouches for the handle.
    let status = unsafe { beneath::aclrtQueryEventStatus(event, &raw mut reached) };
    match translated(status) {
        OK if reached == 0 => NOT_READY,
        status => status,
    }
}
