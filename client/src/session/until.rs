//! How long a wait goes on.

use std::time::{Duration, Instant};

use kvstored_core::error::{Error, ErrorKind, Result};
use kvstored_core::runtime::Runtime;

/// How long a wait goes on before it's looked whether anybody still wants it.
pub(crate) const SLICE: Duration = Duration::from_millis(20);

/// How long a wait goes on.
#[derive(Clone, Copy)]
pub(crate) enum Until<'a> {
    /// To a moment.
    Moment(Instant),
    /// Until it's said why nobody wants it any more.
    Stopped(&'a dyn Fn() -> Option<Error>),
}

impl Until<'_> {
    /// Fails with `TimedOut` at the moment, or with the reason.
    pub(crate) fn check(&self, runtime: &Runtime) -> Result<()> {
        match self {
            Self::Moment(moment) if runtime.clock.now() >= *moment => Err(Error::new(
                ErrorKind::TimedOut,
                "no answer from the engine until the deadline",
            )),
            Self::Moment(_) => Ok(()),
            Self::Stopped(reason) => reason().map_or(Ok(()), Err),
        }
    }

    /// When to check next.
    pub(crate) fn slice(&self, runtime: &Runtime) -> Instant {
        match self {
            Self::Moment(moment) => *moment,
            Self::Stopped(_) => runtime.deadline(SLICE),
        }
    }
}
