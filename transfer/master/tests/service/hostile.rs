//! Strangers on the port: what isn't HTTP/2, what isn't gRPC, what never says anything, and far too much of it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use kvstored_core::ErrorKind;
use kvstored_core::Runtime;
use kvstored_core::runtime::{Random, SystemRandom};
use kvstored_master::server::{MasterServer, ServerSettings};
use kvstored_master::{MAX_ITEMS, NewObject, PutOptions};

use super::node::{FakeNode, put};
use super::{
    PATIENCE, client, client_settings, descriptors, key, master_settings, server_settings, soon, start, until,
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How a connection of the fast lane begins, without a token.
const LANE: &[u8] = b"KVL1\0\0";

/// Says something, and reads until the server ends the connection or stops to answer.
fn say(server: &MasterServer, words: &[u8]) {
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    // the server may close before it has read everything
    let _ = stream.write_all(words);
    let mut sink = [0; 4096];
    while matches!(stream.read(&mut sink), Ok(bytes) if bytes > 0) {}
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

#[test]
fn garbage_hurts_nobody() {
    let server = start();
    let node = FakeNode::start(1, 1 << 20, client_settings(&server));
    let client = client(&server);
    put(&client, &[&node], &key("a"), 10, &PutOptions::default()).unwrap();
    let before = descriptors();
    let random = SystemRandom::seeded(7);
    let mut words: Vec<Vec<u8>> = vec![
        Vec::new(),
        b"GET /kvstored.master.v1.Master/Status HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        PREFACE[..10].to_vec(),
        PREFACE.to_vec(),
        vec![0xff; 70_000],
        [PREFACE, &frame(4, 0, 0, &[0; 5])].concat(),
        [PREFACE, &frame(1, 4, 1, &[0xff; 200])].concat(),
        [PREFACE, &frame(0, 1, 0, &[1; 100])].concat(),
        [PREFACE, &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]].concat(),
        LANE[..1].to_vec(),
        LANE[..3].to_vec(),
        b"KVL2\0\0".to_vec(),
        b"KVL1\xff\xff".to_vec(),
        [LANE, &[0; 5]].concat(),
        [LANE, &[0xff; 5]].concat(),
        [LANE, &[1, 0, 0, 0, 99]].concat(),
        // a long message is promised, and a short one sent
        [LANE, &[0, 0, 0x80, 0, 4], &[0x0a, 3]].concat(),
        [LANE, &[6, 0, 0, 0, 4], &[0xff; 5]].concat(),
    ];
    for _ in 0..40 {
        let mut noise = LANE.to_vec();
        for _ in 0..50 {
            let bits = random.next_u64();
            let payload: Vec<u8> = (0..bits % 40).map(|_| random.next_u64() as u8).collect();
            noise.extend((payload.len() as u32 + 1).to_le_bytes());
            noise.push((bits >> 8) as u8 % 6);
            noise.extend(payload);
        }
        words.push(noise);
    }
    for _ in 0..40 {
        let mut noise = PREFACE.to_vec();
        noise.extend(frame(4, 0, 0, &[]));
        for _ in 0..50 {
            let bits = random.next_u64();
            let payload: Vec<u8> = (0..bits % 40).map(|_| random.next_u64() as u8).collect();
            noise.extend(frame(
                (bits >> 8) as u8 % 12,
                (bits >> 16) as u8,
                (bits >> 24) as u32 % 8,
                &payload,
            ));
        }
        words.push(noise);
    }
    for words in &words {
        say(&server, words);
    }
    // as many resets of streams as possible
    let mut resets = [PREFACE, &frame(4, 0, 0, &[])].concat();
    for stream in 0..2000_u32 {
        resets.extend(frame(1, 5, stream * 2 + 1, &[0x82, 0x86, 0x84, 0x41, 0x01, b'x']));
        resets.extend(frame(3, 0, stream * 2 + 1, &[0, 0, 0, 8]));
    }
    say(&server, &resets);
    assert!(client.exist(&[&key("a")], false, soon()).unwrap()[0].is_some());
    until("closed connections", || server.connections().1 == 0);
    until("closed descriptors", || descriptors() <= before);
}

#[test]
fn wrong_calls_are_refused() {
    let server = start();
    let node = FakeNode::start(1, 1 << 20, client_settings(&server));
    let client = client(&server);
    for key in [&b""[..], b"\0", b"\xff", &[0; 2000]] {
        let refused = client.locate(&[key], soon()).unwrap().remove(0).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidInput);
        let new = NewObject { key, length: 1 };
        let refused = client
            .start_puts(&[new], &PutOptions::default(), soon())
            .unwrap()
            .remove(0);
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    for length in [0, u64::MAX, u64::MAX - 255, 1 << 62] {
        let new = NewObject {
            key: &key("k"),
            length,
        };
        let refused = client
            .start_puts(&[new], &PutOptions::default(), soon())
            .unwrap()
            .remove(0);
        let kind = refused.unwrap_err().kind();
        assert!(
            matches!(kind, ErrorKind::InvalidInput | ErrorKind::TooLarge),
            "{kind}"
        );
    }
    // a message larger than the server takes
    let options = PutOptions {
        avoid: vec![[0; 16]; MAX_ITEMS + 1],
        ..PutOptions::default()
    };
    let new = NewObject {
        key: &key("k"),
        length: 1,
    };
    assert_eq!(
        client.start_puts(&[new], &options, soon()).unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
    let huge = PutOptions {
        avoid: vec![[0; 16]; 1 << 20],
        ..PutOptions::default()
    };
    assert!(client.start_puts(&[new], &huge, soon()).is_err());
    put(&client, &[&node], &key("k"), 1, &PutOptions::default()).unwrap();
}

#[test]
fn idle_strangers_are_closed_and_keep_nobody_out() {
    let settings = ServerSettings {
        stranger_patience: Duration::from_millis(400),
        max_strangers: 32,
        ..server_settings()
    };
    let server = MasterServer::start(settings, master_settings(), Runtime::system()).unwrap();
    let known = client(&server);
    known.status(soon()).unwrap();
    let before = descriptors();
    let mut idle: Vec<TcpStream> = Vec::new();
    for number in 0..200 {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        if number % 2 == 0 {
            let _ = stream.write_all(&PREFACE[..5]);
        }
        idle.push(stream);
        if number % 50 == 0 {
            // somebody new gets in all the same
            client(&server).status(soon()).unwrap();
        }
    }
    for stream in &mut idle {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut sink = [0; 256];
        // whatever the server says first, it closes
        while matches!(stream.read(&mut sink), Ok(bytes) if bytes > 0) {}
    }
    known.status(soon()).unwrap();
    drop(idle);
    until("no strangers", || server.connections().1 == 0);
    assert!(server.connections().2 >= 200);
    until("closed descriptors", || descriptors() <= before);
}
