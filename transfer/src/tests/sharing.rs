//! What is special about sharing memory: two processes that touch it, and a socket that hands it out.

use std::time::Duration;

use kvstored_core::{ErrorKind, Runtime};
use kvstored_shm::{Channel, SocketAddress, StartTime};
use rustix::process::Signal;

use super::child::{BYTES, Server, asker};
use super::raw::RawPeer;
use super::rig::{
    Rig, asking, contents, descriptors, eventually, is_loss, listening, malformed_frames, over, pause,
    shortly, soon, start,
};
use crate::wire::{Introduction, Kind, Offer, Question, Welcome};
use crate::{EngineSettings, TransferEntry, TransferKind, TransportKind};

const SHM: TransportKind = TransportKind::Shm;

#[test]
fn a_peer_that_shares_nothing_is_reached_over_the_next_transport() {
    let both = EngineSettings {
        transports: vec![SHM, TransportKind::Tcp],
        ..asking()
    };
    let rig = Rig::with(8192, listening(), both.clone());
    assert_eq!(rig.peer.transport(), TransportKind::Tcp);
    rig.check();
    let server = start(listening());
    let address = server.address().unwrap().to_string();
    let forced = start(over(SHM, asking()));
    assert_eq!(
        forced.open_peer(&address, soon()).unwrap_err().kind(),
        ErrorKind::Unsupported
    );
    // and where both share, that is taken, with no order configured too
    let any = |settings| EngineSettings {
        transports: Vec::new(),
        ..settings
    };
    assert_eq!(Rig::with(8192, any(listening()), both).peer.transport(), SHM);
    let rig = Rig::with(8192, any(listening()), any(asking()));
    assert_eq!(rig.peer.transport(), SHM);
    rig.check();
}

#[test]
fn a_server_killed_in_mid_transfer_is_known_to_be_dead_and_local_memory_is_free() {
    let mut server = Server::start(SHM);
    let client = start(over(SHM, asking()));
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
    let submit = || client.submit(&peer, TransferKind::Read, vec![entry.clone()], soon());
    let transfers: Vec<_> = (0..8).map(|_| submit().unwrap()).collect();
    server.process.kill();
    for transfer in transfers {
        if let Err(error) = transfer.wait(soon()) {
            assert!(is_loss(&error), "{error}");
        }
    }
    eventually("the peer is known to be dead", || !peer.is_alive());
    assert!(is_loss(&submit().unwrap_err()));
    client.unregister(region.id(), soon()).unwrap();
}

#[test]
fn a_stopped_asker_may_make_release_answer_busy_and_a_killed_one_does_not() {
    for kind in ["read", "write"] {
        let mut was_busy = false;
        for round in 0..20 {
            let rig = Rig::over(SHM, BYTES);
            rig.remote.write(0, &vec![0x11; BYTES]).unwrap();
            let mut process = asker(&rig, kind, SHM);
            pause(Duration::from_millis(round));
            process.signal(Signal::STOP);
            let released = rig.server.release(rig.publication.id(), shortly());
            let is_busy = match &released {
                Ok(()) => false,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Busy);
                    true
                }
            };
            process.kill();
            // the dead touch nothing
            rig.server.release(rig.publication.id(), soon()).unwrap();
            rig.remote.write(0, &vec![0xEE; BYTES]).unwrap();
            pause(Duration::from_millis(5));
            assert!(contents(&rig.remote, 0, BYTES).iter().all(|byte| *byte == 0xEE));
            rig.server.unregister(rig.remote.id(), soon()).unwrap();
            was_busy |= is_busy;
            if was_busy {
                break;
            }
        }
        assert!(was_busy, "20 times it was stopped between two copies");
    }
}

#[test]
fn a_running_asker_is_fenced() {
    for kind in ["read", "write"] {
        let rig = Rig::over(SHM, BYTES);
        let mut process = asker(&rig, kind, SHM);
        rig.server.release(rig.publication.id(), soon()).unwrap();
        rig.remote.write(0, &vec![0xEE; BYTES]).unwrap();
        assert_eq!(process.answer(), ErrorKind::Fenced.name());
        assert!(contents(&rig.remote, 0, BYTES).iter().all(|byte| *byte == 0xEE));
    }
}

fn mappings() -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines()
        .filter(|line| line.contains("memfd:kvstored-transfer"))
        .count()
}

