//! Thousands of enters against thousands of advances, in two processes, while somebody looks at every byte.
//!
//! The owner fills a range with the number of its epoch, tells the epoch, takes the range back, and fills it
//! with zeros while nobody may look. Peers that got in must see their epoch's number in all of it until they
//! leave.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kvstored_core::Runtime;

use super::child::{Belongings, Child, clock, late};
use crate::{ControlPage, PeerControl, PeerMemory, SharedMemory, Sharing};

const ROUNDS: u64 = 4000;
const THREADS: u64 = 2;
/// Where things are in the shared memory, in double words.
const TOLD: usize = 0;
const LOOKS: usize = 1;
const WRONG: usize = 2;
const FIRST: usize = 64;
const END: usize = 576;
/// Told instead of an epoch: it's over.
const OVER: u64 = u64::MAX;
const SLOT: u32 = 11;

fn word(memory: &PeerMemory, index: usize) -> &AtomicU64 {
    memory.mapping().double(index * 8).unwrap()
}

/// What each thread of a child does.
fn look(control: &Arc<PeerControl>, memory: &PeerMemory) {
    loop {
        let epoch = word(memory, TOLD).load(Ordering::Acquire);
        if epoch == OVER {
            return;
        }
        let Some(_under_way) = control.enter(SLOT, epoch) else {
            continue;
        };
        let is_right = |index: usize| word(memory, index).load(Ordering::Relaxed) == epoch;
        // forth and back, so that a range that changes meanwhile is noticed
        if !((FIRST..END).all(is_right) && (FIRST..END).rev().all(is_right)) {
            word(memory, WRONG).fetch_add(1, Ordering::Relaxed);
        }
        word(memory, LOOKS).fetch_add(1, Ordering::Relaxed);
    }
}

/// The child's part.
pub fn run(belongings: &Belongings, threads: usize) -> String {
    let spawner = Runtime::system().spawner;
    let started: Vec<_> = (0..threads)
        .map(|_| {
            let control = belongings.control.clone().unwrap();
            let memory = belongings.memory.clone().unwrap();
            spawner
                .spawn("looker", Box::new(move || look(&control, &memory)))
                .unwrap()
        })
        .collect();
    for thread in started {
        thread.join();
    }
    "over".to_owned()
}

#[test]
fn a_range_that_was_taken_back_is_never_touched() {
    let page = ControlPage::new(64, clock()).unwrap();
    let memory = SharedMemory::new("race", 8192, Sharing::ReadWrite).unwrap();
    let children: Vec<_> = (0..2).map(|_| Child::attached(&page).0).collect();
    for child in &children {
        assert_eq!(
            child.ask_with("memory 8192 write", &[memory.descriptor().as_fd()]),
            "ok"
        );
    }
    let word = |index: usize| memory.mapping().double(index * 8).unwrap();
    // nobody was told an epoch that opens anything yet
    word(TOLD).store(OVER - 1, Ordering::Release);
    for child in &children {
        child.tell(&format!("race {THREADS}"), &[]);
    }
    let fill = |value| (FIRST..END).for_each(|index| word(index).store(value, Ordering::Relaxed));
    let mut late_rounds = 0;
    let mut round = 0;
    // as many rounds as it takes for the peers to have been in often
    while round < ROUNDS || word(LOOKS).load(Ordering::Relaxed) < ROUNDS {
        round += 1;
        let epoch = page.epoch(SLOT).unwrap();
        fill(epoch);
        word(TOLD).store(epoch, Ordering::Release);
        if round % 8 == 0 {
            let seen = word(LOOKS).load(Ordering::Relaxed);
            while word(LOOKS).load(Ordering::Relaxed) == seen {
                std::thread::yield_now();
            }
        }
        page.advance(SLOT).unwrap();
        late_rounds += u64::from(page.in_flight(SLOT).unwrap() > 0);
        page.wait_idle(SLOT, late()).unwrap();
        fill(0);
    }
    word(TOLD).store(OVER, Ordering::Release);
    for child in &children {
        assert_eq!(child.answer(), "over");
    }
    assert_eq!(word(WRONG).load(Ordering::Relaxed), 0);
    assert_eq!(page.in_flight(SLOT).unwrap(), 0);
    // otherwise this has tested nothing
    assert!(late_rounds > 0, "nobody was ever in when the epoch moved");
}
