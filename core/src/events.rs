//! Which blocks became visible in a tier and which left it: a bounded record for whoever asks.
//!
//! Nothing is recorded while nobody asks. The first [`EventLog::take`] switches recording on, and it stays on as long
//! as somebody asks about once a minute. Tiers tell of a block where they make it visible or drop it, in the order
//! in which lookups see it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::block::{BlockHash, BlockKey, Namespace};
use crate::runtime::{Clock, Runtime};

/// Recording goes on this long after somebody asked.
const ATTENTION: Duration = Duration::from_mins(1);
/// Events between two looks at the clock.
const CLOCK_INTERVAL: u64 = 1024;

/// What happened to a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// It became visible.
    Stored,
    /// It left: evicted, purged, or found bad.
    Removed,
}

/// One block and one tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// Index of the tier in the pipeline; 0 is memory.
    pub tier: u8,
    /// The block.
    pub key: BlockKey,
}

/// A run of events without a gap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// Number of the first of `events`; they are numbered one after the other. One more than `next` if there are none.
    pub first: u64,
    /// Number of the last of `events`, or of the last before them: what to ask for the events after.
    pub next: u64,
    /// Whether events between the number asked with and `first` are gone. Whoever keeps track of a tier has to look at
    /// it anew.
    pub lost: bool,
    /// Oldest first.
    pub events: Vec<Event>,
}

#[derive(Default)]
struct Ring {
    events: VecDeque<Event>,
    /// Number of the newest event there was.
    last: u64,
    /// Number of the last event before recording began.
    begin: u64,
    /// When recording stops.
    until: Option<Instant>,
}

impl Ring {
    /// Number of the last event that isn't here any more.
    fn gone(&self) -> u64 {
        self.last - self.events.len() as u64
    }
}

/// The latest events of an engine.
///
/// Events are numbered from 1 above the microsecond of the log's creation, so that a number from an earlier run of the
/// engine is known to be one.
pub struct EventLog {
    clock: Arc<dyn Clock>,
    capacity: usize,
    recording: AtomicBool,
    ring: Mutex<Ring>,
}

impl EventLog {
    /// An empty log that will keep the latest `capacity` events, and takes no memory before it's asked.
    pub fn new(runtime: &Runtime, capacity: usize) -> Arc<Self> {
        let last = runtime.clock.unix_ms().saturating_mul(1000);
        Arc::new(Self {
            clock: runtime.clock.clone(),
            capacity: capacity.max(1),
            recording: AtomicBool::new(false),
            ring: Mutex::new(Ring {
                last,
                ..Ring::default()
            }),
        })
    }

    /// Up to `limit` events after the one numbered `after` (0: from the beginning of the record), and recording goes
    /// on. What was stored before the first call is not told: list it after that call, and no event is missed.
    pub fn take(&self, after: u64, limit: usize) -> Events {
        let until = self.clock.now() + ATTENTION;
        let mut ring = self.ring.lock();
        if !self.recording.load(Ordering::Relaxed) {
            ring.events.reserve_exact(self.capacity);
            ring.begin = ring.last;
            self.recording.store(true, Ordering::Release);
        }
        ring.until = Some(until);
        let gone = ring.gone();
        let (lost, skipped) = match after {
            0 => (gone > ring.begin, 0),
            // of an earlier run
            after if after > ring.last => (true, 0),
            after => (after < gone, after.saturating_sub(gone)),
        };
        let events: Vec<Event> = ring
            .events
            .iter()
            .skip(skipped as usize)
            .take(limit)
            .copied()
            .collect();
        let before = gone + skipped;
        Events {
            first: before + 1,
            next: before + events.len() as u64,
            lost,
            events,
        }
    }

    fn record(&self, event: Event) {
        let mut ring = self.ring.lock();
        let Some(until) = ring.until else { return };
        if ring.last.is_multiple_of(CLOCK_INTERVAL) && self.clock.now() >= until {
            self.recording.store(false, Ordering::Relaxed);
            ring.events = VecDeque::new();
            ring.until = None;
            // a gap in the numbers tells those who come back
            ring.last += 1;
            return;
        }
        if ring.events.len() >= self.capacity {
            ring.events.pop_front();
        }
        ring.events.push_back(event);
        ring.last += 1;
    }
}

/// Where one tier tells of its blocks. Cheap while nobody listens; takes a lock of its own for a moment otherwise, and
/// none of anybody else's, so that a tier may tell with its own locks held.
#[derive(Clone)]
pub struct EventSink {
    target: Target,
}

/// Hears of every event at once.
type Hook = Arc<dyn Fn(EventKind, &Namespace, &BlockHash) + Send + Sync>;

#[derive(Clone)]
enum Target {
    Log { log: Arc<EventLog>, tier: u8 },
    Hook(Hook),
}

impl EventSink {
    /// The sink of the tier with that index in the pipeline.
    pub fn new(log: Arc<EventLog>, tier: u8) -> Self {
        Self {
            target: Target::Log { log, tier },
        }
    }

    /// A sink that calls `hook` for every event, with locks of the tier held: it must neither block nor ask the tier
    /// anything.
    pub fn hook(hook: impl Fn(EventKind, &Namespace, &BlockHash) + Send + Sync + 'static) -> Self {
        Self {
            target: Target::Hook(Arc::new(hook)),
        }
    }

