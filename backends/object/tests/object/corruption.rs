//! Wrong bytes, at rest and on the way: misses, never returned.

use kvstored_core::{Action, ErrorKind, Tier};

use crate::faulty::{Fault, Faulty, Request};
use crate::support::{assert_readable, eventually, fetch, found, namespace, open, read, write};

#[test]
fn a_flipped_bit_at_rest_costs_one_block() {
    let store = Faulty::new();
    let tier = open(&store);
    let info = namespace(&*tier);
    write(&*tier, &info, 0..5);
    let image = info.layout.image_bytes();
    // in the payload of the block in the middle
    store.change(&store.keys("objects")[0], |bytes| bytes[2 * image + 5000] ^= 0x10);
    let results = read(&*tier, &info, 0..5);
    for (number, result) in results.into_iter().enumerate() {
        match result {
            Ok(()) => assert_ne!(number, 2),
            Err(error) => assert_eq!((number, error.kind()), (2, ErrorKind::Corrupt)),
        }
    }
    assert_eq!(found(&*tier, &info, 0..5), 4);
    let statistics = tier.statistics();
    assert_eq!((statistics.quarantined_blocks, statistics.degraded), (1, false));
    // dumped anew, it's whole again
    write(&*tier, &info, 2..3);
    assert_readable(&*tier, &info, 0..5);
}

#[test]
fn every_page_of_an_object_may_be_wrong() {
    let store = Faulty::new();
    let tier = open(&store);
    let info = namespace(&*tier);
    write(&*tier, &info, 0..2);
    let key = store.keys("objects")[0].clone();
    let image = info.layout.image_bytes();
    for page in 0..2 * image / 4096 {
        store.change(&key, |bytes| bytes[page * 4096 + 100] ^= 0x10);
        let tier = open(&store);
        let info = namespace(&*tier);
        eventually("the blocks are found", || found(&*tier, &info, 0..2) == 2);
        let bad = fetch(&*tier, &info, 0..2, Action::Verify)
            .iter()
            .filter(|result| result.is_err())
            .count();
        assert_eq!(bad, 1, "page {page}");
        store.change(&key, |bytes| bytes[page * 4096 + 100] ^= 0x10);
    }
}

#[test]
fn bad_footers_are_misses_and_leave_the_rest_alone() {
    let store = Faulty::new();
    let tier = open(&store);
    let info = namespace(&*tier);
    for first in [0, 10, 20, 30] {
        write(&*tier, &info, first..first + 2);
    }
    tier.shutdown();
    let keys = store.keys("objects");
    assert_eq!(keys.len(), 4);
    store.change(&keys[0], |bytes| {
        let at = bytes.len() - 40;
        bytes[at] ^= 1;
    });
    store.change(&keys[1], |bytes| bytes.truncate(bytes.len() - 1));
    store.change(&keys[2], |bytes| *bytes = b"not an object of ours".to_vec());
    let tier = open(&store);
    let info = namespace(&*tier);
    eventually("all objects were seen", || {
        let statistics = tier.statistics();
        (statistics.blocks, statistics.quarantined_blocks) == (2, 3)
    });
    assert_eq!(
        (found(&*tier, &info, 0..30), found(&*tier, &info, 30..32)),
        (0, 2)
    );
    assert_readable(&*tier, &info, 30..32);
    assert!(!tier.statistics().degraded);
    assert_eq!(tier.statistics().allocated_bytes, store.object_bytes());
}

#[test]
fn what_is_wrong_on_the_way_is_asked_for_again() {
    let store = Faulty::new();
    let tier = open(&store);
    let info = namespace(&*tier);
    write(&*tier, &info, 0..4);
    for fault in [Fault::Flip, Fault::Cut, Fault::Error] {
        store.plan(Request::Get, fault);
        assert_readable(&*tier, &info, 0..4);
    }
    let statistics = tier.statistics();
    assert_eq!((statistics.quarantined_blocks, statistics.degraded), (0, false));
}
