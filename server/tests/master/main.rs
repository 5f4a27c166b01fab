//! The real `kvstored master`: starting, being killed, being one of several, and the tool that looks at it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)] // tests, helpers included

mod ascend;
mod certificates;
mod daemons;
mod drains;
mod etcd;
mod failover;
mod member;
#[path = "../../../transfer/master/tests/service/node.rs"]
mod node;
mod pool;
mod process;
mod restarts;
mod secured;
mod tool;

use std::time::{Duration, Instant};

use kvstored_core::Runtime;
use kvstored_master::client::ClientSettings;
use kvstored_master::client::blocking::MasterClient;
use kvstored_master::whole_key;

/// How long anything may take before a test fails rather than hangs.
const PATIENCE: Duration = Duration::from_secs(30);

fn soon() -> Instant {
    Runtime::system().deadline(PATIENCE)
}

fn settings(addresses: &[&str]) -> ClientSettings {
    ClientSettings {
        endpoints: addresses.iter().map(|address| (*address).to_owned()).collect(),
        attempt_timeout: Duration::from_millis(500),
        away: Duration::ZERO,
        ..ClientSettings::default()
    }
}

fn client(addresses: &[&str]) -> MasterClient {
    MasterClient::new(settings(addresses), Runtime::system()).unwrap()
}

fn key(name: &str) -> Box<[u8]> {
    whole_key("", name.as_bytes()).unwrap()
}

fn pause(length: Duration) {
    let never = (parking_lot::Mutex::new(()), parking_lot::Condvar::new());
    let mut guard = never.0.lock();
    never.1.wait_for(&mut guard, length);
}

/// Waits until something is so.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let runtime = Runtime::system();
    let deadline = soon();
    while !is_so() {
        assert!(runtime.clock.now() < deadline, "{what} didn't come about");
        pause(Duration::from_millis(10));
    }
}
