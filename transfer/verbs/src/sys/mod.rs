//! The verbs library and its objects, owned: everything in this crate that is `unsafe`.
//!
//! libibverbs is opened when it's first asked for and never linked, so that a machine without it runs the same binary.
//! Objects hold the ones they depend on, and go in the order that the library wants. What a posted work request touches
//! is kept by the [`Channel`] until its completion is seen or the queue pair is gone.
#![allow(unsafe_code)]

mod channel;
mod completions;
mod device;
mod layout;
mod library;
mod memory;
mod queue_pair;
mod window;

pub use channel::{Channel, Finished, Refused, Remote, Success, Work};
pub use completions::Completions;
pub use device::{Device, DeviceEvent, Limits, Port};
pub use memory::{Buffer, Domain, Registration, Slice};
pub use queue_pair::{QueuePair, Route};
pub use window::{Exposure, Window};

/// An error of a call that leaves its reason in `errno`.
fn last_error(what: &str) -> kvstored_core::Error {
    kvstored_core::Error::from_io(std::io::Error::last_os_error(), what)
}

/// The result of a call that returns 0 or an error number.
fn check(code: std::ffi::c_int, what: &str) -> kvstored_core::Result<()> {
    if code == 0 {
        return Ok(());
    }
    // some providers return -1 and leave the number in errno
    let error = if code > 0 {
        std::io::Error::from_raw_os_error(code)
    } else {
        std::io::Error::last_os_error()
    };
    Err(kvstored_core::Error::from_io(error, what))
}
