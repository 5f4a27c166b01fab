//! Connections that say nothing, and far too many of them.

use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use kvstored_core::ErrorKind;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::raw::{RawPeer, dial, ends, identity};
use super::rig::{Rig, asking, descriptors, eventually, listening, soon, start};
use crate::handshake::Opener;
use crate::{EngineSettings, Peer, TransferEngine};

#[test]
fn who_never_finishes_its_handshake_is_closed_and_others_work_meanwhile() {
    let settings = EngineSettings {
        handshake_timeout: Duration::from_millis(300),
        ..listening()
    };
    let rig = Rig::with(8192, settings, asking());
    let address = rig.server.address().unwrap();
    let hello = Opener::new(&identity(None)).unwrap().1.encode();
    let mut silent: Vec<TcpStream> = (0..30).map(|_| dial(address)).collect();
    for (index, stream) in silent.iter_mut().enumerate() {
        // nothing, a part of a hello, or a whole one
        stream
            .write_all(&hello[..[0, 60, hello.len()][index % 3]])
            .unwrap();
    }
    let late = start(asking());
    let peer = late.open_peer(&address.to_string(), soon()).unwrap();
    for _ in 0..50 {
        rig.check();
        peer.ping(soon()).unwrap();
    }
    for stream in &mut silent {
        assert!(ends(stream));
    }
    rig.check();
}

#[test]
fn past_the_most_connections_newcomers_are_refused_and_the_others_stay() {
    let settings = EngineSettings {
        max_connections: 4,
        ..listening()
    };
    let two_streams = EngineSettings {
        streams_per_peer: 2,
        ..asking()
    };
    let rig = Rig::with(8192, settings, two_streams.clone());
    let address = rig.server.address().unwrap().to_string();
    let second = start(two_streams.clone());
    let peer = second.open_peer(&address, soon()).unwrap();
    let third = start(two_streams);
    assert_eq!(
        third.open_peer(&address, soon()).unwrap_err().kind(),
        ErrorKind::Busy
    );
    rig.check();
    peer.ping(soon()).unwrap();
    second.close_peer(&peer);
    eventually("there's room again", || third.open_peer(&address, soon()).is_ok());
}

fn raise_limit() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let _ = setrlimit(Resource::Nofile, raised);
    getrlimit(Resource::Nofile)
        .current
        .map_or(usize::MAX, |most| most as usize)
}

fn open(engine: &TransferEngine, server: &TransferEngine) -> Peer {
    engine
        .open_peer(&server.address().unwrap().to_string(), soon())
        .unwrap()
}

#[test]
fn thousands_of_idle_connections_harm_nobody() {
    // both ends are in this process
    let count = (raise_limit().saturating_sub(500) / 2).min(10_000);
    let rig = Rig::new(8192);
    let before = descriptors();
    let address = rig.server.address().unwrap();
    let silent: Vec<TcpStream> = (0..count).map(|_| dial(address)).collect();
    for _ in 0..20 {
        rig.check();
    }
    let late = start(asking());
    open(&late, &rig.server).ping(soon()).unwrap();
    late.shutdown();
    drop(late);
    drop(silent);
    eventually("all of them are gone", || descriptors() <= before);
    rig.check();
}

#[test]
fn many_peers_that_do_nothing_harm_nobody() {
    raise_limit();
    let rig = Rig::new(8192);
    let before = descriptors();
    let idle: Vec<RawPeer> = (0..500).map(|_| RawPeer::connect(&rig.server)).collect();
    for _ in 0..20 {
        rig.check();
    }
    assert_eq!(
        rig.server
            .counters()
            .iter()
            .filter(|row| row.peer != rig.client.identity())
            .count(),
        500
    );
    drop(idle);
    eventually("all of them are gone", || descriptors() <= before);
    rig.check();
}

#[test]
fn nobody_in_its_handshake_keeps_newcomers_out() {
    let settings = EngineSettings {
        max_connections: 8,
        handshake_timeout: Duration::from_secs(10),
        ..listening()
    };
    let rig = Rig::with(8192, settings, asking());
    let address = rig.server.address().unwrap();
    // more than may be in their handshake; the oldest go
    let mut silent: Vec<TcpStream> = (0..200).map(|_| dial(address)).collect();
    let late = start(asking());
    open(&late, &rig.server).ping(soon()).unwrap();
    assert!(ends(&mut silent[0]));
    rig.check();
}
