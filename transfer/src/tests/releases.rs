//! What was released or unregistered is touched no more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kvstored_core::{ErrorKind, Runtime};

use super::raw::RawPeer;
use super::rig::{Rig, contents, grant, over_each_transport_here, pause, soon};
use crate::wire::Kind;

use crate::{GRANT_BYTES, Rights, TransferKind, TransportKind};

over_each_transport_here! {
    release_ends_reads_under_way_and_no_read_that_succeeds_saw_what_came_after,
    nothing_is_written_after_release_has_returned,
    memory_unregistered_while_a_peer_reads_or_writes_it_is_free_afterwards,
    local_memory_unregistered_in_mid_transfer_is_free_afterwards,
    small_reads_beside_releases_see_their_own_epoch_or_are_fenced,
}

const BYTES: usize = 16 << 20;

/// Transfers everything again and again in another thread, until one fails; returns what it failed with.
fn keep_on(rig: &Arc<Rig>, kind: TransferKind, check: fn(&[u8])) -> impl FnOnce() -> ErrorKind + use<> {
    let failed = Arc::new(parking_lot::Mutex::new(None));
    let (rig, outcome) = (rig.clone(), failed.clone());
    let body = move || loop {
        match rig.run(kind, vec![rig.entry(0, 0, BYTES as u64)]) {
            Ok(()) => check(&contents(&rig.local, 0, BYTES)),
            Err(error) => {
                *outcome.lock() = Some(error.kind());
                return;
            }
        }
    };
    let thread = Runtime::system()
        .spawner
        .spawn("transferring", Box::new(body))
        .unwrap();
    move || {
        thread.join();
        failed.lock().take().expect("it ends when a transfer fails")
    }
}

fn release_ends_reads_under_way_and_no_read_that_succeeds_saw_what_came_after(transport: TransportKind) {
    for round in 0..5 {
        let rig = Arc::new(Rig::over(transport, BYTES));
        rig.remote.write(0, &vec![0x11; BYTES]).unwrap();
        let join = keep_on(&rig, TransferKind::Read, |bytes| {
            assert!(bytes.iter().all(|byte| *byte == 0x11));
        });
        pause(Duration::from_millis(5 + round * 7));
        rig.server.release(rig.publication.id(), soon()).unwrap();
        rig.remote.write(0, &vec![0xEE; BYTES]).unwrap();
        assert_eq!(join(), ErrorKind::Fenced);
        assert_eq!(rig.refusal(TransferKind::Read, rig.grant), ErrorKind::Fenced);
        // released before is fine
        rig.server.release(rig.publication.id(), soon()).unwrap();
        let again = rig.server.publish(rig.remote.id(), 0, BYTES as u64).unwrap();
        assert!(again.epoch() > rig.publication.epoch());
        let fresh = grant(&rig.server, &rig.client, &again, Rights::Read);
        rig.run(TransferKind::Read, vec![rig.entry_with(fresh, 0, 0, 4096)])
            .unwrap();
    }
}

fn nothing_is_written_after_release_has_returned(transport: TransportKind) {
    for round in 0..5 {
        let rig = Arc::new(Rig::over(transport, BYTES));
        rig.local.write(0, &vec![0x77; BYTES]).unwrap();
        let join = keep_on(&rig, TransferKind::Write, |_| {});
        pause(Duration::from_millis(5 + round * 7));
        rig.server.release(rig.publication.id(), soon()).unwrap();
        rig.remote.write(0, &vec![0xEE; BYTES]).unwrap();
        assert_eq!(join(), ErrorKind::Fenced);
        assert_eq!(rig.refusal(TransferKind::Write, rig.grant), ErrorKind::Fenced);
        pause(Duration::from_millis(20));
        assert!(contents(&rig.remote, 0, BYTES).iter().all(|byte| *byte == 0xEE));
    }
}

