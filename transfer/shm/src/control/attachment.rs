//! One peer at an owner's control page: its counts, and its process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use kvstored_core::runtime::Clock;
use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::thread::futex;

use super::layout;
use crate::memory::Mapping;
use crate::process::PeerProcess;
use crate::time::{left, timespec};

/// How long the owner sleeps before it looks whether the peer's process has exited, should nobody have told.
const LOOK_AFTER: Duration = Duration::from_millis(20);
/// So many wake-ups are answered at once during one wait: more than a peer has operations under way at one
/// slot, unless it plays with the owner.
const MOST_WAKE_UPS: u32 = 256;
/// How long the owner sleeps after that, whoever wakes it.
const PAUSE: Duration = Duration::from_millis(1);

/// Names one peer at one control page. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AttachmentId(pub(super) u64);

#[derive(Debug)]
pub(super) struct Attachment {
    pub id: AttachmentId,
    pub process: Arc<PeerProcess>,
    counts: Mapping,
    slots: u32,
    exited: AtomicBool,
    /// Slots that a thread of the owner's sleeps on.
    waited: Mutex<Vec<u32>>,
}

impl Attachment {
    pub fn new(id: AttachmentId, process: Arc<PeerProcess>, counts: Mapping, slots: u32) -> Self {
        Self {
            id,
            process,
            counts,
            slots,
            exited: AtomicBool::new(false),
            waited: Mutex::default(),
        }
    }

    /// How many operations the peer has under way at a slot, or says that it has.
    pub fn count(&self, slot: u32) -> u32 {
        if self.exited.load(Ordering::Acquire) {
            return 0;
        }
        layout::count(&self.counts, slot).map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// Whether the peer's process has exited. Once it has, its counts are gone, and whoever sleeps on them
    /// wakes.
    pub fn has_exited(&self) -> bool {
        if self.exited.load(Ordering::Acquire) {
            return true;
        }
        if !self.process.has_exited() {
            return false;
        }
        self.exited.store(true, Ordering::Release);
        // a thread that is about to sleep must not find the value it saw; one that sleeps already is woken
        // below
        for word in (0..self.slots).filter_map(|slot| layout::count(&self.counts, slot)) {
            if word.load(Ordering::Relaxed) != 0 {
                word.store(0, Ordering::Release);
            }
        }
        for slot in self.waited.lock().iter() {
            if let Some(word) = layout::count(&self.counts, *slot) {
                wake_all(word);
            }
        }
        true
    }

    /// Whether the peer has said that it's done, and is counted in nowhere.
    pub fn is_closed(&self) -> bool {
        let closed = layout::closed(&self.counts).is_some_and(|word| word.load(Ordering::Acquire) != 0);
        closed && (0..self.slots).all(|slot| self.count(slot) == 0)
    }

    /// Waits until the peer has nothing under way at the slot, or has exited. False at the deadline.
    pub fn wait_idle(&self, slot: u32, clock: &dyn Clock, deadline: Instant) -> bool {
        let Some(word) = layout::count(&self.counts, slot) else {
            return true;
        };
        self.waited.lock().push(slot);
        let idle = self.sleep_until_idle(word, clock, deadline);
        let mut waited = self.waited.lock();
        if let Some(index) = waited.iter().position(|other| *other == slot) {
            waited.swap_remove(index);
        }
        idle
    }

    fn sleep_until_idle(&self, word: &AtomicU32, clock: &dyn Clock, deadline: Instant) -> bool {
        let nothing = AtomicU32::new(0);
        let mut woken = 0;
        loop {
            let seen = word.load(Ordering::Acquire);
            if seen == 0 || self.has_exited() {
                return true;
            }
            let left = left(clock, deadline);
            if left.is_zero() {
                return false;
            }
            if woken >= MOST_WAKE_UPS {
                let _ = futex::wait(
                    &nothing,
                    futex::Flags::PRIVATE,
                    0,
                    Some(&timespec(left.min(PAUSE))),
                );
                continue;
            }
            match futex::wait(
                word,
                futex::Flags::empty(),
                seen,
                Some(&timespec(left.min(LOOK_AFTER))),
            ) {
                Ok(()) | Err(Errno::AGAIN) => woken += 1,
                // it's the deadline, or time to look again
                Err(_) => {}
            }
        }
    }
}

pub(super) fn wake_all(word: &AtomicU32) {
    // fails for no reason that a caller could do anything about; who sleeps looks again by itself
    let _ = futex::wake(word, futex::Flags::empty(), i32::MAX as u32);
}
