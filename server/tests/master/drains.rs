//! `kvstored ctl pool drain` with nodes in processes of their own, and a master that is killed in the middle.

use std::process::Output;
use std::time::Duration;

use serde_json::Value;

use super::member::{Member, Plan};
use super::process::{Master, kvstored};
use super::{client, soon, until};

const OBJECTS: u64 = 300;
const BYTES: usize = 4096;
const SECOND: Duration = Duration::from_secs(1);

fn member(address: &str, name: &str, lends: u64) -> Member {
    Member::start(&Plan {
        master: address,
        lends,
        name,
        transport: "tcp",
        tls: None,
    })
}

fn ctl(address: &str, words: &[&str]) -> Output {
    let mut arguments = vec!["ctl", "--json", "pool", "--master", address];
    arguments.extend(words);
    kvstored(&arguments).output().unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
}

fn segment(address: &str, name: &str) -> Option<Value> {
    let segments = json(&ctl(address, &["segments"]));
    let mut all = segments.as_array().unwrap().iter();
    all.find(|segment| segment["name"] == name).cloned()
}

fn has_all(reader: &mut Member) {
    for number in 0..OBJECTS {
        until("an object", || {
            let (word, _) = reader.get(number, BYTES, SECOND * 3);
            assert_ne!(word, "wrong", "{number}");
            word == "ok"
        });
    }
}

const FLAGS: [&str; 4] = ["--client_ttl", "3", "--default_kv_lease_ttl", "500"];

#[test]
fn a_node_is_drained_and_taken_away() {
    let master = Master::start(&FLAGS);
    let address = master.address.clone();
    let mut source = member(&address, "source", 32 << 20);
    let node = source.node.clone();
    for number in 0..OBJECTS {
        assert_eq!(source.put(number, BYTES, 1, &node), "ok");
    }
    // nowhere to go: that is told, and nothing is lost
    let stuck = ctl(&address, &["drain", "source", "--wait", "20"]);
    assert_eq!(stuck.status.code(), Some(1), "{stuck:?}");
    let left = json(&stuck);
    assert_eq!(left["progress"]["unplaced_objects"], OBJECTS);
    assert_eq!(left["replicas"], OBJECTS);
    let mut target = member(&address, "target", 32 << 20);
    let done = ctl(&address, &["drain", "source", "--wait", "25"]);
    assert!(done.status.success(), "{done:?}");
    let after = segment(&address, "source").unwrap();
    assert_eq!(
        (&after["drain"]["moved_objects"], &after["replicas"]),
        (&OBJECTS.into(), &0.into())
    );
    until("a drained node", || {
        segment(&address, "source").unwrap()["state"] == "drained"
    });
    let text = kvstored(&["ctl", "pool", "--master", &address, "segments"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains(&format!("{OBJECTS} moved (")), "{text}");
    source.kill();
    has_all(&mut target);
    assert!(master.terminate());
}

#[test]
fn a_master_that_is_killed_in_the_middle_of_a_drain_loses_nothing() {
    let master = Master::start(&FLAGS);
    let address = master.address.clone();
    let port = address.rsplit(':').next().unwrap().to_owned();
    let mut source = member(&address, "source", 32 << 20);
    let mut target = member(&address, "target", 32 << 20);
    let mut reader = member(&address, "reader", 0);
    let node = source.node.clone();
    for number in 0..OBJECTS {
        assert_eq!(source.put(number, BYTES, 1, &node), "ok");
    }
    let states = client(&[&address]);
    until("recovery", || !states.status(soon()).unwrap().recovering);
    assert!(ctl(&address, &["drain", "source"]).status.success());
    until("copies", || {
        let status = states.status(soon()).unwrap();
        let moved = status.counters.iter().find(|(name, _)| name == "moved_objects");
        moved.is_some_and(|(_, count)| *count > 0)
    });
    master.kill();
    let mut flags = vec!["--port", &port];
    flags.extend(FLAGS);
    let master = Master::start(&flags);
    has_all(&mut reader);
    let done = ctl(&address, &["drain", "source", "--wait", "25"]);
    assert!(done.status.success(), "{done:?}");
    source.kill();
    has_all(&mut reader);
    has_all(&mut target);
    assert!(master.terminate());
}
