//! Stands in for `libcuda.so.1` in tests, as far as kvstored uses it: the driver's names and rules over the same memory,
//! streams and faults as the emulated `libascendcl`, whose switches it has.
#![allow(unsafe_code)] // a C library
#![allow(non_snake_case)] // with names of its own
#![allow(clippy::missing_safety_doc)] // which its vendor documents

mod copies;
mod memory;
mod runtime;
mod stream;

pub use copies::*;
pub use memory::*;
pub use runtime::*;
pub use stream::*;

/// What a call gives.
pub type Status = i32;

const OK: Status = 0;
const INVALID_VALUE: Status = 1;
const OUT_OF_MEMORY: Status = 2;
const NO_DEVICE: Status = 101;
const INVALID_CONTEXT: Status = 201;
const NOT_READY: Status = 600;
const LAUNCH_FAILED: Status = 719;
const NOT_SUPPORTED: Status = 801;

/// What the emulator beneath gives, in this library's numbers.
fn translated(status: i32) -> Status {
    match status {
        0 | 100_002 => OK,
        107_000 => INVALID_VALUE,
        107_001 => NO_DEVICE,
        107_002 => INVALID_CONTEXT,
        207_000 => NOT_SUPPORTED,
        207_001 => OUT_OF_MEMORY,
        _ => LAUNCH_FAILED,
    }
}
