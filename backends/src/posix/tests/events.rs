//! Events say what lookups see: whoever follows them from the start knows what is in the tier.

use std::collections::HashSet;
use std::sync::Arc;

use kvstored_core::events::EventLog;
use kvstored_core::{BlockHash, BlockKey, EventKind, EventSink, Runtime, Tier};

use super::support::*;
use crate::posix::{PosixSettings, PosixTier};

struct Follower {
    log: Arc<EventLog>,
    after: u64,
    blocks: HashSet<BlockKey>,
}

impl Follower {
    fn new(tier: &PosixTier) -> Self {
        let log = EventLog::new(&Runtime::system(), 1 << 16);
        let after = log.take(0, 0).next;
        tier.observe(EventSink::new(log.clone(), 1));
        Self {
            log,
            after,
            blocks: HashSet::new(),
        }
    }

    fn follow(&mut self) {
        let events = self.log.take(self.after, usize::MAX);
        assert!(!events.lost);
        self.after = events.next;
        for event in events.events {
            assert_eq!(event.tier, 1);
            let news = match event.kind {
                EventKind::Stored => self.blocks.insert(event.key),
                EventKind::Removed => self.blocks.remove(&event.key),
            };
            assert!(news, "{event:?} was known");
        }
    }

    fn agrees(&mut self, tier: &PosixTier) -> bool {
        self.follow();
        let listed: HashSet<BlockKey> = tier.list(None, None, usize::MAX).into_iter().collect();
        listed == self.blocks
    }
}

#[test]
fn events_of_own_and_of_followed_blocks_agree_with_lookups() {
    let store = directory();
    let (a, b) = (open(store.path()), open(store.path()));
    let (mut first, mut second) = (Follower::new(&a), Follower::new(&b));
    let info = namespace(&*a);
    b.open_namespace(&info).unwrap();
    write(&*a, &info, 0..50);
    write(&*b, &info, 100..120);
    wait_until("both see all", || {
        present(&*a, &info, 0..200) == 70 && present(&*b, &info, 0..200) == 70
    });
    assert!(first.agrees(&a) && second.agrees(&b));
    assert_eq!(first.blocks.len(), 70);
    let some: Vec<BlockHash> = (10..20).map(hash).collect();
    assert_eq!(a.remove(&info, &some), 10);
    wait_until("b follows the removal", || present(&*b, &info, 0..200) == 60);
    assert!(first.agrees(&a) && second.agrees(&b));
    assert_eq!(a.purge(&info.namespace).unwrap(), 60);
    wait_until("b follows the purge", || present(&*b, &info, 0..200) == 0);
    assert!(first.agrees(&a) && second.agrees(&b));
    assert!(first.blocks.is_empty() && second.blocks.is_empty());
}

#[test]
fn evicted_blocks_are_told_and_reinserted_ones_are_not() {
    let store = directory();
    let tier = open_with(PosixSettings {
        capacity_bytes: 8 << 20,
        segment_bytes: None,
        ..settings(store.path())
    });
    let mut follower = Follower::new(&tier);
    let info = namespace(&*tier);
    let mut written = 0;
    // writes are refused while nothing is free: as many as it takes
    wait_until("evictions", || {
        write_some(&*tier, &info, written..written + 25);
        written += 25;
        for number in 0..3 {
            let _ = read(&*tier, &info, hash(number));
        }
        follower.follow();
        written >= 1000 && tier.statistics().evicted_blocks > 300
    });
    // Eviction goes on behind: a statistic read a moment after the events may be ahead of them.
    wait_until("events agree with lookups and statistics", || {
        follower.agrees(&tier) && follower.blocks.len() as u64 == tier.statistics().blocks
    });
}
