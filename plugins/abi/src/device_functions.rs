//! A device's table with every function there.

use std::ffi::{c_char, c_void};

use kvstored_plugin::abi;

type Number = unsafe extern "C" fn(*mut c_void, u64) -> i32;
type TwoNumbers = unsafe extern "C" fn(*mut c_void, u64, u64) -> i32;
type Gives = unsafe extern "C" fn(*mut c_void, *mut u64) -> i32;

/// Registering host memory, which a device may not be able to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Registering {
    pub register_host: unsafe extern "C" fn(*mut c_void, *mut c_void, u64) -> i32,
    pub unregister_host: unsafe extern "C" fn(*mut c_void, *mut c_void) -> i32,
}

/// Sharing memory with processes, which a device may not be able to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sharing {
    pub export_memory: unsafe extern "C" fn(*mut c_void, u64, u64, *mut u8, *mut u64) -> i32,
    pub import_memory: unsafe extern "C" fn(*mut c_void, *const u8, u64, *mut u64) -> i32,
    pub close_import: unsafe extern "C" fn(*mut c_void, u64, *const u8, u64) -> i32,
}

/// A device's functions, those that have to be there being there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeviceFunctions {
    pub open: unsafe extern "C" fn(*const abi::Host, *const abi::Setting, u64, *mut *mut c_void) -> i32,
    pub close: unsafe extern "C" fn(*mut c_void),
    pub last_error: unsafe extern "C" fn(*mut c_char, u64) -> u64,
    pub bind_thread: unsafe extern "C" fn(*mut c_void) -> i32,
    pub memory: unsafe extern "C" fn(*mut c_void, *mut u64, *mut u64) -> i32,
    pub allocate: unsafe extern "C" fn(*mut c_void, u64, *mut u64) -> i32,
    pub release: Number,
    pub registering: Option<Registering>,
    pub create_stream: Gives,
    pub destroy_stream: Number,
    pub copy: unsafe extern "C" fn(*mut c_void, u64, u32, *const abi::Copy, u64) -> i32,
    pub synchronize_stream: TwoNumbers,
    pub abort_stream: Option<Number>,
    pub create_event: Gives,
    pub destroy_event: Number,
    pub record_event: TwoNumbers,
    pub wait_event: TwoNumbers,
    pub query_event: unsafe extern "C" fn(*mut c_void, u64, *mut u32) -> i32,
    pub synchronize_event: TwoNumbers,
    pub sharing: Option<Sharing>,
    pub statistics: unsafe extern "C" fn(*mut c_void, *mut abi::DeviceStatistics) -> i32,
}

impl DeviceFunctions {
    /// The functions of a table; `None` if one is missing that may not.
    pub fn of(table: &abi::Device) -> Option<Self> {
        let registering = match (table.register_host, table.unregister_host) {
            (None, None) => None,
            (register_host, unregister_host) => Some(Registering {
                register_host: register_host?,
                unregister_host: unregister_host?,
            }),
        };
        let sharing = match (table.export_memory, table.import_memory, table.close_import) {
            (None, None, None) => None,
            (export_memory, import_memory, close_import) => Some(Sharing {
                export_memory: export_memory?,
                import_memory: import_memory?,
                close_import: close_import?,
            }),
        };
        Some(Self {
            open: table.open?,
            close: table.close?,
            last_error: table.last_error?,
            bind_thread: table.bind_thread?,
            memory: table.memory?,
            allocate: table.allocate?,
            release: table.release?,
            registering,
            create_stream: table.create_stream?,
            destroy_stream: table.destroy_stream?,
            copy: table.copy?,
            synchronize_stream: table.synchronize_stream?,
            abort_stream: table.abort_stream,
            create_event: table.create_event?,
            destroy_event: table.destroy_event?,
            record_event: table.record_event?,
            wait_event: table.wait_event?,
            query_event: table.query_event?,
            synchronize_event: table.synchronize_event?,
            sharing,
            statistics: table.statistics?,
        })
    }
}
