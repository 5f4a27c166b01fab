//! Who is at work on something that may be closed: a count and a closed bit in one word.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

const CLOSED: u64 = 1 << 63;

/// Counts users until it's closed; after that nobody gets in, and whoever closed it can wait for the last to leave.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    word: AtomicU64,
    lock: Mutex<()>,
    left: Condvar,
}

impl Usage {
    /// Counts the caller in, unless it's closed.
    pub fn enter(&self) -> bool {
        if self.word.fetch_add(1, Ordering::AcqRel) & CLOSED == 0 {
            return true;
        }
        self.leave();
        false
    }

    /// Counts a caller out that got in.
    pub fn leave(&self) {
        if self.word.fetch_sub(1, Ordering::AcqRel) == CLOSED | 1 {
            // under the lock, so that it can't fall between a waiter's look and its sleep
            drop(self.lock.lock());
            self.left.notify_all();
        }
    }

    /// Nobody gets in any more.
    pub fn close(&self) {
        self.word.fetch_or(CLOSED, Ordering::AcqRel);
    }

    pub fn is_closed(&self) -> bool {
        self.word.load(Ordering::Acquire) & CLOSED != 0
    }

    /// How many are in.
    pub fn count(&self) -> u64 {
        self.word.load(Ordering::Acquire) & !CLOSED
    }

    /// Waits, once it's closed, until nobody is in. False at the deadline.
    pub fn wait_left(&self, deadline: Instant) -> bool {
        let mut lock = self.lock.lock();
        while self.count() > 0 {
            if self.left.wait_until(&mut lock, deadline).timed_out() {
                return self.count() == 0;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvstored_core::Runtime;
    use std::sync::Arc;
    use std::time::Duration;

    #[test]
    fn nobody_enters_after_the_close_and_the_last_to_leave_is_awaited() {
        let runtime = Runtime::system();
        let usage = Arc::new(Usage::default());
        assert!(usage.enter());
        usage.close();
        assert!(!usage.enter());
        assert!(!usage.wait_left(runtime.deadline(Duration::from_millis(1))));
        let other = usage.clone();
        let thread = runtime
            .spawner
            .spawn("leaver", Box::new(move || other.leave()))
            .unwrap();
        assert!(usage.wait_left(runtime.deadline(Duration::from_mins(1))));
        thread.join();
        assert_eq!(usage.count(), 0);
    }
}
