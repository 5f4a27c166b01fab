//! Pulls of requests that are computed still.

use std::time::Duration;

use kvstored_core::{ErrorKind, Runtime};
use kvstored_transfer::TransportKind::{self, Shm, Tcp};

use super::child::{LARGE, MANY, Producer};
use super::rig::{BLOCKS, Engine, HND, MLA, Model, NHD, PATIENCE, Worker, eventually, now, settings};
use crate::Statistics;

const THERE: [u32; 9] = [3, 4, 5, 9, 1, 2, 20, 21, 22];
const HERE: [u32; 7] = [7, 8, 9, 0, 1, 2, 23];
/// Blocks that come before those of the pull.
const BEFORE: u32 = 2;

fn bytes(statistics: &Statistics) -> u64 {
    statistics.pulled_bytes_tcp + statistics.pulled_bytes_shm
}

/// Computes blocks in one layer, as the pass of a chunk through it does.
fn compute_layer(rank: &Worker, layer: usize, from: u32, to: u32) {
    for index in from..to {
        rank.fill_layer(layer, THERE[index as usize], 100 + u64::from(index));
    }
    rank.handoff.advance("one", Some(layer), to);
}

/// Two chunks: the second begins in the midst of a block, and gets its blocks when it's its turn.
fn follows(transport: TransportKind, model: Model, from: (u32, u32), to: (u32, u32)) {
    let producer = Engine::start(transport, model, "prefill", from.0, from.1);
    let consumer = Engine::start(transport, model, "decode", to.0, to.1);
    // it's asked for before it's there
    consumer.follow("mine", &producer.request("one"), &HERE, BEFORE);
    let all = |act: &dyn Fn(&Worker)| producer.ranks.iter().for_each(act);
    all(&|rank| rank.handoff.announce("one", PATIENCE).unwrap());
    all(&|rank| assert!(rank.handoff.extend("one", &THERE[..6]).unwrap()));
    let moved = |wanted: u64| {
        for rank in &consumer.ranks {
            eventually("what is good comes", || {
                (bytes(&rank.handoff.statistics()) >= wanted).then_some(())
            });
            assert!(rank.handoff.take_pulled().is_empty());
        }
    };
    all(&|rank| (0..rank.layers()).for_each(|layer| compute_layer(rank, layer, 0, 4)));
    moved(1);
    let after_one = consumer.ranks[0].handoff.statistics();
    all(&|rank| assert!(rank.handoff.extend("one", &THERE[6..]).unwrap()));
    all(&|rank| compute_layer(rank, 0, 4, 9));
    moved(bytes(&after_one) + 1);
    for rank in &consumer.ranks {
        // counted a turn later, and a fast producer would be done by then
        eventually("what came counts as overlapped", || {
            (rank.handoff.statistics().overlapped_bytes > 0).then_some(())
        });
    }
    all(&|rank| (1..rank.layers()).for_each(|layer| compute_layer(rank, layer, 4, 9)));
    all(&|rank| assert!(rank.handoff.complete("one", PATIENCE)));
    for rank in &consumer.ranks {
        let pulled = rank.pulled();
        assert_eq!(
            (pulled.message.as_str(), pulled.failed.len()),
            ("", 0),
            "{model:?} {from:?} {to:?}"
        );
        for (content, block) in (100 + u64::from(BEFORE)..).zip(HERE) {
            assert!(
                rank.holds(block, content),
                "{model:?} {from:?} {to:?} block {block}"
            );
        }
        for other in (0..BLOCKS).filter(|block| !HERE.contains(block)) {
            assert!(!(100..110).any(|content| rank.holds(other, content)));
        }
        let statistics = rank.handoff.statistics();
        // all of it, where the last blocks are pulled before the request is complete
        assert!(0 < statistics.overlapped_bytes && statistics.overlapped_bytes <= bytes(&statistics));
    }
    for rank in &producer.ranks {
        assert_eq!(rank.released("one"), "taken");
    }
    for rank in producer.ranks.iter().chain(&consumer.ranks) {
        eventually("nothing is left", || rank.is_clean().then_some(()));
    }
}

#[test]
fn blocks_come_as_they_are_computed() {
    for model in [NHD, HND, MLA] {
        for [from, to] in [
            [(1, 1), (1, 1)],
            [(2, 1), (1, 1)],
            [(1, 1), (2, 1)],
            [(1, 2), (1, 1)],
        ] {
            follows(Tcp, model, from, to);
        }
    }
}

#[test]
fn through_shared_memory_too() {
    follows(Shm, HND, (1, 1), (1, 1));
    follows(Shm, NHD, (2, 1), (1, 1));
}

#[test]
fn one_that_is_complete_is_followed_as_well() {
    let producer = Engine::start(Tcp, HND, "prefill", 1, 1);
    let consumer = Engine::start(Tcp, HND, "decode", 1, 1);
    producer.hold("one", &THERE);
    consumer.follow("mine", &producer.request("one"), &HERE, BEFORE);
    assert_eq!(consumer.ranks[0].pulled().message, "");
    assert_eq!(consumer.ranks[0].handoff.statistics().overlapped_bytes, 0);
    assert_eq!(producer.ranks[0].released("one"), "taken");
}

