//! What moves no bytes of memory: peers, messages, questions, counters.

use std::sync::Arc;

use kvstored_core::ErrorKind;

use super::rig::{Rig, asking, eventually, listening, soon, start};
use crate::{EngineSettings, MAX_NOTIFICATION_BYTES, Side, TransferKind};

const MIB: u64 = 1 << 20;

#[test]
fn notifications_arrive_in_order_and_no_more_than_fit() {
    let settings = EngineSettings {
        max_notifications: 2,
        ..listening()
    };
    let rig = Rig::with(4096, settings, asking());
    let long = vec![7; MAX_NOTIFICATION_BYTES];
    rig.client.notify(&rig.peer, b"", soon()).unwrap();
    rig.client.notify(&rig.peer, &long, soon()).unwrap();
    assert_eq!(
        rig.client.notify(&rig.peer, b"x", soon()).unwrap_err().kind(),
        ErrorKind::Busy
    );
    let taken = rig.server.take_notifications(10);
    assert_eq!(taken.len(), 2);
    assert!(taken[0].payload.is_empty() && taken[1].payload == long);
    assert_eq!(taken[0].peer, rig.client.identity());
    let longer = vec![7; MAX_NOTIFICATION_BYTES + 1];
    assert_eq!(
        rig.client.notify(&rig.peer, &longer, soon()).unwrap_err().kind(),
        ErrorKind::TooLarge
    );
    rig.check();
}

#[test]
fn both_sides_count_what_was_moved() {
    let rig = Rig::new(4 << 20);
    rig.run(TransferKind::Read, vec![rig.entry(0, 0, 3 * MIB + 5)])
        .unwrap();
    rig.run(TransferKind::Write, vec![rig.entry(0, 0, 100)]).unwrap();
    let requested = rig.client.counters();
    assert_eq!(requested.len(), 1);
    assert_eq!(
        (requested[0].peer, requested[0].side),
        (rig.server.identity(), Side::Requested)
    );
    eventually("the server has counted", || {
        let served = rig.server.counters();
        let row = &served[0];
        row.peer == rig.client.identity()
            && (row.side, row.reads, row.read_bytes) == (Side::Served, 4, 3 * MIB + 5)
            && (row.writes, row.written_bytes, row.failures) == (1, 100, 0)
    });
    assert_eq!(
        (
            requested[0].reads,
            requested[0].read_bytes,
            requested[0].written_bytes
        ),
        (4, 3 * MIB + 5, 100)
    );
}

#[test]
fn one_address_is_one_peer_until_it_is_closed() {
    let rig = Rig::new(4096);
    let address = rig.server.address().unwrap().to_string();
    let same = rig.client.open_peer(&address, soon()).unwrap();
    assert!(Arc::ptr_eq(&same.state, &rig.peer.state));
    rig.client.close_peer(&same);
    assert!(!rig.peer.is_alive());
    let error = rig
        .run(TransferKind::Read, vec![rig.entry(0, 0, 10)])
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let again = rig.client.open_peer(&address, soon()).unwrap();
    let rig = Rig { peer: again, ..rig };
    rig.check();
    rig.peer.ping(soon()).unwrap();
}

#[test]
fn an_engine_reaches_itself() {
    let engine = start(listening());
    let peer = engine
        .open_peer(&engine.address().unwrap().to_string(), soon())
        .unwrap();
    peer.ping(soon()).unwrap();
    engine.shutdown();
    assert!(peer.ping(soon()).is_err());
    assert_eq!(engine.allocate(10).unwrap_err().kind(), ErrorKind::Cancelled);
}

#[test]
fn a_question_is_answered_by_the_peers_own_code() {
    let rig = Rig::new(4096);
    let ask = |question: &[u8]| rig.peer.ask(question, soon());
    assert_eq!(ask(b"anybody?").unwrap_err().kind(), ErrorKind::Unsupported);
    let asker = rig.client.identity();
    rig.server.set_responder(Some(Arc::new(move |peer, question| {
        assert_eq!(peer, asker);
        match question {
            b"too much" => Ok(vec![0; MAX_NOTIFICATION_BYTES + 1]),
            b"no" => Err(kvstored_core::Error::new(
                ErrorKind::NotFound,
                "nothing of that kind",
            )),
            other => Ok(other.iter().rev().copied().collect()),
        }
    })));
    assert_eq!(ask(b"abc").unwrap(), b"cba");
    assert_eq!(ask(b"").unwrap(), b"");
    assert_eq!(
        ask(&vec![7; MAX_NOTIFICATION_BYTES]).unwrap(),
        vec![7; MAX_NOTIFICATION_BYTES]
    );
    assert_eq!(ask(b"no").unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(ask(b"too much").unwrap_err().kind(), ErrorKind::TooLarge);
    assert_eq!(
        ask(&vec![7; MAX_NOTIFICATION_BYTES + 1]).unwrap_err().kind(),
        ErrorKind::TooLarge
    );
    rig.server.set_responder(None);
    assert_eq!(ask(b"abc").unwrap_err().kind(), ErrorKind::Unsupported);
    rig.check();
}
