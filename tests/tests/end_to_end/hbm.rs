//! Device memory in front of a real daemon: on the host, and on an emulated NPU behind its plugin.

use std::path::{Path, PathBuf};
use std::process::Command;

use kvstored_core::TierStatistics;
use kvstored_tests::daemon::{Daemon, binary};
use kvstored_tests::plugins::{beside, directory_with};
use serde_json::Value;

/// Far less than the trace needs, so that blocks come from all three tiers.
const SMALL: [&str; 8] = [
    "--pipeline",
    "Hbm|Cache|Posix",
    "--cache-buffer-capacity",
    "4MiB",
    "--hbm-capacity",
    "16MiB",
    "--posix-capacity",
    "1GiB",
];

/// A trace of conversations.
fn trace(directory: &Path) -> PathBuf {
    let file = directory.join("trace.jsonl");
    let made = Command::new(binary().unwrap())
        .args(["trace", "generate", "--requests", "400", "--output"])
        .arg(&file)
        .status()
        .unwrap();
    assert!(made.success());
    file
}

/// Replays the trace through a daemon. Returns what the replay says.
fn replay(daemon: &Daemon, trace: &Path) -> Value {
    let replayed = Command::new(binary().unwrap())
        .arg("replay")
        .arg(trace)
        .args([
            "--json",
            "--block-bytes",
            "32KiB",
            "--concurrency",
            "2",
            "--socket",
        ])
        .arg(daemon.socket())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&replayed.stderr);
    assert!(replayed.status.success(), "{said}\n{}", daemon.log());
    serde_json::from_slice(&replayed.stdout).unwrap()
}

fn start(directory: &Path, more: &[String], environment: &[(&str, &str)]) -> Daemon {
    let more = more.iter().map(String::as_str);
    let arguments: Vec<&str> = SMALL.into_iter().chain(more).collect();
    Daemon::start_with(directory, &directory.join("blocks"), &arguments, environment).unwrap()
}

fn hbm(daemon: &Daemon) -> TierStatistics {
    let tiers = daemon.connect().unwrap().statistics().unwrap().tiers;
    let hbm = tiers.into_iter().find(|tier| tier.name == "Hbm").unwrap();
    hbm.statistics
}

/// Replays through a daemon with those arguments and checks that blocks came right, from everywhere.
fn replay_is_right(directory: &Path, more: &[String], environment: &[(&str, &str)]) {
    let daemon = start(directory, more, environment);
    let results = replay(&daemon, &trace(directory));
    assert_eq!(results["corrupt_blocks"], 0, "{results}");
    assert_eq!(results["errors"], 0, "{results}");
    for tier in ["Cache", "Hbm", "Posix"] {
        let hits = results["hits_by_tier"][tier].as_u64().unwrap();
        assert!(hits > 0, "no hits in {tier}: {results}");
    }
    let hbm = hbm(&daemon);
    assert!(!hbm.degraded, "{}", hbm.degraded_reason);
    assert_eq!((hbm.faults, hbm.quarantined_blocks, hbm.held_bytes), (0, 0, 0));
    assert!(hbm.blocks > 0 && hbm.allocated_bytes <= hbm.capacity_bytes);
    // blocks of one request go together
    assert!(
        hbm.device_calls > 0 && hbm.device_calls < hbm.device_copies,
        "{hbm:?}"
    );
    assert!(daemon.terminate());
}

#[test]
fn a_trace_replays_over_host_memory() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    replay_is_right(directory.path(), &[], &[]);
}

/// Arguments of a daemon with an emulated NPU.
fn npu(plugins: &Path) -> Vec<String> {
    let library = beside("libkvstored_emulated_ascendcl.so").unwrap();
    let pairs = [
        ("--hbm-device", "Plugin(ascend)".to_owned()),
        ("--plugin-directory", plugins.display().to_string()),
        (
            "--plugin-setting",
            format!("ascend.library={}", library.display()),
        ),
        ("--plugin-setting", "ascend.device=1".to_owned()),
    ];
    pairs
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect()
}

#[test]
fn a_trace_replays_over_an_emulated_npu() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let plugins = directory_with("ascend").unwrap();
    replay_is_right(directory.path(), &npu(plugins.path()), &[]);
}

#[test]
fn a_failing_device_costs_hits_and_never_bytes() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let plugins = directory_with("ascend").unwrap();
    let faults = [("KVSTORED_EMULATOR_FAIL_EVERY", "7")];
    let daemon = start(directory.path(), &npu(plugins.path()), &faults);
    let results = replay(&daemon, &trace(directory.path()));
    assert_eq!(results["corrupt_blocks"], 0, "{results}");
    assert!(results["hit_blocks"].as_u64().unwrap() > 0, "{results}");
    assert!(hbm(&daemon).faults > 0);
}