#[test]
fn a_pull_that_knows_nothing_of_it_waits_for_the_end() {
    let producer = Engine::start(Tcp, HND, "prefill", 1, 1);
    let consumer = Engine::start(Tcp, HND, "decode", 1, 1);
    let prefill = &producer.ranks[0];
    prefill.handoff.announce("one", PATIENCE).unwrap();
    consumer.pull("mine", producer.request("one"), &HERE, BEFORE);
    prefill.handoff.extend("one", &THERE).unwrap();
    for layer in 0..prefill.layers() {
        std::thread::park_timeout(Duration::from_millis(20));
        compute_layer(prefill, layer, 0, 9);
    }
    let pulled = consumer.ranks[0].pulled();
    assert_eq!(pulled.message, "");
    assert!(
        (100 + u64::from(BEFORE)..)
            .zip(HERE)
            .all(|(content, block)| consumer.ranks[0].holds(block, content))
    );
}

/// A producer and a consumer of which a part has come, and no more is good.
fn under_way() -> (Engine, Engine) {
    let producer = Engine::start(Tcp, HND, "prefill", 1, 1);
    let consumer = Engine::start(Tcp, HND, "decode", 1, 1);
    let prefill = &producer.ranks[0];
    prefill.handoff.announce("one", PATIENCE).unwrap();
    prefill.handoff.extend("one", &THERE).unwrap();
    compute_layer(prefill, 0, 0, 9);
    consumer.follow("mine", &producer.request("one"), &HERE, BEFORE);
    let handoff = &consumer.ranks[0].handoff;
    eventually("something comes", || {
        (bytes(&handoff.statistics()) > 0).then_some(())
    });
    (producer, consumer)
}

#[test]
fn blocks_that_are_taken_back_are_not_used() {
    let (producer, consumer) = under_way();
    let prefill = &producer.ranks[0];
    let soon = Runtime::system().deadline(PATIENCE);
    prefill
        .handoff
        .withdraw(&["one".to_owned(), "unknown".to_owned()], soon)
        .unwrap();
    // from now on they are somebody else's
    for block in THERE {
        prefill.fill(block, 9999);
    }
    assert!(!prefill.handoff.extend("one", &[10]).unwrap());
    assert!(!prefill.handoff.complete("one", PATIENCE));
    let pulled = consumer.ranks[0].pulled();
    assert_eq!(pulled.failed, HERE);
    assert!(!HERE.iter().any(|block| consumer.ranks[0].holds(*block, 9999)));
    assert_eq!(consumer.ranks[0].handoff.statistics().pulls_gone, 1);
    assert_eq!(prefill.released("one"), "dropped");
    eventually("nothing is left", || {
        (prefill.is_clean() && consumer.ranks[0].is_clean()).then_some(())
    });
}

/// Whatever a pull brought as good is what was computed, though the blocks are written to as soon as they are taken back.
#[test]
fn taken_back_at_any_moment() {
    for (transport, round) in [Tcp, Shm]
        .into_iter()
        .flat_map(|transport| (0..5u64).map(move |round| (transport, round)))
    {
        let producer = Engine::with(&settings(transport), LARGE, MANY, "prefill", 1, 1);
        let consumer = Engine::with(&settings(transport), LARGE, MANY, "decode", 1, 1);
        let (prefill, decode) = (&producer.ranks[0], &consumer.ranks[0]);
        let blocks: Vec<u32> = (0..MANY).collect();
        (100..)
            .zip(&blocks)
            .for_each(|(content, block)| prefill.fill(*block, content));
        prefill.handoff.announce("one", PATIENCE).unwrap();
        prefill.handoff.extend("one", &blocks).unwrap();
        consumer.follow("mine", &producer.request("one"), &blocks, 0);
        prefill.handoff.advance("one", None, MANY / 2);
        std::thread::park_timeout(Duration::from_millis(2 * round));
        prefill.handoff.advance("one", Some(1), MANY);
        let soon = Runtime::system().deadline(PATIENCE);
        prefill.handoff.withdraw(&["one".to_owned()], soon).unwrap();
        for block in &blocks {
            prefill.fill(*block, 9999);
        }
        let pulled = decode.pulled();
        assert_eq!(
            pulled.failed, blocks,
            "three layers of the second half never came"
        );
        assert!(!blocks.iter().any(|block| decode.holds(*block, 9999)));
    }
}

#[test]
fn who_gives_up_frees_both_sides() {
    let (producer, consumer) = under_way();
    consumer.ranks[0].handoff.cancel("mine");
    assert_eq!(consumer.ranks[0].pulled().failed, HERE);
    assert_eq!(producer.ranks[0].released("one"), "taken");
    assert!(!producer.ranks[0].handoff.complete("one", PATIENCE));
}

