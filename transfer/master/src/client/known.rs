//! The last-known locations of objects, for when no master answers.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use parking_lot::Mutex;

use crate::types::Found;

/// Bounded; the oldest goes first.
pub(super) struct Known {
    most: usize,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    found: HashMap<Box<[u8]>, Found>,
    order: VecDeque<Box<[u8]>>,
}

impl Known {
    pub fn new(most: usize) -> Self {
        Self {
            most,
            inner: Mutex::default(),
        }
    }

    pub fn remember(&self, key: &[u8], found: &Found) {
        if self.most == 0 {
            return;
        }
        let mut inner = self.inner.lock();
        let mut kept = found.clone();
        kept.lease = Duration::ZERO;
        kept.stale = true;
        if inner.found.insert(key.into(), kept).is_none() {
            inner.order.push_back(key.into());
        }
        while inner.found.len() > self.most
            && let Some(oldest) = inner.order.pop_front()
        {
            inner.found.remove(&oldest);
        }
        // keys that were forgotten leave their places behind
        if inner.order.len() > self.most * 2 + 16 {
            let Inner { found, order } = &mut *inner;
            order.retain(|key| found.contains_key(key));
        }
    }

    pub fn forget(&self, key: &[u8]) {
        if self.most > 0 {
            self.inner.lock().found.remove(key);
        }
    }

    pub fn get(&self, key: &[u8]) -> Option<Found> {
        if self.most == 0 {
            return None;
        }
        self.inner.lock().found.get(key).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(put: u64) -> Found {
        Found {
            put,
            length: 1,
            checksum: 2,
            lease: Duration::from_secs(5),
            locations: Vec::new(),
            stale: false,
        }
    }

    #[test]
    fn the_oldest_goes_first_and_nothing_is_promised() {
        let known = Known::new(2);
        for put in 1..=3_u64 {
            known.remember(&put.to_le_bytes(), &found(put));
        }
        assert!(known.get(&1_u64.to_le_bytes()).is_none());
        let kept = known.get(&3_u64.to_le_bytes()).unwrap();
        assert_eq!((kept.put, kept.lease, kept.stale), (3, Duration::ZERO, true));
        known.forget(&3_u64.to_le_bytes());
        assert!(known.get(&3_u64.to_le_bytes()).is_none());
        assert!(Known::new(0).get(b"x").is_none());
    }

    #[test]
    fn forgotten_keys_take_no_memory() {
        let known = Known::new(4);
        for put in 0..10_000_u64 {
            known.remember(&put.to_le_bytes(), &found(put));
            known.forget(&put.to_le_bytes());
        }
        assert!(known.inner.lock().order.len() <= 4 * 2 + 17);
    }
}
