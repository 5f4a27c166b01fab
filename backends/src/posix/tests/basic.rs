//! Round trips, restarts, removal, purges, striping.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use kvstored_core::quota::{QuotaLedger, QuotaSettings};
use kvstored_core::{BlockHash, Durability, ErrorKind, Layout, Runtime, Tier};

use super::support::*;
use crate::posix::{PosixSettings, PosixTier};

#[test]
fn what_is_written_is_found_and_read() {
    let store = directory();
    let tier = open(store.path());
    let info = namespace(&*tier);
    write(&*tier, &info, 0..200);
    assert_eq!(present(&*tier, &info, 0..300), 200);
    let hashes: Vec<BlockHash> = (0..300).map(hash).collect();
    assert_eq!(tier.lookup_on_prefix(&info, &hashes), 200);
    assert_readable(&*tier, &info, 0..200);
    assert_eq!(
        read(&*tier, &info, hash(201)).unwrap_err().kind(),
        ErrorKind::NotFound
    );
    for number in 0..200 {
        verify(&*tier, &info, hash(number)).unwrap();
    }
    let statistics = tier.statistics();
    assert_eq!(statistics.blocks, 200);
    assert!(!statistics.degraded);
    let mut keys = Vec::new();
    while let Some(key) = tier.list(Some(&info.namespace), keys.last(), 33).last().copied() {
        let page = tier.list(Some(&info.namespace), keys.last(), 33);
        assert_eq!(page.last(), Some(&key));
        keys.extend(page);
    }
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), 200);
    assert_eq!(tier.namespaces(), vec![(info.namespace, 200)]);
    assert_eq!(tier.stored_namespace(&info.namespace).unwrap(), info);
}

#[test]
fn a_restart_finds_everything_acknowledged() {
    let store = directory();
    let info = {
        let tier = open(store.path());
        let info = namespace(&*tier);
        write(&*tier, &info, 0..150);
        info
    };
    for round in 1..4 {
        let tier = open(store.path());
        assert_eq!(tier.statistics().blocks, 150 * round, "round {round}");
        tier.open_namespace(&info).unwrap();
        assert_readable(&*tier, &info, 0..150 * round);
        write(&*tier, &info, 150 * round..150 * (round + 1));
    }
    assert_eq!(
        fs::read_dir(store.path().join("writers")).unwrap().count(),
        1,
        "the same writer is continued"
    );
}

#[test]
fn a_removed_block_stays_removed_when_the_journal_was_rotated_before_its_segment_was_sealed() {
    let store = directory();
    let info = {
        let tier = open(store.path());
        let info = namespace(&*tier);
        write(&*tier, &info, 0..8);
        let remove = |number: u64| assert_eq!(tier.remove(&info, &[hash(number)]), 1);
        let change = |sealing: bool| {
            let mut own = tier.logs[0].own.lock();
            let active = own.active.as_mut().unwrap();
            active.open.iter_mut().for_each(|open| open.sealing = sealing);
            active.rotate(&tier.shared).unwrap();
        };
        // the last ones: a recovery looks for images behind those that it knows
        remove(7);
        change(true);
        // one that was in the footer already
        remove(6);
        change(false);
        info
    };
    let tier = open(store.path());
    tier.open_namespace(&info).unwrap();
    assert_eq!(present(&*tier, &info, 0..8), 6);
    for number in [6, 7] {
        assert_eq!(
            present(&*tier, &info, number..=number),
            0,
            "block {number} came back"
        );
    }
    assert_readable(&*tier, &info, 0..6);
}

#[test]
fn a_killed_process_loses_nothing_acknowledged() {
    let store = directory();
    let tier = open(store.path());
    let info = namespace(&*tier);
    let mut written = 0;
    for round in 1..6u64 {
        write(&*tier, &info, written..written + 37 * round);
        written += 37 * round;
        let copy = snapshot(store.path());
        let restarted = open(copy.path());
        restarted.open_namespace(&info).unwrap();
        assert_readable(&*restarted, &info, 0..written);
    }
}

#[test]
fn blocks_after_another_boot_are_verified_and_found() {
    let store = directory();
    let tier = open(store.path());
    let info = namespace(&*tier);
    write(&*tier, &info, 0..70);
    let copy = snapshot(store.path());
    // a journal of another boot whose tail was lost
    for journal in files(copy.path(), "journal-") {
        let mut bytes = fs::read(&journal).unwrap();
        let mut header = crate::posix::format::journal::JournalHeader::decode(&bytes).unwrap();
        header.boot_id = [7; 16];
        bytes[..128].copy_from_slice(&header.encode());
        bytes.truncate(bytes.len() - 20 * 64);
        fs::write(&journal, bytes).unwrap();
    }
    let restarted = open(copy.path());
    restarted.open_namespace(&info).unwrap();
    assert_readable(&*restarted, &info, 0..70);
}