fn memory_unregistered_while_a_peer_reads_or_writes_it_is_free_afterwards(transport: TransportKind) {
    for kind in [TransferKind::Read, TransferKind::Write] {
        let rig = Arc::new(Rig::over(transport, BYTES));
        let join = keep_on(&rig, kind, |_| {});
        pause(Duration::from_millis(15));
        rig.server.unregister(rig.remote.id(), soon()).unwrap();
        rig.remote.write(0, &vec![0xEE; BYTES]).unwrap();
        assert_eq!(join(), ErrorKind::Fenced);
        assert!(contents(&rig.remote, 0, BYTES).iter().all(|byte| *byte == 0xEE));
        let again = rig.server.unregister(rig.remote.id(), soon()).unwrap_err();
        assert_eq!(again.kind(), ErrorKind::NotFound);
        let error = rig.server.publish(rig.remote.id(), 0, 1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        // what the region's publication was is over too
        rig.server.release(rig.publication.id(), soon()).unwrap();
    }
}

fn local_memory_unregistered_in_mid_transfer_is_free_afterwards(transport: TransportKind) {
    for kind in [TransferKind::Read, TransferKind::Write] {
        let rig = Rig::over(transport, 64 << 20);
        let transfer = rig.submit(kind, vec![rig.entry(0, 0, 64 << 20)]).unwrap();
        rig.client.unregister(rig.local.id(), soon()).unwrap();
        rig.local.write(0, &vec![0xEE; 64 << 20]).unwrap();
        let outcome = transfer.wait(soon());
        if let Err(error) = outcome {
            assert_eq!(error.kind(), ErrorKind::Fenced);
        }
        pause(Duration::from_millis(20));
        assert!(contents(&rig.local, 0, 64 << 20).iter().all(|byte| *byte == 0xEE));
        let local = rig.client.allocate(8192).unwrap();
        let rig = Rig { local, ..rig };
        rig.check();
    }
}

#[test]
fn a_peer_that_sends_half_a_write_holds_up_no_release() {
    let rig = Rig::new(1 << 20);
    let mut raw = RawPeer::connect(&rig.server);
    let granted = raw.granted(&rig.server, &rig.publication, 0, 1 << 20);
    let header = raw.request(Kind::Write, GRANT_BYTES, 0, 1 << 20);
    raw.send(&header.encode());
    raw.send(&granted.encode());
    raw.send(&vec![0x33; 600_000]);
    super::rig::eventually("the first half has arrived", || {
        contents(&rig.remote, 599_999, 1) == [0x33]
    });
    let one = rig.server.publish(rig.remote.id(), 0, 100).unwrap();
    rig.server.release(one.id(), soon()).unwrap();
    rig.server.release(rig.publication.id(), soon()).unwrap();
    rig.remote.write(0, &vec![0xEE; 1 << 20]).unwrap();
    raw.send(&vec![0x33; (1 << 20) - 600_000]);
    raw.send(
        &crate::wire::Trailer {
            id: header.id,
            error: None,
        }
        .encode(),
    );
    let (answer, _) = raw.answer(&header);
    assert_eq!(answer.error, Some(ErrorKind::Fenced));
    assert!(contents(&rig.remote, 0, 1 << 20).iter().all(|byte| *byte == 0xEE));
    // the connection is in order
    let fresh = rig.server.publish(rig.remote.id(), 0, 4096).unwrap();
    let fresh = raw.granted(&rig.server, &fresh, 0, 4096);
    assert_eq!(raw.read(&fresh.encode(), 0, 4096).1, vec![0xEE; 4096]);
}

#[test]
fn a_write_that_its_sender_gives_up_fails() {
    let rig = Rig::new(1 << 20);
    let mut raw = RawPeer::connect(&rig.server);
    let granted = raw.granted(&rig.server, &rig.publication, 0, 1 << 20);
    let header = raw.request(Kind::Write, GRANT_BYTES, 0, 1000);
    raw.send(&header.encode());
    raw.send(&granted.encode());
    raw.send(&[0; 1000]);
    let given_up = crate::wire::Trailer {
        id: header.id,
        error: Some(ErrorKind::Cancelled),
    };
    raw.send(&given_up.encode());
    assert_eq!(raw.answer(&header).0.error, Some(ErrorKind::Cancelled));
    assert_eq!(raw.write(&granted.encode(), 0, &[1; 1000]).error, None);
}

fn small_reads_beside_releases_see_their_own_epoch_or_are_fenced(transport: TransportKind) {
    let rig = Arc::new(Rig::over(transport, 8192));
    let stop = Arc::new(AtomicBool::new(false));
    let current = Arc::new(parking_lot::Mutex::new((rig.grant, 0u8)));
    let (reading, reads, stopped) = (rig.clone(), current.clone(), stop.clone());
    let body = move || {
        while !stopped.load(Ordering::Relaxed) {
            let (granted, value) = *reads.lock();
            match reading.run(TransferKind::Read, vec![reading.entry_with(granted, 0, 0, 8192)]) {
                Ok(()) => assert!(
                    contents(&reading.local, 0, 8192)
                        .iter()
                        .all(|byte| *byte == value)
                ),
                Err(error) => assert_eq!(error.kind(), ErrorKind::Fenced),
            }
        }
    };
    let thread = Runtime::system()
        .spawner
        .spawn("reading", Box::new(body))
        .unwrap();
    let mut publication = rig.publication.clone();
    for value in 1..=200u8 {
        pause(Duration::from_micros(300));
        rig.server.release(publication.id(), soon()).unwrap();
        rig.remote.write(0, &[value; 8192]).unwrap();
        publication = rig.server.publish(rig.remote.id(), 0, 8192).unwrap();
        *current.lock() = (grant(&rig.server, &rig.client, &publication, Rights::Read), value);
    }
    stop.store(true, Ordering::Relaxed);
    thread.join();
}
