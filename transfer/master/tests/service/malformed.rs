//! Altered frames on the fast lane, as many as there is time for.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use kvstored_core::Runtime;
use kvstored_core::runtime::{Random, SystemRandom};
use kvstored_master::MasterSettings;
use kvstored_master::server::MasterServer;

use super::node::FakeNode;
use super::{PATIENCE, client, client_settings, key, master_settings, server_settings, soon, until};

/// How a connection begins, without a token.
const HELLO: &[u8] = b"KVL1\0\0";
/// Frames before one that is likely to end its connection.
const READABLE: usize = 200;
const BURST: usize = 300;

/// As many as the variable says, for a long run, or what the ordinary run has time for.
fn wanted() -> u64 {
    std::env::var("KVSTORED_MALFORMED_FRAMES").map_or(20_000, |count| count.parse().unwrap())
}

/// A field of a message: bytes, or another message.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    [&[number << 3 | 2, bytes.len() as u8], bytes].concat()
}

/// Good questions of every verb, as verb and message.
fn samples() -> Vec<(u8, Vec<u8>)> {
    let key = key("a");
    let new = [field(1, &key), vec![0x10, 100]].concat();
    let finished = [field(1, &key), vec![0x10, 1, 0x18, 7], field(4, &[1; 16])].concat();
    vec![
        (1, field(1, &new)),
        (2, field(1, &finished)),
        (3, field(1, &key)),
        (4, [field(1, &key), vec![0x10, 1]].concat()),
    ]
}

fn alter(random: &SystemRandom, bytes: &mut [u8]) {
    for _ in 0..=random.next_u64() % 4 {
        let at = random.next_u64() as usize % bytes.len();
        bytes[at] = random.next_u64() as u8;
    }
}

/// One connection's worth: messages that may be anything in frames that are right, then frames of which anything may be wrong.
fn burst(random: &SystemRandom, samples: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = HELLO.to_vec();
    for index in 0..BURST {
        let (verb, mut message) = samples[random.next_u64() as usize % samples.len()].clone();
        if index < READABLE {
            alter(random, &mut message);
        }
        let mut frame = (message.len() as u32 + 1).to_le_bytes().to_vec();
        frame.push(verb);
        frame.extend(message);
        if index >= READABLE {
            alter(random, &mut frame);
        }
        bytes.extend(frame);
    }
    bytes
}

/// Whole frames among the answers.
fn frames(mut answers: &[u8]) -> usize {
    let mut count = 0;
    while let Some((length, rest)) = answers.split_first_chunk::<4>() {
        let Some(rest) = rest.get(u32::from_le_bytes(*length) as usize..) else {
            break;
        };
        answers = rest;
        count += 1;
    }
    count
}

#[test]
fn altered_questions_hurt_nobody() {
    let settings = MasterSettings {
        // puts that are never ended make room soon, for those that ask to wait for it
        put_discard: Duration::from_millis(200),
        ..master_settings()
    };
    let server = MasterServer::start(server_settings(), settings, Runtime::system()).unwrap();
    let _node = FakeNode::start(1, 1 << 20, client_settings(&server));
    let client = client(&server);
    let random = SystemRandom::seeded(11);
    let samples = samples();
    let (most, mut sent) = (wanted(), 0);
    while sent < most {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // the server may end the connection before it has read everything
        let _ = stream.write_all(&burst(&random, &samples));
        let _ = stream.shutdown(Shutdown::Write);
        let mut answers = Vec::new();
        if stream.read_to_end(&mut answers).is_ok() {
            assert!(frames(&answers) >= READABLE, "{} answers", frames(&answers));
        }
        if sent % 30_000 == 0 {
            assert!(client.exist(&[&key("a")], false, soon()).is_ok());
        }
        sent += BURST as u64;
    }
    assert!(client.exist(&[&key("a")], false, soon()).is_ok());
    until("closed connections", || server.connections().1 == 0);
}
