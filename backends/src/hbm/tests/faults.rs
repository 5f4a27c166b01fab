use std::sync::atomic::Ordering;
use std::time::Duration;

use kvstored_core::{Action, Durability, ErrorKind, Runtime, Tier};

use super::support::{PATIENCE, Rig, buffer, hash, image, wait};

/// Tries until the tier takes the block again.
fn until_it_works(rig: &Rig, number: u64) {
    let runtime = Runtime::system();
    let deadline = runtime.deadline(PATIENCE);
    while let Err(error) = rig.write(number) {
        assert!(runtime.clock.now() < deadline, "it doesn't heal: {error}");
        #[allow(clippy::disallowed_methods)] // the pause after a failure is what is waited for
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_copy_that_fails_leaves_no_block_and_heals() {
    let rig = Rig::small(8);
    rig.write(1).unwrap();
    rig.device.failing_calls.store(1, Ordering::Relaxed);
    assert_eq!(rig.write(2).unwrap_err().kind(), ErrorKind::Io);
    let statistics = rig.tier.statistics();
    assert!(statistics.degraded && statistics.degraded_reason.contains("a copy failed"));
    assert_eq!(statistics.faults, 1);
    // while it's left alone, everything is a miss, at once
    assert!(!rig.present(1));
    assert_eq!(rig.read(1).unwrap_err().kind(), ErrorKind::Unavailable);
    until_it_works(&rig, 2);
    assert!(!rig.tier.statistics().degraded);
    rig.expect(1);
    rig.expect(2);
}

#[test]
fn copies_past_their_deadline_are_misses_and_their_memory_is_not_used_again() {
    let rig = Rig::small(8);
    rig.write(1).unwrap();
    let hold = rig.device.hold();
    let buffer = buffer(rig.namespace.layout.image_bytes());
    let (arena, offset) = (buffer.arena().clone(), buffer.offset());
    let (returned, outcome) = wait(rig.start(vec![(hash(1), Action::Read, buffer)]).remove(0));
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::TimedOut);
    drop(returned);
    let image_bytes = rig.namespace.layout.image_bytes() as u64;
    let statistics = rig.tier.statistics();
    assert!(statistics.degraded);
    assert_eq!(statistics.held_bytes, image_bytes);
    // the place on the device stays taken too
    assert_eq!(rig.tier.remove(&rig.namespace, &[hash(1)]), 1);
    assert_eq!(rig.tier.statistics().allocated_bytes, image_bytes);
    *rig.device.hold.lock() = None;
    hold.reach();
    until_it_works(&rig, 2);
    let runtime = Runtime::system();
    let deadline = runtime.deadline(PATIENCE);
    let mut number = 3;
    while rig.tier.statistics().held_bytes > 0 {
        assert!(runtime.clock.now() < deadline, "memory isn't given back");
        // both threads come by, and look after what they have put aside
        rig.write(number).unwrap();
        number = 3 + (number + 1) % 5;
        rig.tier.remove(&rig.namespace, &[hash(number)]);
    }
    let mut first = [0];
    arena.read(offset, &mut first).unwrap();
}

#[test]
fn writers_past_their_deadline_leave_nothing() {
    let rig = Rig::small(8);
    let hold = rig.device.hold();
    assert_eq!(rig.write(1).unwrap_err().kind(), ErrorKind::TimedOut);
    assert!(!rig.present(1));
    *rig.device.hold.lock() = None;
    hold.reach();
    until_it_works(&rig, 1);
    rig.expect(1);
}

#[test]
fn a_lost_device_is_unavailable_and_heals() {
    let rig = Rig::small(8);
    rig.device.no_streams.store(true, Ordering::Relaxed);
    assert_eq!(rig.write(1).unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(rig.tier.statistics().degraded);
    rig.device.no_streams.store(false, Ordering::Relaxed);
    until_it_works(&rig, 1);
    rig.expect(1);
}

#[test]
fn a_block_that_comes_back_changed_is_corrupt_and_gone() {
    let rig = Rig::small(8);
    rig.write(1).unwrap();
    rig.device.flips.store(true, Ordering::Relaxed);
    assert_eq!(rig.read(1).unwrap_err().kind(), ErrorKind::Corrupt);
    rig.device.flips.store(false, Ordering::Relaxed);
    assert!(!rig.present(1));
    let statistics = rig.tier.statistics();
    assert_eq!((statistics.quarantined_blocks, statistics.faults), (1, 0));
    rig.write(1).unwrap();
    rig.expect(1);
}

#[test]
fn a_damaged_payload_is_found_by_a_scrub() {
    let rig = Rig::small(8);
    let damaged = image(&rig.namespace, hash(1));
    let offset = rig.namespace.layout.shard_offset(1).unwrap();
    damaged.arena().write(offset + 9, &[1, 2, 3]).unwrap();
    let action = Action::Write(Durability::Tier);
    wait(rig.start(vec![(hash(1), action, damaged)]).remove(0))
        .1
        .unwrap();
    let scrub = buffer(rig.namespace.layout.image_bytes());
    let outcome = wait(rig.start(vec![(hash(1), Action::Verify, scrub)]).remove(0)).1;
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Corrupt);
    assert!(!rig.present(1));
}

#[test]
fn more_than_the_queue_holds_is_busy_and_nothing_is_forgotten() {
    let mut settings = crate::hbm::HbmSettings {
        capacity_bytes: 4 << 20,
        queue_depth: 4,
        ..crate::hbm::HbmSettings::default()
    };
    settings.call_bytes = 1;
    let rig = Rig::new(settings);
    let hold = rig.device.hold();
    let writes = (0..12).map(|number| {
        let action = Action::Write(Durability::Tier);
        (hash(number), action, image(&rig.namespace, hash(number)))
    });
    let pending = rig.start(writes.collect());
    *rig.device.hold.lock() = None;
    hold.reach();
    let outcomes: Vec<_> = pending.into_iter().map(|pending| wait(pending).1).collect();
    let refused = outcomes.iter().filter_map(|outcome| outcome.as_ref().err());
    let kinds: Vec<_> = refused.map(kvstored_core::Error::kind).collect();
    assert_eq!(kinds, [ErrorKind::Busy; 8]);
    for (number, outcome) in outcomes.iter().enumerate() {
        assert_eq!(rig.present(number as u64), outcome.is_ok());
    }
}
