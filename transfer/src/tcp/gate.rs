//! How many connections there may be, and how long each may take to say who it is.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use kvstored_core::{Error, ErrorKind};
use parking_lot::Mutex;
use rustix::process::{Resource, getrlimit};

use super::connection::Connection;
use super::nanoseconds;
use crate::settings::EngineSettings;

/// Handshakes that there's always room for.
const FEWEST_HANDSHAKES: usize = 64;

struct Newcomer {
    until: u64,
    connection: Weak<Connection>,
}

/// Counts connections in and out.
pub(crate) struct Gate {
    served: AtomicUsize,
    most: usize,
    newcomers: Mutex<VecDeque<Newcomer>>,
    most_newcomers: usize,
    patience: u64,
}

fn turn_out(newcomer: &Newcomer, error: &Error) {
    if let Some(connection) = newcomer.connection.upgrade()
        && !connection.is_admitted()
    {
        connection.close(error);
    }
}

impl Gate {
    /// Takes no more than a share of the descriptors that the process may have, whatever is configured.
    pub fn new(settings: &EngineSettings) -> Arc<Self> {
        let descriptors = getrlimit(Resource::Nofile).current;
        let descriptors = descriptors.map_or(usize::MAX, |most| most as usize);
        let newcomers = (settings.max_connections / 2).max(FEWEST_HANDSHAKES);
        Arc::new(Self {
            served: AtomicUsize::new(0),
            most: settings.max_connections.min(descriptors / 2),
            newcomers: Mutex::default(),
            most_newcomers: newcomers.min(descriptors / 8),
            patience: nanoseconds(settings.handshake_timeout),
        })
    }

    /// Counts a connection whose handshake is over, unless there are too many.
    pub fn admit(&self) -> bool {
        let more = |served: usize| (served < self.most).then_some(served + 1);
        self.served
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, more)
            .is_ok()
    }

    /// Counts it out.
    pub fn leave(&self) {
        self.served.fetch_sub(1, Ordering::AcqRel);
    }

    /// Takes a connection in whose handshake begins now. Where too many are at that, the oldest goes.
    pub fn enter(&self, connection: &Arc<Connection>, now: u64) {
        let oldest = {
            let mut newcomers = self.newcomers.lock();
            newcomers.push_back(Newcomer {
                until: now.saturating_add(self.patience),
                connection: Arc::downgrade(connection),
            });
            (newcomers.len() > self.most_newcomers)
                .then(|| newcomers.pop_front())
                .flatten()
        };
        if let Some(oldest) = oldest {
            turn_out(
                &oldest,
                &Error::new(ErrorKind::Busy, "too many connections are in their handshake"),
            );
        }
    }

    /// Turns out the oldest connection in its handshake, to make room. False if there's none.
    pub fn turn_out_oldest(&self) -> bool {
        let oldest = self.newcomers.lock().pop_front();
        let Some(oldest) = oldest else { return false };
        turn_out(&oldest, &Error::new(ErrorKind::Busy, "too few descriptors"));
        true
    }

    /// Turns out those that took too long. Returns how long the next may still take.
    pub fn expire(&self, now: u64) -> Option<Duration> {
        loop {
            let late = {
                let mut newcomers = self.newcomers.lock();
                let first = newcomers.front()?;
                if first.until > now {
                    return Some(Duration::from_nanos(first.until - now));
                }
                newcomers.pop_front()
            };
            if let Some(late) = late {
                turn_out(
                    &late,
                    &Error::new(ErrorKind::TimedOut, "the handshake took too long"),
                );
            }
        }
    }
}
