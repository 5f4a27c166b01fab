//! Every way in which the two sides may be divided.

use kvstored_transfer::TransportKind;

use super::rig::{BLOCKS, Engine, HND, MLA, Model, NHD, eventually};

/// Ranks that divide heads and layers, at the producer and at the consumer.
type Division = [(u32, u32); 2];

const DIVISIONS: [Division; 7] = [
    [(1, 1), (1, 1)],
    [(2, 1), (1, 1)],
    [(1, 1), (2, 1)],
    [(1, 2), (1, 1)],
    [(1, 1), (1, 2)],
    [(2, 2), (1, 1)],
    [(1, 1), (4, 1)],
];

/// Blocks at the producer, and at the consumer those from the third on.
const SCATTERED: [u32; 9] = [3, 4, 5, 9, 1, 2, 20, 21, 22];
const HERE: [u32; 7] = [7, 8, 9, 0, 1, 2, 23];

fn blocks_arrive(transport: TransportKind, model: Model, [from, to]: Division) {
    let producer = Engine::start(transport, model, "prefill", from.0, from.1);
    let consumer = Engine::start(transport, model, "decode", to.0, to.1);
    producer.hold("one", &SCATTERED);
    consumer.pull("mine", producer.request("one"), &HERE, 2);
    for rank in &consumer.ranks {
        let pulled = rank.pulled();
        assert_eq!(pulled.message, "", "{model:?} {from:?} {to:?}");
        assert!(pulled.failed.is_empty());
        for (content, block) in (102..).zip(HERE) {
            assert!(
                rank.holds(block, content),
                "{model:?} {from:?} {to:?} block {block}"
            );
        }
        for other in (0..BLOCKS).filter(|block| !HERE.contains(block)) {
            assert!(!(100..110).any(|content| rank.holds(other, content)));
        }
    }
    for rank in &producer.ranks {
        assert_eq!(rank.released("one"), "taken");
    }
    for rank in producer.ranks.iter().chain(&consumer.ranks) {
        eventually("nothing is left", || rank.is_clean().then_some(()));
    }
}

fn all_divisions(transport: TransportKind, model: Model) {
    for division in DIVISIONS {
        blocks_arrive(transport, model, division);
    }
}

#[test]
fn heads_behind_tokens() {
    all_divisions(TransportKind::Tcp, NHD);
}

#[test]
fn heads_before_tokens() {
    all_divisions(TransportKind::Tcp, HND);
}

#[test]
fn one_latent_head() {
    all_divisions(TransportKind::Tcp, MLA);
}

#[test]
fn heads_that_several_ranks_have() {
    let two = Model { heads: 2, ..HND };
    for division in [
        [(4, 1), (2, 1)],
        [(2, 1), (4, 1)],
        [(4, 1), (4, 1)],
        [(4, 1), (1, 1)],
    ] {
        blocks_arrive(TransportKind::Tcp, two, division);
    }
}

#[test]
fn through_shared_memory() {
    for model in [NHD, HND] {
        blocks_arrive(TransportKind::Shm, model, [(2, 1), (1, 1)]);
        blocks_arrive(TransportKind::Shm, model, [(1, 1), (1, 1)]);
    }
}
