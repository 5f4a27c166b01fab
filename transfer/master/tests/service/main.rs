//! The server and its clients over real sockets.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)] // tests, helpers included

mod access;
mod hostile;
mod malformed;
mod measure;
mod node;
mod objects;
mod outages;

use std::time::{Duration, Instant};

use kvstored_core::Runtime;
use kvstored_master::client::ClientSettings;
use kvstored_master::client::blocking::MasterClient;
use kvstored_master::server::{MasterServer, ServerSettings};
use kvstored_master::{MasterSettings, whole_key};

/// How long anything may take before a test fails rather than hangs.
const PATIENCE: Duration = Duration::from_secs(20);

fn server_settings() -> ServerSettings {
    ServerSettings {
        listen: "127.0.0.1:0".parse().unwrap(),
        threads: 2,
        ..ServerSettings::default()
    }
}

fn master_settings() -> MasterSettings {
    MasterSettings {
        recovery: Duration::ZERO,
        ..MasterSettings::default()
    }
}

fn start() -> MasterServer {
    MasterServer::start(server_settings(), master_settings(), Runtime::system()).unwrap()
}

fn client_settings(server: &MasterServer) -> ClientSettings {
    ClientSettings {
        endpoints: vec![server.address().to_string()],
        ..ClientSettings::default()
    }
}

fn client(server: &MasterServer) -> MasterClient {
    MasterClient::new(client_settings(server), Runtime::system()).unwrap()
}

fn soon() -> Instant {
    Runtime::system().deadline(PATIENCE)
}

fn key(name: &str) -> Box<[u8]> {
    whole_key("", name.as_bytes()).unwrap()
}

/// Waits until something is so.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let clock = Runtime::system();
    let deadline = soon();
    let pause = (parking_lot::Mutex::new(()), parking_lot::Condvar::new());
    while !is_so() {
        assert!(clock.clock.now() < deadline, "{what} didn't come about");
        let mut guard = pause.0.lock();
        pause.1.wait_for(&mut guard, Duration::from_millis(5));
    }
}

/// Descriptors that this process has open.
fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}
