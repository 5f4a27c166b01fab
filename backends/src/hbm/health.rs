//! Whether the device works, and when to try again if it doesn't.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kvstored_core::{Error, ErrorKind, Runtime};
use parking_lot::Mutex;

const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

struct Trouble {
    failures: u32,
    retry_at: Option<Instant>,
    reason: String,
}

/// After a failure the device is left alone for a while, longer each time; then one batch tries it.
pub(super) struct Health {
    degraded: AtomicBool,
    trouble: Mutex<Trouble>,
}

impl Health {
    pub(super) fn new() -> Self {
        Self {
            degraded: AtomicBool::new(false),
            trouble: Mutex::new(Trouble {
                failures: 0,
                retry_at: None,
                reason: String::new(),
            }),
        }
    }

    /// Whether the device may be asked, for lookups.
    pub(super) fn is_asked(&self, runtime: &Runtime) -> bool {
        !self.degraded.load(Ordering::Acquire)
            || self
                .trouble
                .lock()
                .retry_at
                .is_none_or(|retry_at| retry_at <= runtime.clock.now())
    }

    /// Lets operations through: all while it works, and otherwise those that come first after each pause.
    pub(super) fn admit(&self, runtime: &Runtime) -> Result<(), Error> {
        if !self.degraded.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut trouble = self.trouble.lock();
        let now = runtime.clock.now();
        if trouble.retry_at.is_none_or(|retry_at| retry_at <= now) {
            trouble.retry_at = Some(now + pause(trouble.failures));
            return Ok(());
        }
        let what = format!("the device is left alone for a while: {}", trouble.reason);
        Err(Error::new(ErrorKind::Unavailable, what))
    }

    /// Something went wrong with the device.
    pub(super) fn failed(&self, error: &Error, runtime: &Runtime) {
        let mut trouble = self.trouble.lock();
        trouble.failures = trouble.failures.saturating_add(1);
        trouble.retry_at = Some(runtime.clock.now() + pause(trouble.failures));
        trouble.reason = error.to_string();
        if !self.degraded.swap(true, Ordering::AcqRel) {
            tracing::error!(%error, "device memory is not used until the device works again");
        }
    }

    /// A batch went through.
    pub(super) fn worked(&self) {
        if self.degraded.load(Ordering::Acquire) {
            let mut trouble = self.trouble.lock();
            (trouble.failures, trouble.retry_at) = (0, None);
            trouble.reason.clear();
            self.degraded.store(false, Ordering::Release);
            tracing::info!("the device works again");
        }
    }

    /// Why it's degraded.
    pub(super) fn trouble(&self) -> Option<String> {
        self.degraded
            .load(Ordering::Acquire)
            .then(|| self.trouble.lock().reason.clone())
    }
}

fn pause(failures: u32) -> Duration {
    let doubled = FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(8));
    doubled.min(LONGEST_PAUSE)
}
