//! The tier S3 in real daemons on a real S3 service, with a bad network between them and without.

use std::path::Path;
use std::time::Duration;

use kvstored_client::BlockOutcome;
use kvstored_core::{Durability, Layout, Runtime};
use kvstored_tests::blocks::{Blocks, Loaded};
use kvstored_tests::daemon::{Daemon, pause};
use kvstored_tests::network::{Network, Trouble};
use kvstored_tests::seaweed::{BUCKET, CREDENTIALS, Seaweed};
use object_store::PutPayload;
use object_store::multipart::MultipartStore;
use object_store::path::Path as Key;

use crate::small_layout;

/// A daemon on the bucket with a folder of its own below `directory`.
fn start(directory: &Path, name: &str, endpoint: &str, more: &[&str]) -> Daemon {
    let run = directory.join(name);
    std::fs::create_dir_all(&run).unwrap();
    let mut arguments = vec![
        "--cache-buffer-capacity",
        "96MiB",
        "--s3-bucket",
        BUCKET,
        "--s3-prefix",
        "tests/end-to-end",
        "--s3-endpoint",
        endpoint,
        "--s3-allow-http",
        "--s3-tail-interval-ms",
        "50",
    ];
    arguments.extend(more);
    Daemon::start_with(&run, &run.join("unused"), &arguments, &CREDENTIALS).unwrap()
}

fn is_stored(outcome: &BlockOutcome) -> bool {
    matches!(outcome, BlockOutcome::Dumped(_) | BlockOutcome::Present)
}

/// Waits until a lookup finds all of them, or none, or a generous deadline passes.
fn wait_until(blocks: &Blocks<'_>, numbers: &[u64], found: bool) {
    let runtime = Runtime::system();
    let deadline = runtime.deadline(Duration::from_secs(30));
    while blocks
        .lookup(numbers)
        .unwrap()
        .into_iter()
        .any(|is_there| is_there != found)
    {
        assert!(
            runtime.clock.now() < deadline,
            "blocks aren't {}",
            if found { "found" } else { "gone" }
        );
        pause(Duration::from_millis(20));
    }
}

#[test]
fn dumped_blocks_survive_the_daemon_and_are_shared() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let Some(service) = Seaweed::start(&directory.path().join("service")).unwrap() else {
        return;
    };
    let pipeline = ["--pipeline", "Cache|S3"];
    let daemon = start(directory.path(), "first", &service.endpoint(), &pipeline);
    let other = start(directory.path(), "other", &service.endpoint(), &pipeline);
    let client = daemon.connect().unwrap();
    let small: Vec<u64> = (0..200).collect();
    let blocks = Blocks::open(&client, "small", &small_layout()).unwrap();
    for outcome in blocks.dump(&small, Durability::Durable).unwrap() {
        assert!(is_stored(&outcome), "{outcome:?}");
    }
    // large enough to go up in parts
    let large: Vec<u64> = (0..6).collect();
    let large_layout = Layout::uniform(2, 1, 4 << 20).unwrap();
    let large_blocks = Blocks::open(&client, "large", &large_layout).unwrap();
    for outcome in large_blocks.dump(&large, Durability::Durable).unwrap() {
        assert!(is_stored(&outcome), "{outcome:?}");
    }
    daemon.kill();

    let again = start(directory.path(), "again", &service.endpoint(), &pipeline);
    for daemon in [&other, &again] {
        let client = daemon.connect().unwrap();
        let blocks = Blocks::open(&client, "small", &small_layout()).unwrap();
        wait_until(&blocks, &small, true);
        assert_eq!(blocks.load(&small).unwrap(), vec![Loaded::Right; small.len()]);
        let blocks = Blocks::open(&client, "large", &large_layout).unwrap();
        wait_until(&blocks, &large, true);
        assert_eq!(blocks.load(&large).unwrap(), vec![Loaded::Right; large.len()]);
    }
    // no part of an upload stayed behind in the logs of either
    for daemon in [&other, &again] {
        assert!(!daemon.log().contains("ERROR"), "{}", daemon.log());
    }
}

