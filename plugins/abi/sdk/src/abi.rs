//! The C interface, declared for Rust. `include/kvstored_plugin.h` says what everything means; a test compiles it and
//! compares every size, offset and constant with these.

mod transport;

use std::ffi::{c_char, c_void};

pub use transport::*;

/// Major version in the upper 16 bits.
pub const ABI_VERSION: u32 = 0x0001_0002;
/// The exported function's name.
pub const ENTRY_SYMBOL: &[u8] = b"kvstored_plugin_entry\0";

/// An operation succeeded. Other outcomes are [`crate::Kind`].
pub const OK: i32 = 0;
/// Fill the buffer.
pub const READ: u32 = 1;
/// Store the buffer.
pub const WRITE: u32 = 2;
/// Lost with the process.
pub const MEMORY: u32 = 0;
/// Survives the process.
pub const TIER: u32 = 1;
/// Survives a power loss.
pub const DURABLE: u32 = 2;

/// From this process into the device.
pub const HOST_TO_DEVICE: u32 = 1;
/// From the device into this process.
pub const DEVICE_TO_HOST: u32 = 2;
/// Within the device.
pub const DEVICE_TO_DEVICE: u32 = 3;
/// The longest key of shared device memory.
pub const MOST_KEY_BYTES: usize = 512;

/// UTF-8 text with a length.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Text {
    /// First byte.
    pub data: *const c_char,
    /// Bytes.
    pub length: u64,
}

impl Text {
    /// Text that is valid as long as `text` is.
    pub fn lend(text: &str) -> Self {
        Self {
            data: text.as_ptr().cast(),
            length: text.len() as u64,
        }
    }
}

/// A block's hash.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hash {
    /// The bytes, padded with zeros.
    pub bytes: [u8; 32],
    /// 16 to 32.
    pub length: u32,
    /// Zero.
    pub reserved: u32,
}

/// A block's whole name.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// The namespace's digest.
    pub namespace_digest: [u8; 32],
    /// The block's hash.
    pub hash: Hash,
}

/// A key and its value.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Name.
    pub key: Text,
    /// Value.
    pub value: Text,
}

/// What a tier is told of a namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Namespace {
    /// Bytes of this struct.
    pub struct_size: u32,
    /// Shards of a block.
    pub shards: u32,
    /// The namespace's digest.
    pub digest: [u8; 32],
    /// Bytes that each operation moves.
    pub image_bytes: u64,
    /// Bytes of KV in a block.
    pub payload_bytes: u64,
    /// Who owns the namespace.
    pub tenant: Text,
    /// Model name, for people.
    pub model: Text,
    /// Identity and layout as JSON; since 1.1.
    pub description: Text,
}

/// Memory of the host that buffers lie in.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Bytes of this struct.
    pub struct_size: u32,
    /// Descriptor of the file that is mapped, from its start.
    pub file: i32,
    /// Names the mapping in this process.
    pub id: u64,
    /// First byte.
    pub base: *mut c_void,
    /// Bytes.
    pub length: u64,
}

/// One operation of a batch.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    /// Bytes of this struct, and where the next one begins.
    pub struct_size: u32,
    /// [`READ`] or [`WRITE`].
    pub action: u32,
    /// Names the operation when it completes.
    pub ticket: u64,
    /// The block.
    pub key: Key,
    /// The buffer, lent until completion.
    pub data: *mut c_void,
    /// Bytes of the buffer.
    pub length: u64,
    /// For writes: [`MEMORY`], [`TIER`] or [`DURABLE`].
    pub durability: u32,
    /// Zero.
    pub reserved: u32,
    /// The memory that the buffer lies in, or null; since 1.1.
    pub memory: *const Memory,
}

/// A tier's numbers.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Bytes of this struct.
    pub struct_size: u32,
    /// Not 0 while the tier doesn't work.
    pub degraded: u32,
    /// Physical bytes occupied.
    pub allocated_bytes: u64,
    /// Bound of `allocated_bytes`.
    pub capacity_bytes: u64,
    /// Bytes read from the medium.
    pub read_bytes: u64,
    /// Bytes written to the medium.
    pub written_bytes: u64,
    /// Blocks evicted to make room.
    pub evicted_blocks: u64,
    /// Writes refused for want of space.
    pub refused_writes: u64,
}

