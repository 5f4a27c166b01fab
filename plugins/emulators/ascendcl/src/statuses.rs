//! What calls give.

pub type Status = i32;

pub(crate) const OK: Status = 0;
pub(crate) const UNINITIALIZED: Status = 100_001;
pub(crate) const REPEATED_INITIALIZE: Status = 100_002;
pub(crate) const PARAMETER: Status = 107_000;
pub(crate) const NO_DEVICE: Status = 107_001;
pub(crate) const NO_CONTEXT: Status = 107_002;
pub(crate) const UNSUPPORTED: Status = 207_000;
pub(crate) const OUT_OF_MEMORY: Status = 207_001;
pub(crate) const STREAM_TIMEOUT: Status = 507_046;
pub(crate) const EVENT_TIMEOUT: Status = 507_047;
pub(crate) const TASK_FAILED: Status = 507_899;

/// The status in a result, for C.
pub(crate) fn status(outcome: Result<(), Status>) -> Status {
    outcome.err().unwrap_or(OK)
}
