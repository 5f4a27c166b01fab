//! The tier Ds3fs in real daemons, on an emulator of 3FS's library.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use kvstored_client::BlockOutcome;
use kvstored_core::Durability;
use kvstored_tests::blocks::{Blocks, Loaded};
use kvstored_tests::daemon::{Daemon, binary};

use crate::small_layout;

/// A trace of a real chat service that may lie beside the workspace.
const NEARBY_TRACE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../shared/traces/conversation_trace.jsonl"
);
const REQUESTS: &str = "150";

/// A directory that plays a mount, the plugin, and what a daemon needs to know of both.
struct Stage {
    folder: tempfile::TempDir,
}

impl Stage {
    fn new() -> Self {
        let stage = Self {
            folder: tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap(),
        };
        let plugins = stage.path().join("plugins");
        fs::create_dir(&plugins).unwrap();
        fs::create_dir_all(stage.mount()).unwrap();
        for folder in [stage.path(), &plugins] {
            fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).unwrap();
        }
        fs::copy(built("libkvstored_ds3fs.so"), plugins.join("ds3fs.so")).unwrap();
        fs::set_permissions(plugins.join("ds3fs.so"), fs::Permissions::from_mode(0o755)).unwrap();
        let listed = Command::new("sh")
            .args(["-c", "sha256sum *.so > SHA256SUMS && chmod 644 SHA256SUMS"])
            .current_dir(&plugins)
            .status()
            .unwrap();
        assert!(listed.success());
        stage
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn mount(&self) -> PathBuf {
        self.path().join("mount")
    }

    /// A daemon over that pipeline, in a run folder of its own.
    fn start(&self, name: &str, pipeline: &str) -> Daemon {
        self.start_with(name, pipeline, &[])
    }

    fn start_with(&self, name: &str, pipeline: &str, more: &[&str]) -> Daemon {
        let run = self.path().join(name);
        fs::create_dir_all(&run).unwrap();
        let plugins = self.path().join("plugins").display().to_string();
        let library = format!("ds3fs.library={}", built("libhf3fs_api_shared.so").display());
        let mut arguments = vec![
            "--pipeline",
            pipeline,
            "--cache-buffer-capacity",
            "64MiB",
            "--posix-capacity-gb",
            "2",
        ];
        if pipeline.contains("Ds3fs") {
            arguments.extend(["--plugin-directory", &plugins, "--plugin-setting", &library]);
        }
        arguments.extend(more);
        let mount = self.mount().display().to_string();
        let environment = [("KVSTORED_USRBIO_MOUNT", mount.as_str())];
        Daemon::start_with(&run, &self.mount().join("blocks"), &arguments, &environment).unwrap()
    }
}

/// What cargo has built beside this test.
fn built(name: &str) -> PathBuf {
    let path = std::env::current_exe().unwrap().with_file_name(name);
    assert!(path.exists(), "{} isn't built", path.display());
    path
}

fn is_stored(outcome: &BlockOutcome) -> bool {
    matches!(outcome, BlockOutcome::Dumped(_) | BlockOutcome::Present)
}

#[test]
fn acknowledged_blocks_survive_kills_and_are_the_posix_tiers() {
    let stage = Stage::new();
    let numbers: Vec<u64> = (0..200).collect();
    let daemon = stage.start("first", "Cache|Ds3fs");
    {
        let client = daemon.connect().unwrap();
        let blocks = Blocks::open(&client, "model", &small_layout()).unwrap();
        for outcome in blocks.dump(&numbers, Durability::Tier).unwrap() {
            assert!(is_stored(&outcome), "{outcome:?}");
        }
    }
    assert!(daemon.log().contains("go through USRBIO"), "{}", daemon.log());
    daemon.kill();
    for (name, pipeline) in [
        ("again", "Cache|Ds3fs"),
        ("alone", "Ds3fs"),
        ("plain", "Cache|Posix"),
    ] {
        let daemon = stage.start(name, pipeline);
        let client = daemon.connect().unwrap();
        let blocks = Blocks::open(&client, "model", &small_layout()).unwrap();
        assert_eq!(
            blocks.load(&numbers).unwrap(),
            vec![Loaded::Right; numbers.len()],
            "{pipeline}"
        );
        assert!(!daemon.log().contains("ERROR"), "{}", daemon.log());
        drop(client);
        assert!(daemon.terminate(), "{pipeline}");
    }
    let links = fs::read_dir(stage.mount().join("3fs-virt/iovs")).unwrap().count();
    // the killed daemon's are left, which the real library's side clears when it sees the process gone
    assert!(links <= 8, "{links} links to memory were left behind");
}

