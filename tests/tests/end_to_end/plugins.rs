//! Plugged-in tiers in real daemons, and the conformance kit as an operator runs it.

use std::path::Path;
use std::process::{Command, Output};

use kvstored_core::{Durability, ErrorKind};
use kvstored_tests::blocks::{Blocks, Loaded};
use kvstored_tests::daemon::{Daemon, binary};
use kvstored_tests::plugins;
use kvstored_tests::seaweed::{BUCKET, CREDENTIALS, Seaweed};
use serde_json::Value;

use crate::small_layout;

/// Arguments of a daemon with plugins, each with a setting, between its memory and its storage.
fn arguments(directory: &Path, plugins: &[(&str, String)]) -> Vec<String> {
    let names = plugins.iter().map(|(name, _)| format!("Plugin({name})"));
    let tiers: Vec<String> = std::iter::once("Cache".to_owned())
        .chain(names)
        .chain(["Posix".to_owned()])
        .collect();
    let pairs = [
        ("--pipeline", tiers.join("|")),
        ("--plugin-directory", directory.display().to_string()),
        ("--cache-buffer-capacity", "8MiB".to_owned()),
        ("--posix-capacity", "1GiB".to_owned()),
        ("--posix-segment-bytes", "4MiB".to_owned()),
    ];
    let settings = plugins
        .iter()
        .map(|(name, setting)| ("--plugin-setting", format!("{name}.{setting}")));
    let all = pairs.into_iter().chain(settings);
    all.flat_map(|(flag, value)| [flag.to_owned(), value]).collect()
}

fn start(root: &Path, arguments: &[String]) -> kvstored_core::Result<Daemon> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    Daemon::start(root, &root.join("storage"), &arguments)
}

fn assert_all_right(blocks: &Blocks<'_>, numbers: &[u64]) {
    let loaded = blocks.load(numbers).unwrap();
    assert!(loaded.iter().all(|loaded| *loaded == Loaded::Right), "{loaded:?}");
}

#[test]
fn a_plugin_in_c_keeps_blocks_over_a_kill_and_what_it_loses_is_below_it() {
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (plugins, kept) = (plugins::directory().unwrap(), root.path().join("kept"));
    std::fs::create_dir(&kept).unwrap();
    let arguments = arguments(plugins.path(), &[("files", format!("path={}", kept.display()))]);
    let numbers: Vec<u64> = (0..300).collect();
    let daemon = start(root.path(), &arguments).unwrap();
    let client = daemon.connect().unwrap();
    let blocks = Blocks::open(&client, "plugged", &small_layout()).unwrap();
    blocks.dump(&numbers, Durability::Durable).unwrap();
    assert_all_right(&blocks, &numbers);
    daemon.kill();

    // memory is empty now
    let daemon = start(root.path(), &arguments).unwrap();
    let client = daemon.connect().unwrap();
    let blocks = Blocks::open(&client, "plugged", &small_layout()).unwrap();
    assert!(blocks.lookup(&numbers).unwrap().into_iter().all(|found| found));
    // one half is the plugin's to give, the other only storage has
    let namespace = std::fs::read_dir(&kept).unwrap().next().unwrap().unwrap().path();
    let mut files: Vec<_> = std::fs::read_dir(namespace)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert_eq!(files.len(), numbers.len());
    for (number, file) in files.iter().enumerate() {
        match number % 4 {
            0 => std::fs::remove_file(file).unwrap(),
            1 => std::fs::write(file, b"rubbish").unwrap(),
            _ => {}
        }
    }
    assert_all_right(&blocks, &numbers);
    assert!(daemon.terminate());
}

#[test]
fn two_plugins_and_storage_serve_one_after_the_other() {
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (plugins, kept) = (plugins::directory().unwrap(), root.path().join("kept"));
    std::fs::create_dir(&kept).unwrap();
    // the first has room for some of the blocks only
    let both = [
        ("memory", "capacity_bytes=1000000".to_owned()),
        ("files", format!("path={}", kept.display())),
    ];
    let arguments = arguments(plugins.path(), &both);
    let numbers: Vec<u64> = (0..300).collect();
    let daemon = start(root.path(), &arguments).unwrap();
    let client = daemon.connect().unwrap();
    let blocks = Blocks::open(&client, "plugged", &small_layout()).unwrap();
    blocks.dump(&numbers, Durability::Durable).unwrap();
    assert_all_right(&blocks, &numbers);
    assert!(daemon.terminate());
    // what was in memory is gone
    let daemon = start(root.path(), &arguments).unwrap();
    let client = daemon.connect().unwrap();
    let blocks = Blocks::open(&client, "plugged", &small_layout()).unwrap();
    assert_all_right(&blocks, &numbers);
    let loaded = daemon.log().matches("plugin loaded").count();
    assert_eq!(loaded, 4, "{}", daemon.log());
    assert!(daemon.terminate());
}

