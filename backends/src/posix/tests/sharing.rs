//! Several writers in one directory: following, takeover, fencing, forced identifiers.

use std::fs;
use std::sync::Arc;

use kvstored_core::{BlockHash, Durability, ErrorKind, Layout, Runtime, Tier};

use super::support::*;
use crate::posix::format::owner::Owner;
use crate::posix::{PosixSettings, PosixTier};

#[test]
fn processes_see_each_others_blocks_and_removals() {
    let store = directory();
    let (a, b) = (open(store.path()), open(store.path()));
    let info = namespace(&*a);
    b.open_namespace(&info).unwrap();
    write(&*a, &info, 0..130);
    write(&*b, &info, 200..330);
    wait_until("b sees a's blocks", || present(&*b, &info, 0..130) == 130);
    wait_until("a sees b's blocks", || present(&*a, &info, 200..330) == 130);
    assert_readable(&*b, &info, 0..130);
    assert_readable(&*a, &info, 200..330);
    let some: Vec<BlockHash> = (0..10).map(hash).collect();
    assert_eq!(a.remove(&info, &some), 10);
    wait_until("b sees the removal", || present(&*b, &info, 0..130) == 120);
    // a third one finds all of it
    let c = open(store.path());
    assert_eq!(c.statistics().blocks, 250);
    // and hears of a namespace that only a knows
    let other = namespace_of("other", Layout::uniform(1, 1, 5000).unwrap());
    a.open_namespace(&other).unwrap();
    write(&*a, &other, 0..10);
    wait_until("c sees the new namespace", || present(&*c, &other, 0..10) == 10);
    assert_eq!(c.stored_namespace(&other.namespace).unwrap(), other);
}

#[test]
fn eight_processes_share_a_directory() {
    let store = directory();
    let tiers: Vec<Arc<PosixTier>> = (0..8).map(|_| open(store.path())).collect();
    let info = namespace(&*tiers[0]);
    for (number, tier) in tiers.iter().enumerate() {
        tier.open_namespace(&info).unwrap();
        write(&**tier, &info, number as u64 * 100..number as u64 * 100 + 20);
    }
    for tier in &tiers {
        wait_until("everybody sees everything", || {
            present(&**tier, &info, 0..800) == 160
        });
        assert_readable(&**tier, &info, (0..8).map(|number| number * 100 + 7));
    }
    assert!(physical(store.path()) <= 64 << 20);
}

#[test]
fn a_purge_reaches_other_processes() {
    let store = directory();
    let (a, b) = (open(store.path()), open(store.path()));
    let info = namespace(&*a);
    b.open_namespace(&info).unwrap();
    write(&*a, &info, 0..40);
    write(&*b, &info, 40..80);
    wait_until("a sees b's blocks", || present(&*a, &info, 0..80) == 80);
    assert_eq!(a.purge(&info.namespace).unwrap(), 80);
    wait_until("b forgets its own blocks too", || present(&*b, &info, 0..80) == 0);
    write(&*b, &info, 0..5);
    wait_until("a sees what came later", || present(&*a, &info, 0..80) == 5);
    drop((a, b));
    assert_eq!(open(store.path()).statistics().blocks, 5);
}

#[test]
fn a_dead_writer_is_taken_over() {
    let store = directory();
    let a = open(store.path());
    let info = namespace(&*a);
    let b = open(store.path());
    b.open_namespace(&info).unwrap();
    write(&*a, &info, 0..100);
    write(&*b, &info, 100..200);
    drop(a);
    // at the start of another process
    let c = open(store.path());
    assert_eq!(present(&*c, &info, 0..200), 200);
    drop(b);
    // by a running one
    wait_until("c adopts b", || c.logs[0].own.lock().writers().count() == 2);
    assert_readable(&*c, &info, 0..200);
    // whoever adopted can delete
    assert_eq!(c.remove(&info, &(100..110).map(hash).collect::<Vec<_>>()), 10);
    drop(c);
    let d = open(store.path());
    assert_eq!(present(&*d, &info, 0..200), 190);
    assert_readable(&*d, &info, 110..200);
}

