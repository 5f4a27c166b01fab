//! Bytes that are no frames, and frames that were altered.

use std::io::Write;

use kvstored_verbs::LINK_ADDRESS_BYTES;

use super::raw::{RawPeer, dial, identity};
use super::rig::{Rig, contents, malformed_frames, pattern};
use crate::handshake::Opener;
use crate::wire::{HANDSHAKE_BYTES, Header, Kind, MAX_BODY_BYTES, RANGE_BYTES, WANTED_BYTES};
use crate::{GRANT_BYTES, Secret};

/// Numbers for altering frames, the same each time.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn alter(&mut self, bytes: &mut [u8]) {
        for _ in 0..=self.next() % 4 {
            let at = self.next() as usize % bytes.len();
            bytes[at] = if self.next().is_multiple_of(3) {
                0xFF
            } else {
                self.next() as u8
            };
        }
    }
}

#[test]
fn bytes_that_are_no_handshake_end_their_connection_only() {
    let rig = Rig::new(1 << 20);
    let address = rig.server.address().unwrap();
    let mut numbers = Numbers(1);
    let ours = identity(None);
    for round in 0..1500u64 {
        let mut stream = dial(address);
        let mut bytes = match round % 3 {
            0 => pattern(1 + numbers.next() as usize % 600, round),
            1 => b"GET / HTTP/1.1\r\nHost: x\r\n\r\n{\"a\": [[[[[[[[[[[[".repeat(8),
            _ => Opener::new(&ours).unwrap().1.encode().to_vec(),
        };
        if round % 3 == 2 {
            numbers.alter(&mut bytes);
        }
        let _ = stream.write_all(&bytes);
        if round % 5 == 0 && bytes.len() >= HANDSHAKE_BYTES {
            // an altered key or nonce is a hello all the same; what follows is no proof
            let _ = stream.write_all(&pattern(HANDSHAKE_BYTES, round));
            assert!(super::raw::ends(&mut stream), "round {round}");
        }
        if round % 250 == 0 {
            rig.check();
        }
    }
    rig.check();
}

/// Good frames of every kind.
fn samples(raw: &mut RawPeer, rig: &Rig) -> Vec<Vec<u8>> {
    let granted = raw.granted(&rig.server, &rig.publication, 0, 4096).encode();
    let mut frames = Vec::new();
    let kinds = [
        (Kind::Read, GRANT_BYTES, 4096),
        (Kind::Write, GRANT_BYTES, 64),
        (Kind::Notify, 100, 0),
        (Kind::Ping, 0, 0),
        (Kind::Want, WANTED_BYTES, 0),
        (Kind::First, 0, 0),
        (Kind::Share, 0, 0),
        (Kind::Ask, 100, 0),
        (Kind::Rdma, LINK_ADDRESS_BYTES, 0),
        (Kind::Attach, 64, 0),
        (Kind::Move, 176, 0),
    ];
    for (kind, body, length) in kinds {
        let header = raw.request(kind, body, 0, length);
        let mut frame = header.encode().to_vec();
        if body == GRANT_BYTES {
            frame.extend(granted);
        } else {
            frame.extend(vec![1; body]);
        }
        if kind == Kind::Write {
            frame.extend([0; 64]);
            frame.extend(
                crate::wire::Trailer {
                    id: header.id,
                    error: None,
                }
                .encode(),
            );
        }
        frames.push(frame);
    }
    frames
}

