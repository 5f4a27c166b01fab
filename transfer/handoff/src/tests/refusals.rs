//! What is not pulled, and why.

use std::time::Duration;

use kvstored_core::ErrorKind;
use kvstored_transfer::TransportKind::Tcp;

use super::rig::{BLOCKS, Engine, HND, PATIENCE, Worker, eventually, pair, settings};
use crate::{HandoffSettings, Rank};

const BLOCK: [u32; 2] = [1, 2];

/// The message of a pull that failed with all of its blocks.
fn refusal(consumer: &Worker) -> String {
    let pulled = consumer.pulled();
    assert_eq!(pulled.failed, BLOCK);
    pulled.message
}

#[test]
fn another_fingerprint_is_refused_at_once() {
    let producer = Engine::start(Tcp, HND, "prefill", 1, 1);
    producer.hold("one", &BLOCK);
    let alone = Rank {
        total_heads: HND.heads,
        first_head: 0,
        heads: HND.heads,
        tp_rank: 0,
        tp_size: 1,
        pp_rank: 0,
        pp_size: 1,
    };
    let other = Worker::start(settings(Tcp), HND, BLOCKS, alone, "decode", b"another");
    other
        .handoff
        .pull("mine", producer.request("one"), BLOCK.to_vec(), 0, PATIENCE)
        .unwrap();
    let message = refusal(&other);
    assert!(message.contains("fingerprint"), "{message}");
    assert_eq!(other.handoff.statistics().pulls_mismatched, 1);
    // it's done with it all the same
    assert_eq!(producer.ranks[0].released("one"), "taken");
}

#[test]
fn another_start_of_the_engine_has_nothing() {
    let (producer, consumer) = pair(Tcp, HND);
    let mut request = producer.request("one");
    request.engine_id = "the one before".to_owned();
    consumer.pull("mine", request, &BLOCK, 0);
    refusal(&consumer.ranks[0]);
    assert_eq!(consumer.ranks[0].handoff.statistics().pulls_gone, 1);
}

#[test]
fn a_request_that_is_held_later_is_waited_for() {
    let (producer, consumer) = pair(Tcp, HND);
    consumer.pull("mine", producer.request("one"), &BLOCK, 0);
    std::thread::park_timeout(Duration::from_millis(50));
    assert!(consumer.ranks[0].handoff.take_pulled().is_empty());
    producer.hold("one", &BLOCK);
    assert_eq!(consumer.ranks[0].pulled().message, "");
    assert!(consumer.ranks[0].holds(1, 100) && consumer.ranks[0].holds(2, 101));
}

#[test]
fn a_request_that_never_comes_is_given_up() {
    let hasty = HandoffSettings {
        grace: Duration::from_millis(50),
        ..settings(Tcp)
    };
    let producer = Engine::start(Tcp, HND, "prefill", 1, 1);
    let consumer = Engine::with(&hasty, HND, BLOCKS, "decode", 1, 1);
    consumer.pull("mine", producer.request("one"), &BLOCK, 0);
    let message = refusal(&consumer.ranks[0]);
    assert!(message.contains("doesn't know"), "{message}");
}

#[test]
fn nobody_at_the_address_fails_the_pull() {
    let (producer, consumer) = pair(Tcp, HND);
    let request = producer.request("one");
    drop(producer);
    consumer.pull("mine", request, &BLOCK, 0);
    refusal(&consumer.ranks[0]);
    eventually("nothing is left", || consumer.ranks[0].is_clean().then_some(()));
}

#[test]
fn arguments_that_make_no_sense_are_named() {
    let (producer, consumer) = pair(Tcp, HND);
    let handoff = &consumer.ranks[0].handoff;
    let kind = |result: kvstored_core::Result<()>| result.unwrap_err().kind();
    for blocks in [&[][..], &[BLOCKS], &[u32::MAX]] {
        assert_eq!(
            kind(handoff.hold("one", blocks, PATIENCE)),
            ErrorKind::InvalidInput
        );
        let pull = handoff.pull("one", producer.request("one"), blocks.to_vec(), 0, PATIENCE);
        assert_eq!(kind(pull), ErrorKind::InvalidInput);
    }
    let twice = handoff.pull("one", producer.request("one"), vec![1, 1], 0, PATIENCE);
    assert_eq!(kind(twice), ErrorKind::InvalidInput);
    let far = handoff.pull("one", producer.request("one"), vec![1, 2], u32::MAX, PATIENCE);
    assert_eq!(kind(far), ErrorKind::InvalidInput);
    handoff.hold("one", &[1], PATIENCE).unwrap();
    assert_eq!(
        kind(handoff.hold("one", &[1], PATIENCE)),
        ErrorKind::AlreadyExists
    );
    assert_eq!(kind(handoff.hold("", &[1], PATIENCE)), ErrorKind::InvalidInput);
}
