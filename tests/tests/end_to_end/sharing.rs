//! Several processes on one storage directory.

use std::time::Duration;

use kvstored_core::{Durability, Runtime};
use kvstored_tests::blocks::{Blocks, Loaded};
use kvstored_tests::daemon::{Daemon, pause};

use crate::small_layout;

const ARGUMENTS: [&str; 8] = [
    "--pipeline",
    "Cache|Posix",
    "--cache-buffer-capacity",
    "8MiB",
    "--posix-capacity",
    "4GiB",
    "--posix-segment-bytes",
    "4MiB",
];

/// Waits until a lookup finds all of them, or a generous deadline passes.
fn wait_until_seen(blocks: &Blocks<'_>, numbers: &[u64]) -> bool {
    let runtime = Runtime::system();
    let deadline = runtime.deadline(Duration::from_secs(20));
    loop {
        if blocks.lookup(numbers).unwrap().into_iter().all(|found| found) {
            return true;
        }
        if runtime.clock.now() > deadline {
            return false;
        }
        pause(Duration::from_millis(20));
    }
}

#[test]
fn eight_processes_on_one_directory_see_each_others_blocks() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let storage = directory.path().join("storage");
    let mut daemons = Vec::new();
    for process in 0..8 {
        let run = directory.path().join(format!("process-{process}"));
        std::fs::create_dir(&run).unwrap();
        daemons.push(Daemon::start(&run, &storage, &ARGUMENTS).unwrap());
    }
    let own = |process: u64| (process * 1000..process * 1000 + 40).collect::<Vec<u64>>();
    for (process, daemon) in daemons.iter().enumerate() {
        let client = daemon.connect().unwrap();
        let blocks = Blocks::open(&client, "shared", &small_layout()).unwrap();
        blocks.dump(&own(process as u64), Durability::Tier).unwrap();
    }
    for (reader, daemon) in daemons.iter().enumerate() {
        let client = daemon.connect().unwrap();
        let blocks = Blocks::open(&client, "shared", &small_layout()).unwrap();
        for writer in 0..8 {
            assert!(
                wait_until_seen(&blocks, &own(writer)),
                "process {reader} doesn't see process {writer}'s blocks"
            );
            let loaded = blocks.load(&own(writer)).unwrap();
            assert!(loaded.iter().all(|loaded| *loaded == Loaded::Right), "{loaded:?}");
        }
    }
    // the dead one's blocks stay, and somebody takes its directory over
    daemons.remove(0).kill();
    let client = daemons[0].connect().unwrap();
    let blocks = Blocks::open(&client, "shared", &small_layout()).unwrap();
    assert!(
        blocks
            .load(&own(0))
            .unwrap()
            .iter()
            .all(|loaded| *loaded == Loaded::Right)
    );
    let again = Daemon::start(directory.path(), &storage, &ARGUMENTS).unwrap();
    let client = again.connect().unwrap();
    let blocks = Blocks::open(&client, "shared", &small_layout()).unwrap();
    for writer in 0..8 {
        assert!(wait_until_seen(&blocks, &own(writer)));
    }
    assert!(again.terminate(), "SIGTERM ends with success");
}

#[test]
fn a_forced_writer_identity_belongs_to_one_process() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let storage = directory.path().join("storage");
    let identity = "0123456789abcdef0123456789abcdef";
    let mut arguments = ARGUMENTS.to_vec();
    arguments.extend(["--posix-writer-id", identity]);
    let first = Daemon::start(directory.path(), &storage, &arguments).unwrap();
    let run = directory.path().join("second");
    std::fs::create_dir(&run).unwrap();
    let error = Daemon::start(&run, &storage, &arguments)
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains(identity) && error.contains(&first.process_id().to_string()),
        "{error}"
    );
}
