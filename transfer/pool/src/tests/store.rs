//! The store's verbs.

use std::sync::Arc;
use std::time::Duration;

use kvstored_core::ErrorKind;

use super::{FakeMaster, Member, bytes_of, eventually, k, pattern, soon};
use crate::{GetRequest, PutOptions, PutRequest};

fn master() -> Arc<FakeMaster> {
    Arc::new(FakeMaster::new(Duration::from_secs(2)))
}

#[test]
fn what_was_put_is_got_by_its_own_process_and_by_others() {
    let master = master();
    let lender = Member::new(&master, 16 << 20);
    let other = Member::new(&master, 0);
    for (writer, reader, name) in [
        (&lender, &lender, "local"),
        (&lender, &other, "read from afar"),
        (&other, &lender, "written from afar"),
        (&other, &other, "both"),
    ] {
        for length in [1, 4095, 4096, 1 << 20] {
            let key = k(format!("{name} {length}"));
            let bytes = pattern(length as u64, length);
            // in two pieces, put together and taken apart elsewhere
            let cut = length / 3;
            writer.fill(0, &bytes);
            let from = [writer.piece(0, cut), writer.piece(cut, length - cut)];
            writer
                .client
                .put(&key, &from, &PutOptions::default(), soon())
                .unwrap();
            let into = reader.piece(2 << 20, length);
            reader.fill(2 << 20, &vec![0; length]);
            assert_eq!(reader.client.get(&key, &[into], soon()).unwrap(), length as u64);
            assert!(bytes_of(into) == bytes, "{name} {length}");
        }
    }
    assert!(lender.client.statistics().local_gets > 0);
    assert_eq!(other.client.statistics().local_gets, 0);
}

#[test]
fn what_is_not_there_is_told_by_kind() {
    let master = master();
    let member = Member::new(&master, 4 << 20);
    let piece = member.fill(0, b"bytes");
    let options = PutOptions::default();
    let get =
        |key: &[u8], pieces: &[crate::Piece]| member.client.get(key, pieces, soon()).unwrap_err().kind();
    let put = |key: &[u8], pieces: &[crate::Piece]| {
        let outcome = member.client.put(key, pieces, &options, soon());
        outcome.unwrap_err().kind()
    };
    assert_eq!(get(&k("a"), &[piece]), ErrorKind::NotFound);
    member.client.put(&k("a"), &[piece], &options, soon()).unwrap();
    assert_eq!(put(&k("a"), &[piece]), ErrorKind::AlreadyExists);
    assert_eq!(put(b"", &[piece]), ErrorKind::InvalidInput);
    assert_eq!(put(&[0; 2000], &[piece]), ErrorKind::InvalidInput);
    assert_eq!(put(&k("b"), &[]), ErrorKind::InvalidInput);
    let foreign = crate::Piece {
        address: 4096,
        length: 8,
    };
    assert_eq!(put(&k("b"), &[foreign]), ErrorKind::InvalidInput);
    assert_eq!(get(&k("a"), &[foreign]), ErrorKind::InvalidInput);
    assert_eq!(get(&k("a"), &[member.piece(0, 4)]), ErrorKind::InvalidInput);
    let large = member.piece(0, super::BUFFER_BYTES);
    assert_eq!(put(&k("b"), &[large, large]), ErrorKind::NoSpace);
    assert_eq!(member.client.get(&k("a"), &[large], soon()).unwrap(), 5);
}

