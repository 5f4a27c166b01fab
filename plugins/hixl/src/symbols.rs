//! What we use of `libcann_hixl`, declared by ourselves: types, values and functions.
//!
//! They are those of the interface as it was published in August 2026. Earlier ones had the same names with other
//! arguments and layouts, and nothing in the library tells which one it has. `tests/headers.sh` compares them with the
//! vendor's public headers.

use std::ffi::{c_char, c_int, c_void};

/// Status of every call; 0 is success.
pub(crate) type Status = u32;
/// Whatever the library hands out.
pub(crate) type Handle = *mut c_void;

/// The address of an endpoint.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointAddress {
    /// [`ADDRESS_IP_V4`] or [`ADDRESS_IP_V6`].
    pub kind: c_int,
    /// The address, in the network's order, and zeros.
    pub bytes: [u8; 36],
}

/// Where an endpoint is.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointPlace {
    /// [`PLACE_DEVICE`] or [`PLACE_HOST`].
    pub kind: c_int,
    /// On a device: its physical number, and zeros.
    pub numbers: [u32; 15],
}

/// A card that moves bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// [`PROTOCOL_ROCE`].
    pub protocol: c_int,
    /// Its address.
    pub address: EndpointAddress,
    /// Where it is.
    pub place: EndpointPlace,
    /// Zero.
    pub reserved: [u8; 52],
}

/// A range of memory.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// [`MEMORY_HOST`].
    pub kind: c_int,
    /// Its first byte.
    pub address: *mut c_void,
    /// Its bytes.
    pub bytes: u64,
}

/// What a server is made from.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ServerDescription {
    /// Its cards.
    pub endpoints: *const Endpoint,
    /// Where it listens, ended by a zero.
    pub ip: *const c_char,
    /// The port.
    pub port: u32,
    /// How many cards.
    pub endpoint_count: u32,
    /// Zero.
    pub reserved: [u8; 104],
}

/// What a client is made from.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ClientDescription {
    /// Its card.
    pub local: *const Endpoint,
    /// The server's.
    pub remote: *const Endpoint,
    /// Where the server listens, ended by a zero.
    pub ip: *const c_char,
    /// The port.
    pub port: u32,
    /// Marks packets.
    pub traffic_class: u8,
    /// Marks packets.
    pub service_level: u8,
    /// Zero.
    pub reserved: [u8; 98],
}

/// Further settings of a server or a client, of which we have none.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ClientConfiguration {
    /// Null.
    pub resources: *const c_char,
    /// Zero.
    pub reserved: [u8; 120],
}

/// One run of bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct OneSided {
    /// At the server.
    pub remote: *mut c_void,
    /// At the client.
    pub local: *mut c_void,
    /// Bytes.
    pub bytes: u64,
}

pub(crate) const PROTOCOL_ROCE: c_int = 1;
pub(crate) const ADDRESS_IP_V4: c_int = 0;
pub(crate) const ADDRESS_IP_V6: c_int = 1;
pub(crate) const PLACE_DEVICE: c_int = 0;
pub(crate) const PLACE_HOST: c_int = 1;
pub(crate) const MEMORY_HOST: c_int = 1;

pub(crate) const OK: Status = 0;
pub(crate) const WAITING: c_int = 0;
pub(crate) const COMPLETED: c_int = 1;

pub(crate) const NO_CONFIGURATION: ClientConfiguration = ClientConfiguration {
    resources: std::ptr::null(),
    reserved: [0; 120],
};

macro_rules! functions {
    ($($name:ident : $symbol:literal = fn($($argument:ty),* $(,)?) -> $result:ty;)+) => {
        /// The functions of a loaded library.
        #[derive(Clone, Copy)]
        pub(crate) struct Functions {
            $(pub $name: unsafe extern "C" fn($($argument),*) -> $result,)+
        }

        impl Functions {
            /// Finds the functions. Fails with the name of one that isn't there.
            ///
            /// # Safety
            /// The library must be `libcann_hixl`, or behave like it, and never be unloaded.
            pub unsafe fn of(library: &libloading::Library) -> Result<Self, &'static str> {
                // SAFETY: the caller vouches for the library; the types are those of its public interface.
                unsafe {
                    Ok(Self {
                        $($name: *library.get(concat!($symbol, "\0").as_bytes()).map_err(|_| $symbol)?,)+
                    })
                }
            }
        }
    };
}

functions! {
    server_create: "HixlCSServerCreate" = fn(*const ServerDescription, *const ClientConfiguration, *mut Handle) -> Status;
    server_register: "HixlCSServerRegMem" = fn(Handle, *const c_char, *const Memory, *mut Handle) -> Status;
    server_unregister: "HixlCSServerUnregMem" = fn(Handle, Handle) -> Status;
    server_listen: "HixlCSServerListen" = fn(Handle, u32) -> Status;
    server_destroy: "HixlCSServerDestroy" = fn(Handle) -> Status;
    client_create: "HixlCSClientCreate" = fn(*const ClientDescription, *const ClientConfiguration, *mut Handle) -> Status;
    client_register: "HixlCSClientRegMem" = fn(Handle, *const c_char, *const Memory, *mut Handle) -> Status;
    client_unregister: "HixlCSClientUnregMem" = fn(Handle, Handle) -> Status;
    client_connect: "HixlCSClientConnect" = fn(Handle, u32) -> Status;
    client_remote: "HixlCSClientGetRemoteMem" = fn(Handle, *mut *mut Memory, *mut *mut *mut c_char, *mut u32, u32) -> Status;
    client_put: "HixlCSClientBatchPutAsync" = fn(Handle, u32, *const OneSided, *mut Handle) -> Status;
    client_get: "HixlCSClientBatchGetAsync" = fn(Handle, u32, *const OneSided, *mut Handle) -> Status;
    client_query: "HixlCSClientQueryCompleteStatus" = fn(Handle, Handle, *mut c_int) -> Status;
    client_destroy: "HixlCSClientDestroy" = fn(Handle) -> Status;
}

const _: () = assert!(size_of::<EndpointAddress>() == 40 && size_of::<EndpointPlace>() == 64);
const _: () = assert!(size_of::<Endpoint>() == 160 && size_of::<Memory>() == 24);
const _: () = assert!(size_of::<ServerDescription>() == 128 && size_of::<ClientDescription>() == 128);
const _: () = assert!(size_of::<ClientConfiguration>() == 128 && size_of::<OneSided>() == 24);