#[test]
fn followers_keep_up_over_rotations_and_takeovers() {
    let store = directory();
    let reader = open(store.path());
    let info = namespace(&*reader);
    for round in 0..3u64 {
        let writer = open(store.path());
        writer.open_namespace(&info).unwrap();
        // more than one segment each
        for part in 0..5 {
            let start = round * 1000 + part * 60;
            write(&*writer, &info, start..start + 60);
            wait_until("the reader sees the blocks", || {
                present(&*reader, &info, start..start + 60) == 60
            });
        }
        drop(writer);
    }
    for round in 0..3u64 {
        assert_readable(&*reader, &info, round * 1000..round * 1000 + 300);
    }
}

#[test]
fn a_forced_writer_id_has_one_owner() {
    let store = directory();
    let id = "00112233445566778899aabbccddeeff";
    let forced = || PosixSettings {
        writer_id: Some(id.into()),
        ..settings(store.path())
    };
    let a = open_with(forced());
    assert_eq!(a.writer_ids(), vec![Some(id.to_owned())]);
    let error = PosixTier::open(forced(), Runtime::system(), None).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    let text = error.to_string();
    assert!(
        text.contains(id) && text.contains(&format!("process {}", std::process::id())),
        "{text}"
    );
    assert!(
        text.contains(&*rustix::system::uname().nodename().to_string_lossy()),
        "{text}"
    );
    drop(a);
    assert_eq!(open_with(forced()).writer_ids(), vec![Some(id.to_owned())]);
    let error = PosixTier::open(
        PosixSettings {
            writer_id: Some("zz".into()),
            ..settings(store.path())
        },
        Runtime::system(),
        None,
    );
    assert_eq!(error.err().unwrap().kind(), ErrorKind::InvalidInput);
}

#[test]
fn a_fenced_writer_stops_and_starts_afresh() {
    let store = directory();
    let tier = open(store.path());
    let info = namespace(&*tier);
    write(&*tier, &info, 0..40);
    let before = tier.writer_ids();
    // what a taker-over writes where locks failed
    let path = files(store.path(), "owner").remove(0);
    let mut owner = Owner::decode(&fs::read(&path).unwrap()).unwrap();
    owner.epoch += 1;
    owner.process_id += 1;
    fs::write(&path, owner.encode()).unwrap();
    wait_until("the writer is another", || {
        tier.writer_ids()[0].is_some() && tier.writer_ids() != before
    });
    wait_until("it's healthy", || !tier.statistics().degraded);
    write(&*tier, &info, 100..140);
    wait_until("the old blocks are followed", || {
        present(&*tier, &info, 0..200) == 80
    });
    assert_readable(&*tier, &info, (0..40).chain(100..140));
}

#[test]
fn four_threads_write_and_read_at_once() {
    let store = directory();
    let (a, b) = (open(store.path()), open(store.path()));
    let info = namespace(&*a);
    b.open_namespace(&info).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (tier, info) = (if thread % 2 == 0 { &a } else { &b }, &info);
            scope.spawn(move || {
                for round in 0..6 {
                    // neighbours overlap by half
                    let start = thread * 60 + round * 20;
                    write(&**tier, info, start..start + 40);
                    assert_readable(&**tier, info, start..start + 40);
                }
            });
        }
    });
    wait_until("both see everything", || {
        present(&*a, &info, 0..320) == 320 && present(&*b, &info, 0..320) == 320
    });
    drop((a, b));
    assert_readable(&*open(store.path()), &info, 0..320);
}

#[test]
fn the_same_block_from_two_processes_is_readable_from_both() {
    let store = directory();
    let (a, b) = (open(store.path()), open(store.path()));
    let info = namespace(&*a);
    b.open_namespace(&info).unwrap();
    let hashes: Vec<BlockHash> = (0..50).map(hash).collect();
    std::thread::scope(|scope| {
        for tier in [&a, &b] {
            let (hashes, info) = (&hashes, &info);
            scope.spawn(move || {
                assert!(
                    write_as(&**tier, info, hashes, Durability::Durable)
                        .iter()
                        .all(Result::is_ok)
                );
            });
        }
    });
    drop(a);
    assert_readable(&*b, &info, 0..50);
}
