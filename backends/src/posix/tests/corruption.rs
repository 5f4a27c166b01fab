//! Flipped bits, swapped blocks, truncated and zeroed files: misses, never wrong bytes.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use kvstored_core::{ErrorKind, NamespaceInfo, Runtime, Tier};
use tempfile::TempDir;

use super::support::*;
use crate::posix::PosixTier;

const BLOCKS: u64 = 120;

type DamageFile = fn(&Path);
type DamageBytes = fn(&mut Vec<u8>);

/// A store at rest, with sealed segments and an open one.
fn store() -> (TempDir, Arc<NamespaceInfo>) {
    let store = directory();
    let tier = open(store.path());
    let info = namespace(&*tier);
    write(&*tier, &info, 0..BLOCKS);
    wait_until("two segments are sealed", || {
        tier.logs[0]
            .own
            .lock()
            .writers()
            .map(|own| own.sealed.len())
            .sum::<usize>()
            >= 2
    });
    drop(tier);
    (store, info)
}

/// Reads everything; nothing may be wrong. Returns how many blocks are right, and how many are seen as corrupt.
fn survey(tier: &PosixTier, info: &Arc<NamespaceInfo>) -> (u64, u64) {
    tier.open_namespace(info).unwrap();
    let (mut right, mut corrupt) = (0, 0);
    for number in 0..BLOCKS {
        match read(tier, info, hash(number)) {
            // the payload's checksums are the caller's to check, who then asks to verify
            Ok(true) => right += 1,
            Ok(false) => {
                assert_eq!(
                    verify(tier, info, hash(number)).unwrap_err().kind(),
                    ErrorKind::Corrupt
                );
                corrupt += 1;
            }
            Err(error) if error.kind() == ErrorKind::Corrupt => corrupt += 1,
            Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound, "{error}"),
        }
    }
    (right, corrupt)
}

fn flip(path: &Path, at: u64, bit: u8) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at as usize] ^= 1 << bit;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_flipped_bit_in_a_block_is_quarantined() {
    for (offset, what) in [(4096 + 20u64, "descriptor"), (2 * 4096 + 77, "payload")] {
        let (store, info) = store();
        flip(&files(store.path(), "segment-")[0], offset, 3);
        let tier = open(store.path());
        assert_eq!(survey(&tier, &info), (BLOCKS - 1, 1), "{what}");
        assert_eq!(tier.statistics().quarantined_blocks, 1);
        wait_until("a copy is kept", || {
            files(&store.path().join("quarantine"), "").len() == 1
        });
        assert_eq!(survey(&tier, &info), (BLOCKS - 1, 0), "never served again");
        // what's gone can be stored again
        write(&*tier, &info, 0..BLOCKS);
        assert_eq!(survey(&tier, &info), (BLOCKS, 0));
        drop(tier);
        assert_eq!(
            survey(&open(store.path()), &info),
            (BLOCKS, 0),
            "also after a restart"
        );
    }
}

#[test]
fn swapped_blocks_are_noticed() {
    let (store, info) = store();
    let path = &files(store.path(), "segment-")[0];
    let mut bytes = fs::read(path).unwrap();
    let image = info.layout.image_bytes();
    let (first, second) = bytes[4096..].split_at_mut(image);
    first.swap_with_slice(&mut second[..image]);
    fs::write(path, bytes).unwrap();
    assert_eq!(survey(&open(store.path()), &info), (BLOCKS - 2, 2));
}

#[test]
fn flipped_bits_anywhere_never_give_wrong_bytes() {
    let (store, info) = store();
    let mut state = 88_172_645_463_325_252u64;
    let mut random = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    for _ in 0..25 {
        let copy = snapshot(store.path());
        let victims: Vec<_> = files(copy.path(), "journal-")
            .into_iter()
            .chain(files(copy.path(), "segment-"))
            .collect();
        let victim = &victims[random(victims.len() as u64) as usize];
        for _ in 0..3 {
            let length = fs::metadata(victim).unwrap().len();
            // descriptors and footers are rare among the bytes: aim at starts of pages half of the time
            let at = if random(2) == 0 {
                random(length / 4096 + 1) * 4096 + random(64)
            } else {
                random(length)
            };
            flip(victim, at.min(length - 1), random(8) as u8);
        }
        let (right, corrupt) = survey(&open(copy.path()), &info);
        assert!(
            right + corrupt + 6 > BLOCKS,
            "{right} right, {corrupt} corrupt after {}",
            victim.display()
        );
    }
}

