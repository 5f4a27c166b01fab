//! What the library's statuses mean to the host.

use std::ffi::CStr;

use kvstored_plugin::{Failure, Kind};

use crate::symbols::{Functions, Status, UNSUPPORTED};

/// The longest of the library's own words that are kept.
const MOST_WORDS: usize = 400;

/// The kind of a status.
pub(crate) fn kind(status: Status) -> Kind {
    match status {
        // a parameter, a pointer, a copy's size
        107_000 | 107_003..=107_019 => Kind::InvalidInput,
        // not initialized, no such device, no context on this thread
        100_001 | 107_001 | 107_002 => Kind::Unavailable,
        UNSUPPORTED | 207_006 => Kind::Unsupported,
        // device memory, other resources
        207_001..=207_005 | 207_018 => Kind::NoSpace,
        507_046 | 507_047 => Kind::TimedOut,
        // a copy that failed, or a device that is lost, in any of several ways
        _ => Kind::Io,
    }
}

/// A status that is no success, as a failure.
pub(crate) fn failure(functions: &Functions, what: &str, status: Status) -> Failure {
    let mut message = format!("{what} gave {status}");
    if let Some(recent_error) = functions.recent_error {
        // SAFETY: the library gives a text that is ended by a zero and lives until this thread's next call of it, or none.
        let words = unsafe {
            let words = recent_error();
            (!words.is_null()).then(|| CStr::from_ptr(words).to_string_lossy().into_owned())
        };
        if let Some(words) = words.filter(|words| !words.is_empty()) {
            message.push_str(": ");
            message.extend(words.chars().take(MOST_WORDS));
        }
    }
    Failure::new(kind(status), message)
}