#[test]
fn a_lease_ends_in_the_midst_and_begins_anew_at_the_end() {
    let (producer, consumer) = under_way();
    let prefill = &producer.ranks[0];
    prefill
        .handoff
        .announce("short", Duration::from_millis(1))
        .unwrap();
    assert_eq!(prefill.released("short"), "expired");
    consumer.follow("other", &producer.request("short"), &[10], 0);
    assert_eq!(consumer.ranks[0].pulled().failed, [10]);
    assert!(prefill.handoff.complete("one", Duration::ZERO));
    assert_eq!(prefill.released("one"), "expired");
}

#[test]
fn fewer_blocks_than_are_pulled_fail_it() {
    let producer = Engine::start(Tcp, HND, "prefill", 1, 1);
    let consumer = Engine::start(Tcp, HND, "decode", 1, 1);
    let prefill = &producer.ranks[0];
    prefill.handoff.announce("one", PATIENCE).unwrap();
    prefill.handoff.extend("one", &[1, 2]).unwrap();
    assert_eq!(
        prefill.handoff.extend("one", &[BLOCKS]).unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
    assert!(!prefill.handoff.extend("unknown", &[1]).unwrap());
    consumer.follow("mine", &producer.request("one"), &[4, 5, 6], 0);
    assert!(prefill.handoff.complete("one", PATIENCE));
    let pulled = consumer.ranks[0].pulled();
    assert_eq!(pulled.failed, [4, 5, 6]);
    assert!(pulled.message.contains("fewer blocks"), "{}", pulled.message);
}

#[test]
fn nobody_computes_it() {
    let producer = Engine::start(Tcp, HND, "prefill", 1, 1);
    let consumer = Engine::start(Tcp, HND, "decode", 1, 1);
    let handoff = &consumer.ranks[0].handoff;
    let soon = Duration::from_millis(100);
    handoff
        .follow("mine", producer.request("never"), vec![1], 0, soon)
        .unwrap();
    assert_eq!(consumer.ranks[0].pulled().failed, [1]);
    // and one of which nothing gets good
    producer.ranks[0].handoff.announce("stuck", PATIENCE).unwrap();
    handoff
        .follow("mine", producer.request("stuck"), vec![1], 0, soon)
        .unwrap();
    let pulled = consumer.ranks[0].pulled();
    assert!(pulled.message.starts_with("timed_out"), "{}", pulled.message);
}

/// The process that computes is lost when half of it has come.
fn lost(transport: TransportKind, lose: impl Fn(&mut Producer), timeout: Duration) {
    let consumer = Engine::with(&settings(transport), LARGE, MANY, "decode", 1, 1);
    let decode = &consumer.ranks[0];
    let mut producer = Producer::start(transport);
    let blocks: Vec<u32> = (0..MANY).collect();
    let request = producer.compute("one", MANY / 2);
    decode
        .handoff
        .follow("mine", request, blocks.clone(), 0, timeout)
        .unwrap();
    let half = LARGE.layers as u64 * 2 * 4 * LARGE.head_bytes * u64::from(MANY) / 2;
    eventually("half of it comes", || {
        (bytes(&decode.handoff.statistics()) >= half).then_some(())
    });
    lose(&mut producer);
    let before = now();
    let pulled = decode.pulled();
    assert!(now() - before < PATIENCE);
    assert_eq!(pulled.failed, blocks);
    for block in &blocks {
        decode.fill(*block, 5000);
    }
    std::thread::park_timeout(Duration::from_millis(5));
    assert!(
        blocks.iter().all(|block| decode.holds(*block, 5000)),
        "it's their owner's again"
    );
    eventually("nothing is left", || decode.is_clean().then_some(()));
}

#[test]
fn killed_in_the_midst() {
    lost(Tcp, Producer::kill, PATIENCE);
    lost(Shm, Producer::kill, PATIENCE);
}

#[test]
fn stopped_in_the_midst() {
    lost(Tcp, |producer| producer.stop(), Duration::from_secs(1));
    lost(Shm, |producer| producer.stop(), Duration::from_secs(1));
}

#[test]
fn computed_to_the_end_by_another_process() {
    for transport in [Tcp, Shm] {
        let consumer = Engine::with(&settings(transport), LARGE, MANY, "decode", 1, 1);
        let decode = &consumer.ranks[0];
        let mut producer = Producer::start(transport);
        let blocks: Vec<u32> = (0..MANY).collect();
        let request = producer.compute("one", 1);
        decode
            .handoff
            .follow("mine", request, blocks.clone(), 0, PATIENCE)
            .unwrap();
        for computed in [10, 11, 50, MANY] {
            producer.compute("one", computed);
        }
        assert_eq!(decode.pulled().message, "");
        assert!(
            (100..)
                .zip(&blocks)
                .all(|(content, block)| decode.holds(*block, content))
        );
    }
}
