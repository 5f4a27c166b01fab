//! How the library's structures lie in memory, as far as they are used here: fixed by the ABI of libibverbs.so.1.

use std::ffi::{c_int, c_uint, c_void};
use std::mem::{offset_of, size_of};

/// A pointer to something that is only passed on.
pub type Opaque = *mut c_void;

pub const ACCESS_LOCAL_WRITE: c_int = 1;
pub const ACCESS_REMOTE_WRITE: c_uint = 1 << 1;
pub const ACCESS_REMOTE_READ: c_uint = 1 << 2;
pub const ACCESS_BIND_WINDOW: c_int = 1 << 4;

pub const CAPABILITY_WINDOW_2A: c_uint = 1 << 23;
pub const CAPABILITY_WINDOW_2B: c_uint = 1 << 24;

pub const WINDOW_TYPE_2: c_int = 2;
pub const PORT_ACTIVE: c_int = 4;
pub const LAYER_ETHERNET: u8 = 2;
pub const RELIABLE_CONNECTION: c_int = 2;

pub const STATE_INIT: c_int = 1;
pub const STATE_READY_TO_RECEIVE: c_int = 2;
pub const STATE_READY_TO_SEND: c_int = 3;
pub const STATE_ERROR: c_int = 6;

/// Which fields of [`PairAttributes`] are meant.
pub mod mask {
    use std::ffi::c_int;
    pub const STATE: c_int = 1;
    pub const ACCESS: c_int = 1 << 3;
    pub const PKEY_INDEX: c_int = 1 << 4;
    pub const PORT: c_int = 1 << 5;
    pub const ADDRESS: c_int = 1 << 7;
    pub const PATH_MTU: c_int = 1 << 8;
    pub const TIMEOUT: c_int = 1 << 9;
    pub const RETRIES: c_int = 1 << 10;
    pub const NOT_READY_RETRIES: c_int = 1 << 11;
    pub const RECEIVE_PSN: c_int = 1 << 12;
    pub const READS_OUT: c_int = 1 << 13;
    pub const NOT_READY_TIMER: c_int = 1 << 15;
    pub const SEND_PSN: c_int = 1 << 16;
    pub const READS_IN: c_int = 1 << 17;
    pub const PEER_NUMBER: c_int = 1 << 20;
}

pub const OP_WRITE: c_int = 0;
pub const OP_SEND: c_int = 2;
pub const OP_READ: c_int = 4;
pub const OP_INVALIDATE: c_int = 7;
pub const OP_BIND: c_int = 8;

pub const EVENT_DEVICE_FATAL: c_int = 8;
pub const EVENT_PORT_ERROR: c_int = 10;

#[repr(C)]
pub struct RawDevice {
    _opaque: [u8; 0],
}

#[repr(C)]
pub struct RawDomain {
    _opaque: [u8; 0],
}

#[repr(C)]
pub struct RawCompletions {
    _opaque: [u8; 0],
}

/// The calls that are no exports but entries of the context's table.
#[repr(C)]
pub struct ContextOperations {
    before_windows: [Opaque; 7],
    pub allocate_window: Option<unsafe extern "C" fn(*mut RawDomain, c_int) -> *mut RawWindow>,
    bind_window: Opaque,
    pub free_window: Option<unsafe extern "C" fn(*mut RawWindow) -> c_int>,
    create_completions: Opaque,
    pub poll: Option<unsafe extern "C" fn(*mut RawCompletions, c_int, *mut Completion) -> c_int>,
    pub notify: Option<unsafe extern "C" fn(*mut RawCompletions, c_int) -> c_int>,
    between: [Opaque; 12],
    pub post_send:
        Option<unsafe extern "C" fn(*mut RawPair, *mut SendRequest, *mut *mut SendRequest) -> c_int>,
    pub post_receive:
        Option<unsafe extern "C" fn(*mut RawPair, *mut ReceiveRequest, *mut *mut ReceiveRequest) -> c_int>,
    after: [Opaque; 5],
}

