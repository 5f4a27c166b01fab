//! Objects come and go through the service as through the state machine.

use std::time::Duration;

use kvstored_core::ErrorKind;
use kvstored_master::server::MasterServer;
use kvstored_master::{MasterSettings, NewObject, PutOptions, whole_key};

use super::node::{FakeNode, put};
use super::{client, client_settings, key, master_settings, server_settings, soon, start, until};

#[test]
fn an_object_is_put_found_and_removed() {
    let server = start();
    let node = FakeNode::start(1, 1 << 20, client_settings(&server));
    let client = client(&server);
    let ticket = put(&client, &[&node], &key("a"), 1000, &PutOptions::default()).unwrap();
    let answers = client.locate(&[&key("a"), &key("b")], soon()).unwrap();
    let found = answers[0].as_ref().unwrap();
    assert_eq!(
        (found.put, found.length, found.checksum),
        (ticket.put, 1000, 1000)
    );
    assert_eq!(
        (&*found.locations[0].control, &*found.locations[0].engine),
        ("127.0.0.1:1", "127.0.0.1:11")
    );
    assert_eq!(answers[1].as_ref().unwrap_err().kind(), ErrorKind::NotFound);
    let there = client.exist(&[&key("b"), &key("a")], false, soon()).unwrap();
    assert!(there[0].is_none() && there[1].is_some_and(|stays| !stays.is_zero()));
    let outcomes = client.remove(&[&key("a"), &key("b")], false, soon()).unwrap();
    assert_eq!(
        outcomes[0].as_ref().unwrap_err().kind(),
        ErrorKind::Busy,
        "leased"
    );
    assert_eq!(outcomes[1].as_ref().unwrap_err().kind(), ErrorKind::NotFound);
    client
        .remove(&[&key("a")], true, soon())
        .unwrap()
        .remove(0)
        .unwrap();
    assert!(
        node.ledger.lock().ranges.is_empty(),
        "the node has carried out what was acknowledged"
    );
    assert!(client.exist(&[&key("a")], false, soon()).unwrap()[0].is_none());
}

#[test]
fn large_batches_are_split_and_answered_in_order() {
    let server = start();
    let node = FakeNode::start(1, 1 << 30, client_settings(&server));
    let client = client(&server);
    let keys: Vec<Box<[u8]>> = (0..5000).map(|number| key(&format!("{number}"))).collect();
    let new: Vec<NewObject<'_>> = keys.iter().map(|key| NewObject { key, length: 100 }).collect();
    let tickets = client.start_puts(&new, &PutOptions::default(), soon()).unwrap();
    assert_eq!(tickets.len(), 5000);
    let (mut finished, nodes) = (Vec::new(), [node.id]);
    let epoch = node.ledger.lock().epoch;
    for (key, ticket) in keys
        .iter()
        .zip(&tickets)
        .filter(|(key, _)| key.last() != Some(&b'7'))
    {
        finished.push(kvstored_master::Finished {
            key,
            put: ticket.as_ref().unwrap().put,
            checksum: 1,
            nodes: &nodes,
            master_epoch: epoch,
        });
    }
    let ended = client.end_puts(&finished, soon()).unwrap();
    assert!(ended.iter().all(Result::is_ok) && ended.len() == finished.len());
    let wanted: Vec<&[u8]> = keys.iter().map(AsRef::as_ref).collect();
    let there = client.exist(&wanted, false, soon()).unwrap();
    for (key, there) in wanted.iter().zip(&there) {
        assert_eq!(there.is_some(), key.last() != Some(&b'7'));
    }
    let located = client.locate(&wanted, soon()).unwrap();
    assert_eq!(
        located.iter().filter(|found| found.is_ok()).count(),
        finished.len()
    );
    let page = client.objects(0, 10, None, soon()).unwrap();
    assert!(page.objects.len() == 10 && page.next > 0);
}

#[test]
fn a_put_waits_for_room_until_the_node_has_confirmed() {
    let settings = MasterSettings {
        eviction_high_watermark_ratio: 1.0,
        ..master_settings()
    };
    let server = MasterServer::start(server_settings(), settings, kvstored_core::Runtime::system()).unwrap();
    let node = FakeNode::start(1, 4096, client_settings(&server));
    let client = client(&server);
    let waits = PutOptions {
        wait: Duration::from_secs(10),
        ..PutOptions::default()
    };
    for number in 0..50 {
        put(&client, &[&node], &key(&format!("{number}")), 4096, &waits).unwrap();
    }
    let status = client.status(soon()).unwrap();
    assert_eq!((status.objects, status.capacity_bytes), (1, 4096));
    // a leased object makes no room, however long one waits
    client.locate(&[&key("49")], soon()).unwrap().remove(0).unwrap();
    let no_wait = put(&client, &[&node], &key("x"), 1, &PutOptions::default()).unwrap_err();
    assert_eq!(no_wait.kind(), ErrorKind::NoSpace);
}

