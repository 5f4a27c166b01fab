//! Copies, one and many.

use std::ffi::{c_int, c_uint, c_void};

use kvstored_emulated_ascendcl as beneath;

use crate::{INVALID_VALUE, NOT_SUPPORTED, OK, Status, translated};

const HOST_TO_DEVICE: c_int = 1;
const DEVICE_TO_HOST: c_int = 2;
const DEVICE_TO_DEVICE: c_int = 3;
/// By the addresses.
const EITHER: c_int = 4;

/// # Safety
/// The stream and the host's ranges must be valid.
unsafe fn copy(destination: u64, source: u64, bytes: usize, kind: c_int, handle: *mut c_void) -> Status {
    let (destination, source) = (destination as *mut c_void, source as *const c_void);
    // SAFETY: the caller vouches for it.
    translated(unsafe { beneath::aclrtMemcpyAsync(destination, bytes, source, bytes, kind, handle) })
}

/// Gives a copy to a stream.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoDAsync_v2(
    destination: u64,
    source: *const c_void,
    bytes: usize,
    handle: *mut c_void,
) -> Status {
    // SAFETY: the caller vouches for it.
    unsafe { copy(destination, source as u64, bytes, HOST_TO_DEVICE, handle) }
}

/// Gives a copy to a stream.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoHAsync_v2(
    destination: *mut c_void,
    source: u64,
    bytes: usize,
    handle: *mut c_void,
) -> Status {
    // SAFETY: the caller vouches for it.
    unsafe { copy(destination as u64, source, bytes, DEVICE_TO_HOST, handle) }
}

/// Gives a copy to a stream.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoDAsync_v2(
    destination: u64,
    source: u64,
    bytes: usize,
    handle: *mut c_void,
) -> Status {
    // SAFETY: the caller vouches for it.
    unsafe { copy(destination, source, bytes, DEVICE_TO_DEVICE, handle) }
}

/// Where memory lies.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Location {
    kind: c_int,
    id: c_int,
}

/// How copies of a batch go.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct BatchAttribute {
    source_order: c_int,
    source: Location,
    destination: Location,
    flags: c_uint,
}

/// Gives many copies to a stream.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyBatchAsync(
    destinations: *mut u64,
    sources: *mut u64,
    sizes: *mut usize,
    count: usize,
    attributes: *mut BatchAttribute,
    firsts: *mut usize,
    attribute_count: usize,
    failed: *mut usize,
    handle: *mut c_void,
) -> Status {
    if beneath::faults::has_no_batches() {
        return NOT_SUPPORTED;
    }
    // SAFETY: the caller passes arrays of those lengths.
    let (destinations, sources, sizes, wrong) = unsafe {
        if count == 0 || attribute_count != 1 || *firsts != 0 || handle.is_null() {
            return INVALID_VALUE;
        }
        (
            std::slice::from_raw_parts(destinations, count),
            std::slice::from_raw_parts(sources, count),
            std::slice::from_raw_parts(sizes, count),
            // the order in which sources are read has to be one of three
            !(1..=3).contains(&(*attributes).source_order),
        )
    };
    if wrong {
        return INVALID_VALUE;
    }
    let copies = destinations.iter().zip(sources).zip(sizes);
    let copies = copies
        .map(|((destination, source), bytes)| (*destination as usize, *source as usize, *bytes, EITHER));
    // SAFETY: the caller vouches for the ranges and the stream.
    match unsafe { beneath::give_batch(copies, handle) } {
        Ok(()) => OK,
        Err((status, index)) => {
            if !failed.is_null() {
                // SAFETY: the caller passes a place for the index.
                unsafe { *failed = index };
            }
            translated(status)
        }
    }
}
