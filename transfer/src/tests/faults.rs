//! Processes that are killed or stopped in the middle.

use std::time::Duration;

use kvstored_core::ErrorKind;
use rustix::process::Signal;

use super::child::{BYTES, Server, asker};
use super::rig::{Rig, asking, eventually, is_loss, listening, pause, soon, start};
use crate::{EngineSettings, TransferEntry, TransferKind, TransportKind};

fn impatient() -> EngineSettings {
    EngineSettings {
        peer_timeout: Duration::from_millis(300),
        ..asking()
    }
}

#[test]
fn a_server_killed_in_mid_transfer_fails_it_at_once_and_local_memory_is_free() {
    for kind in [TransferKind::Read, TransferKind::Write] {
        let mut server = Server::start(TransportKind::Tcp);
        let client = start(asking());
        let region = client.allocate(BYTES).unwrap();
        let peer = client.open_peer(&server.address, soon()).unwrap();
        let granted = server.grant(client.identity());
        let entry = TransferEntry {
            local: region.id(),
            local_offset: 0,
            grant: granted,
            remote_offset: 0,
            length: BYTES as u64,
        };
        let transfers: Vec<_> = (0..8)
            .map(|_| client.submit(&peer, kind, vec![entry.clone()], soon()).unwrap())
            .collect();
        pause(Duration::from_millis(10));
        server.process.kill();
        let outcomes: Vec<_> = transfers.iter().map(|transfer| transfer.wait(soon())).collect();
        let last = outcomes
            .last()
            .unwrap()
            .as_ref()
            .expect_err("256 MiB don't go in 10 ms");
        assert!(is_loss(last), "{last}");
        client.unregister(region.id(), soon()).unwrap();
        eventually("the peer is known to be dead", || !peer.is_alive());
        assert!(is_loss(&client.open_peer(&server.address, soon()).unwrap_err()));
    }
}

#[test]
fn a_server_killed_while_nothing_is_under_way_is_known_to_be_dead() {
    let mut server = Server::start(TransportKind::Tcp);
    let client = start(asking());
    let peer = client.open_peer(&server.address, soon()).unwrap();
    peer.ping(soon()).unwrap();
    assert!(peer.is_alive());
    server.process.kill();
    eventually("the peer is known to be dead", || !peer.is_alive());
}

#[test]
fn a_stopped_server_is_given_up_and_others_are_not_held_up() {
    let rig = Rig::with(1 << 20, listening(), impatient());
    let mut server = Server::start(TransportKind::Tcp);
    let region = rig.client.allocate(BYTES).unwrap();
    let peer = rig.client.open_peer(&server.address, soon()).unwrap();
    let granted = server.grant(rig.client.identity());
    let entry = TransferEntry {
        local: region.id(),
        local_offset: 0,
        grant: granted,
        remote_offset: 0,
        length: BYTES as u64,
    };
    let submit = |peer| {
        rig.client
            .submit(peer, TransferKind::Write, vec![entry.clone(); 4], soon())
    };
    let transfer = submit(&peer).unwrap();
    server.process.signal(Signal::STOP);
    for _ in 0..100 {
        rig.check();
    }
    assert!(is_loss(&transfer.wait(soon()).unwrap_err()));
    assert!(!peer.is_alive());
    rig.check();
    // nor does an idle one stay unnoticed
    server.process.signal(Signal::CONT);
    let peer = rig.client.open_peer(&server.address, soon()).unwrap();
    submit(&peer).unwrap().wait(soon()).unwrap();
    server.process.signal(Signal::STOP);
    eventually("a silent peer is given up", || !peer.is_alive());
    rig.check();
    server.process.signal(Signal::CONT);
}

#[test]
fn an_asker_killed_in_mid_transfer_leaves_nothing_behind() {
    for kind in ["read", "write"] {
        let rig = Rig::new(BYTES);
        let before = super::rig::descriptors();
        let mut process = asker(&rig, kind, TransportKind::Tcp);
        process.kill();
        drop(process);
        eventually("its connections are gone", || super::rig::descriptors() <= before);
        rig.check();
        rig.server.release(rig.publication.id(), soon()).unwrap();
        rig.server.unregister(rig.remote.id(), soon()).unwrap();
    }
}

#[test]
fn an_asker_stopped_in_mid_transfer_holds_up_neither_release_nor_others() {
    for kind in ["read", "write"] {
        let rig = Rig::new(BYTES);
        let mut process = asker(&rig, kind, TransportKind::Tcp);
        let other = rig.server.publish(rig.remote.id(), 0, 8192).unwrap();
        let granted = super::rig::grant(&rig.server, &rig.client, &other, crate::Rights::ReadWrite);
        process.signal(Signal::STOP);
        pause(Duration::from_millis(50));
        let check = || {
            rig.run(TransferKind::Read, vec![rig.entry_with(granted, 0, 0, 8192)])
                .unwrap();
        };
        (0..100).for_each(|_| check());
        // it may be in the middle of a payload: its memory is let go of all the same
        rig.server.release(rig.publication.id(), soon()).unwrap();
        rig.remote.write(0, &vec![0xEE; BYTES]).unwrap();
        check();
        process.signal(Signal::CONT);
        let end = process.answer();
        assert!(
            [ErrorKind::Fenced.name(), ErrorKind::Unavailable.name()].contains(&end.as_str()),
            "{end}"
        );
        assert!(
            super::rig::contents(&rig.remote, 0, BYTES)
                .iter()
                .all(|byte| *byte == 0xEE)
        );
    }
}
