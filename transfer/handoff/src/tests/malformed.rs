//! Questions that no consumer asks.

use kvstored_core::Runtime;
use kvstored_transfer::{EngineSettings, TransferEngine, TransportKind};

use super::rig::{HND, PATIENCE, pair};
use crate::wire::{Item, MAX_LOCATED, Question};

#[test]
fn they_are_refused_and_harm_nobody() {
    let (producer, consumer) = pair(TransportKind::Tcp, HND);
    producer.hold("one", &[1, 2, 5]);
    let stranger = TransferEngine::start(
        EngineSettings {
            transports: vec![TransportKind::Tcp],
            ..EngineSettings::default()
        },
        Runtime::system(),
    )
    .unwrap();
    let soon = Runtime::system().deadline(PATIENCE);
    let peer = stranger.open_peer(&producer.ranks[0].address(), soon).unwrap();
    let locate = |first, blocks| Question::Locate {
        engine_id: "prefill".to_owned(),
        request: "one".to_owned(),
        first,
        blocks,
    };
    let item = Item {
        piece: 0,
        first: 0,
        blocks: 2,
        first_head: 0,
        heads: HND.heads as u16,
    };
    let grant = |item| Question::Grant {
        engine_id: "prefill".to_owned(),
        request: "one".to_owned(),
        sums: false,
        items: vec![item],
    };
    let done = |rank, ranks| Question::Done {
        engine_id: "prefill".to_owned(),
        request: "one".to_owned(),
        rank,
        ranks,
    };
    let questions = [
        locate(0, 4),
        locate(3, 1),
        locate(u32::MAX, u32::MAX),
        locate(0, MAX_LOCATED as u32 + 1),
        grant(Item { piece: 8, ..item }),
        grant(Item {
            piece: u32::MAX,
            ..item
        }),
        grant(Item { blocks: 3, ..item }),
        grant(Item { blocks: 0, ..item }),
        grant(Item {
            first: u32::MAX,
            ..item
        }),
        grant(Item { heads: 0, ..item }),
        grant(Item { heads: 5, ..item }),
        grant(Item {
            first_head: 1,
            ..item
        }),
        grant(Item {
            first_head: u16::MAX,
            heads: u16::MAX,
            ..item
        }),
        done(0, 0),
        done(1, 1),
        done(0, u32::MAX),
    ];
    for question in questions {
        assert!(peer.ask(&question.encode(), soon).is_err(), "{question:?}");
    }
    let whole = grant(item).encode();
    for length in 0..whole.len() {
        assert!(peer.ask(&whole[..length], soon).is_err());
    }
    for at in 0..8 {
        let mut other = whole.clone();
        other[at] ^= 0x40;
        assert!(peer.ask(&other, soon).is_err(), "byte {at}");
    }
    peer.ask(&whole, soon).unwrap();
    consumer.pull("mine", producer.request("one"), &[4, 5, 6], 0);
    assert_eq!(consumer.ranks[0].pulled().message, "");
    assert_eq!(producer.ranks[0].released("one"), "taken");
}
