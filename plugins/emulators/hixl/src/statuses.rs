//! Statuses, by the vendor's numbers.

pub(crate) type Status = u32;

pub(crate) const OK: Status = 0;
pub(crate) const PARAMETER: Status = 103_900;
pub(crate) const NOT_CONNECTED: Status = 103_902;
pub(crate) const EXHAUSTED: Status = 203_900;
pub(crate) const FAILED: Status = 503_900;

pub(crate) const WAITING: i32 = 0;
pub(crate) const COMPLETED: i32 = 1;
pub(crate) const TASK_FAILED: i32 = 3;