/// Altered and random frames over connections whose handshake was right. A connection that is ended is opened again.
#[test]
fn altered_frames_touch_nothing() {
    let most = malformed_frames(300_000);
    let rig = Rig::new(1 << 20);
    rig.remote.write(4096, &vec![5; (1 << 20) - 4096]).unwrap();
    let mut numbers = Numbers(7);
    let mut sent = 0u64;
    while sent < most {
        let mut raw = RawPeer::connect(&rig.server);
        raw.stream.set_nonblocking(true).unwrap();
        let frames = samples(&mut raw, &rig);
        // many in one piece: all of those before the first bad one are looked at, and one bad one is enough
        let mut burst = Vec::new();
        for index in 0..300 {
            let mut frame = frames[numbers.next() as usize % frames.len()].clone();
            match numbers.next() % 4 {
                // a header whose sum is right, with lengths and kinds from nowhere
                0 if index > 200 => {
                    let header = Header {
                        kind: [Kind::Read, Kind::Write, Kind::Notify, Kind::Want]
                            [numbers.next() as usize % 4],
                        answer: numbers.next().is_multiple_of(8),
                        error: None,
                        id: numbers.next(),
                        offset: numbers.next() << (numbers.next() % 40),
                        length: numbers.next() << (numbers.next() % 40),
                        body_bytes: numbers.next() as u32 % (2 * MAX_BODY_BYTES),
                    };
                    frame[..64].copy_from_slice(&header.encode());
                }
                // the body alone, which ends nothing
                _ if index <= 200 && frame.len() > 64 && frame.len() != 64 + RANGE_BYTES => {
                    let body = frame.len().min(64 + GRANT_BYTES);
                    numbers.alter(&mut frame[64..body]);
                }
                _ if index > 200 => numbers.alter(&mut frame),
                _ => {}
            }
            burst.extend(frame);
            sent += 1;
        }
        let _ = raw.stream.write_all(&burst);
        if sent % 60_000 < 300 {
            rig.check();
            rig.server.take_notifications(usize::MAX);
        }
    }
    rig.check();
    assert!(
        contents(&rig.remote, 4096, (1 << 20) - 4096)
            .iter()
            .all(|byte| *byte == 5)
    );
    rig.server
        .unregister(rig.remote.id(), super::rig::soon())
        .unwrap();
}

#[test]
fn answers_to_nothing_and_frames_out_of_turn_end_the_connection() {
    let rig = Rig::new(4096);
    let ping = Header::request(Kind::Ping, 1, 0);
    for bytes in [
        ping.answered(None, 0).encode().to_vec(),
        [ping.encode().to_vec(), vec![0; 64]].concat(),
        Opener::new(&identity(None)).unwrap().1.encode().to_vec(),
    ] {
        let mut raw = RawPeer::connect(&rig.server);
        raw.send(&bytes);
        assert!(raw.is_closed());
    }
    // a trailer that isn't the payload's
    let mut raw = RawPeer::connect(&rig.server);
    let granted = raw.granted(&rig.server, &rig.publication, 0, 4096);
    let header = raw.request(Kind::Write, GRANT_BYTES, 0, 10);
    raw.send(&[&header.encode()[..], &granted.encode(), &[0; 10 + 16]].concat());
    assert!(raw.is_closed());
    rig.check();
}

/// A server that answers wrongly fails its client's transfers, and doesn't touch its memory outside of them.
#[test]
fn a_server_that_answers_nonsense_is_given_up() {
    use std::net::TcpListener;

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let liar = crate::handshake::Identity::new(None::<&Secret>, std::time::Duration::from_mins(10)).unwrap();
    let liar = std::sync::Arc::new(liar);
    let name = liar.id();
    let body = move || {
        for round in 0..20u64 {
            let mut streams = Vec::new();
            for _ in 0..2 {
                let mut stream = listener.accept().unwrap().0;
                let hello = super::raw::frame(&mut stream).unwrap();
                let (acceptor, answer) = crate::handshake::Acceptor::new(&liar, hello, b"").unwrap();
                stream.write_all(&answer.encode()).unwrap();
                let proof = super::raw::frame(&mut stream).unwrap();
                stream
                    .write_all(&acceptor.finish(proof).unwrap().1.encode())
                    .unwrap();
                streams.push(stream);
            }
            for stream in &mut streams {
                let header = Header {
                    length: 4096,
                    ..Header::request(Kind::Read, round, 0)
                };
                let bytes = match round % 3 {
                    0 => pattern(8192, round),
                    1 => header.answered(None, 0).encode().to_vec(),
                    _ => header.encode().to_vec(),
                };
                let _ = stream.write_all(&bytes);
            }
            for stream in &mut streams {
                assert!(super::raw::ends(stream));
            }
        }
    };
    let runtime = kvstored_core::Runtime::system();
    let thread = runtime.spawner.spawn("liar", Box::new(body)).unwrap();
    let client = super::rig::start(super::rig::asking());
    for _ in 0..20 {
        let peer = client
            .open_peer(&address.to_string(), super::rig::soon())
            .unwrap();
        assert_eq!(peer.id(), name);
        super::rig::eventually("the liar is given up", || !peer.is_alive());
        client.close_peer(&peer);
    }
    thread.join();
}
