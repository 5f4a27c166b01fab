//! Nodes, masters and clients that fail, and late comers.

use std::sync::Arc;
use std::time::Duration;

use kvstored_core::{ErrorKind, Runtime};
use kvstored_master::NewObject;
use kvstored_transfer::{Grant, TransferEntry, TransferKind};

use super::{FakeMaster, Member, bytes_of, eventually, k, pattern, soon};
use crate::directory::Directory;
use crate::wire::{Answers, Item, Request, Verb};
use crate::{PutOptions, StorageNode};

fn master() -> Arc<FakeMaster> {
    Arc::new(FakeMaster::new(Duration::from_secs(2)))
}

fn node(member: &Member) -> &Arc<StorageNode> {
    member.node.as_ref().unwrap()
}

#[test]
fn a_restart_of_the_master_loses_no_object() {
    let master = master();
    let (lender, other) = (Member::new(&master, 8 << 20), Member::new(&master, 0));
    let bytes = pattern(1, 100_000);
    let piece = other.fill(0, &bytes);
    other
        .client
        .put(&k("kept"), &[piece], &PutOptions::default(), soon())
        .unwrap();
    let into = lender.piece(1 << 20, bytes.len());
    lender.client.get(&k("kept"), &[into], soon()).unwrap();

    // away: what is known goes on
    master.set_away(true);
    assert_eq!(lender.client.exist(&[&k("kept")], soon()).unwrap(), [true]);
    lender.fill(1 << 20, &vec![0; bytes.len()]);
    lender.client.get(&k("kept"), &[into], soon()).unwrap();
    assert!(bytes_of(into) == bytes);
    let unknown = other.client.exist(&[&k("never heard of")], soon()).unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::Unavailable);

    // back, with nothing in its memory
    master.restart();
    master.set_away(false);
    let newcomer = Member::new(&master, 0);
    eventually("the announcement", || !master.locations(&k("kept")).is_empty());
    let into = newcomer.piece(0, bytes.len());
    newcomer.client.get(&k("kept"), &[into], soon()).unwrap();
    assert!(bytes_of(into) == bytes);
    assert_eq!(node(&lender).statistics().master_epoch, 2);
}

#[test]
fn an_old_master_is_not_obeyed() {
    let master = master();
    let lender = Member::new(&master, 1 << 20);
    let segment = node(&lender).segment();
    segment.obey(7).unwrap();
    assert_eq!(segment.obey(6).unwrap_err().kind(), ErrorKind::Fenced);
    assert_eq!(segment.master_epoch(), 7);
}

/// A put by hand, so that it can be late.
struct Late {
    item: Item,
    lender: String,
}

impl Late {
    fn start(master: &FakeMaster, lender: &Member, key: &[u8], length: u64) -> Self {
        let object = NewObject { key, length };
        let ticket = master
            .start_puts(&[object], &PutOptions::default(), soon())
            .unwrap()
            .remove(0)
            .unwrap();
        let item = Item {
            put: ticket.put,
            offset: ticket.locations[0].offset,
            length,
            checksum: 0,
            key: key.into(),
            token: ticket.locations[0].token.clone(),
        };
        Self {
            item,
            lender: node(lender).lender().engine.clone(),
        }
    }

    fn ask(&self, verb: Verb, writer: &Member) -> kvstored_core::Result<crate::wire::Answer> {
        let mut question = vec![verb.code()];
        let items = vec![self.item.clone()];
        question.extend(Request { items }.encode().unwrap());
        let peer = writer.engine.open_peer(&self.lender, soon()).unwrap();
        let answer = peer.ask(&question, soon()).unwrap();
        Answers::decode(&answer, 1).unwrap().items.remove(0)
    }

    fn write(&self, grant: &Grant, writer: &Member) -> kvstored_core::Result<()> {
        let peer = writer.engine.open_peer(&self.lender, soon()).unwrap();
        let piece = writer.piece(0, self.item.length as usize);
        let (local, local_offset) = writer.client.locate_memory(piece).unwrap();
        let entry = TransferEntry {
            local,
            local_offset,
            grant: *grant,
            remote_offset: 0,
            length: self.item.length,
        };
        let transfer = writer
            .engine
            .submit(&peer, TransferKind::Write, vec![entry], soon())?;
        transfer.wait(soon())
    }
}

#[test]
fn a_late_write_after_its_put_was_revoked_changes_nothing() {
    let master = master();
    let (lender, writer) = (Member::new(&master, 1 << 20), Member::new(&master, 0));
    let late = Late::start(&master, &lender, &k("late"), 1 << 20);
    let grant = Grant::decode(&late.ask(Verb::Open, &writer).unwrap().grant).unwrap();
    master
        .revoke_puts(&[(&k("late"), late.item.put)], soon())
        .unwrap();
    eventually("the release", || node(&lender).statistics().ranges == 0);

    // the whole segment is reused by another object
    let bytes = pattern(3, 1 << 20);
    let piece = lender.fill(0, &bytes);
    lender
        .client
        .put(&k("other"), &[piece], &PutOptions::default(), soon())
        .unwrap();
    writer.fill(0, &pattern(4, 1 << 20));
    let error = late.write(&grant, &writer).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fenced, "{error}");
    assert_eq!(
        late.ask(Verb::Open, &writer).unwrap_err().kind(),
        ErrorKind::Fenced
    );
    assert_eq!(
        late.ask(Verb::Seal, &writer).unwrap_err().kind(),
        ErrorKind::Fenced
    );
    let into = writer.piece(1 << 20, bytes.len());
    writer.client.get(&k("other"), &[into], soon()).unwrap();
    assert!(bytes_of(into) == bytes);
}