#[test]
fn tenants_are_apart() {
    let mut settings = master_settings();
    settings.quotas.tenants.insert("small".to_owned(), 1024);
    let server = MasterServer::start(server_settings(), settings, kvstored_core::Runtime::system()).unwrap();
    let node = FakeNode::start(1, 1 << 20, client_settings(&server));
    let client = client(&server);
    let small = whole_key("small", b"k").unwrap();
    put(&client, &[&node], &small, 1024, &PutOptions::default()).unwrap();
    put(&client, &[&node], &key("k"), 2048, &PutOptions::default()).unwrap();
    let too_large = put(
        &client,
        &[&node],
        &whole_key("small", b"l").unwrap(),
        2048,
        &PutOptions::default(),
    );
    assert_eq!(too_large.unwrap_err().kind(), ErrorKind::TooLarge);
    assert_eq!(client.remove_all(Some("small"), false, soon()).unwrap(), 1);
    assert!(client.exist(&[&key("k")], false, soon()).unwrap()[0].is_some());
    assert_eq!(client.remove_all(None, false, soon()).unwrap(), 1);
    let tenants = client.status(soon()).unwrap().tenants;
    assert_eq!(tenants.len(), 2);
}

#[test]
fn a_drained_node_is_emptied() {
    let server = start();
    let nodes = [1, 2].map(|number| FakeNode::start(number, 1 << 20, client_settings(&server)));
    let all: Vec<&FakeNode> = nodes.iter().collect();
    let client = client(&server);
    let two = PutOptions {
        replicas: 2,
        ..PutOptions::default()
    };
    put(&client, &all, &key("both"), 10, &two).unwrap();
    client.drain(&nodes[0].id, false, false, soon()).unwrap();
    let epoch = client.status(soon()).unwrap().epoch;
    until("an empty node", || {
        // a node asks what it's to copy; there is no third one that could take a copy
        let told = client.start_moves(&nodes[0].id, epoch, &[], soon()).unwrap();
        assert_eq!(told.moves, []);
        let statuses = client.nodes(soon()).unwrap();
        let drained = statuses.iter().find(|node| node.name == "node-1").unwrap();
        assert!(["draining", "drained"].contains(&drained.state.as_str()));
        drained.state == "drained"
    });
    let found = client.locate(&[&key("both")], soon()).unwrap().remove(0).unwrap();
    assert_eq!(found.locations.len(), 1);
    client.unmount(&nodes[1].id, soon()).unwrap();
    // the other node mounts again by itself and brings its object back
    until("the object", || {
        client.exist(&[&key("both")], false, soon()).unwrap()[0].is_some()
    });
}

#[test]
fn a_node_that_is_killed_is_noticed_at_once() {
    let server = start();
    let client = client(&server);
    let runtime = kvstored_core::Runtime::system();
    let doomed =
        kvstored_master::client::blocking::MasterClient::new(client_settings(&server), runtime).unwrap();
    let lender = kvstored_master::Lender {
        node: [9; 16],
        name: "doomed".to_owned(),
        control: String::new(),
        engine: String::new(),
        segment_bytes: 1 << 20,
        obeyed_epoch: 0,
        highest_put: 0,
        draining: None,
    };
    let mounted = doomed.mount(&lender, soon()).unwrap();
    doomed.announce(&lender.node, mounted.epoch, &[], soon()).unwrap();
    // waits for orders, and goes while it does
    let heartbeat = doomed.heartbeat(
        &lender.node,
        mounted.epoch,
        &[],
        Duration::from_secs(10),
        kvstored_core::Runtime::system().deadline(Duration::from_millis(300)),
    );
    assert!(heartbeat.is_err());
    drop(doomed);
    until("the node's end", || client.nodes(soon()).unwrap().is_empty());
    let refused = client.start_puts(
        &[NewObject {
            key: &key("a"),
            length: 1,
        }],
        &PutOptions::default(),
        soon(),
    );
    assert_eq!(
        refused.unwrap().remove(0).unwrap_err().kind(),
        ErrorKind::Unavailable
    );
}
