//! The master goes and comes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kvstored_core::{ErrorKind, Runtime};
use kvstored_master::client::ClientSettings;
use kvstored_master::client::blocking::MasterClient;
use kvstored_master::server::{MasterServer, ServerSettings};
use kvstored_master::{MasterSettings, PutOptions};
use parking_lot::Mutex;

use super::node::{FakeNode, put};
use super::{client, client_settings, key, server_settings, soon, start, until};

fn again(address: std::net::SocketAddr) -> MasterServer {
    let settings = ServerSettings {
        listen: address,
        ..server_settings()
    };
    let mut started = None;
    until("the port", || {
        started = MasterServer::start(settings.clone(), MasterSettings::default(), Runtime::system()).ok();
        started.is_some()
    });
    started.unwrap()
}

#[test]
fn a_restart_under_load_loses_nothing() {
    let server = start();
    let address = server.address();
    let nodes = [1, 2].map(|number| FakeNode::start(number, 64 << 20, client_settings(&server)));
    let settings = client_settings(&server);
    let acknowledged = Arc::new(Mutex::new(Vec::new()));
    let stop = Arc::new(AtomicBool::new(false));
    std::thread::scope(|scope| {
        for writer in 0..2 {
            let (nodes, settings) = (&nodes, settings.clone());
            let (acknowledged, stop) = (acknowledged.clone(), stop.clone());
            scope.spawn(move || {
                let client = MasterClient::new(settings, Runtime::system()).unwrap();
                let all: Vec<&FakeNode> = nodes.iter().collect();
                let options = PutOptions {
                    replicas: 1 + writer,
                    ..PutOptions::default()
                };
                let mut number = 0;
                while !stop.load(Ordering::Acquire) {
                    let key = key(&format!("{writer}-{number}"));
                    number += 1;
                    // those that fail while there is no master were never acknowledged
                    if put(&client, &all, &key, 1000, &options).is_ok() {
                        acknowledged.lock().push(key);
                    }
                }
            });
        }
        for _ in 0..3 {
            let some = acknowledged.lock().len() + 100;
            until("some puts", || acknowledged.lock().len() >= some);
        }
        let mut server = server;
        for _ in 0..2 {
            server.stop();
            server = again(address);
            let some = acknowledged.lock().len() + 50;
            until("puts after the restart", || acknowledged.lock().len() >= some);
        }
        stop.store(true, Ordering::Release);
        let client = client(&server);
        until("all nodes", || {
            client
                .nodes(soon())
                .unwrap()
                .iter()
                .filter(|node| node.state == "ready")
                .count()
                == 2
        });
        let keys = acknowledged.lock().clone();
        let wanted: Vec<&[u8]> = keys.iter().map(AsRef::as_ref).collect();
        let there = client.exist(&wanted, false, soon()).unwrap();
        let lost = there.iter().filter(|there| there.is_none()).count();
        assert_eq!(lost, 0, "of {} acknowledged objects", keys.len());
    });
}

#[test]
fn readers_go_on_with_what_they_knew() {
    let server = start();
    let node = FakeNode::start(1, 1 << 20, client_settings(&server));
    let settings = ClientSettings {
        known_objects: 100,
        ..client_settings(&server)
    };
    let reader = MasterClient::new(settings, Runtime::system()).unwrap();
    let ticket = put(&reader, &[&node], &key("a"), 10, &PutOptions::default()).unwrap();
    assert!(
        !reader.locate(&[&key("a")], soon()).unwrap()[0]
            .as_ref()
            .unwrap()
            .stale
    );
    let address = server.address();
    server.stop();
    let answers = reader.locate(&[&key("a"), &key("b")], soon()).unwrap();
    let found = answers[0].as_ref().unwrap();
    assert_eq!(
        (found.put, found.stale, found.lease),
        (ticket.put, true, Duration::ZERO)
    );
    assert_eq!(answers[1].as_ref().unwrap_err().kind(), ErrorKind::Unavailable);
    let server = again(address);
    // a master that is still learning says so, instead of that there is nothing
    let unknown = client(&server)
        .locate(&[&key("never")], soon())
        .unwrap()
        .remove(0);
    assert_eq!(unknown.unwrap_err().kind(), ErrorKind::Unavailable);
    until("the announcement", || {
        reader.locate(&[&key("a")], soon()).unwrap()[0]
            .as_ref()
            .is_ok_and(|found| !found.stale)
    });
}

#[test]
fn a_dead_master_costs_no_time() {
    let server = start();
    let client = client(&server);
    client.status(soon()).unwrap();
    server.stop();
    // each would wait for its deadline otherwise, and the test for an hour
    for _ in 0..200 {
        assert_eq!(client.status(soon()).unwrap_err().kind(), ErrorKind::Unavailable);
    }
}

#[test]
fn a_master_that_stands_still_is_left_alone_for_a_while() {
    // a listener that never answers
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let settings = ClientSettings {
        endpoints: vec![silent.local_addr().unwrap().to_string()],
        attempt_timeout: Duration::from_millis(50),
        away: Duration::from_hours(1),
        ..ClientSettings::default()
    };
    let client = MasterClient::new(settings, Runtime::system()).unwrap();
    assert_eq!(client.status(soon()).unwrap_err().kind(), ErrorKind::TimedOut);
    for _ in 0..1000 {
        assert_eq!(client.status(soon()).unwrap_err().kind(), ErrorKind::Unavailable);
    }
}

#[test]
fn the_second_endpoint_is_asked_when_the_first_is_gone() {
    let server = start();
    let gone = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let settings = ClientSettings {
        endpoints: vec![gone, server.address().to_string()],
        ..ClientSettings::default()
    };
    let client = MasterClient::new(settings, Runtime::system()).unwrap();
    assert!(client.status(soon()).unwrap().leader);
}

#[test]
fn a_master_whose_clock_was_set_back_takes_a_later_epoch() {
    let server = start();
    let client = client(&server);
    let before = client.status(soon()).unwrap().epoch;
    let lender = kvstored_master::Lender {
        node: [3; 16],
        name: "n".to_owned(),
        control: String::new(),
        engine: String::new(),
        segment_bytes: 1 << 20,
        obeyed_epoch: before + 1000,
        highest_put: 0,
        draining: None,
    };
    let mounted = client.mount(&lender, soon()).unwrap();
    assert_eq!(mounted.epoch, before + 1001);
}
