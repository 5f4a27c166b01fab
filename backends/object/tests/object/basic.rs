//! Storing, finding and loading, and finding again after a restart.

use std::sync::atomic::Ordering;
use std::time::Duration;

use kvstored_core::{Action, Durability, ErrorKind, Tier};
use kvstored_object::S3Settings;

use crate::faulty::{Fault, Faulty};
use crate::support::{
    DEADLINE, assert_readable, eventually, found, hash, image, namespace, namespace_of, open, open_with,
    read, settings, submit, write,
};

#[test]
fn blocks_are_found_and_right_also_after_a_restart() {
    let store = Faulty::new();
    let tier = open(&store);
    let info = namespace(&*tier);
    write(&*tier, &info, 0..50);
    assert_eq!(found(&*tier, &info, 0..60), 50);
    assert_readable(&*tier, &info, 0..50);
    assert!(
        read(&*tier, &info, 50..51)[0]
            .as_ref()
            .is_err_and(|error| error.kind() == ErrorKind::NotFound)
    );
    tier.shutdown();

    let tier = open(&store);
    eventually("the blocks are found again", || tier.statistics().blocks == 50);
    // nobody has opened the namespace here yet
    let stored = tier.stored_namespace(&info.namespace).unwrap();
    assert_eq!(*stored, *info);
    assert_eq!(tier.namespaces(), [(info.namespace, 50)]);
    assert_eq!(tier.list(None, None, 100).len(), 50);
    let info = namespace(&*tier);
    assert_readable(&*tier, &info, 0..50);
    assert_eq!(tier.statistics().allocated_bytes, store.object_bytes());
}

#[test]
fn neighbours_share_an_object_and_a_request() {
    let store = Faulty::new();
    let tier = open(&store);
    let info = namespace(&*tier);
    write(&*tier, &info, 0..6);
    assert_eq!(store.keys("objects").len(), 1);
    let before = store.gets.load(Ordering::Relaxed);
    assert_readable(&*tier, &info, 0..6);
    assert_eq!(store.gets.load(Ordering::Relaxed), before + 1);
    // a range is bounded, too
    tier.shutdown();
    let tier = open_with(
        &store,
        S3Settings {
            range_bytes: 50_000,
            ..settings()
        },
    );
    let info = namespace(&*tier);
    eventually("the blocks are found again", || tier.statistics().blocks == 6);
    let before = store.gets.load(Ordering::Relaxed);
    assert_readable(&*tier, &info, 0..6);
    assert_eq!(store.gets.load(Ordering::Relaxed), before + 3);
}

#[test]
fn a_large_object_goes_up_in_parts() {
    let store = Faulty::new();
    let tier = open_with(
        &store,
        S3Settings {
            part_bytes: 30_000,
            object_bytes: 400_000,
            ..settings()
        },
    );
    let info = namespace(&*tier);
    write(&*tier, &info, 0..20);
    assert!(store.uploads.load(Ordering::Relaxed) > 0);
    assert_readable(&*tier, &info, 0..20);
}

#[test]
fn what_is_there_is_not_stored_again() {
    let store = Faulty::new();
    let tier = open(&store);
    let info = namespace(&*tier);
    write(&*tier, &info, 0..5);
    let written = tier.statistics().written_bytes;
    write(&*tier, &info, 0..5);
    assert_eq!(tier.statistics().written_bytes, written);
    assert_eq!(store.keys("objects").len(), 1);
}

#[test]
fn a_drain_waits_for_nothing_but_the_bucket() {
    let store = Faulty::new();
    let tier = open_with(
        &store,
        S3Settings {
            batch_delay: Duration::from_hours(1),
            ..settings()
        },
    );
    let info = namespace(&*tier);
    let blocks = (0..3)
        .map(|number| (hash(number), image(&info, &hash(number))))
        .collect();
    let answers = submit(&*tier, &info, blocks, Action::Write(Durability::Tier));
    assert!(answers[0].try_recv().is_err());
    tier.drain(kvstored_core::Runtime::system().deadline(DEADLINE))
        .unwrap();
    for answer in answers {
        answer.try_recv().unwrap().1.unwrap();
    }
    assert_readable(&*tier, &info, 0..3);
}

#[test]
fn a_full_queue_is_busy_at_once() {
    let store = Faulty::new();
    store.always(Some(Fault::Hang));
    let tier = open_with(
        &store,
        S3Settings {
            queue_depth: 4,
            ..settings()
        },
    );
    let info = namespace(&*tier);
    let blocks = (0..6)
        .map(|number| (hash(number), image(&info, &hash(number))))
        .collect();
    let answers = submit(&*tier, &info, blocks, Action::Write(Durability::Tier));
    for answer in &answers[4..] {
        assert_eq!(answer.try_recv().unwrap().1.unwrap_err().kind(), ErrorKind::Busy);
    }
    // whatever was accepted comes back when the tier stops
    tier.shutdown();
    for answer in &answers[..4] {
        let error = answer.recv_timeout(DEADLINE).unwrap().1.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
    }
}

#[test]
fn namespaces_do_not_share_objects_and_removed_blocks_are_misses() {
    let store = Faulty::new();
    let tier = open(&store);
    let (one, two) = (namespace_of(&*tier, "one"), namespace_of(&*tier, "two"));
    write(&*tier, &one, 0..2);
    write(&*tier, &two, 0..2);
    assert_eq!(store.keys("objects").len(), 2);
    assert_eq!(tier.remove(&one, &[hash(0), hash(9)]), 1);
    assert_eq!((found(&*tier, &one, 0..2), found(&*tier, &two, 0..2)), (1, 2));
}