#[repr(C)]
pub struct RawContext {
    device: *mut RawDevice,
    pub operations: ContextOperations,
    command_fd: c_int,
    pub event_fd: c_int,
}

/// The head of a memory region.
#[repr(C)]
pub struct RawRegion {
    context: *mut RawContext,
    domain: *mut RawDomain,
    address: Opaque,
    length: usize,
    handle: u32,
    pub local_key: u32,
    remote_key: u32,
}

/// The head of a memory window.
#[repr(C)]
pub struct RawWindow {
    context: *mut RawContext,
    domain: *mut RawDomain,
    pub key: u32,
    handle: u32,
    kind: c_int,
}

/// The head of an event channel.
#[repr(C)]
pub struct RawEventChannel {
    context: *mut RawContext,
    pub fd: c_int,
}

/// The head of a queue pair.
#[repr(C)]
pub struct RawPair {
    context: *mut RawContext,
    owner: Opaque,
    domain: *mut RawDomain,
    send_completions: *mut RawCompletions,
    receive_completions: *mut RawCompletions,
    shared_receives: Opaque,
    handle: u32,
    pub number: u32,
}

/// What a device can do; fields that nobody asks for are left out.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct DeviceAttributes {
    firmware_and_ids: [u64; 13],
    hardware_version: u32,
    max_pairs: c_int,
    pub max_work_requests: c_int,
    pub capabilities: c_uint,
    max_pieces: [c_int; 2],
    max_completion_queues: c_int,
    pub max_completions: c_int,
    max_regions_and_domains: [c_int; 2],
    pub max_reads_in: c_int,
    max_other_reads: [c_int; 2],
    pub max_reads_out: c_int,
    others: [c_int; 4],
    pub max_windows: c_int,
    rest: [u8; 47],
    pub ports: u8,
    tail: [u8; 4],
}

/// How a port is; longer than what any version of the library writes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PortAttributes {
    pub state: c_int,
    max_mtu: c_int,
    pub active_mtu: c_int,
    pub gids: c_int,
    capabilities: [u32; 4],
    pkeys: u16,
    pub lid: u16,
    subnet_manager: [u8; 10],
    pub link_layer: u8,
    flags: u8,
    room: [u8; 80],
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct PairCapacity {
    pub sends: u32,
    pub receives: u32,
    pub send_pieces: u32,
    pub receive_pieces: u32,
    pub inline_bytes: u32,
}

#[repr(C)]
pub struct PairSetup {
    pub owner: Opaque,
    pub send_completions: *mut RawCompletions,
    pub receive_completions: *mut RawCompletions,
    pub shared_receives: Opaque,
    pub capacity: PairCapacity,
    pub kind: c_int,
    pub signal_all: c_int,
}

#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub struct PathAddress {
    pub gid: [u8; 16],
    pub flow: u32,
    pub own_gid_index: u8,
    pub hop_limit: u8,
    pub traffic_class: u8,
    pub lid: u16,
    pub service_level: u8,
    source_bits: u8,
    rate: u8,
    pub has_gid: u8,
    pub port: u8,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct PairAttributes {
    pub state: c_int,
    current_state: c_int,
    pub path_mtu: c_int,
    migration: c_int,
    qkey: u32,
    pub receive_psn: u32,
    pub send_psn: u32,
    pub peer_number: u32,
    pub access: c_uint,
    capacity: PairCapacity,
    pub address: PathAddress,
    other_address: PathAddress,
    pub pkey_index: u16,
    other_pkey_index: u16,
    drained: [u8; 2],
    pub reads_out: u8,
    pub reads_in: u8,
    pub not_ready_timer: u8,
    pub port: u8,
    pub timeout: u8,
    pub retries: u8,
    pub not_ready_retries: u8,
    other_port: u8,
    other_timeout: u8,
    rate: u32,
}

/// One run of memory of a work request.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Piece {
    pub address: u64,
    pub length: u32,
    pub key: u32,
}