#[test]
fn a_sealed_object_can_not_be_written_any_more() {
    let master = master();
    let (lender, writer) = (Member::new(&master, 1 << 20), Member::new(&master, 0));
    let late = Late::start(&master, &lender, &k("sealed"), 1000);
    let grant = Grant::decode(&late.ask(Verb::Open, &writer).unwrap().grant).unwrap();
    writer.fill(0, &pattern(5, 1000));
    late.write(&grant, &writer).unwrap();
    late.ask(Verb::Seal, &writer).unwrap();
    assert_eq!(late.write(&grant, &writer).unwrap_err().kind(), ErrorKind::Fenced);
    assert_eq!(
        late.ask(Verb::Abandon, &writer).unwrap_err().kind(),
        ErrorKind::Fenced
    );
}

#[test]
fn corrupt_bytes_in_a_segment_are_a_miss() {
    let master = master();
    let (lender, other) = (Member::new(&master, 1 << 20), Member::new(&master, 0));
    for reader in [&lender, &other] {
        let piece = lender.fill(0, &pattern(6, 5000));
        lender
            .client
            .put(&k("rots"), &[piece], &PutOptions::default(), soon())
            .unwrap();
        let location = master.locations(&k("rots")).remove(0);
        node(&lender).segment().corrupt(location.offset + 4999);
        let error = reader
            .client
            .get(&k("rots"), &[reader.piece(1 << 20, 5000)], soon())
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        assert!(reader.client.statistics().corrupt > 0);
        // it isn't found again
        assert_eq!(reader.client.exist(&[&k("rots")], soon()).unwrap(), [false]);
        eventually("its release", || node(&lender).statistics().ranges == 0);
    }
}

#[test]
fn a_corrupt_replica_is_passed_over() {
    let master = master();
    let members = [Member::new(&master, 1 << 20), Member::new(&master, 1 << 20)];
    let reader = Member::new(&master, 0);
    let bytes = pattern(8, 5000);
    let piece = members[0].fill(0, &bytes);
    let options = PutOptions {
        replicas: 2,
        ..PutOptions::default()
    };
    members[0]
        .client
        .put(&k("half"), &[piece], &options, soon())
        .unwrap();
    let bad = master.locations(&k("half")).remove(0);
    let holder = members
        .iter()
        .find(|member| node(member).id() == bad.node)
        .unwrap();
    node(holder).segment().corrupt(bad.offset);
    for _ in 0..8 {
        let into = reader.piece(0, bytes.len());
        reader.client.get(&k("half"), &[into], soon()).unwrap();
        assert!(bytes_of(into) == bytes);
    }
}

#[test]
fn a_node_that_is_gone_is_passed_over_and_alone_it_is_a_miss() {
    let master = master();
    let (gone, stays) = (Member::new(&master, 1 << 20), Member::new(&master, 1 << 20));
    let reader = Member::new(&master, 0);
    let bytes = pattern(9, 5000);
    let piece = stays.fill(0, &bytes);
    let twice = PutOptions {
        replicas: 2,
        ..PutOptions::default()
    };
    let only_there = PutOptions {
        prefer: Some(node(&gone).id()),
        ..PutOptions::default()
    };
    stays.client.put(&k("twice"), &[piece], &twice, soon()).unwrap();
    stays
        .client
        .put(&k("once"), &[piece], &only_there, soon())
        .unwrap();
    let into = reader.piece(0, bytes.len());
    reader.client.get(&k("twice"), &[into], soon()).unwrap();
    // gone without a word to the master
    master.set_away(true);
    node(&gone).shutdown();
    gone.engine.shutdown();
    master.set_away(false);
    for _ in 0..8 {
        reader.fill(0, &vec![0; bytes.len()]);
        reader.client.get(&k("twice"), &[into], soon()).unwrap();
        assert!(bytes_of(into) == bytes);
    }
    assert!(reader.client.get(&k("once"), &[into], soon()).is_err());
    // puts go elsewhere at once
    let writer = &reader;
    writer.fill(0, &bytes);
    for number in 0..4u8 {
        let options = PutOptions::default();
        writer
            .client
            .put(&k([b'n', number]), &[into], &options, soon())
            .unwrap();
    }
}

#[test]
fn a_put_survives_a_master_that_restarts_in_the_middle() {
    let master = master();
    let (lender, other) = (Member::new(&master, 8 << 20), Member::new(&master, 0));
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    std::thread::scope(|scope| {
        let restarts = scope.spawn(|| {
            for _ in 0..10 {
                std::thread::park_timeout(Duration::from_millis(30));
                master.restart();
            }
            stop.store(true, std::sync::atomic::Ordering::Release);
        });
        let mut acknowledged = Vec::new();
        let mut number = 0u64;
        while !stop.load(std::sync::atomic::Ordering::Acquire) && number < 200 {
            number += 1;
            let key = k(number.to_le_bytes());
            let piece = other.fill(0, &pattern(number, 20_000));
            let deadline = Runtime::system().deadline(Duration::from_secs(2));
            if other
                .client
                .put(&key, &[piece], &PutOptions::default(), deadline)
                .is_ok()
            {
                acknowledged.push(number);
            }
        }
        restarts.join().unwrap();
        assert!(!acknowledged.is_empty());
        eventually("the last announcement", || {
            node(&lender).statistics().master_epoch == 11
        });
        for number in acknowledged {
            let key = k(number.to_le_bytes());
            eventually("an acknowledged object", || !master.locations(&key).is_empty());
            let into = other.piece(1 << 20, 20_000);
            other.client.get(&key, &[into], soon()).unwrap();
            assert!(bytes_of(into) == pattern(number, 20_000), "object {number}");
        }
    });
}
