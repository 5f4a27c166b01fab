//! Purges of a namespace: here, elsewhere and for good.

use kvstored_core::Tier;

use crate::faulty::Faulty;
use crate::support::{assert_readable, eventually, found, namespace, namespace_of, open, write};

#[test]
fn a_purge_holds_for_everybody_and_frees_the_bytes() {
    let store = Faulty::new();
    let (one, other) = (open(&store), open(&store));
    let infos = [namespace(&*one), namespace(&*other)];
    let kept = namespace_of(&*one, "kept");
    write(&*one, &infos[0], 0..10);
    write(&*other, &infos[1], 10..20);
    write(&*one, &kept, 0..3);
    eventually("both know all", || {
        found(&*one, &infos[0], 0..20) == 20 && found(&*other, &infos[1], 0..20) == 20
    });
    assert_eq!(one.purge(&infos[0].namespace).unwrap(), 20);
    assert_eq!(found(&*one, &infos[0], 0..20), 0);
    assert_eq!(
        store.keys("objects").len(),
        1,
        "only the other namespace's object is left"
    );
    eventually("the other one hears of it", || {
        found(&*other, &infos[1], 0..20) == 0
    });
    // what comes later is kept, by whomever
    write(&*one, &infos[0], 0..5);
    write(&*other, &infos[1], 5..10);
    eventually("both know the new ones", || {
        found(&*one, &infos[0], 0..20) == 10 && found(&*other, &infos[1], 0..20) == 10
    });
    one.shutdown();
    other.shutdown();
    let tier = open(&store);
    let (info, kept) = (namespace(&*tier), namespace_of(&*tier, "kept"));
    eventually("the blocks are found again", || tier.statistics().blocks == 13);
    assert_readable(&*tier, &info, 0..10);
    assert_readable(&*tier, &kept, 0..3);
}

#[test]
fn an_object_that_comes_to_light_after_a_purge_is_deleted() {
    let store = Faulty::new();
    let tier = open(&store);
    let info = namespace(&*tier);
    write(&*tier, &info, 0..3);
    let key = store.keys("objects")[0].clone();
    let mut bytes = Vec::new();
    store.change(&key, |found| bytes.clone_from(found));
    tier.purge(&info.namespace).unwrap();
    assert!(store.keys("objects").is_empty());
    // as an upload would that took its time
    store.create(&key, bytes);
    eventually("it's deleted", || store.keys("objects").is_empty());
    assert_eq!(found(&*tier, &info, 0..3), 0);
}