#[test]
fn damaged_journals_cost_nothing_that_segments_can_tell() {
    let (store, info) = store();
    let damages: [(&str, DamageFile); 6] = [
        ("deleted", |path| fs::remove_file(path).unwrap()),
        ("emptied", |path| fs::write(path, b"").unwrap()),
        ("zeroed", |path| {
            fs::write(path, vec![0; fs::metadata(path).unwrap().len() as usize]).unwrap();
        }),
        ("cut in a record", |path| {
            let bytes = fs::read(path).unwrap();
            fs::write(path, &bytes[..bytes.len() - 100]).unwrap();
        }),
        ("cut between records", |path| {
            let bytes = fs::read(path).unwrap();
            fs::write(path, &bytes[..bytes.len() - 640]).unwrap();
        }),
        ("a record flipped", |path| {
            flip(path, fs::metadata(path).unwrap().len() - 10 * 64 + 20, 1);
        }),
    ];
    for (what, damage) in damages {
        let copy = snapshot(store.path());
        for journal in files(copy.path(), "journal-") {
            damage(&journal);
        }
        assert_eq!(survey(&open(copy.path()), &info), (BLOCKS, 0), "{what}");
        assert_eq!(
            survey(&open(copy.path()), &info),
            (BLOCKS, 0),
            "{what}, second start"
        );
    }
}

#[test]
fn damaged_footers_are_rebuilt_from_the_blocks() {
    let (store, info) = store();
    let damages: [(&str, DamageBytes); 4] = [
        ("trailer zeroed", |bytes| {
            let start = bytes.len() - 4096;
            bytes[start..].fill(0);
        }),
        ("tables flipped", |bytes| {
            let at = bytes.len() - 2 * 4096 + 100;
            bytes[at] ^= 1;
        }),
        ("trailer cut", |bytes| bytes.truncate(bytes.len() - 4096)),
        ("cut at an odd place", |bytes| bytes.truncate(bytes.len() - 5000)),
    ];
    for (what, damage) in damages {
        let copy = snapshot(store.path());
        let path = &files(copy.path(), "segment-")[0];
        let mut bytes = fs::read(path).unwrap();
        damage(&mut bytes);
        fs::write(path, bytes).unwrap();
        assert_eq!(survey(&open(copy.path()), &info), (BLOCKS, 0), "{what}");
        assert_eq!(
            survey(&open(copy.path()), &info),
            (BLOCKS, 0),
            "{what}, second start"
        );
    }
}

#[test]
fn truncated_and_zeroed_segments_lose_only_their_blocks() {
    let (store, info) = store();
    for keep in [0usize, 1, 4096, 100_000] {
        for zero in [false, true] {
            let copy = snapshot(store.path());
            let path = &files(copy.path(), "segment-")[1];
            let mut bytes = fs::read(path).unwrap();
            if zero {
                bytes[keep..].fill(0);
            } else {
                bytes.truncate(keep);
            }
            fs::write(path, bytes).unwrap();
            let (right, corrupt) = survey(&open(copy.path()), &info);
            assert!(
                right >= BLOCKS - 55 && corrupt == 0,
                "{right} {corrupt} of a segment kept to {keep}"
            );
        }
    }
}

#[test]
fn a_segment_damaged_while_running_gives_misses() {
    let store = directory();
    let tier = open(store.path());
    let info = namespace(&*tier);
    write(&*tier, &info, 0..BLOCKS);
    wait_until("two segments are sealed", || {
        tier.logs[0]
            .own
            .lock()
            .writers()
            .map(|own| own.sealed.len())
            .sum::<usize>()
            >= 2
    });
    let segments = files(store.path(), "segment-");
    fs::remove_file(&segments[0]).unwrap();
    fs::OpenOptions::new()
        .write(true)
        .open(&segments[1])
        .unwrap()
        .set_len(9000)
        .unwrap();
    let (right, corrupt) = survey(&tier, &info);
    assert!(right >= 10, "{right} {corrupt}");
    assert_eq!(corrupt, 0);
    assert!(!tier.statistics().degraded);
}

#[test]
fn a_newer_format_is_refused_with_both_versions_and_the_path() {
    let (store, _) = store();
    fs::write(store.path().join("FORMAT"), "kvstored storage 2\n").unwrap();
    let error = PosixTier::open(settings(store.path()), Runtime::system(), None)
        .err()
        .unwrap();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let text = error.to_string();
    assert!(text.contains("format 2") && text.contains("reads 1"), "{text}");
    assert!(text.contains(&store.path().display().to_string()), "{text}");
    fs::write(store.path().join("FORMAT"), "something else").unwrap();
    let error = PosixTier::open(settings(store.path()), Runtime::system(), None)
        .err()
        .unwrap();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

#[test]
fn files_of_a_newer_version_are_left_alone() {
    let (store, info) = store();
    let journals = files(store.path(), "journal-");
    let journal = journals.last().unwrap();
    let mut bytes = fs::read(journal).unwrap();
    bytes[8] = 2;
    let checksum = kvstored_core::envelope::header_checksum(&[&bytes[..124]]).to_le_bytes();
    bytes[124..128].copy_from_slice(&checksum);
    fs::write(journal, &bytes).unwrap();
    let tier = open(store.path());
    tier.open_namespace(&info).unwrap();
    assert_eq!(present(&*tier, &info, 0..BLOCKS), 0);
    write(&*tier, &info, 0..10);
    drop(tier);
    assert_eq!(fs::read(journal).unwrap(), bytes);
    assert!(files(store.path(), "segment-").len() >= 3);
}
