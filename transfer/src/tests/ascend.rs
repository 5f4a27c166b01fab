//! A plugged-in transport that fails in every way it can.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kvstored_core::{Error, ErrorKind, Runtime, TransportFactory};

use super::fabric::Fabric;
use super::rig::{Rig, asking, contents, eventually, grant, listening, pattern, soon};
use crate::{EngineSettings, Rights, TransferKind, TransportKind};

const BYTES: usize = 64 << 10;
const ASCEND: TransportKind = TransportKind::Ascend;
const TCP: TransportKind = TransportKind::Tcp;

fn plugged(
    settings: EngineSettings,
    transports: &[TransportKind],
    factory: TransportFactory,
) -> EngineSettings {
    EngineSettings {
        transports: transports.to_vec(),
        ascend: Some(factory),
        ..settings
    }
}

/// Two engines on a fabric, with sockets behind it or not.
fn rig(fabric: &Arc<Fabric>, transports: &[TransportKind]) -> Rig {
    let serving = plugged(listening(), transports, fabric.factory("fabric"));
    let asks = plugged(asking(), transports, fabric.factory("fabric"));
    Rig::with(BYTES, serving, asks)
}

/// Bytes that a transport has moved for the client, and failures.
fn moved(rig: &Rig, transport: TransportKind) -> (u64, u64) {
    let rows = rig.client.counters();
    let rows = rows.iter().filter(|row| row.transport == transport);
    rows.fold((0, 0), |(bytes, failures), row| {
        (
            bytes + row.read_bytes + row.written_bytes,
            failures + row.failures,
        )
    })
}

/// One read with a deadline of its own.
fn read_within(rig: &Rig, patience: Duration) -> ErrorKind {
    let deadline = Runtime::system().deadline(patience);
    let entries = vec![rig.entry(0, 0, BYTES as u64)];
    let transfer = rig
        .client
        .submit(&rig.peer, TransferKind::Read, entries, deadline)
        .unwrap();
    transfer.wait(soon()).unwrap_err().kind()
}

fn reads_what_is_there(rig: &Rig, seed: u64) {
    let bytes = pattern(BYTES, seed);
    rig.remote.write(0, &bytes).unwrap();
    rig.run(TransferKind::Read, vec![rig.entry(0, 0, BYTES as u64)])
        .unwrap();
    assert_eq!(contents(&rig.local, 0, BYTES), bytes);
}

#[test]
fn many_entries_are_few_batches_over_one_connection() {
    let fabric = Arc::default();
    let rig = rig(&fabric, &[ASCEND]);
    reads_what_is_there(&rig, 1);
    let (connections, batches) = (
        fabric.connections.load(Ordering::Relaxed),
        fabric.batches.load(Ordering::Relaxed),
    );
    let entries = (0..BYTES as u64 / 64)
        .map(|at| rig.entry(at * 64, at * 64, 64))
        .collect();
    rig.run(TransferKind::Write, entries).unwrap();
    assert_eq!(contents(&rig.remote, 0, BYTES), contents(&rig.local, 0, BYTES));
    assert_eq!(fabric.batches.load(Ordering::Relaxed) - batches, 4);
    assert_eq!(fabric.connections.load(Ordering::Relaxed), connections);
    assert_eq!(moved(&rig, ASCEND), (2 * BYTES as u64, 0));
}

#[test]
fn sockets_are_used_where_the_transport_cannot_be_had() {
    let absent = || TransportFactory::new(|| Err(Error::new(ErrorKind::Unavailable, "no such library")));
    let fabric: Arc<Fabric> = Arc::default();
    let settings = [ASCEND, TCP];
    let other = Arc::<Fabric>::default();
    other.refuses.store(true, Ordering::Relaxed);
    for (serving, asks) in [
        (absent(), fabric.factory("fabric")),
        (fabric.factory("fabric"), absent()),
        (fabric.factory("fabric"), fabric.factory("another")),
        (other.factory("fabric"), fabric.factory("fabric")),
    ] {
        let rig = Rig::with(
            BYTES,
            plugged(listening(), &settings, serving),
            plugged(asking(), &settings, asks),
        );
        assert_eq!(rig.peer.transport(), TCP);
        reads_what_is_there(&rig, 2);
    }
}

