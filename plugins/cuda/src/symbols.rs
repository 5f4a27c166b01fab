//! What we use of the CUDA driver's interface, declared by ourselves: types, values and functions.

use std::ffi::{c_char, c_int, c_uint, c_void};

/// Status of every call; 0 is success.
pub(crate) type Status = c_int;

/// Where memory of a batch lies: a hint.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Location {
    pub kind: c_int,
    pub id: c_int,
}

/// How copies of a batch go.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct BatchAttribute {
    /// When the sources are read.
    pub source_order: c_int,
    pub source: Location,
    pub destination: Location,
    pub flags: c_uint,
}

/// A key of exported memory.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct IpcHandle {
    pub bytes: [u8; 64],
}

/// Sources are read in the stream's order.
pub(crate) const ORDER_STREAM: c_int = 1;
pub(crate) const LOCATION_DEVICE: c_int = 1;
pub(crate) const LOCATION_HOST: c_int = 2;
/// Not ordered with the default stream, which is the engine's.
pub(crate) const STREAM_NON_BLOCKING: c_uint = 1;
pub(crate) const EVENT_DISABLE_TIMING: c_uint = 2;
/// Known in all contexts.
pub(crate) const HOST_REGISTER_PORTABLE: c_uint = 1;
pub(crate) const IPC_LAZY_PEER_ACCESS: c_uint = 1;

pub(crate) const OK: Status = 0;
pub(crate) const NOT_READY: Status = 600;

pub(crate) type HostFunction = unsafe extern "C" fn(*mut c_void);

macro_rules! functions {
    (required { $($name:ident : $symbol:literal = fn($($argument:ty),* $(,)?);)+ }
     optional { $($optional:ident : $optional_symbol:literal = fn($($optional_argument:ty),* $(,)?);)+ }) => {
        /// The functions of a loaded library.
        #[derive(Clone, Copy)]
        pub(crate) struct Functions {
            $(pub $name: unsafe extern "C" fn($($argument),*) -> Status,)+
            $(pub $optional: Option<unsafe extern "C" fn($($optional_argument),*) -> Status>,)+
        }

        impl Functions {
            /// Finds the functions. Fails with the name of one that has to be there and isn't.
            ///
            /// # Safety
            /// The library must be the CUDA driver's, or behave like it, and never be unloaded.
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
        initialize: "cuInit" = fn(c_uint);
        device_count: "cuDeviceGetCount" = fn(*mut c_int);
        device: "cuDeviceGet" = fn(*mut c_int, c_int);
        retain_context: "cuDevicePrimaryCtxRetain" = fn(*mut *mut c_void, c_int);
        release_context: "cuDevicePrimaryCtxRelease_v2" = fn(c_int);
        set_context: "cuCtxSetCurrent" = fn(*mut c_void);
        memory_info: "cuMemGetInfo_v2" = fn(*mut usize, *mut usize);
        allocate: "cuMemAlloc_v2" = fn(*mut u64, usize);
        free: "cuMemFree_v2" = fn(u64);
        host_register: "cuMemHostRegister_v2" = fn(*mut c_void, usize, c_uint);
        host_unregister: "cuMemHostUnregister" = fn(*mut c_void);
        create_stream: "cuStreamCreate" = fn(*mut *mut c_void, c_uint);
        destroy_stream: "cuStreamDestroy_v2" = fn(*mut c_void);
        query_stream: "cuStreamQuery" = fn(*mut c_void);
        launch_host_function: "cuLaunchHostFunc" = fn(*mut c_void, HostFunction, *mut c_void);
        copy_to_device: "cuMemcpyHtoDAsync_v2" = fn(u64, *const c_void, usize, *mut c_void);
        copy_to_host: "cuMemcpyDtoHAsync_v2" = fn(*mut c_void, u64, usize, *mut c_void);
        copy_within: "cuMemcpyDtoDAsync_v2" = fn(u64, u64, usize, *mut c_void);
        create_event: "cuEventCreate" = fn(*mut *mut c_void, c_uint);
        destroy_event: "cuEventDestroy_v2" = fn(*mut c_void);
        record_event: "cuEventRecord" = fn(*mut c_void, *mut c_void);
        wait_event: "cuStreamWaitEvent" = fn(*mut c_void, *mut c_void, c_uint);
        query_event: "cuEventQuery" = fn(*mut c_void);
    }
    optional {
        copy_batch: "cuMemcpyBatchAsync" = fn(
            *mut u64, *mut u64, *mut usize, usize, *mut BatchAttribute, *mut usize, usize, *mut usize, *mut c_void,
        );
        copy_batch_v2: "cuMemcpyBatchAsync_v2" = fn(
            *mut u64, *mut u64, *mut usize, usize, *mut BatchAttribute, *mut usize, usize, *mut c_void,
        );
        export_memory: "cuIpcGetMemHandle" = fn(*mut IpcHandle, u64);
        import_memory: "cuIpcOpenMemHandle_v2" = fn(*mut u64, IpcHandle, c_uint);
        close_memory: "cuIpcCloseMemHandle" = fn(u64);
        error_text: "cuGetErrorString" = fn(Status, *mut *const c_char);
    }
}

const _: () = assert!(size_of::<BatchAttribute>() == 24 && size_of::<IpcHandle>() == 64);