#[repr(C)]
pub struct SendRequest {
    pub id: u64,
    pub next: *mut SendRequest,
    pub pieces: *mut Piece,
    pub count: c_int,
    pub operation: c_int,
    flags: c_uint,
    /// The key to invalidate, for the operations that do; zero for the others.
    pub invalidated: u32,
    pub remote_address: u64,
    pub remote_key: u32,
    unused: [u32; 7],
    pub window: *mut RawWindow,
    pub window_key: u32,
    pub region: *mut RawRegion,
    pub window_address: u64,
    pub window_length: u64,
    pub window_access: c_uint,
}

#[repr(C)]
pub struct ReceiveRequest {
    pub id: u64,
    pub next: *mut ReceiveRequest,
    pub pieces: *mut Piece,
    pub count: c_int,
}

/// A work completion.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Completion {
    pub id: u64,
    pub status: c_int,
    operation: c_int,
    pub vendor_error: u32,
    pub bytes: u32,
    immediate: u32,
    pair: u32,
    source_pair: u32,
    flags: c_uint,
    others: [u16; 3],
    last: [u8; 2],
}

#[repr(C)]
pub struct AsyncEvent {
    element: Opaque,
    pub kind: c_int,
}

const _: () = {
    assert!(size_of::<ContextOperations>() == 256);
    assert!(offset_of!(ContextOperations, allocate_window) == 56);
    assert!(offset_of!(ContextOperations, free_window) == 72);
    assert!(offset_of!(ContextOperations, poll) == 88);
    assert!(offset_of!(ContextOperations, notify) == 96);
    assert!(offset_of!(ContextOperations, post_send) == 200);
    assert!(offset_of!(ContextOperations, post_receive) == 208);
    assert!(offset_of!(RawContext, operations) == 8);
    assert!(offset_of!(RawContext, event_fd) == 268);
    assert!(offset_of!(RawRegion, local_key) == 36);
    assert!(offset_of!(RawWindow, key) == 16);
    assert!(offset_of!(RawEventChannel, fd) == 8);
    assert!(offset_of!(RawPair, number) == 52);
    assert!(size_of::<DeviceAttributes>() == 232);
    assert!(offset_of!(DeviceAttributes, max_work_requests) == 112);
    assert!(offset_of!(DeviceAttributes, capabilities) == 116);
    assert!(offset_of!(DeviceAttributes, max_completions) == 132);
    assert!(offset_of!(DeviceAttributes, max_reads_in) == 144);
    assert!(offset_of!(DeviceAttributes, max_reads_out) == 156);
    assert!(offset_of!(DeviceAttributes, max_windows) == 176);
    assert!(offset_of!(DeviceAttributes, ports) == 227);
    assert!(offset_of!(PortAttributes, gids) == 12);
    assert!(offset_of!(PortAttributes, lid) == 34);
    assert!(offset_of!(PortAttributes, link_layer) == 46);
    assert!(size_of::<PortAttributes>() >= 128);
    assert!(size_of::<PairSetup>() == 64);
    assert!(offset_of!(PairSetup, kind) == 52);
    assert!(size_of::<PathAddress>() == 32);
    assert!(offset_of!(PathAddress, lid) == 24);
    assert!(offset_of!(PathAddress, has_gid) == 29);
    assert!(size_of::<PairAttributes>() == 144);
    assert!(offset_of!(PairAttributes, address) == 56);
    assert!(offset_of!(PairAttributes, pkey_index) == 120);
    assert!(offset_of!(PairAttributes, not_ready_retries) == 132);
    assert!(size_of::<SendRequest>() == 128);
    assert!(offset_of!(SendRequest, invalidated) == 36);
    assert!(offset_of!(SendRequest, remote_key) == 48);
    assert!(offset_of!(SendRequest, window) == 80);
    assert!(offset_of!(SendRequest, region) == 96);
    assert!(offset_of!(SendRequest, window_access) == 120);
    assert!(size_of::<ReceiveRequest>() == 32);
    assert!(size_of::<Completion>() == 48);
    assert!(offset_of!(Completion, bytes) == 20);
    assert!(size_of::<AsyncEvent>() == 16);
};
