//! The structs of the interface, as the library and its callers share them.

use std::ffi::c_void;

/// Memory for I/O.
#[repr(C)]
pub struct Iov {
    /// First byte, in the caller's mapping.
    pub base: *mut u8,
    /// The library's own.
    pub handle: *mut c_void,
    /// Names the memory.
    pub id: [u8; 16],
    /// The mount, ended by a zero.
    pub mount_point: [u8; 256],
    /// Bytes.
    pub size: usize,
    /// No I/O may cross a multiple of this; 0 for any.
    pub block_size: usize,
    /// NUMA node, or -1.
    pub numa: i32,
}

/// A ring of I/O in one direction.
#[repr(C)]
pub struct Ior {
    /// The ring's memory.
    pub iov: Iov,
    /// The library's own.
    pub handle: *mut c_void,
    /// The mount, ended by a zero.
    pub mount_point: [u8; 256],
    /// Direction.
    pub for_read: bool,
    /// How many I/O make a batch.
    pub io_depth: i32,
    /// Priority.
    pub priority: i32,
    /// How long an incomplete batch waits, in milliseconds.
    pub timeout: i32,
    /// Flags.
    pub flags: u64,
}

/// A completion.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Cqe {
    /// Place in the ring.
    pub index: i32,
    /// Zero.
    pub reserved: i32,
    /// Bytes moved, or an error number below zero.
    pub result: i64,
    /// As prepared.
    pub userdata: *const c_void,
}

const _: () = assert!(size_of::<Iov>() == 312 && size_of::<Ior>() == 600 && size_of::<Cqe>() == 24);