#[test]
fn a_second_write_of_a_block_stores_nothing() {
    let store = directory();
    let tier = open(store.path());
    let info = namespace(&*tier);
    write(&*tier, &info, 0..50);
    let before = tier.statistics().written_bytes;
    write(&*tier, &info, 0..50);
    let flushed = write_as(&*tier, &info, &[hash(3), hash(3), hash(3)], Durability::Durable);
    assert!(flushed.iter().all(Result::is_ok), "{flushed:?}");
    // the header of the next segment may come meanwhile
    let block = info.layout.image_bytes() as u64;
    assert!(tier.statistics().written_bytes - before < block);
    // several at once are one write
    let again = vec![hash(99); 40];
    assert!(
        write_as(&*tier, &info, &again, Durability::Tier)
            .iter()
            .all(Result::is_ok)
    );
    assert!(tier.statistics().written_bytes - before < 2 * block);
}

#[test]
fn durable_writes_and_drains_complete() {
    let store = directory();
    let tier = open(store.path());
    let info = namespace(&*tier);
    let hashes: Vec<BlockHash> = (0..20).map(hash).collect();
    assert!(
        write_as(&*tier, &info, &hashes, Durability::Durable)
            .iter()
            .all(Result::is_ok)
    );
    tier.drain(Runtime::system().deadline(Duration::from_secs(10)))
        .unwrap();
    assert_readable(&*tier, &info, 0..20);
}