#[test]
fn a_tenants_quota_holds_and_holds_again_after_a_kill() {
    const BLOCKS: u64 = 20;
    let stage = Stage::new();
    let quota = format!("*={}", BLOCKS * small_layout().image_bytes() as u64);
    let arguments = ["--tenant-quota", quota.as_str()];
    let dump = |daemon: &Daemon, model: &str, numbers: std::ops::Range<u64>| {
        let client = daemon.connect().unwrap();
        let blocks = Blocks::open(&client, model, &small_layout()).unwrap();
        let numbers: Vec<u64> = numbers.collect();
        let outcomes = blocks.dump(&numbers, Durability::Tier).unwrap();
        outcomes.iter().filter(|outcome| is_stored(outcome)).count() as u64
    };
    let ds3fs = |daemon: &Daemon| {
        let tiers = daemon.connect().unwrap().statistics().unwrap().tiers;
        let ds3fs = tiers.into_iter().find(|tier| tier.name == "Ds3fs").unwrap();
        ds3fs.statistics
    };
    let daemon = stage.start_with("first", "Ds3fs", &arguments);
    assert_eq!(dump(&daemon, "model", 0..50), BLOCKS);
    let statistics = ds3fs(&daemon);
    assert_eq!((statistics.blocks, statistics.refused_writes), (BLOCKS, 30));
    let usage = &statistics.tenants[0];
    assert_eq!(
        (statistics.tenants.len(), Some(usage.used_bytes)),
        (1, usage.limit_bytes)
    );
    daemon.kill();
    // nobody opens the namespace that the tenant's blocks are in
    let daemon = stage.start_with("again", "Ds3fs", &arguments);
    assert_eq!(dump(&daemon, "another", 0..10), 0);
    let again = ds3fs(&daemon);
    assert_eq!((again.blocks, &again.tenants), (BLOCKS, &statistics.tenants));
    assert!(daemon.terminate());
    let daemon = stage.start_with("without", "Ds3fs", &[]);
    assert_eq!(dump(&daemon, "another", 0..10), 10);
    assert!(daemon.terminate());
}

#[test]
fn a_trace_is_replayed_from_3fs_without_a_wrong_byte() {
    let stage = Stage::new();
    let nearby = PathBuf::from(NEARBY_TRACE);
    let trace = if nearby.exists() {
        nearby
    } else {
        let generated = stage.path().join("trace.jsonl");
        let done = Command::new(binary().unwrap())
            .args([
                "trace",
                "generate",
                "--seed",
                "1",
                "--requests",
                REQUESTS,
                "--output",
            ])
            .arg(&generated)
            .status()
            .unwrap();
        assert!(done.success());
        generated
    };
    let mut from_3fs = 0;
    for run in ["first", "second"] {
        let daemon = stage.start(run, "Cache|Ds3fs");
        let output = Command::new(binary().unwrap())
            .arg("replay")
            .arg(&trace)
            .arg("--socket")
            .arg(daemon.socket())
            .args(["--limit", REQUESTS, "--json"])
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["corrupt_blocks"], 0, "{report}");
        assert_eq!(report["errors"], 0, "{report}");
        from_3fs = report["hits_by_tier"]["Ds3fs"].as_u64().unwrap_or(0);
        assert!(daemon.terminate());
    }
    assert!(from_3fs > 0, "nothing came from 3FS after a restart");
}

#[test]
fn without_the_plugin_the_daemon_says_what_is_missing() {
    let stage = Stage::new();
    let empty = stage.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let output = Command::new(binary().unwrap())
        .args([
            "--pipeline",
            "Cache|Ds3fs",
            "--cache-buffer-capacity",
            "16MiB",
            "--http",
            "off",
        ])
        .arg("--listen")
        .arg(format!("unix:{}", stage.path().join("socket").display()))
        .arg("--plugin-directory")
        .arg(&empty)
        .arg("--storage-backends")
        .arg(stage.mount())
        .output()
        .unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("ds3fs.so"), "{said}");
}
