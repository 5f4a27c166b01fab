//! Removing objects on request.

use std::time::Instant;

use kvstored_core::{Error, ErrorKind, Result};

use super::State;
use crate::key::split_key;

impl State {
    /// Removes an object, and returns the puts that wrote its replicas. Fails with `NotFound`, and unless forced with `Busy`
    /// for a leased one and for one being put.
    pub fn remove(&mut self, key: &[u8], force: bool, now: Instant) -> Result<Vec<u64>> {
        split_key(key)?;
        let slot = self.look_up(key);
        let slot = slot.ok_or_else(|| Error::new(ErrorKind::NotFound, "no such object"))?;
        let busy = |message: &str| Err(Error::new(ErrorKind::Busy, message));
        let object = self.objects.get(slot);
        let mut puts: Vec<u64> = object
            .map(|object| object.replicas.iter().map(|replica| replica.put).collect())
            .unwrap_or_default();
        puts.sort_unstable();
        puts.dedup();
        match object {
            Some(object) if !force && !object.is_complete() => return busy("the object is being put"),
            Some(object) if !force && object.is_leased(now) => return busy("the object is leased"),
            _ => {}
        }
        self.counters.removed_objects += 1;
        self.drop_object(slot);
        Ok(puts)
    }

    /// Whether ranges of an object that was removed, or of any object where there is no put, wait for their node's
    /// confirmation. Until then a crash of the master could bring the object back.
    pub fn is_ending(&self, put: Option<u64>) -> bool {
        let mut nodes = self.nodes.iter().flatten();
        match put {
            Some(put) => nodes.any(|node| node.is_ending(put)),
            None => self.quarantined_bytes > 0 || nodes.any(|node| !node.ended.is_empty()),
        }
    }

    /// Removes objects of one tenant or of all, from a position on that begins at 0: those that may go, of as many as
    /// `most`. Returns how many went, and where to go on.
    pub fn remove_some(
        &mut self,
        from: usize,
        most: usize,
        tenant: Option<&str>,
        force: bool,
        now: Instant,
    ) -> (u64, Option<usize>) {
        let only = match tenant.map(|name| self.tenants.find(name)) {
            Some(None) => return (0, None),
            Some(number) => number,
            None => None,
        };
        let until = from.saturating_add(most).min(self.objects.slots());
        let mut removed = 0;
        for slot in from..until {
            let slot = slot as u32;
            let Some(object) = self.objects.get(slot) else {
                continue;
            };
            let held = object.is_leased(now) || !object.is_complete();
            if only.is_some_and(|only| only != object.tenant) || (held && !force) {
                continue;
            }
            removed += u64::from(object.is_complete());
            self.drop_object(slot);
        }
        self.counters.removed_objects += removed;
        (removed, (until < self.objects.slots()).then_some(until))
    }
}
