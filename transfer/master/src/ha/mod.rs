//! One leader among several masters: elected by a lease in etcd, and fenced by an epoch that only grows.
//!
//! The leader holds a key whose lease it keeps alive. It believes in its leadership no longer than the lease that it last
//! renewed runs, counted from before it asked, by the steady clock and with a margin; so one that was stopped and goes on
//! finds out before it answers. Every term has a fencing epoch of its own, counted in etcd under the leader's key, and
//! nodes obey the highest epoch they know: what an old leader still orders is refused.

mod election;
mod etcd;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

pub(crate) use election::{Election, run};

/// Whether this master leads at this moment, and who does if not.
pub(crate) struct Leadership {
    alone: bool,
    base: Instant,
    /// Milliseconds after `base`; 0 while another leads.
    valid_until: AtomicU64,
    leader: Mutex<Option<String>>,
}

impl Leadership {
    /// A master without others: it always leads.
    pub fn alone(address: String, now: Instant) -> Self {
        Self {
            alone: true,
            base: now,
            valid_until: AtomicU64::new(0),
            leader: Mutex::new(Some(address)),
        }
    }

    /// One of several.
    pub fn elected(now: Instant) -> Self {
        Self {
            alone: false,
            base: now,
            valid_until: AtomicU64::new(0),
            leader: Mutex::new(None),
        }
    }

    /// Whether there are no others.
    pub fn is_alone(&self) -> bool {
        self.alone
    }

    /// Whether this master leads.
    pub fn is_valid(&self, now: Instant) -> bool {
        let until = Duration::from_millis(self.valid_until.load(Ordering::Acquire));
        self.alone || now.saturating_duration_since(self.base) < until
    }

    /// Where the leader is, as far as is known.
    pub fn leader(&self) -> Option<String> {
        self.leader.lock().clone()
    }

    /// Leads until then at least.
    fn extend(&self, until: Instant) {
        let until = until.saturating_duration_since(self.base).as_millis() as u64;
        self.valid_until.store(until, Ordering::Release);
    }

    /// Leads no more.
    fn end(&self) {
        self.valid_until.store(0, Ordering::Release);
    }

    fn set_leader(&self, address: Option<String>) {
        *self.leader.lock() = address;
    }
}