#[test]
fn a_batch_says_of_each_object_what_became_of_it() {
    let master = master();
    let lender = Member::new(&master, 16 << 20);
    let other = Member::new(&master, 8 << 20);
    let keys: Vec<_> = (0..200).map(|number| k(format!("key {number}"))).collect();
    let bytes: Vec<Vec<u8>> = (0..200)
        .map(|number| pattern(number, 1000 + number as usize))
        .collect();
    let pieces: Vec<_> = bytes
        .iter()
        .enumerate()
        .map(|(at, bytes)| [other.fill(at * 2000, bytes)])
        .collect();
    let puts: Vec<PutRequest<'_>> = keys
        .iter()
        .zip(&pieces)
        .map(|(key, pieces)| PutRequest { key, pieces })
        .collect();
    let options = PutOptions {
        prefer: lender.node.as_ref().map(|node| node.id()),
        ..PutOptions::default()
    };
    for outcome in other.client.put_batch(&puts, &options, soon()) {
        outcome.unwrap();
    }
    let absent = k("absent");
    let mut wanted: Vec<&[u8]> = keys.iter().map(|key| &**key).collect();
    wanted.insert(100, &absent);
    let present = other.client.exist(&wanted, soon()).unwrap();
    assert_eq!(present.iter().filter(|found| **found).count(), 200);
    assert!(!present[100]);
    assert_eq!(other.client.statistics().remembered, 0);
    let again = other.client.exist(&wanted, soon()).unwrap();
    assert_eq!(again, present);
    assert_eq!(other.client.statistics().remembered, 200);
    assert_eq!(lender.client.exist(&wanted, soon()).unwrap(), present);

    let into: Vec<_> = (0..wanted.len())
        .map(|at| [other.piece(at * 2000 + (1 << 20), 2000)])
        .collect();
    let gets: Vec<GetRequest<'_>> = wanted
        .iter()
        .zip(&into)
        .map(|(key, pieces)| GetRequest { key, pieces })
        .collect();
    let outcomes = other.client.get_batch(&gets, soon());
    let mut expected = bytes.iter();
    for (at, outcome) in outcomes.into_iter().enumerate() {
        if at == 100 {
            assert_eq!(outcome.unwrap_err().kind(), ErrorKind::NotFound);
            continue;
        }
        let bytes = expected.next().unwrap();
        assert_eq!(outcome.unwrap(), bytes.len() as u64);
        assert!(bytes_of(other.piece(at * 2000 + (1 << 20), bytes.len())) == *bytes);
    }
    let sizes = other.client.sizes(&wanted[..2], soon());
    assert_eq!(
        sizes.into_iter().map(Result::unwrap).collect::<Vec<_>>(),
        [1000, 1001]
    );
}

#[test]
fn removed_objects_make_room_again() {
    let master = master();
    let member = Member::new(&master, 2 << 20);
    let piece = member.fill(0, &pattern(1, 1 << 20));
    let options = PutOptions::default();
    for round in 0..5u8 {
        let keys = [k([round, 0]), k([round, 1])];
        for key in &keys {
            eventually("room", || {
                member.client.put(key, &[piece], &options, soon()).is_ok()
            });
        }
        let wanted: Vec<&[u8]> = keys.iter().map(|key| &**key).collect();
        for outcome in member.client.remove(&wanted, true, soon()).unwrap() {
            outcome.unwrap();
        }
        assert_eq!(member.client.exist(&wanted, soon()).unwrap(), [false, false]);
    }
    let outcome = member
        .client
        .remove(&[&k("never")], false, soon())
        .unwrap()
        .remove(0);
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::NotFound);
    eventually("the last release", || {
        member.node.as_ref().unwrap().statistics().ranges == 0
    });
}

#[test]
fn two_replicas_are_on_two_nodes() {
    let master = master();
    let members = [
        Member::new(&master, 4 << 20),
        Member::new(&master, 4 << 20),
        Member::new(&master, 0),
    ];
    let bytes = pattern(7, 300_000);
    let piece = members[0].fill(0, &bytes);
    let options = PutOptions {
        replicas: 2,
        ..PutOptions::default()
    };
    members[0]
        .client
        .put(&k("twice"), &[piece], &options, soon())
        .unwrap();
    assert_eq!(master.locations(&k("twice")).len(), 2);
    for member in &members {
        let into = member.piece(1 << 20, bytes.len());
        member.client.get(&k("twice"), &[into], soon()).unwrap();
        assert!(bytes_of(into) == bytes);
    }
}