/// What the host gives to a tier.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// Bytes of this struct.
    pub struct_size: u32,
    /// The host's version.
    pub abi_version: u32,
    /// First argument of every function.
    pub context: *mut c_void,
    /// Writes a line to the host's log.
    pub log: Option<unsafe extern "C" fn(context: *mut c_void, level: u32, message: Text)>,
    /// Ends an operation.
    pub complete: Option<
        unsafe extern "C" fn(context: *mut c_void, ticket: u64, status: i32, transferred: u64, message: Text),
    >,
    /// Blocks are here.
    pub stored: Option<unsafe extern "C" fn(context: *mut c_void, keys: *const Key, count: u64)>,
    /// Blocks have left.
    pub removed: Option<unsafe extern "C" fn(context: *mut c_void, keys: *const Key, count: u64)>,
    /// A namespace of blocks that are told of; since 1.2.
    pub describe: Option<unsafe extern "C" fn(context: *mut c_void, info: *const Namespace)>,
}

/// A tier's functions. They are options so that a missing one is seen, not called.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Tier {
    /// Bytes of this struct.
    pub struct_size: u32,
    /// [`MEMORY`], [`TIER`] or [`DURABLE`].
    pub keeps: u32,
    /// Makes a tier.
    pub open: Option<
        unsafe extern "C" fn(
            host: *const Host,
            settings: *const Setting,
            count: u64,
            tier: *mut *mut c_void,
        ) -> i32,
    >,
    /// Tells of a namespace.
    pub open_namespace: Option<unsafe extern "C" fn(tier: *mut c_void, info: *const Namespace) -> i32>,
    /// Takes operations over.
    pub submit: Option<unsafe extern "C" fn(tier: *mut c_void, operations: *const Operation, count: u64)>,
    /// Forgets blocks.
    pub remove: Option<unsafe extern "C" fn(tier: *mut c_void, keys: *const Key, count: u64) -> i32>,
    /// Forgets a namespace.
    pub purge: Option<unsafe extern "C" fn(tier: *mut c_void, namespace_digest: *const u8) -> i32>,
    /// Gives the numbers.
    pub statistics: Option<unsafe extern "C" fn(tier: *mut c_void, statistics: *mut Statistics) -> i32>,
    /// Makes what was completed safe.
    pub drain: Option<unsafe extern "C" fn(tier: *mut c_void, timeout_ms: u64) -> i32>,
    /// Ends the tier.
    pub close: Option<unsafe extern "C" fn(tier: *mut c_void)>,
}

/// One copy of a batch.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copy {
    /// Where the bytes go.
    pub destination: u64,
    /// Where they come from.
    pub source: u64,
    /// How many.
    pub bytes: u64,
}

/// What a device has been asked for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceStatistics {
    /// Bytes of this struct.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// Calls of the vendor's library that took many copies.
    pub batch_calls: u64,
    /// Calls of it that took one.
    pub single_calls: u64,
    /// Copies in both.
    pub copies: u64,
    /// Their bytes.
    pub copied_bytes: u64,
}

