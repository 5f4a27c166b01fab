//! A transport's table with every function there.

use std::ffi::{c_char, c_void};

use kvstored_plugin::abi;

/// A transport's functions, all of them there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TransportFunctions {
    pub open: unsafe extern "C" fn(*const abi::Host, *const abi::Setting, u64, *mut *mut c_void) -> i32,
    pub close: unsafe extern "C" fn(*mut c_void),
    pub last_error: unsafe extern "C" fn(*mut c_char, u64) -> u64,
    pub address: unsafe extern "C" fn(*mut c_void, *mut u8, *mut u64) -> i32,
    pub register_memory: unsafe extern "C" fn(*mut c_void, *mut c_void, u64, u32, *mut u64) -> i32,
    pub unregister_memory: unsafe extern "C" fn(*mut c_void, u64) -> i32,
    pub connect: unsafe extern "C" fn(*mut c_void, *const u8, u64, u64, *mut u64) -> i32,
    pub disconnect: unsafe extern "C" fn(*mut c_void, u64) -> i32,
    pub submit: unsafe extern "C" fn(*mut c_void, u64, u32, *const abi::Move, u64, u64) -> i32,
}

impl TransportFunctions {
    /// `None` if one is missing.
    pub fn of(transport: &abi::Transport) -> Option<Self> {
        Some(Self {
            open: transport.open?,
            close: transport.close?,
            last_error: transport.last_error?,
            address: transport.address?,
            register_memory: transport.register_memory?,
            unregister_memory: transport.unregister_memory?,
            connect: transport.connect?,
            disconnect: transport.disconnect?,
            submit: transport.submit?,
        })
    }
}
