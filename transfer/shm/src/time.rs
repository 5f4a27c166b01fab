//! Deadlines, as system calls want them.

use std::time::{Duration, Instant};

use kvstored_core::runtime::Clock;
use kvstored_core::{Error, ErrorKind, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// The time until the deadline; zero when it has passed.
pub(crate) fn left(clock: &dyn Clock, deadline: Instant) -> Duration {
    deadline.saturating_duration_since(clock.now())
}

pub(crate) fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}

/// Waits until the descriptor is ready, or has failed. False at the deadline.
pub(crate) fn ready(
    descriptor: impl std::os::fd::AsFd,
    events: PollFlags,
    clock: &dyn Clock,
    deadline: Instant,
) -> Result<bool> {
    loop {
        let mut polled = [PollFd::new(&descriptor, events)];
        match poll(&mut polled, Some(&timespec(left(clock, deadline)))) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(os(errno, "poll")),
        }
    }
}

/// The error of a system call.
pub(crate) fn os(errno: Errno, what: &str) -> Error {
    let kind = match errno {
        Errno::NOMEM | Errno::NOSPC => ErrorKind::NoSpace,
        Errno::MFILE | Errno::NFILE | Errno::NOBUFS => ErrorKind::Busy,
        Errno::SRCH => ErrorKind::Unavailable,
        Errno::NOSYS => ErrorKind::Unsupported,
        _ => return Error::from_io(errno.into(), what),
    };
    Error::new(kind, format!("{what}: {errno}"))
}
