//! Files damaged between two runs of the daemon: misses, never wrong bytes.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use kvstored_core::Durability;
use kvstored_core::runtime::{Random, SystemRandom};
use kvstored_tests::blocks::{Blocks, Loaded};
use kvstored_tests::daemon::Daemon;

use crate::small_layout;

const ARGUMENTS: [&str; 6] = [
    "--cache-buffer-capacity",
    "8MiB",
    "--posix-capacity",
    "1GiB",
    "--posix-segment-bytes",
    "2MiB",
];

/// Every regular file below a directory, in a stable order.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![directory.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Dumps, damages the files, restarts, and loads everything twice. Returns how many blocks were still right.
fn damaged(damage: impl Fn(&[PathBuf], &SystemRandom)) -> usize {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let storage = directory.path().join("storage");
    let numbers: Vec<u64> = (0..600).collect();
    let daemon = Daemon::start(directory.path(), &storage, &ARGUMENTS).unwrap();
    let client = daemon.connect().unwrap();
    let blocks = Blocks::open(&client, "damaged", &small_layout()).unwrap();
    blocks.dump(&numbers, Durability::Tier).unwrap();
    daemon.kill();
    damage(&files(&storage.join("writers")), &SystemRandom::seeded(11));
    let daemon = Daemon::start(directory.path(), &storage, &ARGUMENTS).unwrap();
    let client = daemon.connect().unwrap();
    let blocks = Blocks::open(&client, "damaged", &small_layout()).unwrap();
    let mut right = 0;
    for _ in 0..2 {
        let loaded = blocks.load(&numbers).unwrap();
        assert!(!loaded.contains(&Loaded::Wrong), "wrong bytes were returned");
        right = loaded.iter().filter(|loaded| **loaded == Loaded::Right).count();
    }
    // what was lost can be stored again
    let lost: Vec<u64> = numbers
        .iter()
        .zip(blocks.lookup(&numbers).unwrap())
        .filter(|(_, found)| !found)
        .map(|(number, _)| *number)
        .collect();
    blocks.dump(&lost, Durability::Tier).unwrap();
    assert!(
        blocks
            .load(&numbers)
            .unwrap()
            .iter()
            .all(|loaded| *loaded == Loaded::Right)
    );
    right
}

#[test]
fn flipped_bits_anywhere() {
    let right = damaged(|files, random| {
        for path in files {
            let file = fs::File::options().read(true).write(true).open(path).unwrap();
            let length = file.metadata().unwrap().len();
            for _ in 0..20 {
                let at = random.next_u64() % length.max(1);
                let mut byte = [0u8];
                if file.read_at(&mut byte, at).unwrap() == 1 {
                    file.write_at(&[byte[0] ^ (1 << (random.next_u64() % 8))], at)
                        .unwrap();
                }
            }
        }
    });
    assert!(right < 600, "no bit that mattered was flipped");
}

#[test]
fn swapped_extents() {
    let right = damaged(|files, random| {
        for path in files
            .iter()
            .filter(|path| path.to_string_lossy().contains("segment-"))
        {
            let file = fs::File::options().read(true).write(true).open(path).unwrap();
            let pages = file.metadata().unwrap().len() / 4096;
            for _ in 0..10 {
                let (a, b) = (
                    1 + random.next_u64() % (pages - 1),
                    1 + random.next_u64() % (pages - 1),
                );
                let (mut first, mut second) = ([0u8; 4096], [0u8; 4096]);
                file.read_exact_at(&mut first, a * 4096).unwrap();
                file.read_exact_at(&mut second, b * 4096).unwrap();
                file.write_all_at(&second, a * 4096).unwrap();
                file.write_all_at(&first, b * 4096).unwrap();
            }
        }
    });
    assert!(right < 600, "no page that mattered was swapped");
}

#[test]
fn truncated_and_zeroed_files() {
    for kind in ["segment-", "journal-", "owner"] {
        damaged(|files, _| {
            for (index, path) in files
                .iter()
                .filter(|path| path.to_string_lossy().contains(kind))
                .enumerate()
            {
                let file = fs::File::options().read(true).write(true).open(path).unwrap();
                let length = file.metadata().unwrap().len();
                match index % 3 {
                    0 => file.set_len(length / 2).unwrap(),
                    1 => file
                        .write_all_at(&vec![0u8; (length / 3) as usize], length / 3)
                        .unwrap(),
                    _ => file.set_len(0).unwrap(),
                }
            }
        });
    }
}

#[test]
fn missing_files() {
    damaged(|files, random| {
        for path in files {
            if random.next_u64().is_multiple_of(2) {
                fs::remove_file(path).unwrap();
            }
        }
    });
}

#[test]
fn a_newer_format_is_refused_with_both_versions() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let storage = directory.path().join("storage");
    fs::create_dir(&storage).unwrap();
    fs::write(storage.join("FORMAT"), "kvstored storage 9\n").unwrap();
    let error = Daemon::start(directory.path(), &storage, &ARGUMENTS)
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("format 9") && error.contains("reads 1"), "{error}");
}
