//! The one thing that HIXL needs of `libascendcl` where an NPU's own card moves the bytes: a device on each thread.

use std::cell::Cell;
use std::ffi::{c_char, c_int};

use kvstored_plugin::{Failure, Kind};

use crate::library::load;

const FILE: &str = "libascendcl.so";
const REPEATED_INITIALIZE: c_int = 100_002;

type Initialize = unsafe extern "C" fn(*const c_char) -> c_int;
type SetDevice = unsafe extern "C" fn(i32) -> c_int;

thread_local! {
    static BOUND: Cell<Option<i32>> = const { Cell::new(None) };
}

/// A device of the runtime.
pub(crate) struct Device {
    set: SetDevice,
    number: i32,
}

impl Device {
    pub fn open(given: Option<&str>, number: i32) -> Result<Self, Failure> {
        let library = load(given, FILE)?;
        let missing = |_| {
            Failure::new(
                Kind::Unsupported,
                "libascendcl.so has no aclInit or aclrtSetDevice",
            )
        };
        // SAFETY: the types are those of the library's public interface, and it's never unloaded.
        let (initialize, set) = unsafe {
            (
                *library.get::<Initialize>(b"aclInit\0").map_err(missing)?,
                *library.get::<SetDevice>(b"aclrtSetDevice\0").map_err(missing)?,
            )
        };
        // SAFETY: no configuration is a configuration.
        match unsafe { initialize(std::ptr::null()) } {
            // somebody in this process was first
            0 | REPEATED_INITIALIZE => Ok(Self { set, number }),
            status => {
                let message = format!("aclInit gave {status}");
                Err(Failure::new(Kind::Unavailable, message))
            }
        }
    }

    /// Makes it the calling thread's.
    pub fn bind(&self) -> Result<(), Failure> {
        if BOUND.get() == Some(self.number) {
            return Ok(());
        }
        // SAFETY: a number is all it takes.
        match unsafe { (self.set)(self.number) } {
            0 => {
                BOUND.set(Some(self.number));
                Ok(())
            }
            status => {
                let message = format!("aclrtSetDevice({}) gave {status}", self.number);
                Err(Failure::new(Kind::Unavailable, message))
            }
        }
    }
}