/// A device's functions. They are options so that a missing one is seen, not called.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Device {
    /// Bytes of this struct.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// Makes a device.
    pub open: Option<
        unsafe extern "C" fn(
            host: *const Host,
            settings: *const Setting,
            count: u64,
            device: *mut *mut c_void,
        ) -> i32,
    >,
    /// Ends the device.
    pub close: Option<unsafe extern "C" fn(device: *mut c_void)>,
    /// Why the latest call on this thread failed.
    pub last_error: Option<unsafe extern "C" fn(text: *mut c_char, capacity: u64) -> u64>,
    /// Makes the device the calling thread's.
    pub bind_thread: Option<unsafe extern "C" fn(device: *mut c_void) -> i32>,
    /// Free and total bytes.
    pub memory:
        Option<unsafe extern "C" fn(device: *mut c_void, free_bytes: *mut u64, total_bytes: *mut u64) -> i32>,
    /// Allocates device memory.
    pub allocate: Option<unsafe extern "C" fn(device: *mut c_void, bytes: u64, address: *mut u64) -> i32>,
    /// Frees it.
    pub release: Option<unsafe extern "C" fn(device: *mut c_void, address: u64) -> i32>,
    /// Makes host memory known. Optional.
    pub register_host:
        Option<unsafe extern "C" fn(device: *mut c_void, address: *mut c_void, bytes: u64) -> i32>,
    /// Takes that back. Optional.
    pub unregister_host: Option<unsafe extern "C" fn(device: *mut c_void, address: *mut c_void) -> i32>,
    /// A new stream.
    pub create_stream: Option<unsafe extern "C" fn(device: *mut c_void, stream: *mut u64) -> i32>,
    /// Ends a stream.
    pub destroy_stream: Option<unsafe extern "C" fn(device: *mut c_void, stream: u64) -> i32>,
    /// Hands copies to a stream.
    pub copy: Option<
        unsafe extern "C" fn(
            device: *mut c_void,
            stream: u64,
            direction: u32,
            copies: *const Copy,
            count: u64,
        ) -> i32,
    >,
    /// Waits for a stream.
    pub synchronize_stream:
        Option<unsafe extern "C" fn(device: *mut c_void, stream: u64, timeout_ms: u64) -> i32>,
    /// Drops what a stream hasn't begun. Optional.
    pub abort_stream: Option<unsafe extern "C" fn(device: *mut c_void, stream: u64) -> i32>,
    /// A new event.
    pub create_event: Option<unsafe extern "C" fn(device: *mut c_void, event: *mut u64) -> i32>,
    /// Ends an event.
    pub destroy_event: Option<unsafe extern "C" fn(device: *mut c_void, event: u64) -> i32>,
    /// Marks a stream's end.
    pub record_event: Option<unsafe extern "C" fn(device: *mut c_void, stream: u64, event: u64) -> i32>,
    /// Lets a stream wait for an event.
    pub wait_event: Option<unsafe extern "C" fn(device: *mut c_void, stream: u64, event: u64) -> i32>,
    /// Whether an event has been reached.
    pub query_event: Option<unsafe extern "C" fn(device: *mut c_void, event: u64, reached: *mut u32) -> i32>,
    /// Waits for an event.
    pub synchronize_event:
        Option<unsafe extern "C" fn(device: *mut c_void, event: u64, timeout_ms: u64) -> i32>,
    /// A key for other processes. Optional.
    pub export_memory: Option<
        unsafe extern "C" fn(
            device: *mut c_void,
            address: u64,
            bytes: u64,
            key: *mut u8,
            key_bytes: *mut u64,
        ) -> i32,
    >,
    /// Maps another process's memory. Optional.
    pub import_memory: Option<
        unsafe extern "C" fn(device: *mut c_void, key: *const u8, key_bytes: u64, address: *mut u64) -> i32,
    >,
    /// Unmaps it. Optional.
    pub close_import: Option<
        unsafe extern "C" fn(device: *mut c_void, address: u64, key: *const u8, key_bytes: u64) -> i32,
    >,
    /// Gives the numbers.
    pub statistics:
        Option<unsafe extern "C" fn(device: *mut c_void, statistics: *mut DeviceStatistics) -> i32>,
}

/// What the exported function returns.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Plugin {
    /// Bytes of this struct.
    pub struct_size: u32,
    /// The version that the plugin was built for.
    pub abi_version: u32,
    /// The plugin's name, ended by a zero.
    pub name: *const c_char,
    /// The plugin's version, ended by a zero.
    pub version: *const c_char,
    /// Its tier, if it has one.
    pub tier: *const Tier,
    /// Its device, if it has one. Since 1.1.
    pub device: *const Device,
    /// Its transport, if it has one. Since 1.1.
    pub transport: *const Transport,
}

/// Bytes of [`Plugin`] in version 1.0.
pub const PLUGIN_BYTES_1_0: usize = std::mem::offset_of!(Plugin, device);

// SAFETY: the pointers of a plugin's description point to constants that live for ever.
unsafe impl Sync for Plugin {}

/// The exported function.
pub type Entry = unsafe extern "C" fn(host_abi_version: u32) -> *const Plugin;
