use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use kvstored_client::wire::{Answer, Granted, HEADER_BYTES, Header, MAX_BODY_BYTES, Request, request_frame};
use kvstored_core::error::ErrorKind;
use kvstored_core::tier::Durability;

use super::raw::RawClient;
use super::rig::{PATIENCE, dump, dumped, hashes, open};
use super::*;

fn kind(answer: &Answer) -> ErrorKind {
    match answer {
        Answer::Error(failure) => failure.kind,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_client_that_dies_gives_back_leases_reservations_and_reads_under_way() {
    let served = Served::new(12);
    let client = served.client();
    let namespace = open(&client);
    let blocks = hashes(0..8);
    dump(&client, &namespace, &blocks, Durability::Tier);
    client.evict(&namespace, &blocks[4..], Some("Cache")).unwrap();
    let mut victim = RawClient::greeted(&served.path);
    let number = victim.open();
    let leased = victim.ask(&Request::Acquire {
        namespace: number,
        hashes: blocks[..4].into(),
    });
    assert!(
        matches!(&leased, Answer::Acquired(held) if held.iter().all(Result::is_ok)),
        "{leased:?}"
    );
    let reserved = victim.ask(&Request::Reserve {
        namespace: number,
        parent: None,
        hashes: hashes(50..54).into(),
        wait_ms: 0,
    });
    assert!(
        matches!(&reserved, Answer::Reserved(granted) if matches!(granted[3], Granted::Slot { .. })),
        "{reserved:?}"
    );
    served.rig.map.hold();
    victim.send(&Request::Acquire {
        namespace: number,
        hashes: blocks[4..].into(),
    });
    assert!(served.rig.eventually(|| served.rig.map.held_operations() == 4));
    // everything is pinned: this one waits in line until the client is gone
    victim.send(&Request::Reserve {
        namespace: number,
        parent: None,
        hashes: hashes(60..61).into(),
        wait_ms: 60_000,
    });
    assert!(served.rig.eventually(|| served.rig.engine.parked_requests() == 1));
    victim.stream.shutdown(Shutdown::Both).unwrap();
    drop(victim);
    assert!(served.rig.eventually(|| served.rig.engine.parked_requests() == 0));
    served.rig.map.go_on();
    assert!(served.rig.eventually(|| served.rig.is_wholly_evictable(12)));
    assert_eq!(client.lookup_on_prefix(&namespace, &hashes(50..54)).unwrap(), 0);
    assert_eq!(
        dumped(&dump(&client, &namespace, &hashes(50..54), Durability::Tier)),
        4
    );
}

#[test]
fn reservations_that_wait_are_refused_at_their_deadline() {
    let served = Served::new(2);
    let mut client = RawClient::greeted(&served.path);
    let namespace = client.open();
    let reserve = |first, wait_ms| Request::Reserve {
        namespace,
        parent: None,
        hashes: hashes(first..first + 2).into(),
        wait_ms,
    };
    assert!(matches!(client.ask(&reserve(0, 0)), Answer::Reserved(_)));
    match client.ask(&reserve(10, 30)) {
        Answer::Reserved(granted) => {
            for granted in granted {
                assert!(
                    matches!(&granted, Granted::Refused(failure) if failure.kind == ErrorKind::Busy),
                    "{granted:?}"
                );
            }
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn rubbish_and_half_frames_hurt_nobody_else() {
    let served = Served::new(16);
    let client = served.client();
    let namespace = open(&client);
    let mut half = RawClient::greeted(&served.path);
    let frame = request_frame(
        7,
        &Request::Lookup {
            namespace: 0,
            hashes: hashes(0..9).into(),
        },
    )
    .unwrap();
    half.stream.write_all(&frame[..frame.len() - 5]).unwrap();
    let silent = RawClient::connect(&served.path);
    for rubbish in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0xFF; 4000],
        &[0; 64],
        b"[[[[[[[[[[[[[[[[[[",
    ] {
        let mut raw = RawClient::connect(&served.path);
        raw.stream.write_all(rubbish).unwrap();
        let mut answer = Vec::new();
        // an error answer perhaps, then the end
        let _ = raw.stream.read_to_end(&mut answer);
    }
    let mut large = RawClient::greeted(&served.path);
    large
        .stream
        .write_all(
            &Header {
                kind: 4,
                id: 3,
                body_bytes: MAX_BODY_BYTES + 1,
            }
            .encode(),
        )
        .unwrap();
    assert_eq!(kind(&large.answer().unwrap().1), ErrorKind::InvalidInput);
    assert!(large.answer().is_none());
    assert_eq!(
        dumped(&dump(&client, &namespace, &hashes(0..5), Durability::Tier)),
        5
    );
    // the half frame becomes whole in the end: its namespace isn't open
    half.stream.write_all(&frame[frame.len() - 5..]).unwrap();
    assert_eq!(kind(&half.answer().unwrap().1), ErrorKind::NotFound);
    drop(silent);
    assert!(served.handle.statistics().bad_frames >= 3);
}

#[test]
fn a_frame_must_be_finished_in_time_and_so_must_a_hello() {
    let served = Served::with(4, |settings| settings.frame_timeout = Duration::from_millis(30));
    let mut idle = RawClient::greeted(&served.path);
    let mut half = RawClient::greeted(&served.path);
    half.stream.write_all(&[0x4B, 0x53, 1]).unwrap();
    assert!(half.answer().is_none());
    assert!(RawClient::connect(&served.path).answer().is_none());
    // who says nothing after the hello may stay
    assert_eq!(idle.ask(&Request::Ping), Answer::Pong);
}

#[test]
fn wrong_requests_are_named_and_the_connection_lives_on() {
    let served = Served::new(4);
    let mut client = RawClient::greeted(&served.path);
    let namespace = client.open();
    let mut frame = request_frame(
        99,
        &Request::Lookup {
            namespace,
            hashes: hashes(0..1).into(),
        },
    )
    .unwrap();
    // the length of the hashes
    frame[HEADER_BYTES + 8] = 15;
    client.stream.write_all(&frame).unwrap();
    let (id, answer) = client.answer().unwrap();
    assert_eq!((id, kind(&answer)), (99, ErrorKind::InvalidInput));
    assert!(format!("{answer:?}").contains("15 bytes"), "{answer:?}");
    client
        .stream
        .write_all(
            &Header {
                kind: 77,
                id: 5,
                body_bytes: 0,
            }
            .encode(),
        )
        .unwrap();
    assert_eq!(kind(&client.answer().unwrap().1), ErrorKind::Unsupported);
    assert_eq!(
        kind(&client.ask(&Request::Lookup {
            namespace: 42,
            hashes: hashes(0..1).into()
        })),
        ErrorKind::NotFound
    );
    assert_eq!(
        kind(&client.ask(&Request::List {
            tier: 9,
            namespace: None,
            after: None,
            limit: 1
        })),
        ErrorKind::InvalidInput
    );
    let hello = Request::Hello {
        protocol: 1,
        name: String::new(),
        process: 0,
    };
    assert_eq!(kind(&client.ask(&hello)), ErrorKind::InvalidInput);
    // leases and reservations that were never given
    client.send(&Request::Release {
        leases: vec![1, 2, 3].into(),
    });
    client.send(&Request::Abort {
        reservations: vec![9].into(),
    });
    client.send(&Request::ReportCorrupt { lease: 8 });
    let commit = Request::Commit {
        blocks: vec![(77, vec![1, 2, 3])].into(),
        durability: Durability::Tier,
    };
    match client.ask(&commit) {
        Answer::Committed(outcomes) => {
            assert_eq!(outcomes[0].as_ref().unwrap_err().kind, ErrorKind::NotFound);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(client.ask(&Request::Ping), Answer::Pong);
}

#[test]
fn a_commit_without_all_shards_leaves_no_trace() {
    let served = Served::new(4);
    let mut client = RawClient::greeted(&served.path);
    let namespace = client.open();
    let reserve = Request::Reserve {
        namespace,
        parent: None,
        hashes: hashes(0..1).into(),
        wait_ms: 0,
    };
    let Answer::Reserved(granted) = client.ask(&reserve) else {
        panic!()
    };
    let Granted::Slot { reservation, .. } = granted[0] else {
        panic!()
    };
    let commit = Request::Commit {
        blocks: vec![(reservation, vec![1, 2])].into(),
        durability: Durability::Tier,
    };
    let Answer::Committed(outcomes) = client.ask(&commit) else {
        panic!()
    };
    assert_eq!(outcomes[0].as_ref().unwrap_err().kind, ErrorKind::InvalidInput);
    assert_eq!(
        client.ask(&Request::LookupOnPrefix {
            namespace,
            hashes: hashes(0..1).into()
        }),
        Answer::Count(0)
    );
    assert!(served.rig.eventually(|| served.rig.is_wholly_evictable(4)));
}

#[test]
fn a_hello_comes_first_and_in_our_version() {
    let served = Served::new(4);
    let mut early = RawClient::connect(&served.path);
    assert_eq!(kind(&early.ask(&Request::Ping)), ErrorKind::InvalidInput);
    assert!(early.answer().is_none());
    let mut newer = RawClient::connect(&served.path);
    let hello = Request::Hello {
        protocol: 7,
        name: "newer".into(),
        process: 0,
    };
    assert_eq!(kind(&newer.ask(&hello)), ErrorKind::Unsupported);
    assert!(newer.answer().is_none());
}

#[test]
fn limits_are_answered_with_busy() {
    let served = Served::with(8, |settings| {
        settings.max_connections = 2;
        settings.max_held_blocks_per_connection = 3;
    });
    let mut first = RawClient::greeted(&served.path);
    let namespace = first.open();
    let reserve = |first, count| Request::Reserve {
        namespace,
        parent: None,
        hashes: hashes(first..first + count).into(),
        wait_ms: 0,
    };
    assert_eq!(kind(&first.ask(&reserve(0, 4))), ErrorKind::Busy);
    assert!(matches!(first.ask(&reserve(0, 3)), Answer::Reserved(_)));
    assert_eq!(kind(&first.ask(&reserve(10, 1))), ErrorKind::Busy);
    let second = RawClient::greeted(&served.path);
    let mut third = RawClient::connect(&served.path);
    assert_eq!(kind(&third.answer().unwrap().1), ErrorKind::Busy);
    drop(second);
    assert!(
        served
            .rig
            .eventually(|| served.handle.statistics().connections == 1)
    );
    RawClient::greeted(&served.path);
    assert_eq!(served.handle.statistics().refused_connections, 1);
}

#[test]
fn a_client_that_never_reads_is_cut_off() {
    let served = Served::with(4, |settings| settings.max_unread_bytes = 100_000);
    let mut client = RawClient::greeted(&served.path);
    let namespace = client.open();
    let lookup = Request::Lookup {
        namespace,
        hashes: hashes(0..4000).into(),
    };
    let frame = request_frame(1, &lookup).unwrap();
    client.stream.set_write_timeout(Some(PATIENCE)).unwrap();
    let cut_off = (0..100_000).any(|_| client.stream.write_all(&frame).is_err());
    assert!(cut_off);
    assert!(
        served
            .rig
            .eventually(|| served.handle.statistics().connections == 0)
    );
}

#[test]
fn large_answers_reach_a_slow_reader_whole() {
    let served = Served::new(4);
    let mut client = RawClient::greeted(&served.path);
    let namespace = client.open();
    let count = 30_000;
    let ids: Vec<u32> = (0..40)
        .map(|_| {
            client.send(&Request::Acquire {
                namespace,
                hashes: hashes(0..count).into(),
            })
        })
        .collect();
    for id in ids {
        let (answered, answer) = client.answer().unwrap();
        assert_eq!(answered, id);
        assert!(matches!(&answer, Answer::Acquired(outcomes) if outcomes.len() == count as usize));
    }
}
