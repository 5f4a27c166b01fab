//! Several writers on one bucket.

use kvstored_core::{ErrorKind, Tier};

use crate::faulty::Faulty;
use crate::support::{assert_readable, eventually, found, namespace, open, read, write};

#[test]
fn writers_find_each_others_blocks() {
    let store = Faulty::new();
    let tiers = [open(&store), open(&store), open(&store)];
    let infos: Vec<_> = tiers.iter().map(|tier| namespace(&**tier)).collect();
    for (number, (tier, info)) in tiers.iter().zip(&infos).enumerate() {
        let first = number as u64 * 10;
        write(&**tier, info, first..first + 10);
    }
    for (tier, info) in tiers.iter().zip(&infos) {
        eventually("all blocks are found", || found(&**tier, info, 0..30) == 30);
        assert_readable(&**tier, info, 0..30);
    }
    assert_eq!(
        store.keys("claims").len(),
        3,
        "each writes under a number of its own"
    );
    assert_eq!(store.keys("namespaces").len(), 1);
}

#[test]
fn what_another_deleted_is_a_miss_and_leaves_the_index() {
    let store = Faulty::new();
    let tier = open(&store);
    let info = namespace(&*tier);
    write(&*tier, &info, 0..3);
    store.delete_now(&store.keys("objects")[0]);
    // a load may come before the listing that shows it
    for result in read(&*tier, &info, 0..3) {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::NotFound);
    }
    eventually("the listing shows it", || {
        let statistics = tier.statistics();
        (statistics.blocks, statistics.allocated_bytes) == (0, 0)
    });
    assert!(!tier.statistics().degraded);
    write(&*tier, &info, 0..3);
    assert_readable(&*tier, &info, 0..3);
}
