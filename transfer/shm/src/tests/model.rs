//! All interleavings of the protocol, with the C11 memory model, under loom.
#![allow(unsafe_code)]

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

use crate::control::protocol::{OwnerSide, PeerSide, advance, enter, leave};

/// One slot with one peer, and the range that it guards.
struct World {
    epoch: AtomicU64,
    count: AtomicU32,
    range: UnsafeCell<u64>,
    /// The kernel's side of a futex on the count.
    bucket: Mutex<()>,
    woken: Condvar,
    fences: Fences,
}

/// Which fences there are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fences {
    All,
    NotThePeers,
    NotTheOwners,
}

impl World {
    fn new(fences: Fences) -> Arc<Self> {
        Arc::new(Self {
            epoch: AtomicU64::new(0),
            count: AtomicU32::new(0),
            range: UnsafeCell::new(0),
            bucket: Mutex::new(()),
            woken: Condvar::new(),
            fences,
        })
    }

    /// What a peer does with a range that it was told.
    fn read_range(&self) {
        if enter(self, 0) {
            self.range.with(|range| {
                // SAFETY: loom checks that nobody writes meanwhile.
                assert_eq!(unsafe { *range }, 0);
            });
            leave(self, 0);
        }
    }

    fn write_range(&self) {
        self.range.with_mut(|range| {
            // SAFETY: loom checks that nobody else has access.
            unsafe { *range = 1 };
        });
    }

    /// What the owner does to take the range back: waits as it does, without deadline.
    fn take_back(&self) {
        assert_eq!(advance(self), 1);
        loop {
            let seen = self.count.load(Ordering::Acquire);
            if seen == 0 {
                return;
            }
            // the kernel compares and goes to sleep under a lock that wake-ups take too
            let bucket = self.bucket.lock().unwrap();
            if self.count.load(Ordering::Relaxed) == seen {
                drop(self.woken.wait(bucket).unwrap());
            }
        }
    }
}

impl PeerSide for World {
    fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    fn count_in(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    fn count_out(&self) {
        self.count.fetch_sub(1, Ordering::Release);
    }

    fn fence(&self) {
        if self.fences != Fences::NotThePeers {
            fence(Ordering::SeqCst);
        }
    }

    fn wake(&self) {
        drop(self.bucket.lock().unwrap());
        self.woken.notify_all();
    }
}

impl OwnerSide for World {
    fn bump(&self) -> u64 {
        self.epoch.fetch_add(1, Ordering::Release) + 1
    }

    fn fence(&self) {
        if self.fences != Fences::NotTheOwners {
            fence(Ordering::SeqCst);
        }
    }
}

/// Threads of a peer read the range while the owner takes it back and then writes to it.
fn check(fences: Fences, threads: usize) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(move || {
        let world = World::new(fences);
        let peers: Vec<_> = (0..threads)
            .map(|_| {
                let world = world.clone();
                thread::spawn(move || world.read_range())
            })
            .collect();
        world.take_back();
        world.write_range();
        for peer in peers {
            peer.join().unwrap();
        }
        assert!(!enter(&*world, 0));
        assert_eq!(world.count.load(Ordering::Relaxed), 0);
    });
}

/// Whether the model finds somebody at the range who must not be there.
fn fails(fences: Fences) -> bool {
    let Err(panic) = std::panic::catch_unwind(|| check(fences, 1)) else {
        return false;
    };
    let message = panic.downcast_ref::<String>().cloned().unwrap_or_default();
    assert!(message.contains("Causality violation"), "{message}");
    true
}

#[test]
fn nobody_touches_a_range_that_was_taken_back_and_no_wake_up_is_lost() {
    check(Fences::All, 1);
    check(Fences::All, 2);
}

#[test]
fn both_fences_are_needed() {
    assert!(fails(Fences::NotThePeers));
    assert!(fails(Fences::NotTheOwners));
}
