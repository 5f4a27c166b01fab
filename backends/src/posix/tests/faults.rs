//! Errors of the disk, directories that vanish, directories that can't be used.

use std::fs;
use std::sync::Arc;

use kvstored_core::{Durability, ErrorKind, Runtime, Tier};

use super::support::*;
use crate::io::faults::{Fault, FaultKind, FaultPlan, FaultyIo};
use crate::io::{Direction, IoSettings, open_io_engine};
use crate::posix::{PosixSettings, PosixTier};

fn with_faults(settings: PosixSettings, faults: Vec<Fault>) -> Arc<PosixTier> {
    let runtime = Runtime::system();
    let engine = open_io_engine(&IoSettings::default(), &runtime, "faulty").unwrap();
    let engine = Arc::new(FaultyIo::new(
        engine,
        FaultPlan {
            faults,
            ..FaultPlan::default()
        },
    ));
    PosixTier::open_with_engine(settings, runtime, None, engine).unwrap()
}

fn failing(direction: Direction, numbers: std::ops::Range<u64>, kind: FaultKind) -> Vec<Fault> {
    numbers
        .map(|number| Fault {
            direction,
            number,
            kind,
        })
        .collect()
}

#[test]
fn a_full_or_failing_disk_degrades_and_heals() {
    for (errno, kind) in [
        (libc::ENOSPC, ErrorKind::NoSpace),
        (libc::EIO, ErrorKind::Unavailable),
    ] {
        let store = directory();
        // the blocks' writes 20 to 22; the first probes may fail as well
        let faults = failing(Direction::Write, 20..23, FaultKind::Fail { errno });
        let tier = with_faults(settings(store.path()), faults);
        let info = namespace(&*tier);
        write(&*tier, &info, 0..20);
        let failed = write_as(&*tier, &info, &[hash(100)], Durability::Tier).remove(0);
        assert!(failed.is_err());
        let statistics = tier.statistics();
        assert!(statistics.degraded && !statistics.degraded_reason.is_empty());
        let refused = write_as(&*tier, &info, &[hash(101)], Durability::Tier)
            .remove(0)
            .unwrap_err();
        assert_eq!(refused.kind(), kind);
        assert!(tier.statistics().refused_writes > 0);
        // reads go on
        assert_readable(&*tier, &info, 0..20);
        assert_eq!(present(&*tier, &info, 100..102), 0);
        wait_until("it heals by itself", || !tier.statistics().degraded);
        write(&*tier, &info, 100..140);
        assert_readable(&*tier, &info, (0..20).chain(100..140));
        drop(tier);
        assert_readable(&*open(store.path()), &info, (0..20).chain(100..140));
    }
}

#[test]
fn lost_and_torn_writes_never_give_wrong_bytes() {
    for kind in [FaultKind::Lost, FaultKind::FlipByte, FaultKind::Short] {
        let store = directory();
        let tier = with_faults(settings(store.path()), failing(Direction::Write, 5..15, kind));
        let info = namespace(&*tier);
        let accepted = write_some(&*tier, &info, 0..30);
        for number in 0..30 {
            match read(&*tier, &info, hash(number)) {
                Ok(true) => assert!(accepted.contains(&number)),
                Ok(false) => {
                    assert_eq!(
                        verify(&*tier, &info, hash(number)).unwrap_err().kind(),
                        ErrorKind::Corrupt
                    );
                }
                Err(error) => assert!(
                    matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::NotFound),
                    "{error}"
                ),
            }
        }
        wait_until("it's healthy", || !tier.statistics().degraded);
        write(&*tier, &info, 0..30);
        assert_readable(&*tier, &info, 0..30);
    }
}

#[test]
fn a_failing_read_is_a_miss_from_then_on() {
    let store = directory();
    let tier = with_faults(
        settings(store.path()),
        failing(Direction::Read, 0..2, FaultKind::Fail { errno: libc::EIO }),
    );
    let info = namespace(&*tier);
    write(&*tier, &info, 0..5);
    assert_eq!(read(&*tier, &info, hash(0)).unwrap_err().kind(), ErrorKind::Io);
    assert_eq!(present(&*tier, &info, 0..5), 4);
    assert_eq!(
        read(&*tier, &info, hash(0)).unwrap_err().kind(),
        ErrorKind::NotFound
    );
    write(&*tier, &info, 0..1);
    assert_eq!(read(&*tier, &info, hash(1)).unwrap_err().kind(), ErrorKind::Io);
    assert_readable(&*tier, &info, (0..1).chain(2..5));
}

#[test]
fn a_directory_deleted_while_running_is_started_afresh() {
    let store = directory();
    let path = store.path().join("inner");
    let tier = open(&path);
    let info = namespace(&*tier);
    write(&*tier, &info, 0..50);
    let before = tier.writer_ids();
    // a segment may be prepared at this very moment
    wait_until("the directory is deleted", || fs::remove_dir_all(&path).is_ok());
    wait_until("a fresh log", || {
        tier.writer_ids()[0].is_some() && tier.writer_ids() != before
    });
    wait_until("it's healthy", || !tier.statistics().degraded);
    assert_eq!(present(&*tier, &info, 0..50), 0);
    write(&*tier, &info, 0..50);
    assert_readable(&*tier, &info, 0..50);
    drop(tier);
    let tier = open(&path);
    tier.open_namespace(&info).unwrap();
    assert_readable(&*tier, &info, 0..50);
}

#[test]
fn a_directory_that_cannot_be_used_is_named() {
    let store = directory();
    let path = store.path().join("file");
    fs::write(&path, b"in the way").unwrap();
    let error = PosixTier::open(settings(&path), Runtime::system(), None)
        .err()
        .unwrap();
    assert!(error.to_string().contains(&path.display().to_string()), "{error}");
    let missing = store.path().join("missing");
    let read_only = PosixSettings {
        read_only: true,
        ..settings(&missing)
    };
    let error = PosixTier::open(read_only, Runtime::system(), None).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("missing"), "{error}");
    assert!(!missing.exists());
}

#[test]
fn settings_out_of_range_are_named() {
    let store = directory();
    let base = || settings(store.path());
    for (wrong, word) in [
        (
            PosixSettings {
                directories: vec![],
                ..base()
            },
            "directories",
        ),
        (
            PosixSettings {
                segment_bytes: Some(5),
                ..base()
            },
            "segment_bytes is 5",
        ),
        (
            PosixSettings {
                tail_interval_ms: 0,
                ..base()
            },
            "tail_interval_ms is 0",
        ),
        (
            PosixSettings {
                low_watermark: 0.95,
                ..base()
            },
            "low_watermark is 0.95",
        ),
        (
            PosixSettings {
                queue_depth: 0,
                ..base()
            },
            "queue_depth is 0",
        ),
    ] {
        let error = PosixTier::open(wrong, Runtime::system(), None).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains(word), "{error}");
    }
}

#[test]
fn a_full_queue_answers_busy_at_once() {
    let store = directory();
    let tier = open_with(PosixSettings {
        queue_depth: 1,
        ..settings(store.path())
    });
    let info = namespace(&*tier);
    let hashes: Vec<_> = (0..128).map(hash).collect();
    let results = write_as(&*tier, &info, &hashes, Durability::Tier);
    for (number, result) in results.iter().enumerate() {
        match result {
            Ok(()) => assert!(read(&*tier, &info, hash(number as u64)).unwrap()),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Busy),
        }
    }
    assert!(results[0].is_ok());
}
