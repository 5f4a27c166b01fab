//! Whether the bucket answers. While it doesn't, everything is a miss at once, and only the follower goes on asking.

use std::sync::atomic::{AtomicBool, Ordering};

use kvstored_core::{Error, ErrorKind};
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Failures in a row after which the tier is taken for broken.
const MOST_FAILURES: u32 = 3;

#[derive(Default)]
struct State {
    failures: u32,
    reason: String,
}

/// The bucket's health.
#[derive(Default)]
pub struct Health {
    degraded: AtomicBool,
    state: Mutex<State>,
    /// Rung when the tier degrades, so that the follower asks soon.
    pub alarm: Notify,
}

impl Health {
    /// Whether the tier answers misses only.
    pub fn is_degraded(&self) -> bool {
        self.degraded.load(Ordering::Acquire)
    }

    /// Why, or nothing.
    pub fn reason(&self) -> String {
        if self.is_degraded() {
            self.state.lock().reason.clone()
        } else {
            String::new()
        }
    }

    /// The error of an operation that isn't tried.
    pub fn refusal(&self) -> Error {
        Error::new(
            ErrorKind::Unavailable,
            format!("the bucket doesn't answer: {}", self.reason()),
        )
    }

    /// A request was answered.
    pub fn succeeded(&self) {
        let mut state = self.state.lock();
        state.failures = 0;
        if self.degraded.swap(false, Ordering::AcqRel) {
            tracing::info!("the bucket answers again");
        }
    }

    /// A request failed, retries included. Only what the bucket is to blame for counts.
    pub fn failed(&self, error: &Error) {
        let blamed = matches!(
            error.kind(),
            ErrorKind::Unavailable | ErrorKind::TimedOut | ErrorKind::PermissionDenied | ErrorKind::Io
        );
        // what follows from being degraded is no news
        if !blamed || self.is_degraded() {
            return;
        }
        let mut state = self.state.lock();
        state.failures = state.failures.saturating_add(1);
        state.reason = error.to_string();
        if state.failures >= MOST_FAILURES && !self.degraded.swap(true, Ordering::AcqRel) {
            tracing::warn!(%error, "the bucket doesn't answer; its blocks are misses until it does");
            self.alarm.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_failures_in_a_row_degrade_and_one_answer_heals() {
        let health = Health::default();
        let error = Error::new(ErrorKind::TimedOut, "late");
        for _ in 0..2 {
            health.failed(&error);
        }
        health.succeeded();
        health.failed(&Error::new(ErrorKind::NotFound, "no such object"));
        for _ in 0..2 {
            health.failed(&error);
        }
        assert!(!health.is_degraded());
        health.failed(&error);
        assert!(health.is_degraded() && health.reason().contains("late"));
        health.succeeded();
        assert!(!health.is_degraded() && health.reason().is_empty());
    }
}