#[test]
fn a_bad_network_costs_hits_and_never_bytes() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let Some(service) = Seaweed::start(&directory.path().join("service")).unwrap() else {
        return;
    };
    let network = Network::before(service.port()).unwrap();
    // without a cache every load goes to the bucket
    let arguments = [
        "--pipeline",
        "S3",
        "--s3-read-timeout-ms",
        "400",
        "--s3-write-timeout-ms",
        "6000",
    ];
    let daemon = start(directory.path(), "daemon", &network.endpoint(), &arguments);
    let client = daemon.connect().unwrap();
    let layout = Layout::uniform(2, 2, 20_000).unwrap();
    let blocks = Blocks::open(&client, "network", &layout).unwrap();
    let stored: Vec<u64> = (0..24).collect();
    for outcome in blocks.dump(&stored, Durability::Durable).unwrap() {
        assert!(is_stored(&outcome), "{outcome:?}");
    }
    for (round, trouble) in Trouble::ALL.into_iter().enumerate() {
        network.set(trouble);
        for number in &stored {
            let loaded = blocks.load(&[*number]).unwrap();
            assert_ne!(loaded, [Loaded::Wrong], "{trouble:?}: block {number}");
        }
        let more: Vec<u64> = (0..4).map(|number| 1000 * (round as u64 + 1) + number).collect();
        let outcomes = blocks.dump(&more, Durability::Durable).unwrap();
        network.set(Trouble::None);
        // whatever was acknowledged is there, once the network is good again
        let acknowledged: Vec<u64> = more
            .iter()
            .zip(&outcomes)
            .filter(|(_, outcome)| is_stored(outcome))
            .map(|(number, _)| *number)
            .collect();
        if trouble != Trouble::Flip {
            wait_until(&blocks, &stored, true);
            assert_eq!(
                blocks.load(&stored).unwrap(),
                vec![Loaded::Right; stored.len()],
                "{trouble:?}"
            );
        }
        wait_until(&blocks, &acknowledged, true);
        assert_eq!(
            blocks.load(&acknowledged).unwrap(),
            vec![Loaded::Right; acknowledged.len()],
            "{trouble:?}"
        );
        // blocks that arrived wrong twice are quarantined: they are dumped anew
        blocks.dump(&stored, Durability::Durable).unwrap();
    }
}

#[test]
fn a_service_that_dies_and_comes_back_is_an_outage_and_no_more() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let Some(mut service) = Seaweed::start(&directory.path().join("service")).unwrap() else {
        return;
    };
    let arguments = [
        "--pipeline",
        "Cache|S3",
        "--s3-read-timeout-ms",
        "500",
        "--s3-write-timeout-ms",
        "6000",
    ];
    let daemon = start(directory.path(), "daemon", &service.endpoint(), &arguments);
    let client = daemon.connect().unwrap();
    let blocks = Blocks::open(&client, "outage", &small_layout()).unwrap();
    let before: Vec<u64> = (0..50).collect();
    for outcome in blocks.dump(&before, Durability::Durable).unwrap() {
        assert!(is_stored(&outcome), "{outcome:?}");
    }
    service.kill();
    // memory goes on working: it takes dumps and gives blocks
    let meanwhile: Vec<u64> = (100..150).collect();
    for outcome in blocks.dump(&meanwhile, Durability::Memory).unwrap() {
        assert!(is_stored(&outcome), "{outcome:?}");
    }
    assert_eq!(blocks.load(&before).unwrap(), vec![Loaded::Right; before.len()]);
    assert_eq!(
        blocks.load(&meanwhile).unwrap(),
        vec![Loaded::Right; meanwhile.len()]
    );
    for outcome in blocks.dump(&[200, 201], Durability::Durable).unwrap() {
        assert!(!is_stored(&outcome), "acknowledged without a bucket: {outcome:?}");
    }
    service.restart().unwrap();
    let runtime = Runtime::system();
    let deadline = runtime.deadline(Duration::from_secs(30));
    let mut next = 300;
    while !blocks
        .dump(&[next], Durability::Durable)
        .unwrap()
        .iter()
        .all(is_stored)
    {
        assert!(
            runtime.clock.now() < deadline,
            "the tier doesn't heal: {}",
            daemon.log()
        );
        pause(Duration::from_millis(50));
        next += 1;
    }
    daemon.kill();
    let again = start(directory.path(), "again", &service.endpoint(), &arguments);
    let client = again.connect().unwrap();
    let blocks = Blocks::open(&client, "outage", &small_layout()).unwrap();
    wait_until(&blocks, &before, true);
    assert_eq!(blocks.load(&before).unwrap(), vec![Loaded::Right; before.len()]);
    assert_eq!(blocks.load(&[next]).unwrap(), [Loaded::Right]);
}

#[test]
fn uploads_that_nobody_will_finish_are_taken_back() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let Some(service) = Seaweed::start(&directory.path().join("service")).unwrap() else {
        return;
    };
    let store = service.client().unwrap();
    // an object's name from long ago, one that is being put, and somebody else's
    let name = |generation: u64| {
        Key::from(format!(
            "tests/end-to-end/objects/{generation:016x}-{:032x}-{:08x}",
            5, 1
        ))
    };
    let now = Runtime::system().clock.unix_ms() * 1000;
    let paths = [name(1), name(now), Key::from("tests/end-to-end/others/upload")];
    let tasks = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let ids: Vec<String> = paths
        .iter()
        .map(|path| tasks.block_on(store.create_multipart(path)).unwrap())
        .collect();
    let put = |number: usize| {
        let body = PutPayload::from_static(b"part");
        tasks.block_on(store.put_part(&paths[number], &ids[number], 0, body))
    };
    put(0).unwrap();
    let daemon = start(
        directory.path(),
        "daemon",
        &service.endpoint(),
        &["--pipeline", "Cache|S3"],
    );
    let runtime = Runtime::system();
    let deadline = runtime.deadline(Duration::from_secs(30));
    while put(0).is_ok() {
        assert!(
            runtime.clock.now() < deadline,
            "an old upload stays: {}",
            daemon.log()
        );
        pause(Duration::from_millis(50));
    }
    put(1).unwrap();
    put(2).unwrap();
}