#[test]
fn memory_that_was_unregistered_is_not_held_by_peers() {
    let beats = EngineSettings {
        peer_timeout: Duration::from_millis(600),
        ..over(SHM, asking())
    };
    let rig = Rig::with(8192, over(SHM, listening()), beats);
    rig.check();
    let before = (mappings(), descriptors());
    for _ in 0..50 {
        let region = rig.server.allocate(1 << 20).unwrap();
        let publication = rig.server.publish(region.id(), 0, 1 << 20).unwrap();
        let granted = super::rig::grant(&rig.server, &rig.client, &publication, crate::Rights::ReadWrite);
        rig.run(TransferKind::Read, vec![rig.entry_with(granted, 0, 0, 8192)])
            .unwrap();
        rig.server.unregister(region.id(), soon()).unwrap();
    }
    eventually("nothing is mapped that was unregistered", || {
        mappings() <= before.0 && descriptors() <= before.1
    });
    rig.check();
}

#[test]
fn hundreds_of_publications_have_their_own_places() {
    let rig = Rig::over(SHM, 512 * 4096);
    let publications: Vec<_> = (0..512u64)
        .map(|index| rig.server.publish(rig.remote.id(), index * 4096, 4096).unwrap())
        .collect();
    let grants: Vec<_> = publications
        .iter()
        .map(|publication| super::rig::grant(&rig.server, &rig.client, publication, crate::Rights::Read))
        .collect();
    for index in 0..512u64 {
        rig.remote.write(index * 4096, &[index as u8; 4096]).unwrap();
    }
    let entries = |indices: &mut dyn Iterator<Item = u64>| -> Vec<TransferEntry> {
        indices
            .map(|index| rig.entry_with(grants[index as usize], index * 4096, 0, 4096))
            .collect()
    };
    rig.run(TransferKind::Read, entries(&mut (0..512))).unwrap();
    for index in 0..512u64 {
        assert_eq!(contents(&rig.local, index * 4096, 4096), [index as u8; 4096]);
    }
    for publication in publications.iter().step_by(2) {
        rig.server.release(publication.id(), soon()).unwrap();
    }
    rig.run(TransferKind::Read, entries(&mut (1..512).step_by(2)))
        .unwrap();
    for index in (0..512).step_by(64) {
        let late = rig.run(TransferKind::Read, entries(&mut std::iter::once(index)));
        assert_eq!(late.unwrap_err().kind(), ErrorKind::Fenced);
    }
}

/// Whether the other side ends the connection.
fn ends(channel: &Channel) -> bool {
    loop {
        match channel.receive(soon()) {
            Ok(_) => {}
            Err(error) => return error.kind() == ErrorKind::Unavailable,
        }
    }
}

#[test]
fn the_socket_gives_nothing_to_strangers_and_survives_nonsense() {
    let rig = Rig::over(SHM, 8192);
    let mut raw = RawPeer::connect(&rig.server);
    let mut offer = || {
        let header = raw.request(Kind::Share, 0, 0, 0);
        raw.send(&header.encode());
        Offer::decode(&raw.body(&header)).unwrap()
    };
    let first = offer();
    let address: SocketAddress = first.address.parse().unwrap();
    let clock = Runtime::system().clock;
    let dial = || Channel::connect(&address, clock.clone(), soon()).unwrap();
    let introduction = |ticket| Introduction {
        started: StartTime::own().unwrap().ticks(),
        ticket,
    };
    // a ticket that was never given out, and one that was used
    let stranger = dial();
    stranger
        .send(&introduction([7; 32]).encode(), &[], soon())
        .unwrap();
    assert!(ends(&stranger));
    let guest = dial();
    guest
        .send(&introduction(first.ticket).encode(), &[], soon())
        .unwrap();
    let welcome = guest.receive(soon()).unwrap();
    assert_eq!(Welcome::decode(&welcome.bytes).unwrap().error, None);
    assert_eq!(welcome.descriptors.len(), 2);
    let copy = dial();
    copy.send(&introduction(first.ticket).encode(), &[], soon())
        .unwrap();
    assert!(ends(&copy));
    // a grant of somebody else's is worth nothing, and no descriptor comes with the answer
    let question = Question {
        number: 1,
        grants: vec![rig.grant],
    };
    guest.send(&question.encode(), &[], soon()).unwrap();
    let answer = guest.receive(soon()).unwrap();
    let worths = crate::wire::Worths::decode(&answer.bytes).unwrap();
    assert_eq!(worths.worths, [Err(ErrorKind::PermissionDenied)]);
    assert!(answer.descriptors.is_empty());
    let before = descriptors();
    for round in 0..malformed_frames(20_000) {
        let channel = dial();
        let bytes = super::rig::pattern(1 + (round as usize * 37) % 4000, round);
        let _ = channel.send(&bytes, &[], soon());
    }
    let mut altered = question.encode();
    altered[1] = 3;
    guest.send(&altered, &[], soon()).unwrap();
    assert!(ends(&guest));
    drop(guest);
    eventually("all of them are gone", || descriptors() <= before);
    rig.check();
}
