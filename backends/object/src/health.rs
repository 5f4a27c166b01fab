//! Whether the bucket answers: one record for loads and one for dumps, since a bucket may give and not take.
//!
//! While loads fail, everything is a miss at once and only the follower asks on. While dumps fail, they are refused at once
//! but for a trial now and then.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kvstored_core::{Error, ErrorKind};
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Failures in a row after which the bucket is taken for broken.
pub const MOST_FAILURES: u32 = 3;
/// Pause before the first trial; it doubles with each that fails.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

#[derive(Default)]
struct State {
    failures: u32,
    reason: String,
    pause: Duration,
    trial_at: Option<Instant>,
}

/// How requests of one kind fare.
pub struct Health {
    what: &'static str,
    degraded: AtomicBool,
    state: Mutex<State>,
    /// Rung when the bucket is found to be broken.
    pub alarm: Notify,
}

impl Health {
    /// Of what is named; nothing has failed yet.
    pub fn of(what: &'static str) -> Self {
        Self {
            what,
            degraded: AtomicBool::new(false),
            state: Mutex::default(),
            alarm: Notify::new(),
        }
    }

    /// Whether requests fail.
    pub fn is_degraded(&self) -> bool {
        self.degraded.load(Ordering::Acquire)
    }

    /// Whether a request may be tried at this moment: while they fail, one now and then.
    pub fn admits(&self, now: Instant) -> bool {
        if !self.is_degraded() {
            return true;
        }
        let mut state = self.state.lock();
        let due = state.trial_at.is_some_and(|trial| now >= trial);
        if due {
            state.trial_at = Some(now + state.pause);
        }
        due
    }

    /// Why requests fail, or nothing.
    pub fn reason(&self) -> String {
        if self.is_degraded() {
            self.state.lock().reason.clone()
        } else {
            String::new()
        }
    }

    /// The error of a request that isn't tried.
    pub fn refusal(&self) -> Error {
        let what = format!("the bucket doesn't answer {}: {}", self.what, self.reason());
        Error::new(ErrorKind::Unavailable, what)
    }

    /// A request was answered.
    pub fn succeeded(&self) {
        let mut state = self.state.lock();
        state.failures = 0;
        if self.degraded.swap(false, Ordering::AcqRel) {
            tracing::info!("the bucket answers {} again", self.what);
        }
    }

    /// A request failed, retries included. Only what the bucket is to blame for counts.
    pub fn failed(&self, error: &Error, now: Instant) {
        let blamed = matches!(
            error.kind(),
            ErrorKind::Unavailable | ErrorKind::TimedOut | ErrorKind::PermissionDenied | ErrorKind::Io
        );
        if !blamed {
            return;
        }
        let mut state = self.state.lock();
        if self.is_degraded() {
            // what follows from being degraded is no news, but a trial that failed is
            state.pause = (state.pause * 2).min(LONGEST_PAUSE);
            return;
        }
        state.failures = state.failures.saturating_add(1);
        if state.failures >= MOST_FAILURES {
            drop(state);
            self.degrade(error, now);
        }
    }

    /// Requests are taken for failing from now on.
    pub fn degrade(&self, error: &Error, now: Instant) {
        let mut state = self.state.lock();
        if self.degraded.swap(true, Ordering::AcqRel) {
            return;
        }
        state.reason = error.to_string();
        state.pause = FIRST_PAUSE;
        state.trial_at = Some(now + FIRST_PAUSE);
        drop(state);
        tracing::warn!(%error, "the bucket doesn't answer {}; they aren't tried until it does", self.what);
        self.alarm.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn late() -> Error {
        Error::new(ErrorKind::TimedOut, "late")
    }

    #[test]
    fn three_failures_in_a_row_degrade_and_one_answer_heals() {
        let (health, now) = (Health::of("loads"), kvstored_core::Runtime::system().clock.now());
        for _ in 0..2 {
            health.failed(&late(), now);
        }
        health.succeeded();
        health.failed(&Error::new(ErrorKind::NotFound, "no such object"), now);
        for _ in 0..2 {
            health.failed(&late(), now);
        }
        assert!(!health.is_degraded());
        health.failed(&late(), now);
        assert!(health.is_degraded() && health.reason().contains("late"));
        health.succeeded();
        assert!(!health.is_degraded() && health.reason().is_empty());
    }

    #[test]
    fn trials_come_one_at_a_time_and_ever_more_rarely() {
        let (health, start) = (Health::of("dumps"), kvstored_core::Runtime::system().clock.now());
        assert!(health.admits(start));
        health.degrade(&late(), start);
        assert!(!health.admits(start));
        let first = start + FIRST_PAUSE;
        assert!(health.admits(first) && !health.admits(first));
        health.failed(&late(), first);
        assert!(health.admits(first + FIRST_PAUSE));
        assert!(!health.admits(first + FIRST_PAUSE * 2));
        assert!(health.admits(first + FIRST_PAUSE * 3));
    }
}
