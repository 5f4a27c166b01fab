//! Finding objects.

use std::time::{Duration, Instant};

use super::State;
use super::object::Replica;
use crate::key::split_key;
use crate::types::{Found, Location};
use kvstored_core::{Error, ErrorKind, Result};

impl State {
    /// Where an object is. It's leased: it stays there for so long.
    ///
    /// Fails with `NotFound`, and with `Unavailable` while a node may be missing that has it.
    pub fn get(&mut self, key: &[u8], now: Instant) -> Result<Found> {
        split_key(key)?;
        let found = self.look_up(key).and_then(|slot| {
            let complete = self.objects.get(slot)?.is_complete();
            complete.then_some(slot)
        });
        let Some(slot) = found else {
            self.counters.get_misses += 1;
            return Err(if self.is_recovering(now) {
                Error::new(
                    ErrorKind::Unavailable,
                    "the master is still learning what nodes hold",
                )
            } else {
                Error::new(ErrorKind::NotFound, "no such object")
            });
        };
        self.counters.get_hits += 1;
        self.lease(slot, now);
        let missing = || Error::internal("an object without a place");
        let object = self.objects.get(slot).ok_or_else(missing)?;
        let located = |replica: &Replica| {
            let node = self.node(replica.node)?;
            Some((node.suspect, replica.stays(), node.location(replica)))
        };
        let readable = object.replicas.iter().filter(|replica| !replica.arrives());
        let mut locations: Vec<(bool, bool, Location)> = readable.filter_map(located).collect();
        // nobody is sent to one that leaves, but in need
        if locations.iter().any(|(suspect, stays, _)| *stays && !suspect) {
            locations.retain(|(_, stays, _)| *stays);
        }
        locations.sort_by_key(|(suspect, ..)| *suspect);
        Ok(Found {
            put: object.put,
            length: object.length,
            checksum: object.checksum,
            lease: object.lease_until.saturating_duration_since(now),
            locations: locations.into_iter().map(|(.., location)| location).collect(),
            stale: false,
        })
    }

    /// Whether an object can be read, and for how long it stays for certain. With `lease` it's leased.
    pub fn exist(&mut self, key: &[u8], lease: bool, now: Instant) -> Option<Duration> {
        self.counters.exist_queries += 1;
        let slot = self.look_up(key)?;
        let object = self.objects.get(slot).filter(|object| object.is_complete())?;
        let alive = |number: u32| self.node(number).is_some_and(|node| !node.suspect);
        let mut readable = object.replicas.iter().filter(|replica| !replica.arrives());
        if !readable.any(|replica| alive(replica.node)) {
            return None;
        }
        if lease {
            self.lease(slot, now);
        }
        let object = self.objects.get(slot)?;
        Some(object.lease_until.saturating_duration_since(now))
    }
}
