//! What the library's statuses mean to the host.

use kvstored_plugin::{Failure, Kind};

use crate::symbols::Status;

/// A status that is no success, as a failure.
pub(crate) fn failure(what: &str, status: Status) -> Failure {
    let kind = match status {
        103_900 => Kind::InvalidInput,
        103_901 => Kind::TimedOut,
        103_905 => Kind::Unsupported,
        203_900 => Kind::Busy,
        _ => Kind::Unavailable,
    };
    Failure::new(kind, format!("{what} gave {status}"))
}

/// Success, or that failure.
pub(crate) fn checked(what: &str, status: Status) -> Result<(), Failure> {
    if status == crate::symbols::OK {
        Ok(())
    } else {
        Err(failure(what, status))
    }
}
