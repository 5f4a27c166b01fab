//! The library's structs on x86-64 and other 64-bit systems.

use std::ffi::c_void;

/// Memory for I/O: `struct hf3fs_iov`.
#[repr(C)]
pub struct Iov {
    /// First byte.
    pub base: *mut u8,
    /// The library's own.
    pub handle: *mut c_void,
    /// Names the memory.
    pub id: [u8; 16],
    /// The mount.
    pub mount_point: [u8; 256],
    /// Bytes.
    pub size: usize,
    /// No I/O may cross a multiple of this.
    pub block_size: usize,
    /// NUMA node.
    pub numa: i32,
}

/// A ring: `struct hf3fs_ior`.
#[repr(C)]
pub struct Ior {
    /// The ring's memory.
    pub iov: Iov,
    /// The library's own.
    pub handle: *mut c_void,
    /// The mount.
    pub mount_point: [u8; 256],
    /// Direction.
    pub for_read: bool,
    /// I/O in a batch.
    pub io_depth: i32,
    /// Priority.
    pub priority: i32,
    /// How long an incomplete batch waits.
    pub timeout: i32,
    /// Flags.
    pub flags: u64,
}

/// A completion: `struct hf3fs_cqe`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Cqe {
    /// Place in the ring.
    pub index: i32,
    /// Unused.
    pub reserved: i32,
    /// Bytes moved, or an error number below zero.
    pub result: i64,
    /// As prepared.
    pub userdata: *const c_void,
}

const _: () = assert!(size_of::<Iov>() == 312 && size_of::<Ior>() == 600 && size_of::<Cqe>() == 24);
