//! Clients that die, and daemons that restart under their clients.

use std::process::{Command, Stdio};
use std::time::Duration;

use kvstored_client::BlockOutcome;
use kvstored_core::{Durability, ErrorKind, Identity, Layout};
use kvstored_tests::blocks::{Blocks, Loaded};
use kvstored_tests::daemon::{Daemon, pause};

use crate::small_layout;

/// Runs this very test binary as a client process that is killed.
const CHILD_SOCKET: &str = "KVSTORED_TEST_CHILD_SOCKET";

#[test]
fn child_that_dumps_until_killed() {
    let Some(socket) = std::env::var_os(CHILD_SOCKET) else {
        return;
    };
    let settings = kvstored_client::ClientSettings::default();
    let runtime = kvstored_core::Runtime::system();
    let client = kvstored_client::Client::connect(socket.as_ref(), settings, runtime).unwrap();
    let blocks = Blocks::open(&client, "killed-client", &small_layout()).unwrap();
    for start in 0..1_000_000u64 {
        let numbers: Vec<u64> = (start * 64..start * 64 + 64).collect();
        let _ = blocks.dump(&numbers, Durability::Memory);
        let _ = blocks.load(&numbers);
    }
}

#[test]
fn what_a_killed_client_held_is_reclaimed() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let storage = directory.path().join("storage");
    // room for 96 blocks: a leak of a few windows would soon leave none
    let arguments = [
        "--pipeline",
        "Cache|Posix",
        "--cache-buffer-capacity",
        "1600KiB",
        "--posix-capacity",
        "2GiB",
    ];
    let daemon = Daemon::start(directory.path(), &storage, &arguments).unwrap();
    for round in 0..12u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["clients::child_that_dumps_until_killed", "--exact"])
            .env(CHILD_SOCKET, daemon.socket())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        pause(Duration::from_millis(40 + 17 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        let client = daemon.connect().unwrap();
        let blocks = Blocks::open(&client, "survivor", &small_layout()).unwrap();
        let numbers: Vec<u64> = (round * 80..round * 80 + 80).collect();
        let outcomes = blocks.dump(&numbers, Durability::Tier).unwrap();
        assert!(
            outcomes
                .iter()
                .all(|outcome| matches!(outcome, BlockOutcome::Dumped(_))),
            "{outcomes:?}"
        );
        assert!(
            blocks
                .load(&numbers)
                .unwrap()
                .iter()
                .all(|loaded| *loaded == Loaded::Right)
        );
    }
}

#[test]
fn a_client_outlives_its_daemon() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let storage = directory.path().join("storage");
    let arguments = ["--cache-buffer-capacity", "16MiB", "--posix-capacity", "2GiB"];
    let daemon = Daemon::start(directory.path(), &storage, &arguments).unwrap();
    let client = daemon.connect().unwrap();
    let blocks = Blocks::open(&client, "outlives", &small_layout()).unwrap();
    blocks.dump(&[1, 2, 3], Durability::Tier).unwrap();
    daemon.kill();
    let gone = blocks.load(&[1]).unwrap();
    assert_ne!(gone, [Loaded::Wrong]);
    assert_ne!(gone, [Loaded::Right]);
    let again = Daemon::start(directory.path(), &storage, &arguments).unwrap();
    let mut loaded = Vec::new();
    for _ in 0..100 {
        loaded = blocks.load(&[1, 2, 3]).unwrap();
        if loaded.iter().all(|loaded| *loaded == Loaded::Right) {
            break;
        }
        pause(Duration::from_millis(50));
    }
    assert_eq!(
        loaded,
        [Loaded::Right; 3],
        "the same client goes on with the new daemon"
    );
    drop(again);
}

#[test]
fn a_block_larger_than_the_cache_is_refused_with_both_sizes() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let storage = directory.path().join("storage");
    let daemon = Daemon::start(directory.path(), &storage, &["--cache-buffer-capacity", "1MiB"]).unwrap();
    let client = daemon.connect().unwrap();
    let layout = Layout::uniform(1, 1, 4 << 20).unwrap();
    let error = client
        .open_namespace(&Identity::default(), &layout)
        .err()
        .unwrap();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert!(error.to_string().contains("4198400"), "{error}");
}
