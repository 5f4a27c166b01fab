//! The cap in physical bytes, eviction, reinsertion.

use std::sync::Arc;

use kvstored_core::{Durability, ErrorKind, Layout, Tier};

use super::support::*;
use crate::posix::{PosixSettings, PosixTier};

const CAPACITY: u64 = 16 << 20;

fn small(path: &std::path::Path) -> PosixSettings {
    PosixSettings {
        capacity_bytes: CAPACITY,
        segment_bytes: None,
        ..settings(path)
    }
}

/// Whether the maintenance thread has an eviction to do or does one.
fn evicting(tier: &PosixTier) -> bool {
    let log = &tier.logs[0];
    let before = (tier.statistics().evicted_blocks, tier.statistics().written_bytes);
    log.dirty.load(std::sync::atomic::Ordering::Relaxed)
        || log.starving.load(std::sync::atomic::Ordering::Relaxed)
        || {
            wait_until("the chores are done", || {
                !log.dirty.load(std::sync::atomic::Ordering::Relaxed)
            });
            before != (tier.statistics().evicted_blocks, tier.statistics().written_bytes)
        }
}

#[test]
fn physical_bytes_stay_under_the_cap_while_writing_on() {
    let store = directory();
    let tier = open_with(small(store.path()));
    let info = namespace(&*tier);
    let mut accepted = Vec::new();
    for round in 0..60u64 {
        accepted.extend(write_some(&*tier, &info, round * 50..round * 50 + 50));
        let bytes = physical(store.path());
        assert!(bytes <= CAPACITY, "{bytes} after round {round}");
        for number in accepted.iter().rev().take(3) {
            // the newest are never evicted
            assert!(read(&*tier, &info, hash(*number)).unwrap());
        }
    }
    // 3,000 blocks of 24 KiB are four times the cap
    wait_until("evictions", || tier.statistics().evicted_blocks > 1000);
    let statistics = tier.statistics();
    assert!(accepted.len() as u64 > 500, "{statistics:?}");
    assert!(statistics.blocks > 100, "{statistics:?}");
    assert_eq!(statistics.capacity_bytes, CAPACITY);
    wait_until("the last eviction", || {
        tier.statistics().allocated_bytes * 10 <= CAPACITY * 9 && !evicting(&tier)
    });
    let mut readable = 0;
    for number in 0..3000 {
        match read(&*tier, &info, hash(number)) {
            Ok(right) => {
                assert!(right);
                readable += 1;
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound),
        }
    }
    assert_eq!(readable, tier.statistics().blocks);
    drop(tier);
    let tier = open_with(small(store.path()));
    assert!(tier.statistics().blocks <= readable);
    assert!(tier.statistics().blocks + 100 > readable);
    assert!(physical(store.path()) <= CAPACITY);
}

#[test]
fn several_writers_share_one_cap() {
    let store = directory();
    let tiers: Vec<Arc<PosixTier>> = (0..3).map(|_| open_with(small(store.path()))).collect();
    let info = namespace(&*tiers[0]);
    for tier in &tiers {
        tier.open_namespace(&info).unwrap();
    }
    for round in 0..25u64 {
        for (number, tier) in tiers.iter().enumerate() {
            let start = number as u64 * 100_000 + round * 40;
            write_some(&**tier, &info, start..start + 40);
            let bytes = physical(store.path());
            assert!(bytes <= CAPACITY, "{bytes} after round {round}");
        }
    }
    for tier in &tiers {
        wait_until("everybody can write again", || {
            !write_some(&**tier, &info, 7_000_000..7_000_001).is_empty()
        });
    }
    assert!(physical(store.path()) <= CAPACITY);
}

#[test]
fn blocks_that_are_read_are_written_again() {
    let store = directory();
    let tier = open_with(small(store.path()));
    let info = namespace(&*tier);
    write(&*tier, &info, 0..4);
    for round in 0..400u64 {
        for number in 0..4 {
            // a miss after an eviction in need is no error
            let _ = read(&*tier, &info, hash(number));
        }
        write_some(&*tier, &info, 1000 + round * 10..1000 + round * 10 + 10);
        if tier.statistics().reinserted_blocks > 4 {
            break;
        }
        wait_until("room", || {
            tier.statistics().allocated_bytes * 100 <= CAPACITY * 95
        });
    }
    assert!(tier.statistics().reinserted_blocks > 4, "{:?}", tier.statistics());
    assert!(tier.statistics().evicted_blocks > 0);
    assert_eq!(present(&*tier, &info, 0..4), 4);
    assert_readable(&*tier, &info, 0..4);
    drop(tier);
    assert_readable(&*open_with(small(store.path())), &info, 0..4);
}

#[test]
fn a_block_that_can_never_fit_is_too_large() {
    let store = directory();
    let tier = open_with(PosixSettings {
        capacity_bytes: 1 << 20,
        segment_bytes: None,
        ..settings(store.path())
    });
    let info = namespace_of("huge", Layout::uniform(1, 1, 2 << 20).unwrap());
    tier.open_namespace(&info).unwrap();
    let error = write_as(&*tier, &info, &[hash(1)], Durability::Tier)
        .remove(0)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    let small = namespace(&*tier);
    write(&*tier, &small, 0..3);
    assert!(!tier.statistics().degraded);
    assert_eq!(tier.statistics().refused_writes, 1);
}

#[test]
fn images_larger_than_the_usual_segment_get_larger_ones() {
    let store = directory();
    let tier = open_with(PosixSettings {
        segment_bytes: Some(256 << 10),
        ..settings(store.path())
    });
    let info = namespace_of("large", Layout::uniform(1, 1, 1 << 20).unwrap());
    tier.open_namespace(&info).unwrap();
    write(&*tier, &info, 0..10);
    let small = namespace(&*tier);
    write(&*tier, &small, 0..30);
    drop(tier);
    let tier = open(store.path());
    assert_readable(&*tier, &info, 0..10);
    assert_readable(&*tier, &small, 0..30);
}