#[test]
fn a_transport_that_is_not_named_is_not_used() {
    let fabric: Arc<Fabric> = Arc::default();
    let rig = Rig::with(
        BYTES,
        plugged(listening(), &[], fabric.factory("fabric")),
        plugged(asking(), &[TCP], fabric.factory("fabric")),
    );
    assert_eq!(rig.peer.transport(), TCP);
    let alone = plugged(asking(), &[ASCEND], fabric.factory("fabric"));
    let client = super::rig::start(alone);
    let address = rig.server.address().unwrap().to_string();
    let error = client.open_peer(&address, soon()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

#[test]
fn what_fails_goes_on_over_sockets() {
    let fabric = Arc::default();
    let rig = rig(&fabric, &[ASCEND, TCP]);
    assert_eq!(rig.peer.transport(), ASCEND);
    reads_what_is_there(&rig, 3);
    fabric.fails.store(true, Ordering::Relaxed);
    reads_what_is_there(&rig, 4);
    assert_eq!(moved(&rig, ASCEND), (BYTES as u64, 0));
    assert_eq!(moved(&rig, TCP).0, BYTES as u64);
}

#[test]
fn without_sockets_behind_it_a_failure_is_told() {
    let fabric = Arc::default();
    let rig = rig(&fabric, &[ASCEND]);
    fabric.fails.store(true, Ordering::Relaxed);
    assert_eq!(rig.refusal(TransferKind::Read, rig.grant), ErrorKind::Unavailable);
    fabric.fails.store(false, Ordering::Relaxed);
    reads_what_is_there(&rig, 5);
}

#[test]
fn a_move_that_never_ends_is_ended_at_its_deadline() {
    let fabric = Arc::default();
    let rig = rig(&fabric, &[ASCEND]);
    reads_what_is_there(&rig, 6);
    fabric.hangs.store(true, Ordering::Relaxed);
    assert_eq!(read_within(&rig, Duration::from_millis(100)), ErrorKind::TimedOut);
    fabric.hangs.store(false, Ordering::Relaxed);
    reads_what_is_there(&rig, 7);
    rig.client.unregister(rig.local.id(), soon()).unwrap();
    rig.server.release(rig.publication.id(), soon()).unwrap();
    rig.server.unregister(rig.remote.id(), soon()).unwrap();
    assert_eq!(fabric.exposed(), 0);
}

#[test]
fn memory_that_is_released_is_taken_from_a_move_that_never_ends() {
    let fabric = Arc::default();
    let rig = rig(&fabric, &[ASCEND]);
    fabric.hangs.store(true, Ordering::Relaxed);
    let transfer = rig
        .submit(TransferKind::Read, vec![rig.entry(0, 0, 4096)])
        .unwrap();
    eventually("it's under way", || fabric.batches.load(Ordering::Relaxed) > 0);
    rig.server.release(rig.publication.id(), soon()).unwrap();
    assert_eq!(transfer.wait(soon()).unwrap_err().kind(), ErrorKind::Fenced);
}

#[test]
fn memory_of_the_asker_is_taken_from_a_move_that_never_ends() {
    let fabric = Arc::default();
    let rig = rig(&fabric, &[ASCEND]);
    fabric.hangs.store(true, Ordering::Relaxed);
    let transfer = rig
        .submit(TransferKind::Read, vec![rig.entry(0, 0, 4096)])
        .unwrap();
    eventually("it's under way", || fabric.batches.load(Ordering::Relaxed) > 0);
    rig.client.unregister(rig.local.id(), soon()).unwrap();
    assert_eq!(fabric.exposed(), 0);
    assert_eq!(transfer.wait(soon()).unwrap_err().kind(), ErrorKind::Fenced);
}

#[test]
fn a_cancelled_move_touches_nothing_any_more() {
    let fabric = Arc::default();
    let rig = rig(&fabric, &[ASCEND]);
    fabric.hangs.store(true, Ordering::Relaxed);
    let transfer = rig
        .submit(TransferKind::Write, vec![rig.entry(0, 0, 4096)])
        .unwrap();
    eventually("it's under way", || fabric.batches.load(Ordering::Relaxed) > 0);
    transfer.cancel();
    assert_eq!(fabric.exposed(), 0);
    assert_eq!(transfer.wait(soon()).unwrap_err().kind(), ErrorKind::Cancelled);
}

#[test]
fn a_peer_that_cannot_stop_loses_the_memory_all_the_same() {
    let fabric = Arc::default();
    let rig = rig(&fabric, &[ASCEND, TCP]);
    reads_what_is_there(&rig, 8);
    fabric.hangs.store(true, Ordering::Relaxed);
    fabric.sticks.store(true, Ordering::Relaxed);
    assert_eq!(read_within(&rig, Duration::from_millis(100)), ErrorKind::TimedOut);
    assert_eq!(fabric.exposed(), 0);
    // what it has of its own it doesn't let go of, and says so
    let deadline = Runtime::system().deadline(Duration::from_millis(100));
    let error = rig.server.release(rig.publication.id(), deadline).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    // others are served, over sockets
    let region = rig.server.allocate(4096).unwrap();
    let publication = rig.server.publish(region.id(), 0, 4096).unwrap();
    let right = grant(&rig.server, &rig.client, &publication, Rights::Read);
    rig.run(TransferKind::Read, vec![rig.entry_with(right, 0, 0, 4096)])
        .unwrap();
    assert_eq!(moved(&rig, TCP).0, 4096);
}

#[test]
fn memory_that_the_transport_does_not_let_go_of_stays_in_use() {
    let fabric = Arc::default();
    let rig = rig(&fabric, &[ASCEND]);
    reads_what_is_there(&rig, 9);
    fabric.hangs.store(true, Ordering::Relaxed);
    fabric.sticks.store(true, Ordering::Relaxed);
    fabric.keeps.store(true, Ordering::Relaxed);
    assert_eq!(
        read_within(&rig, Duration::from_millis(100)),
        ErrorKind::Unavailable
    );
    let deadline = Runtime::system().deadline(Duration::from_millis(100));
    let error = rig.client.unregister(rig.local.id(), deadline).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
}

#[test]
fn a_peer_that_goes_ends_what_is_under_way() {
    let fabric = Arc::default();
    let rig = rig(&fabric, &[ASCEND]);
    fabric.hangs.store(true, Ordering::Relaxed);
    let transfer = rig
        .submit(TransferKind::Read, vec![rig.entry(0, 0, 4096)])
        .unwrap();
    eventually("it's under way", || fabric.batches.load(Ordering::Relaxed) > 0);
    rig.server.shutdown();
    assert_eq!(transfer.wait(soon()).unwrap_err().kind(), ErrorKind::Unavailable);
    rig.client.unregister(rig.local.id(), soon()).unwrap();
}