    /// A block became visible.
    #[inline]
    pub fn stored(&self, namespace: &Namespace, hash: &BlockHash) {
        self.tell(EventKind::Stored, namespace, hash);
    }

    /// A block that was visible isn't any more.
    #[inline]
    pub fn removed(&self, namespace: &Namespace, hash: &BlockHash) {
        self.tell(EventKind::Removed, namespace, hash);
    }

    #[inline]
    fn tell(&self, kind: EventKind, namespace: &Namespace, hash: &BlockHash) {
        match &self.target {
            Target::Log { log, tier } if log.recording.load(Ordering::Acquire) => log.record(Event {
                kind,
                tier: *tier,
                key: BlockKey {
                    namespace: *namespace,
                    hash: *hash,
                },
            }),
            Target::Log { .. } => {}
            Target::Hook(hook) => hook(kind, namespace, hash),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Steps {
        start: Instant,
        seconds: Mutex<u64>,
    }

    impl Clock for Steps {
        fn now(&self) -> Instant {
            self.start + Duration::from_secs(*self.seconds.lock())
        }

        fn unix_ms(&self) -> u64 {
            5
        }
    }

    #[allow(clippy::disallowed_methods)] // the steps begin somewhere
    fn log(capacity: usize) -> (Arc<EventLog>, Arc<Steps>, EventSink) {
        let clock = Arc::new(Steps {
            start: Instant::now(),
            seconds: Mutex::new(0),
        });
        let runtime = Runtime {
            clock: clock.clone(),
            ..Runtime::system()
        };
        let log = EventLog::new(&runtime, capacity);
        (log.clone(), clock, EventSink::new(log, 3))
    }

    const NAMESPACE: Namespace = Namespace([7; 32]);

    fn hash(number: u64) -> BlockHash {
        BlockHash::new(&[number.to_le_bytes(); 2].concat()).unwrap()
    }

    fn store(sink: &EventSink, numbers: std::ops::Range<u64>) {
        for number in numbers {
            sink.stored(&NAMESPACE, &hash(number));
        }
    }

    #[test]
    fn nothing_is_recorded_before_somebody_asks_and_everything_after() {
        let (log, _, sink) = log(100);
        store(&sink, 0..10);
        let nothing = log.take(0, 10);
        assert_eq!((nothing.first, nothing.next, nothing.lost), (5001, 5000, false));
        assert!(nothing.events.is_empty());
        store(&sink, 10..13);
        sink.removed(&NAMESPACE, &hash(11));
        let some = log.take(nothing.next, 3);
        assert_eq!((some.first, some.next, some.lost), (5001, 5003, false));
        assert_eq!(some.events[2].key.hash, hash(12));
        let rest = log.take(some.next, 3);
        let removed = Event {
            kind: EventKind::Removed,
            tier: 3,
            key: BlockKey {
                namespace: NAMESPACE,
                hash: hash(11),
            },
        };
        assert_eq!((rest.first, rest.next, rest.lost), (5004, 5004, false));
        assert_eq!(rest.events, [removed]);
        // whoever comes later finds them all the same
        assert_eq!(log.take(0, 10).events.len(), 4);
    }

    #[test]
    fn a_hook_hears_of_everything_at_once() {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let list = heard.clone();
        let sink = EventSink::hook(move |kind, _, hash| list.lock().push((kind, *hash)));
        sink.stored(&NAMESPACE, &hash(1));
        sink.removed(&NAMESPACE, &hash(1));
        let expected = [(EventKind::Stored, hash(1)), (EventKind::Removed, hash(1))];
        assert_eq!(*heard.lock(), expected);
    }

    #[test]
    fn what_overflows_is_known_to_be_lost() {
        let (log, _, sink) = log(4);
        let start = log.take(0, 1).next;
        store(&sink, 0..4);
        assert!(!log.take(start, 1).lost);
        store(&sink, 4..6);
        let events = log.take(start, 10);
        assert_eq!((events.first, events.next, events.lost), (5003, 5006, true));
        assert_eq!(events.events[0].key.hash, hash(2));
        assert!(!log.take(start + 2, 10).lost);
        assert!(log.take(0, 10).lost, "the beginning of the record is gone");
    }

    #[test]
    fn numbers_of_another_run_are_known_to_be_lost() {
        let (log, ..) = log(4);
        for after in [1, 4999, 5001, u64::MAX] {
            let events = log.take(after, 4);
            assert!(events.lost, "{after}");
            assert_eq!((events.first, events.next), (5001, 5000));
        }
        assert!(!log.take(5000, 4).lost);
    }

    #[test]
    fn recording_stops_when_nobody_asks_any_more_and_the_gap_shows() {
        let (log, clock, sink) = log(10_000);
        let start = log.take(0, 1).next;
        *clock.seconds.lock() = 50;
        store(&sink, 0..2000);
        let seen = log.take(start, 10_000);
        assert_eq!(seen.events.len(), 2000);
        *clock.seconds.lock() = 100;
        store(&sink, 0..1500);
        assert_eq!(log.take(seen.next, 10_000).events.len(), 1500);
        *clock.seconds.lock() = 161;
        store(&sink, 0..2 * CLOCK_INTERVAL);
        let later = log.take(seen.next, 10_000);
        assert!(later.lost && later.events.is_empty(), "{later:?}");
        store(&sink, 0..5);
        let again = log.take(later.next, 10_000);
        assert_eq!((again.lost, again.events.len()), (false, 5));
        assert!(!log.take(0, 1).lost);
    }
}
