//! One master: the line of the deployment, kills, idleness, crowds.

use std::net::TcpStream;
use std::time::Duration;

use kvstored_master::PutOptions;

use super::node::{FakeNode, put};
use super::process::{Master, kvstored};
use super::{client, key, pause, settings, soon, until};

#[test]
fn the_line_of_the_deployment_runs() {
    let master = Master::start(&[
        "--eviction_high_watermark_ratio",
        "0.9",
        "--eviction_ratio",
        "0.1",
        "--default_kv_lease_ttl",
        "11000",
    ]);
    let node = FakeNode::start(1, 1 << 20, settings(&[&master.address]));
    let client = client(&[&master.address]);
    put(&client, &[&node], &key("a"), 100, &PutOptions::default()).unwrap();
    let found = client.locate(&[&key("a")], soon()).unwrap().remove(0).unwrap();
    assert_eq!(found.lease, Duration::from_secs(11));
    drop(node);
    assert!(master.terminate(), "it ends well when told to");
}

#[test]
fn a_master_that_is_killed_under_load_loses_nothing() {
    let master = Master::start(&[]);
    let address = master.address.clone();
    let port = address.rsplit(':').next().unwrap().to_owned();
    let node = FakeNode::start(1, 64 << 20, settings(&[&address]));
    let client = client(&[&address]);
    let mut acknowledged = Vec::new();
    let mut number = 0;
    let mut master = Some(master);
    for round in 0..3 {
        let wanted = acknowledged.len() + 100;
        until("puts", || {
            let key = key(&format!("{number}"));
            number += 1;
            if put(&client, &[&node], &key, 1000, &PutOptions::default()).is_ok() {
                acknowledged.push(key);
            }
            acknowledged.len() >= wanted
        });
        if round < 2 {
            master.take().unwrap().kill();
            master = Some(Master::start(&["--port", &port]));
        }
    }
    let keys: Vec<&[u8]> = acknowledged.iter().map(AsRef::as_ref).collect();
    until("all objects", || {
        client
            .exist(&keys, false, soon())
            .is_ok_and(|there| there.iter().all(Option::is_some))
    });
}

#[test]
fn an_idle_master_rests() {
    let master = Master::start(&[]);
    let node = FakeNode::start(1, 1 << 20, settings(&[&master.address]));
    let client = client(&[&master.address]);
    put(&client, &[&node], &key("a"), 100, &PutOptions::default()).unwrap();
    let id = node.id;
    drop(node);
    client.unmount(&id, soon()).unwrap();
    until("no node", || client.nodes(soon()).unwrap().is_empty());
    let before = master.rests();
    pause(Duration::from_secs(2));
    let woken = master.rests() - before;
    assert!(woken < 20, "its threads woke {woken} times with nothing to do");
}

#[test]
fn a_crowd_of_idle_connections_keeps_nobody_out() {
    let master = Master::start(&[]);
    let known = client(&[&master.address]);
    known.status(soon()).unwrap();
    let before = master.descriptors();
    let crowd: Vec<TcpStream> = (0..3000)
        .map(|_| TcpStream::connect(&master.address).unwrap())
        .collect();
    known.status(soon()).unwrap();
    client(&[&master.address]).status(soon()).unwrap();
    // far fewer than came are kept
    until("closed connections", || master.descriptors() < before + 1200);
    drop(crowd);
    until("closed descriptors", || master.descriptors() <= before + 4);
}

#[test]
fn what_cannot_be_is_refused_with_its_name() {
    for (flags, name) in [
        (vec!["--rpc_address", "0.0.0.0"], "token"),
        (vec!["--eviction_ratio", "7"], "eviction_ratio"),
        (vec!["--enable_ha"], "etcd_endpoints"),
        (vec!["--metrics_address", "0.0.0.0"], "metrics_address"),
        (vec!["--no_such_flag"], "no_such_flag"),
    ] {
        let mut arguments = vec!["master", "--port", "0", "--metrics_port", "0"];
        arguments.extend(&flags);
        let output = kvstored(&arguments).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && error.contains(name),
            "{flags:?}: {error}"
        );
    }
}
