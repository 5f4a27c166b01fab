//! What the driver's statuses mean to the host.

use std::ffi::CStr;

use kvstored_plugin::{Failure, Kind};

use crate::symbols::{Functions, NOT_READY, OK, Status};

/// The kind of a status.
pub(crate) fn kind(status: Status) -> Kind {
    match status {
        // invalid value, context, handle, host memory registered before or never
        1 | 201 | 400 | 712 | 713 => Kind::InvalidInput,
        2 => Kind::NoSpace,
        NOT_READY => Kind::Busy,
        // not initialized, stub library, no device, no such device
        3 | 34 | 100 | 101 => Kind::Unavailable,
        801 => Kind::Unsupported,
        _ => Kind::Io,
    }
}

/// A status that is no success, as a failure.
pub(crate) fn failure(functions: &Functions, what: &str, status: Status) -> Failure {
    let mut message = format!("{what} gave {status}");
    if let Some(error_text) = functions.error_text {
        let mut words = std::ptr::null();
        // SAFETY: the place is lent for the call; the driver gives a constant text that is ended by a zero, or none.
        unsafe {
            if error_text(status, &raw mut words) == OK && !words.is_null() {
                message.push_str(": ");
                message.push_str(&CStr::from_ptr(words).to_string_lossy());
            }
        }
    }
    Failure::new(kind(status), message)
}
