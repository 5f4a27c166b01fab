//! Mooncake's numbers for what went wrong with an object.

use kvstored_core::{Error, ErrorKind};

/// Nothing did.
pub const OK: i64 = 0;
pub const INVALID_PARAMETERS: i64 = -600;

/// The number of an error.
pub fn code(error: &Error) -> i64 {
    match error.kind() {
        ErrorKind::NoSpace | ErrorKind::TooLarge | ErrorKind::QuotaExceeded => -200,
        ErrorKind::InvalidInput | ErrorKind::Mismatch | ErrorKind::Unsupported => INVALID_PARAMETERS,
        ErrorKind::NotFound => -704,
        ErrorKind::AlreadyExists => -705,
        ErrorKind::Busy => -706,
        ErrorKind::Corrupt | ErrorKind::Fenced | ErrorKind::Io => -800,
        ErrorKind::TimedOut | ErrorKind::Cancelled | ErrorKind::Unavailable | ErrorKind::PermissionDenied => {
            -900
        }
        ErrorKind::Internal => -1,
    }
}

/// The number of an error that nobody else will tell of; logs it unless it's an answer by itself.
pub fn told(error: &Error, what: &str) -> i64 {
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::Busy | ErrorKind::AlreadyExists => {}
        _ => tracing::warn!(%error, "{what}"),
    }
    code(error)
}
