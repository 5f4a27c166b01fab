//! How holds and pulls end, and that what ended touches nothing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kvstored_core::Runtime;
use kvstored_transfer::TransportKind::{self, Shm, Tcp};

use super::rig::{Engine, HND, Model, PATIENCE, eventually, pair, settings};

/// So much that a pull takes a while.
const LARGE: Model = Model {
    layers: 4,
    head_bytes: 16 << 10,
    ..HND
};
const MANY: u32 = 48;

fn large(transport: TransportKind) -> (Engine, Engine, Vec<u32>) {
    let settings = settings(transport);
    (
        Engine::with(&settings, LARGE, MANY, "prefill", 1, 1),
        Engine::with(&settings, LARGE, MANY, "decode", 1, 1),
        (0..MANY).collect(),
    )
}

#[test]
fn after_the_lease_nothing_of_the_next_request_arrives() {
    let (producer, consumer) = pair(Tcp, HND);
    let (prefill, decode) = (&producer.ranks[0], &consumer.ranks[0]);
    prefill.fill(1, 100);
    decode.fill(1, 7);
    prefill.handoff.hold("one", &[1], Duration::ZERO).unwrap();
    assert_eq!(prefill.released("one"), "expired");
    prefill.fill(1, 200);
    consumer.pull("mine", producer.request("one"), &[1], 0);
    let pulled = decode.pulled();
    assert_eq!(pulled.failed, [1]);
    assert!(decode.holds(1, 7));
    assert_eq!(prefill.handoff.statistics().holds_expired, 1);
}

#[test]
fn a_request_is_dropped_once() {
    let (producer, _) = pair(Tcp, HND);
    let prefill = &producer.ranks[0];
    producer.hold("one", &[1]);
    prefill.handoff.drop_request("one");
    prefill.handoff.drop_request("one");
    assert_eq!(prefill.released("one"), "dropped");
    prefill.handoff.drop_request("one");
    assert!(prefill.handoff.take_released().is_empty());
    // the name may come again
    producer.hold("one", &[1]);
    prefill.handoff.drop_request("one");
    assert_eq!(prefill.released("one"), "dropped");
}

/// Whatever a pull brought as good is what was held, though the blocks are reused as soon as they're released.
fn dropped_under_way(transport: TransportKind) {
    let (producer, consumer, blocks) = large(transport);
    let (prefill, decode) = (&producer.ranks[0], &consumer.ranks[0]);
    for round in 0..6u32 {
        let request = format!("request {round}");
        producer.hold(&request, &blocks);
        consumer.pull("mine", producer.request(&request), &blocks, 0);
        // a different moment each time
        std::thread::park_timeout(Duration::from_millis(u64::from(round)));
        prefill.handoff.drop_request(&request);
        prefill.released(&request);
        for block in &blocks {
            prefill.fill(*block, 9999);
        }
        let pulled = decode.pulled();
        for (content, block) in (100..).zip(&blocks) {
            assert!(pulled.failed.contains(block) || decode.holds(*block, content));
        }
    }
    eventually("nothing is left", || {
        (prefill.is_clean() && decode.is_clean()).then_some(())
    });
}

#[test]
fn dropped_under_way_over_sockets() {
    dropped_under_way(Tcp);
}

#[test]
fn dropped_under_way_through_shared_memory() {
    dropped_under_way(Shm);
}

/// Once a pull is over, its blocks are its caller's.
fn cancelled_under_way(transport: TransportKind) {
    let (producer, consumer, blocks) = large(transport);
    let decode = &consumer.ranks[0];
    producer.hold("one", &blocks);
    for round in 0..6u64 {
        consumer.pull("mine", producer.request("one"), &blocks, 0);
        std::thread::park_timeout(Duration::from_millis(round));
        decode.handoff.cancel("mine");
        decode.handoff.cancel("nobody's");
        decode.pulled();
        for block in &blocks {
            decode.fill(*block, 5000);
        }
        std::thread::park_timeout(Duration::from_millis(5));
        assert!(blocks.iter().all(|block| decode.holds(*block, 5000)));
        // its only rank has said that it's done
        producer.ranks[0].released("one");
        producer.hold("one", &blocks);
    }
}

#[test]
fn cancelled_under_way_over_sockets() {
    cancelled_under_way(Tcp);
}

#[test]
fn cancelled_under_way_through_shared_memory() {
    cancelled_under_way(Shm);
}

#[test]
fn a_rank_that_pulls_nothing_has_to_say_so() {
    let producer = Engine::start(Tcp, HND, "prefill", 1, 1);
    let consumer = Engine::start(Tcp, HND, "decode", 2, 1);
    producer.hold("one", &[1, 2]);
    let one = &consumer.ranks[0];
    one.handoff
        .pull("mine", producer.request("one"), vec![3, 4], 0, PATIENCE)
        .unwrap();
    assert_eq!(one.pulled().message, "");
    assert!(producer.ranks[0].handoff.take_released().is_empty());
    let other = &consumer.ranks[1];
    other
        .handoff
        .release_remote(producer.request("one"), PATIENCE)
        .unwrap();
    assert_eq!(producer.ranks[0].released("one"), "taken");
}

#[test]
fn what_changes_under_a_pull_is_not_passed_on() {
    let (producer, consumer, blocks) = large(Tcp);
    let (prefill, decode) = (&producer.ranks[0], &consumer.ranks[0]);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // breaks the promise to leave held blocks alone
        scope.spawn(|| {
            let mut content = 0;
            while !stop.load(Ordering::Relaxed) {
                content += 1;
                prefill.fill(content as u32 % MANY, content);
            }
        });
        let until = Runtime::system().deadline(PATIENCE);
        let mut round = 0;
        let mut found = false;
        while !found && super::rig::now() < until {
            round += 1;
            let request = format!("request {round}");
            prefill.handoff.hold(&request, &blocks, PATIENCE).unwrap();
            consumer.pull("mine", producer.request(&request), &blocks, 0);
            found = decode.pulled().message.contains("checksum");
            prefill.released(&request);
        }
        stop.store(true, Ordering::Relaxed);
        assert!(found);
    });
    assert_eq!(decode.handoff.statistics().pulls_corrupt, 1);
}

#[test]
fn closing_ends_everything() {
    let (producer, consumer, blocks) = large(Tcp);
    producer.hold("one", &blocks);
    consumer.pull("mine", producer.request("one"), &blocks, 0);
    consumer.pull("waits", producer.request("never"), &blocks, 0);
    let soon = Runtime::system().deadline(PATIENCE);
    consumer.ranks[0].handoff.close(soon).unwrap();
    consumer.ranks[0].handoff.close(soon).unwrap();
    let ended = consumer.ranks[0].handoff.take_pulled();
    assert_eq!(ended.len(), 2);
    producer.ranks[0].handoff.close(soon).unwrap();
    assert_eq!(producer.ranks[0].handoff.statistics().publications, 0);
    assert!(producer.ranks[0].handoff.hold("two", &[1], PATIENCE).is_err());
}
