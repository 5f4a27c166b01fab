//! Messages, there and back.

use proptest::prelude::*;

use super::*;
use crate::geometry::{Description, Layer, Rank, Shape};

fn name() -> impl Strategy<Value = String> {
    "[a-z0-9.:-]{0,40}"
}

fn item() -> impl Strategy<Value = Item> {
    any::<(u32, u32, u32, u16, u16)>().prop_map(|(piece, first, blocks, first_head, heads)| Item {
        piece,
        first,
        blocks,
        first_head,
        heads,
    })
}

fn question() -> impl Strategy<Value = Question> {
    prop_oneof![
        any::<u32>().prop_map(|from| Question::Describe { from }),
        (name(), name(), any::<u32>(), any::<u32>()).prop_map(|(engine_id, request, first, blocks)| {
            Question::Locate {
                engine_id,
                request,
                first,
                blocks,
            }
        }),
        (
            name(),
            name(),
            any::<bool>(),
            prop::collection::vec(item(), 0..20)
        )
            .prop_map(|(engine_id, request, sums, items)| Question::Grant {
                engine_id,
                request,
                sums,
                items,
            }),
        any::<u64>().prop_map(|ticket| Question::Sums { ticket }),
        (name(), name(), any::<u32>(), any::<u32>()).prop_map(|(engine_id, request, rank, ranks)| {
            Question::Done {
                engine_id,
                request,
                rank,
                ranks,
            }
        }),
        (name(), name()).prop_map(|(engine_id, request)| Question::Progress { engine_id, request }),
    ]
}

/// A description of that many layers, whose names are as long as they may be.
fn description(layers: usize) -> Description<Shape> {
    let shape = Shape {
        blocks: 10,
        stride: 512,
        block_bytes: 256,
        rows: 1,
        heads: 2,
    };
    Description {
        engine_id: "engine".repeat(42),
        fingerprint: vec![3; 256],
        block_tokens: 16,
        rank: Rank {
            total_heads: 8,
            first_head: 2,
            heads: 2,
            tp_rank: 1,
            tp_size: 4,
            pp_rank: 0,
            pp_size: 1,
        },
        layers: (0..layers)
            .map(|layer| Layer {
                name: format!("{layer:0>256}"),
                pieces: vec![shape; 16],
            })
            .collect(),
    }
}

#[test]
fn descriptions_take_as_many_pages_as_they_need() {
    let whole = description(300);
    whole.check().unwrap();
    let mut layers = Vec::new();
    while layers.len() < whole.layers.len() {
        let page = DescriptionPage::of(&whole, layers.len() as u32);
        let bytes = Answer::Described(Box::new(page)).encode();
        assert!(bytes.len() <= MAX_MESSAGE_BYTES);
        let Answer::Described(page) = Answer::decode(&bytes, 1).unwrap() else {
            panic!("another answer");
        };
        assert_eq!((page.total as usize, page.from as usize), (300, layers.len()));
        assert!(!page.description.layers.is_empty());
        layers.extend(page.description.layers);
    }
    assert_eq!(layers, whole.layers);
    assert!(
        DescriptionPage::of(&whole, u32::MAX)
            .description
            .layers
            .is_empty()
    );
}

#[test]
fn answers_fit_in_a_message() {
    let sums = Answer::Sums(vec![u64::MAX; MAX_ITEMS]);
    let runs = Answer::Located(vec![1; MAX_LOCATED]);
    let progress = Answer::Progress {
        complete: true,
        blocks: 9,
        ready: vec![u32::MAX; crate::limits::MAX_LAYERS],
    };
    for answer in [sums, runs, progress] {
        let bytes = answer.encode();
        assert!(bytes.len() <= MAX_MESSAGE_BYTES);
        assert_eq!(Answer::decode(&bytes, answer.kind()).unwrap(), answer);
    }
    let right = kvstored_transfer::GRANT_BYTES + 2 + MAX_WORTH_BYTES;
    let grants = HEADER_BYTES + 12 + MAX_ITEMS * right;
    assert!(grants <= MAX_MESSAGE_BYTES);
    for (kind, status) in [(1, Status::NotYet), (5, Status::Gone), (6, Status::NotYet)] {
        let refused = Answer::Refused { kind, status };
        assert_eq!(Answer::decode(&refused.encode(), kind).unwrap(), refused);
        assert!(Answer::decode(&refused.encode(), 2).is_err());
    }
}

proptest! {
    #[test]
    fn questions_survive_the_wire(question in question()) {
        let bytes = question.encode();
        prop_assert_eq!(Question::decode(&bytes).unwrap(), question);
        for length in 0..bytes.len() {
            prop_assert!(Question::decode(&bytes[..length]).is_err());
        }
    }

    #[test]
    fn what_decodes_encodes_the_same(bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 1u8..7, status in 0u8..3) {
        let mut message = vec![b'K', b'V', b'H', b'O', VERSION, kind, 0, 0];
        message.extend(&bytes);
        if let Ok(question) = Question::decode(&message) {
            prop_assert_eq!(question.encode(), &message[..]);
        }
        message[6] = status;
        if let Ok(answer) = Answer::decode(&message, kind) {
            prop_assert_eq!(answer.encode(), message);
        }
    }
}
