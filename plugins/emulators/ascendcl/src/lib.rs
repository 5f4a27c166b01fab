//! Stands in for `libascendcl.so` in tests, as far as kvstored uses it: the same functions by name, over host memory.
//!
//! Device memory is mapped twice. What the caller gets may be neither read nor written, so that a touch from the host is a
//! crash, as it would be an error on hardware; copies go through the other mapping. Each stream is a thread.
//!
//! Faults are switched by the environment at `aclInit`, or later by [`kvstored_emulator_set`]: see [`faults`].
#![allow(unsafe_code)] // a C library
#![allow(non_snake_case)] // with names of its own
#![allow(clippy::missing_safety_doc)] // which its vendor documents

mod copies;
mod event;
pub mod faults;
mod memory;
mod runtime;
mod statuses;
mod stream;

pub use copies::*;
pub use event::*;
pub use memory::*;
pub use runtime::*;
pub use stream::*;
