//! Memory, registered and shared.

use std::ffi::{CStr, c_char, c_uint, c_void};
use std::sync::{Mutex, PoisonError};

use kvstored_emulated_ascendcl as beneath;

use crate::{INVALID_VALUE, OK, Status, translated};

/// Free and total bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> Status {
    // SAFETY: the caller passes places for the results.
    translated(unsafe { beneath::aclrtGetMemInfo(1, free, total) })
}

/// Allocates.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAlloc_v2(address: *mut u64, bytes: usize) -> Status {
    let mut pointer = std::ptr::null_mut();
    // SAFETY: the caller passes a place for the result.
    unsafe {
        let status = beneath::aclrtMalloc(&raw mut pointer, bytes, 0);
        *address = pointer as u64;
        translated(status)
    }
}

/// Frees.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemFree_v2(address: u64) -> Status {
    translated(beneath::aclrtFree(address as *mut c_void))
}

/// Makes the host's memory known.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemHostRegister_v2(address: *mut c_void, bytes: usize, flags: c_uint) -> Status {
    translated(beneath::aclrtHostRegisterV2(address, bytes as u64, flags))
}

/// Takes that back.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemHostUnregister(address: *mut c_void) -> Status {
    translated(beneath::aclrtHostUnregister(address))
}

/// A key of exported memory: text, padded with zeros.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct IpcHandle {
    bytes: [u8; 64],
}

/// A key by which another process may map an allocation.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuIpcGetMemHandle(handle: *mut IpcHandle, address: u64) -> Status {
    let mut bytes = [0u8; 64];
    let key = bytes.as_mut_ptr().cast::<c_char>();
    // SAFETY: the key has that much room, and the caller passes a place for the result.
    unsafe {
        let status = beneath::aclrtIpcMemGetExportKey(address as *mut c_void, 1, key, bytes.len(), 0);
        *handle = IpcHandle { bytes };
        translated(status)
    }
}

/// Imports by their addresses.
static IMPORTS: Mutex<Vec<(u64, IpcHandle)>> = Mutex::new(Vec::new());

/// Maps what another process exported.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuIpcOpenMemHandle_v2(
    address: *mut u64,
    handle: IpcHandle,
    _flags: c_uint,
) -> Status {
    let Ok(key) = CStr::from_bytes_until_nul(&handle.bytes) else {
        return INVALID_VALUE;
    };
    let mut pointer = std::ptr::null_mut();
    // SAFETY: the key is a text that is ended by a zero; the caller passes a place for the result.
    unsafe {
        let status = translated(beneath::aclrtIpcMemImportByKey(&raw mut pointer, key.as_ptr(), 0));
        if status == OK {
            *address = pointer as u64;
            let mut imports = IMPORTS.lock().unwrap_or_else(PoisonError::into_inner);
            imports.push((*address, handle));
        }
        status
    }
}

/// Unmaps it.
#[unsafe(no_mangle)]
pub extern "C" fn cuIpcCloseMemHandle(address: u64) -> Status {
    let mut imports = IMPORTS.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(at) = imports.iter().position(|(known, _)| *known == address) else {
        return INVALID_VALUE;
    };
    let (_, handle) = imports.remove(at);
    // SAFETY: it was ended by a zero when it was imported.
    translated(unsafe { beneath::aclrtIpcMemClose(handle.bytes.as_ptr().cast()) })
}
