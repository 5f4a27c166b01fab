//! The part about transports.

use std::ffi::{c_char, c_void};

use super::{Host, Setting};

/// From the peer's memory to this process's.
pub const FROM_PEER: u32 = 1;
/// From this process's memory to the peer's.
pub const TO_PEER: u32 = 2;
/// Registered memory that only moves of this process touch.
pub const EXPOSED_TO_NOBODY: u32 = 0;
/// Registered memory that peers' moves touch.
pub const EXPOSED_TO_PEERS: u32 = 1;
/// The longest address of a transport.
pub const MOST_ADDRESS_BYTES: usize = 256;

/// One run of bytes that a transport moves.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Move {
    /// Address in this process.
    pub local: u64,
    /// Address in the peer's.
    pub remote: u64,
    /// Bytes.
    pub bytes: u64,
}

/// A transport's functions. They are options so that a missing one is seen, not called.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Transport {
    /// Bytes of this struct.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// Makes a transport.
    pub open: Option<
        unsafe extern "C" fn(
            host: *const Host,
            settings: *const Setting,
            count: u64,
            transport: *mut *mut c_void,
        ) -> i32,
    >,
    /// Ends the transport.
    pub close: Option<unsafe extern "C" fn(transport: *mut c_void)>,
    /// Why the latest call on this thread failed.
    pub last_error: Option<unsafe extern "C" fn(text: *mut c_char, capacity: u64) -> u64>,
    /// What peers need to connect.
    pub address:
        Option<unsafe extern "C" fn(transport: *mut c_void, bytes: *mut u8, length: *mut u64) -> i32>,
    /// Makes memory known.
    pub register_memory: Option<
        unsafe extern "C" fn(
            transport: *mut c_void,
            address: *mut c_void,
            bytes: u64,
            exposed: u32,
            memory: *mut u64,
        ) -> i32,
    >,
    /// Takes that back.
    pub unregister_memory: Option<unsafe extern "C" fn(transport: *mut c_void, memory: u64) -> i32>,
    /// Connects with a peer.
    pub connect: Option<
        unsafe extern "C" fn(
            transport: *mut c_void,
            address: *const u8,
            length: u64,
            timeout_ms: u64,
            connection: *mut u64,
        ) -> i32,
    >,
    /// Ends a connection and what is under way on it.
    pub disconnect: Option<unsafe extern "C" fn(transport: *mut c_void, connection: u64) -> i32>,
    /// Begins to move a batch.
    pub submit: Option<
        unsafe extern "C" fn(
            transport: *mut c_void,
            connection: u64,
            direction: u32,
            moves: *const Move,
            count: u64,
            ticket: u64,
        ) -> i32,
    >,
}
