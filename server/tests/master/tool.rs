//! `kvstored ctl pool`, with a token.

use std::process::Output;

use kvstored_core::Runtime;
use kvstored_master::PutOptions;
use kvstored_master::client::ClientSettings;
use kvstored_master::client::blocking::MasterClient;
use serde_json::Value;

use super::node::{FakeNode, put};
use super::process::{Master, kvstored};
use super::{key, settings, until};

#[test]
fn the_pool_is_shown_and_drained() {
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "secret\n").unwrap();
    let token = token.to_str().unwrap();
    let master = Master::start(&["--token_file", token]);
    let settings = ClientSettings {
        token: Some(b"secret".to_vec()),
        ..settings(&[&master.address])
    };
    let node = FakeNode::start(0xab, 1 << 20, settings.clone());
    let client = MasterClient::new(settings, Runtime::system()).unwrap();
    put(&client, &[&node], &key("hello"), 100, &PutOptions::default()).unwrap();

    let run = |words: &[&str]| -> Output {
        let mut arguments = vec![
            "ctl",
            "--json",
            "pool",
            "--master",
            &master.address,
            "--token-file",
            token,
        ];
        arguments.extend(words);
        kvstored(&arguments).output().unwrap()
    };
    let json = |words: &[&str]| -> Value {
        let output = run(words);
        assert!(
            output.status.success(),
            "{words:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let stat = json(&["stat"]);
    assert_eq!(
        (&stat["objects"], &stat["nodes"], &stat["leader"]),
        (&1.into(), &1.into(), &true.into())
    );
    let objects = json(&["ls"]);
    assert_eq!(
        (&objects[0]["key"], &objects[0]["length"]),
        (&"hello".into(), &100.into())
    );
    assert_eq!(objects[0]["nodes"][0], "ab".repeat(16));
    let segments = json(&["segments"]);
    assert_eq!(
        (&segments[0]["state"], &segments[0]["segment_bytes"]),
        (&"ready".into(), &(1 << 20).into())
    );
    assert!(!run(&["drain", "nobody"]).status.success());
    json(&["drain", "ab", "--evict"]);
    until("an empty node", || {
        json(&["stat"])["objects"] == 0 && json(&["segments"])[0]["replicas"] == 0
    });
    until("a free node", || json(&["segments"])[0]["state"] == "drained");
    assert_eq!(json(&["segments"])[0]["drain"]["moved_objects"], 0);
    json(&["drain", "ab", "--undo"]);
    assert_eq!(json(&["segments"])[0]["state"], "ready");
    assert_eq!(json(&["segments"])[0]["drain"], Value::Null);

    let text = kvstored(&["ctl", "pool", "segments", "--token-file", token])
        .env("MOONCAKE_MASTER", &master.address)
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&text.stdout).contains("1MiB"));
    let wrong = kvstored(&["ctl", "pool", "stat", "--master", &master.address])
        .output()
        .unwrap();
    assert_eq!(wrong.status.code(), Some(1));
    let address = master.kill();
    let gone = kvstored(&["ctl", "pool", "stat", "--master", &address, "--token-file", token])
        .output()
        .unwrap();
    assert_eq!(gone.status.code(), Some(3), "no master answers");
}
