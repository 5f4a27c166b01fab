//! The structs of the interface.

use std::ffi::{c_char, c_void};

/// Bytes of an endpoint's description.
pub(crate) const ENDPOINT_BYTES: usize = 160;

/// A card, compared as a whole.
#[repr(C, align(4))]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    /// All of it.
    pub bytes: [u8; ENDPOINT_BYTES],
}

/// A range of memory.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Memory {
    /// 0 device, 1 host.
    pub kind: i32,
    /// First byte.
    pub address: *mut c_void,
    /// Bytes.
    pub bytes: u64,
}

/// What a server is made from.
#[repr(C)]
pub struct ServerDescription {
    /// Its cards.
    pub endpoints: *const Endpoint,
    /// Where it listens.
    pub ip: *const c_char,
    /// The port.
    pub port: u32,
    /// How many cards.
    pub endpoint_count: u32,
    /// Room.
    pub reserved: [u8; 104],
}

/// What a client is made from.
#[repr(C)]
pub struct ClientDescription {
    /// Its card.
    pub local: *const Endpoint,
    /// The server's.
    pub remote: *const Endpoint,
    /// Where the server listens.
    pub ip: *const c_char,
    /// The port.
    pub port: u32,
    /// Marks packets.
    pub marks: [u8; 2],
    /// Room.
    pub reserved: [u8; 98],
}

/// One run of bytes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct OneSided {
    /// At the server.
    pub remote: *mut c_void,
    /// At the client.
    pub local: *mut c_void,
    /// Bytes.
    pub bytes: u64,
}

const _: () = assert!(size_of::<ServerDescription>() == 128 && size_of::<ClientDescription>() == 128);
const _: () = assert!(size_of::<Memory>() == 24 && size_of::<OneSided>() == 24);
