//! Peers that share memory and are stopped: only they can tell what a grant is worth, and they hold up nobody but whoever
//! asked them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kvstored_core::Runtime;
use rustix::process::Signal;

use super::child::{BYTES, Server};
use super::rig::{Rig, asking, eventually, is_loss, listening, over, pause, soon, start};
use crate::{EngineSettings, Grant, Region, TransferEntry, TransferKind, TransportKind};

const SHM: TransportKind = TransportKind::Shm;
/// More than is copied at once by whoever submits it, so that the helper has a part in it.
const LARGE_BYTES: u64 = 4 << 20;

fn entry(local: &Region, grant: Grant, length: u64) -> TransferEntry {
    TransferEntry {
        local: local.id(),
        local_offset: 0,
        grant,
        remote_offset: 0,
        length,
    }
}

/// Large and small transfers with another peer, some of which nobody waits for, are done.
fn check_others(rig: &Rig) {
    for kind in [TransferKind::Read, TransferKind::Write] {
        for _ in 0..10 {
            rig.check();
            rig.run(kind, vec![rig.entry(0, 0, LARGE_BYTES)]).unwrap();
            let transfer = rig.submit(kind, vec![rig.entry(0, 0, LARGE_BYTES)]).unwrap();
            eventually("a transfer that nobody waits for is done", || {
                transfer.poll().is_some()
            });
            transfer.wait(soon()).unwrap();
        }
    }
}

#[test]
fn whoever_asks_a_stopped_server_about_a_grant_waits_alone() {
    let rig = Rig::over(SHM, LARGE_BYTES as usize);
    let mut server = Server::start(SHM);
    let region = rig.client.allocate(BYTES).unwrap();
    let peer = rig.client.open_peer(&server.address, soon()).unwrap();
    let granted = server.grant(rig.client.identity());
    server.process.stop();
    let done = Arc::new(AtomicBool::new(false));
    let body = {
        let (client, peer, done) = (rig.client.clone(), peer.clone(), done.clone());
        let entry = entry(&region, granted, 4096);
        move || {
            let asked = client.submit(&peer, TransferKind::Read, vec![entry], soon());
            asked.and_then(|transfer| transfer.wait(soon())).unwrap();
            done.store(true, Ordering::Release);
        }
    };
    let thread = Runtime::system().spawner.spawn("held", Box::new(body)).unwrap();
    pause(Duration::from_millis(50));
    check_others(&rig);
    assert!(!done.load(Ordering::Acquire), "a stopped peer has answered");
    server.process.signal(Signal::CONT);
    thread.join();
    assert!(done.load(Ordering::Acquire));
}

#[test]
fn the_helper_of_a_stopped_servers_transfers_helps_nobody_else() {
    let rig = Rig::over(SHM, LARGE_BYTES as usize);
    let mut server = Server::start(SHM);
    let region = rig.client.allocate(BYTES).unwrap();
    let peer = rig.client.open_peer(&server.address, soon()).unwrap();
    let granted = server.grant(rig.client.identity());
    let submit = || {
        let entry = entry(&region, granted, BYTES as u64);
        rig.client
            .submit(&peer, TransferKind::Read, vec![entry], soon())
            .unwrap()
    };
    submit().wait(soon()).unwrap();
    // what was known of the grant is worth nothing any more
    server.disturb(rig.client.identity());
    server.process.stop();
    let held = submit();
    pause(Duration::from_millis(50));
    check_others(&rig);
    assert!(held.poll().is_none(), "a stopped peer has answered");
    server.process.signal(Signal::CONT);
    held.wait(soon()).unwrap();
}

#[test]
fn a_stopped_server_that_is_asked_is_given_up() {
    // longer than a peer that runs is held up on a machine that has much else to do: nobody else may be given up
    let impatient = EngineSettings {
        peer_timeout: Duration::from_secs(3),
        ..over(SHM, asking())
    };
    let rig = Rig::with(LARGE_BYTES as usize, over(SHM, listening()), impatient);
    for length in [4096, LARGE_BYTES] {
        let mut server = Server::start(SHM);
        let region = rig.client.allocate(BYTES).unwrap();
        let peer = rig.client.open_peer(&server.address, soon()).unwrap();
        let granted = server.grant(rig.client.identity());
        server.process.stop();
        let asked = rig.client.submit(
            &peer,
            TransferKind::Write,
            vec![entry(&region, granted, length)],
            soon(),
        );
        let error = asked.and_then(|transfer| transfer.wait(soon())).unwrap_err();
        assert!(is_loss(&error), "{error}");
        assert!(!peer.is_alive());
        rig.client.unregister(region.id(), soon()).unwrap();
        check_others(&rig);
    }
}

#[test]
fn a_link_is_closed_while_its_peer_is_asked() {
    let client = start(over(SHM, asking()));
    let mut server = Server::start(SHM);
    let region = client.allocate(BYTES).unwrap();
    let peer = client.open_peer(&server.address, soon()).unwrap();
    let granted = server.grant(client.identity());
    let entries = || vec![entry(&region, granted, BYTES as u64)];
    let transfer = client.submit(&peer, TransferKind::Read, entries(), soon());
    transfer.unwrap().wait(soon()).unwrap();
    server.disturb(client.identity());
    server.process.stop();
    let transfer = client
        .submit(&peer, TransferKind::Read, entries(), soon())
        .unwrap();
    pause(Duration::from_millis(20));
    client.close_peer(&peer);
    assert!(is_loss(&transfer.wait(soon()).unwrap_err()));
    client.unregister(region.id(), soon()).unwrap();
}

#[test]
fn a_foretold_grant_needs_no_answer_of_the_servers() {
    let client = start(over(SHM, asking()));
    let mut server = Server::start(SHM);
    let region = client.allocate(BYTES).unwrap();
    let peer = client.open_peer(&server.address, soon()).unwrap();
    let read = |grant| {
        let asked = client.submit(
            &peer,
            TransferKind::Read,
            vec![entry(&region, grant, 4096)],
            soon(),
        );
        asked.and_then(|transfer| transfer.wait(soon()))
    };
    // the memory itself is known from the first grant on it only
    read(server.grant(client.identity())).unwrap();
    let (told, worth) = server.foretold(client.identity());
    assert!(!worth.is_empty());
    peer.foretold(&told, &worth);
    peer.foretold(&told, &worth[1..]);
    peer.foretold(&told, b"nonsense");
    server.process.stop();
    // before the server is given up for dead
    read(told).unwrap();
    server.process.signal(Signal::CONT);
}