#[test]
fn a_plugin_that_was_changed_is_not_loaded() {
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let plugins = plugins::directory().unwrap();
    let path = |name: &str| plugins.path().join(name);
    std::fs::copy(path("files.so"), path("memory.so")).unwrap();
    let arguments = arguments(plugins.path(), &[("memory", "capacity_bytes=1000000".to_owned())]);
    let Err(error) = start(root.path(), &arguments) else {
        panic!("it was loaded")
    };
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("SHA256SUMS lists"), "{error}");
}

/// Runs the kit; returns its report.
fn conformance(arguments: &[&str]) -> Value {
    let Output {
        stdout,
        stderr,
        status,
    } = Command::new(binary().unwrap())
        .arg("conformance")
        .args(arguments)
        .arg("--json")
        .envs(CREDENTIALS)
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&stderr)));
    assert_eq!(
        status.success(),
        report["passed"].as_bool().unwrap(),
        "{report:#}"
    );
    report
}

/// How many checks of a report passed, of each tier.
fn passed(report: &Value) -> Vec<(String, usize)> {
    assert_eq!(report["passed"], true, "{report:#}");
    let tiers = report["tiers"].as_array().unwrap();
    let counted = tiers.iter().map(|tier| {
        let checks = tier["checks"].as_array().unwrap();
        let passed = checks.iter().filter(|check| check["outcome"] == "passed").count();
        (tier["tier"].as_str().unwrap().to_owned(), passed)
    });
    counted.collect()
}

#[test]
fn the_kit_passes_on_plugins_and_built_in_tiers() {
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (plugins, kept) = (plugins::directory().unwrap(), root.path().join("kept"));
    std::fs::create_dir(&kept).unwrap();
    let path = |name: &str| plugins.path().join(name).display().to_string();
    let setting = format!("files.path={}", kept.display());
    let report = conformance(&[&path("files.so"), "--plugin-setting", &setting]);
    assert_eq!(passed(&report), [("Plugin(files)".to_owned(), 15)]);
    // it keeps nothing across restarts
    let capacity = "memory.capacity_bytes=2000000";
    let report = conformance(&[&path("memory.so"), "--plugin-setting", capacity]);
    assert_eq!(passed(&report), [("Plugin(memory)".to_owned(), 14)]);
    let storage = root.path().join("storage").display().to_string();
    let mut built_in = vec!["--pipeline", "Cache|Posix", "--storage-backends", &storage];
    built_in.extend(["--cache-buffer-capacity", "8MiB", "--posix-capacity", "32MiB"]);
    let report = conformance(&built_in);
    assert_eq!(
        passed(&report),
        [("Cache".to_owned(), 11), ("Posix".to_owned(), 15)]
    );
    let report = conformance(&["--pipeline", "Fake"]);
    assert_eq!(passed(&report), [("Fake".to_owned(), 4)]);
}

#[test]
fn the_kit_passes_on_a_bucket() {
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let Some(service) = Seaweed::start(&root.path().join("service")).unwrap() else {
        return;
    };
    let endpoint = service.endpoint();
    let mut arguments = vec!["--pipeline", "S3", "--s3-bucket", BUCKET, "--s3-allow-http"];
    arguments.extend(["--s3-endpoint", &endpoint, "--s3-prefix", "tests/conformance"]);
    arguments.extend(["--s3-object-bytes", "64KiB", "--s3-capacity", "2MiB"]);
    arguments.extend(["--s3-tail-interval-ms", "50", "--steps", "100"]);
    let report = conformance(&arguments);
    assert_eq!(passed(&report), [("S3".to_owned(), 15)]);
}

#[test]
fn the_kit_says_what_failed() {
    let plugins = plugins::directory().unwrap();
    let file = plugins.path().join("files.so").display().to_string();
    let report = conformance(&[&file, "--plugin-setting", "files.path=/nowhere"]);
    assert_eq!(report["passed"], false);
    let why = report["tiers"][0]["checks"][0]["why"].as_str().unwrap();
    assert!(why.contains("path must name a directory"), "{why}");
}