#[test]
fn bad_requests_are_refused() {
    let store = directory();
    let tier = open(store.path());
    let info = namespace(&*tier);
    // a namespace nobody opened
    let other = namespace_of("other", Layout::uniform(1, 1, 4096).unwrap());
    let results = write_as(&*tier, &other, &[hash(1)], Durability::Tier);
    assert_eq!(results[0].as_ref().unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(
        read(&*tier, &other, hash(1)).unwrap_err().kind(),
        ErrorKind::NotFound
    );
    // the same digest under another layout
    let mut wrong = (*info).clone();
    wrong.layout = Layout::uniform(4, 2, 4000).unwrap();
    assert_eq!(
        tier.open_namespace(&Arc::new(wrong)).unwrap_err().kind(),
        ErrorKind::Mismatch
    );
    // a buffer that holds another block
    let (sender, receiver) = std::sync::mpsc::channel();
    tier.submit(vec![kvstored_core::Operation {
        namespace: Arc::clone(&info),
        hash: hash(1),
        action: kvstored_core::Action::Write(Durability::Tier),
        buffer: image(&info, &hash(2)),
        completion: Box::new(move |_, result| sender.send(result).unwrap()),
    }]);
    assert_eq!(
        receiver.recv_timeout(DEADLINE).unwrap().unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
    assert_eq!(present(&*tier, &info, 0..5), 0);
}

#[test]
fn hashes_of_every_length_survive_a_restart() {
    let store = directory();
    let hashes: Vec<BlockHash> = (16..=32)
        .map(|length| BlockHash::new(&vec![length as u8; length]).unwrap())
        .collect();
    let info = {
        let tier = open(store.path());
        let info = namespace(&*tier);
        assert!(
            write_as(&*tier, &info, &hashes, Durability::Tier)
                .iter()
                .all(Result::is_ok)
        );
        info
    };
    let tier = open(store.path());
    for hash in hashes {
        assert!(read(&*tier, &info, hash).unwrap());
    }
}

#[test]
fn removal_survives_a_restart() {
    let store = directory();
    let info = {
        let tier = open(store.path());
        let info = namespace(&*tier);
        write(&*tier, &info, 0..120);
        let hashes: Vec<BlockHash> = (10..20).chain(110..115).chain(500..505).map(hash).collect();
        assert_eq!(tier.remove(&info, &hashes), 15);
        assert_eq!(present(&*tier, &info, 0..120), 105);
        info
    };
    for _ in 0..3 {
        let tier = open(store.path());
        assert_eq!(tier.statistics().blocks, 105);
        assert_eq!(present(&*tier, &info, 10..20), 0);
        assert_eq!(
            read(&*tier, &info, hash(112)).unwrap_err().kind(),
            ErrorKind::NotFound
        );
    }
    let tier = open(store.path());
    write(&*tier, &info, 10..20);
    drop(tier);
    assert_readable(&*open(store.path()), &info, 10..20);
}

#[test]
fn a_purge_survives_a_restart_and_spares_what_comes_later() {
    let store = directory();
    let (info, other) = {
        let tier = open(store.path());
        let info = namespace(&*tier);
        let other = namespace_of("other", Layout::uniform(1, 1, 9000).unwrap());
        tier.open_namespace(&other).unwrap();
        write(&*tier, &info, 0..100);
        write(&*tier, &other, 0..30);
        assert_eq!(tier.purge(&info.namespace).unwrap(), 100);
        assert_eq!(present(&*tier, &info, 0..100), 0);
        write(&*tier, &info, 50..60);
        (info, other)
    };
    for _ in 0..2 {
        let tier = open(store.path());
        assert_eq!(present(&*tier, &info, 0..100), 10);
        assert_readable(&*tier, &info, 50..60);
        assert_readable(&*tier, &other, 0..30);
    }
    // also where the journal that says so is lost
    for journal in files(store.path(), "journal-") {
        fs::remove_file(journal).unwrap();
    }
    let tier = open(store.path());
    assert_eq!(present(&*tier, &info, 0..50), 0);
    assert_eq!(present(&*tier, &info, 60..100), 0);
    assert_readable(&*tier, &other, 0..30);
}

#[test]
fn blocks_are_striped_over_directories() {
    let (a, b) = (directory(), directory());
    let both = || PosixSettings {
        directories: vec![a.path().into(), b.path().into()],
        capacity_bytes: 128 << 20,
        ..settings(a.path())
    };
    let info = {
        let tier = open_with(both());
        let info = namespace(&*tier);
        write(&*tier, &info, 0..200);
        info
    };
    let in_a = open(a.path()).statistics().blocks;
    let in_b = open(b.path()).statistics().blocks;
    assert_eq!(in_a + in_b, 200);
    assert!(in_a > 50 && in_b > 50, "{in_a} {in_b}");
    assert_readable(&*open_with(both()), &info, 0..200);
}

#[test]
fn writing_takes_little_more_than_the_payload() {
    let store = directory();
    let tier = open_with(PosixSettings {
        capacity_bytes: 256 << 20,
        segment_bytes: Some(16 << 20),
        ..settings(store.path())
    });
    let info = namespace_of("large", Layout::uniform(4, 2, 32 << 10).unwrap());
    tier.open_namespace(&info).unwrap();
    assert_eq!(info.layout.payload_bytes(), 256 << 10);
    write(&*tier, &info, 0..200);
    tier.drain(Runtime::system().deadline(Duration::from_secs(10)))
        .unwrap();
    let payload = 200 * info.layout.payload_bytes() as u64;
    let written = tier.statistics().written_bytes;
    assert!(
        written >= payload && written * 10 <= payload * 11,
        "{written} for {payload}"
    );
}

#[test]
fn quotas_hold_and_come_back() {
    let store = directory();
    let image_bytes = namespace_of("model", Layout::uniform(2, 2, 4000).unwrap())
        .layout
        .image_bytes() as u64;
    let ledger = || {
        let mut settings = QuotaSettings::default();
        settings.tenants.insert("tenant".into(), 10 * image_bytes);
        Arc::new(QuotaLedger::new(settings))
    };
    let quotas = ledger();
    let tier = PosixTier::open(
        settings(store.path()),
        Runtime::system(),
        Some(Arc::clone(&quotas)),
    )
    .unwrap();
    let info = namespace(&*tier);
    assert_eq!(write_some(&*tier, &info, 0..30), (0..10).collect::<Vec<_>>());
    let error = write_as(&*tier, &info, &[hash(40)], Durability::Tier)
        .remove(0)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::QuotaExceeded);
    assert_eq!(tier.remove(&info, &[hash(0), hash(1)]), 2);
    assert_eq!(write_some(&*tier, &info, 40..50).len(), 2);
    tier.purge(&info.namespace).unwrap();
    assert_eq!(quotas.tenant_usage()[0].used_bytes, 0);
    assert_eq!(write_some(&*tier, &info, 50..70).len(), 10);
    drop(tier);
    let quotas = ledger();
    let tier = PosixTier::open(
        settings(store.path()),
        Runtime::system(),
        Some(Arc::clone(&quotas)),
    )
    .unwrap();
    assert_eq!(quotas.tenant_usage()[0].used_bytes, 10 * image_bytes);
    assert_eq!(write_some(&*tier, &info, 80..90).len(), 0);
}

#[test]
fn a_read_only_tier_serves_hits_and_changes_nothing() {
    let store = directory();
    let info = {
        let tier = open(store.path());
        let info = namespace(&*tier);
        write(&*tier, &info, 0..90);
        info
    };
    let before = files(store.path(), "");
    let tier = open_with(PosixSettings {
        read_only: true,
        ..settings(store.path())
    });
    tier.open_namespace(&info).unwrap();
    assert_readable(&*tier, &info, 0..90);
    let error = write_as(&*tier, &info, &[hash(100)], Durability::Tier)
        .remove(0)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    assert_eq!(
        tier.purge(&info.namespace).unwrap_err().kind(),
        ErrorKind::PermissionDenied
    );
    drop(tier);
    assert_eq!(files(store.path(), ""), before);
}

#[test]
fn after_a_shutdown_everything_is_cancelled() {
    let store = directory();
    let tier = open(store.path());
    let info = namespace(&*tier);
    write(&*tier, &info, 0..5);
    tier.shutdown();
    tier.shutdown();
    let error = write_as(&*tier, &info, &[hash(9)], Durability::Tier)
        .remove(0)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert_eq!(
        read(&*tier, &info, hash(1)).unwrap_err().kind(),
        ErrorKind::Cancelled
    );
}
