//! The master's fast lane: bytes that a client sends to a running master, whole connections and questions that are framed
//! rightly, and bytes that a client takes for answers. The master must answer in frames or end the connection, and serve
//! whoever comes next.
#![no_main]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::OnceLock;
use std::time::Duration;

use kvstored_core::Runtime;
use kvstored_master::client::ClientSettings;
use kvstored_master::client::blocking::MasterClient;
use kvstored_master::server::{MasterServer, ServerSettings};
use kvstored_master::{Lender, MasterSettings};
use libfuzzer_sys::fuzz_target;

/// How a connection begins, without a token.
const HELLO: &[u8] = b"KVL1\0\0";
/// Of a frame: its length, and a verb or an outcome.
const HEAD_BYTES: usize = 5;
/// The outcomes that there are.
const OUTCOMES: u8 = 3;
/// An answer is there at once, or the master hangs.
const PATIENCE: Duration = Duration::from_secs(5);
/// Nothing that this target does shall run out.
const FOREVER: Duration = Duration::from_hours(24);

fuzz_target!(|bytes: &[u8]| {
    kvstored_master::check_answers(bytes);
    let Some((shape, rest)) = bytes.split_first() else {
        return;
    };
    let (asked, said) = match shape % 4 {
        0 => (None, [&HELLO[..1], rest].concat()),
        1 => (None, [HELLO, rest].concat()),
        _ => {
            let questions: Vec<&[u8]> = rest.split(|byte| *byte == 0xff).collect();
            (Some(questions.len()), [HELLO, &framed(&questions)].concat())
        }
    };
    let answers = say(master(), &said);
    let outcomes = outcomes(&answers);
    if let Some(asked) = asked {
        // only a wrong hello or a length that can't be would have ended the connection
        assert_eq!(outcomes, asked);
    }
});

/// Each question a frame of its own: its first byte is the verb.
fn framed(questions: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for question in questions {
        let (verb, message) = question.split_first().unwrap_or((&0, &[]));
        bytes.extend_from_slice(&(message.len() as u32 + 1).to_le_bytes());
        bytes.push(verb % 8);
        bytes.extend_from_slice(message);
    }
    bytes
}

/// Says it on a connection of its own and returns all that is answered.
fn say(master: SocketAddr, words: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(master).expect("the master accepts");
    stream.set_read_timeout(Some(PATIENCE)).expect("a limit");
    // it may end the connection before it has read everything
    let _ = stream.write_all(words);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answers = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answers) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
    }
    answers
}

/// How many frames these are: whole ones with an outcome that there is, and nothing else.
fn outcomes(mut answers: &[u8]) -> usize {
    let mut count = 0;
    while let Some((head, rest)) = answers.split_first_chunk::<HEAD_BYTES>() {
        let [a, b, c, d, outcome] = *head;
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        assert!(outcome < OUTCOMES && length > 0 && length <= rest.len() + 1);
        answers = &rest[length - 1..];
        count += 1;
    }
    assert!(answers.is_empty());
    count
}

/// A master with a node that lends memory, so that there is something to be had.
fn master() -> SocketAddr {
    static MASTER: OnceLock<MasterServer> = OnceLock::new();
    MASTER
        .get_or_init(|| {
            let runtime = Runtime::system();
            let server = ServerSettings {
                listen: "127.0.0.1:0".parse().expect("an address"),
                threads: 1,
                ..ServerSettings::default()
            };
            let settings = MasterSettings {
                recovery: Duration::ZERO,
                client_ttl: FOREVER,
                broken_ttl: FOREVER,
                // what was begun and never ended makes room soon
                put_discard: Duration::from_millis(100),
                ..MasterSettings::default()
            };
            let server = MasterServer::start(server, settings, runtime.clone()).expect("a master starts");
            lend(server.address(), &runtime);
            server
        })
        .address()
}

fn lend(master: SocketAddr, runtime: &Runtime) {
    let settings = ClientSettings {
        endpoints: vec![master.to_string()],
        ..ClientSettings::default()
    };
    let client = MasterClient::new(settings, runtime.clone()).expect("a client");
    let lender = Lender {
        node: [1; 16],
        name: "node".to_owned(),
        control: "127.0.0.1:1".to_owned(),
        engine: "127.0.0.1:2".to_owned(),
        segment_bytes: 64 << 20,
        obeyed_epoch: 0,
        highest_put: 0,
        draining: None,
    };
    let deadline = runtime.deadline(PATIENCE);
    let mounted = client.mount(&lender, deadline).expect("a node is taken");
    client
        .announce(&lender.node, mounted.epoch, &[], deadline)
        .expect("a node has announced what it holds");
}
