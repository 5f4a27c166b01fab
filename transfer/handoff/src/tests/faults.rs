//! Producers that die or stop in the middle of a pull.

use std::time::Duration;

use kvstored_transfer::TransportKind::{self, Shm, Tcp};

use super::child::{LARGE, MANY, Producer};
use super::rig::{Engine, PATIENCE, eventually, settings};

/// The consumer, and a producer that holds a request.
fn rig(transport: TransportKind) -> (Producer, Engine, Vec<u32>) {
    let consumer = Engine::with(&settings(transport), LARGE, MANY, "decode", 1, 1);
    (Producer::start(transport), consumer, (0..MANY).collect())
}

fn pulled_from_another_process(transport: TransportKind) {
    let (mut producer, consumer, blocks) = rig(transport);
    let request = producer.hold("one");
    consumer.pull("mine", request, &blocks, 0);
    let decode = &consumer.ranks[0];
    assert_eq!(decode.pulled().message, "");
    assert!(
        (100..)
            .zip(&blocks)
            .all(|(content, block)| decode.holds(*block, content))
    );
}

/// Blocks that are told to be good are; those that aren't are left alone from then on.
fn lost_under_way(transport: TransportKind, lose: impl Fn(&mut Producer), timeout: Duration) {
    for round in 0..3u64 {
        let (mut producer, consumer, blocks) = rig(transport);
        let decode = &consumer.ranks[0];
        let request = producer.hold("one");
        decode
            .handoff
            .pull("mine", request, blocks.clone(), 0, timeout)
            .unwrap();
        std::thread::park_timeout(Duration::from_millis(2 * round));
        lose(&mut producer);
        let pulled = decode.pulled();
        for (content, block) in (100..).zip(&blocks) {
            assert!(pulled.failed.contains(block) || decode.holds(*block, content));
        }
        for block in &pulled.failed {
            decode.fill(*block, 5000);
        }
        std::thread::park_timeout(Duration::from_millis(5));
        assert!(pulled.failed.iter().all(|block| decode.holds(*block, 5000)));
        eventually("nothing is left", || decode.is_clean().then_some(()));
    }
}

#[test]
fn over_sockets() {
    pulled_from_another_process(Tcp);
}

#[test]
fn through_shared_memory() {
    pulled_from_another_process(Shm);
}

#[test]
fn killed_over_sockets() {
    lost_under_way(Tcp, Producer::kill, PATIENCE);
}

#[test]
fn killed_through_shared_memory() {
    lost_under_way(Shm, Producer::kill, PATIENCE);
}

#[test]
fn stopped_over_sockets() {
    lost_under_way(Tcp, |producer| producer.stop(), Duration::from_millis(500));
}

#[test]
fn stopped_through_shared_memory() {
    lost_under_way(Shm, |producer| producer.stop(), Duration::from_millis(500));
}
