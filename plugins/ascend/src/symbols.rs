//! What we use of `libascendcl`, declared by ourselves: types, values and functions.
//!
//! `tests/headers.sh` compares them with the vendor's public headers.

use std::ffi::{c_char, c_int, c_void};

/// Status of every call; 0 is success.
pub(crate) type Status = c_int;

/// A place of memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Location {
    /// The device's number; for the host 0.
    pub id: u32,
    /// [`LOCATION_HOST`] or [`LOCATION_DEVICE`].
    pub kind: c_int,
}

/// From where to where copies of a batch go.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct BatchAttribute {
    /// Of the destinations.
    pub destination: Location,
    /// Of the sources.
    pub source: Location,
    /// Zero.
    pub reserved: [u8; 16],
}

pub(crate) const LOCATION_HOST: c_int = 0;
pub(crate) const LOCATION_DEVICE: c_int = 1;

pub(crate) const HOST_TO_DEVICE: c_int = 1;
pub(crate) const DEVICE_TO_HOST: c_int = 2;
pub(crate) const DEVICE_TO_DEVICE: c_int = 3;

/// Huge pages if there are any.
pub(crate) const MALLOC_HUGE_FIRST: c_int = 0;
/// Of `aclrtGetMemInfo`: high-bandwidth memory.
pub(crate) const MEMORY_HBM: c_int = 1;
pub(crate) const STREAM_FAST_LAUNCH: u32 = 1;
pub(crate) const STREAM_FAST_SYNC: u32 = 2;
/// Streams may wait for the event.
pub(crate) const EVENT_SYNC: u32 = 1;
/// The event may be asked whether it has been reached.
pub(crate) const EVENT_PROGRESS: u32 = 2;
pub(crate) const EVENT_REACHED: c_int = 1;
pub(crate) const HOST_REGISTER_MAPPED: u32 = 2;
pub(crate) const HOST_REGISTER_PINNED: u32 = 0x1000_0000;
/// Whoever has a key may import; we hand keys to processes of our own only.
pub(crate) const EXPORT_WITHOUT_PID: u64 = 1;
/// The most copies in one call.
pub(crate) const MOST_BATCH: usize = 4096;
/// Room for a key of exported memory, as text that is ended by a zero.
pub(crate) const KEY_BYTES: usize = 65;

pub(crate) const OK: Status = 0;
pub(crate) const REPEATED_INITIALIZE: Status = 100_002;
pub(crate) const UNSUPPORTED: Status = 207_000;

macro_rules! functions {
    (required { $($name:ident : $symbol:literal = fn($($argument:ty),* $(,)?) -> $result:ty;)+ }
     optional { $($optional:ident : $optional_symbol:literal = fn($($optional_argument:ty),* $(,)?) -> $optional_result:ty;)+ }) => {
        /// The functions of a loaded library.
        #[derive(Clone, Copy)]
        pub(crate) struct Functions {
            $(pub $name: unsafe extern "C" fn($($argument),*) -> $result,)+
            $(pub $optional: Option<unsafe extern "C" fn($($optional_argument),*) -> $optional_result>,)+
        }

        impl Functions {
            /// Finds the functions. Fails with the name of one that has to be there and isn't.
            ///
            /// # Safety
            /// The library must be `libascendcl`, or behave like it, and never be unloaded.
            pub unsafe fn of(library: &libloading::Library) -> Result<Self, &'static str> {
                // SAFETY: the caller vouches for the library; the types are those of its public interface.
                unsafe {
                    Ok(Self {
                        $($name: *library.get(concat!($symbol, "\0").as_bytes()).map_err(|_| $symbol)?,)+
                        $($optional: library
                            .get(concat!($optional_symbol, "\0").as_bytes())
                            .ok()
                            .map(|found| *found),)+
                    })
                }
            }
        }
    };
}

functions! {
    required {
        initialize: "aclInit" = fn(*const c_char) -> Status;
        set_device: "aclrtSetDevice" = fn(i32) -> Status;
        device_count: "aclrtGetDeviceCount" = fn(*mut u32) -> Status;
        memory_info: "aclrtGetMemInfo" = fn(c_int, *mut usize, *mut usize) -> Status;
        malloc: "aclrtMalloc" = fn(*mut *mut c_void, usize, c_int) -> Status;
        free: "aclrtFree" = fn(*mut c_void) -> Status;
        copy_async: "aclrtMemcpyAsync" = fn(*mut c_void, usize, *const c_void, usize, c_int, *mut c_void) -> Status;
        destroy_stream: "aclrtDestroyStream" = fn(*mut c_void) -> Status;
        synchronize_stream: "aclrtSynchronizeStreamWithTimeout" = fn(*mut c_void, i32) -> Status;
        destroy_event: "aclrtDestroyEvent" = fn(*mut c_void) -> Status;
        record_event: "aclrtRecordEvent" = fn(*mut c_void, *mut c_void) -> Status;
        wait_event: "aclrtStreamWaitEvent" = fn(*mut c_void, *mut c_void) -> Status;
        query_event: "aclrtQueryEventStatus" = fn(*mut c_void, *mut c_int) -> Status;
    }
    optional {
        create_stream_with_config: "aclrtCreateStreamWithConfig" = fn(*mut *mut c_void, u32, u32) -> Status;
        create_stream: "aclrtCreateStream" = fn(*mut *mut c_void) -> Status;
        create_event_ex: "aclrtCreateEventExWithFlag" = fn(*mut *mut c_void, u32) -> Status;
        create_event: "aclrtCreateEventWithFlag" = fn(*mut *mut c_void, u32) -> Status;
        synchronize_event: "aclrtSynchronizeEventWithTimeout" = fn(*mut c_void, i32) -> Status;
        abort_stream: "aclrtStreamAbort" = fn(*mut c_void) -> Status;
        copy_batch_async: "aclrtMemcpyBatchAsync" = fn(
            *mut *mut c_void, *mut usize, *mut *mut c_void, *mut usize, usize,
            *mut BatchAttribute, *mut usize, usize, *mut usize, *mut c_void,
        ) -> Status;
        host_register_v2: "aclrtHostRegisterV2" = fn(*mut c_void, u64, u32) -> Status;
        host_register: "aclrtHostRegister" = fn(*mut c_void, u64, c_int, *mut *mut c_void) -> Status;
        host_unregister: "aclrtHostUnregister" = fn(*mut c_void) -> Status;
        export_key: "aclrtIpcMemGetExportKey" = fn(*mut c_void, usize, *mut c_char, usize, u64) -> Status;
        import_key: "aclrtIpcMemImportByKey" = fn(*mut *mut c_void, *const c_char, u64) -> Status;
        close_key: "aclrtIpcMemClose" = fn(*const c_char) -> Status;
        recent_error: "aclGetRecentErrMsg" = fn() -> *const c_char;
    }
}

const _: () = assert!(size_of::<BatchAttribute>() == 32 && size_of::<Location>() == 8);
