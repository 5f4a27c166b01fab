use std::borrow::Cow;

use kvstored_core::block::{BlockHash, BlockKey, Namespace};
use kvstored_core::engine::VerifyReport;
use kvstored_core::error::ErrorKind;
use kvstored_core::identity::{Identity, ParallelShape};
use kvstored_core::layout::{Layout, Shard};
use kvstored_core::tier::Durability;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn hash() -> impl Strategy<Value = BlockHash> {
    vec(any::<u8>(), 16..=32).prop_map(|bytes| BlockHash::new(&bytes).unwrap())
}

fn hashes() -> impl Strategy<Value = Cow<'static, [BlockHash]>> {
    let uniform = vec([any::<u8>(); 20], 0..50).prop_map(|all| {
        all.iter()
            .map(|bytes| BlockHash::new(bytes).unwrap())
            .collect::<Vec<_>>()
    });
    prop_oneof![uniform, vec(hash(), 0..50)].prop_map(Cow::Owned)
}

fn namespace() -> impl Strategy<Value = Namespace> {
    any::<[u8; 32]>().prop_map(Namespace)
}

fn key() -> impl Strategy<Value = BlockKey> {
    (namespace(), hash()).prop_map(|(namespace, hash)| BlockKey { namespace, hash })
}

fn identity() -> impl Strategy<Value = Identity> {
    (vec(".{0,20}", 6), any::<[u32; 6]>()).prop_map(|(texts, numbers)| Identity {
        tenant: texts[0].clone(),
        model: texts[1].clone(),
        weights_digest: texts[2].clone(),
        lora: texts[3].clone(),
        dtype: texts[4].clone(),
        cache_salt: texts[5].clone(),
        layout_version: numbers[0],
        block_tokens: numbers[1],
        parallel: ParallelShape {
            tensor_parallel_size: numbers[2],
            tensor_parallel_rank: numbers[3],
            pipeline_parallel_size: numbers[4],
            pipeline_parallel_rank: numbers[5],
        },
    })
}

fn layout() -> impl Strategy<Value = Layout> {
    vec(vec(1u32..100_000, 1..5), 1..6).prop_map(|shards| {
        Layout::new(
            shards
                .into_iter()
                .map(|tensor_bytes| Shard { tensor_bytes })
                .collect(),
        )
        .unwrap()
    })
}

fn durability() -> impl Strategy<Value = Durability> {
    prop_oneof![
        Just(Durability::Memory),
        Just(Durability::Tier),
        Just(Durability::Durable)
    ]
}

fn request() -> impl Strategy<Value = Request<'static>> {
    let numbers = || vec(any::<u64>(), 0..40).prop_map(Cow::<'static, [u64]>::Owned);
    prop_oneof![
        (any::<u16>(), ".{0,40}", any::<u32>()).prop_map(|(protocol, name, process)| Request::Hello {
            protocol,
            name,
            process
        }),
        Just(Request::Ping),
        Just(Request::Statistics),
        (identity(), layout()).prop_map(|(identity, layout)| Request::OpenNamespace {
            identity: Box::new(identity),
            layout
        }),
        (any::<u32>(), hashes()).prop_map(|(namespace, hashes)| Request::Lookup { namespace, hashes }),
        (any::<u32>(), hashes())
            .prop_map(|(namespace, hashes)| Request::LookupOnPrefix { namespace, hashes }),
        (any::<u32>(), hashes()).prop_map(|(namespace, hashes)| Request::Acquire { namespace, hashes }),
        (any::<u32>(), hashes()).prop_map(|(namespace, hashes)| Request::Prefetch { namespace, hashes }),
        numbers().prop_map(|leases| Request::Release { leases }),
        numbers().prop_map(|reservations| Request::Abort { reservations }),
        any::<u64>().prop_map(|lease| Request::ReportCorrupt { lease }),
        (any::<u32>(), proptest::option::of(hash()), hashes(), any::<u32>()).prop_map(
            |(namespace, parent, hashes, wait_ms)| Request::Reserve {
                namespace,
                parent,
                hashes,
                wait_ms
            }
        ),
        (vec((any::<u64>(), vec(any::<u64>(), 0..10)), 0..20), durability()).prop_map(
            |(blocks, durability)| Request::Commit {
                blocks: blocks.into(),
                durability
            }
        ),
        (any::<u32>(), hashes(), proptest::option::of(".{0,12}")).prop_map(|(namespace, hashes, tier)| {
            Request::Evict {
                namespace,
                hashes,
                tier,
            }
        }),
        namespace().prop_map(|namespace| Request::Purge { namespace }),
        proptest::option::of(namespace()).prop_map(|after| Request::Namespaces { after }),
        (
            any::<bool>(),
            any::<u8>(),
            proptest::option::of(namespace()),
            proptest::option::of(key()),
            0u32..=65_536
        )
            .prop_map(|(list, tier, namespace, after, limit)| if list {
                Request::List {
                    tier,
                    namespace,
                    after,
                    limit,
                }
            } else {
                Request::Verify {
                    tier,
                    namespace,
                    after,
                    limit,
                }
            }),
        any::<u32>().prop_map(|timeout_ms| Request::Drain { timeout_ms }),
    ]
}

fn failure() -> impl Strategy<Value = Failure> {
    (0..ErrorKind::ALL.len(), ".{0,30}").prop_map(|(kind, message)| Failure {
        kind: ErrorKind::ALL[kind],
        message,
    })
}

fn answer() -> impl Strategy<Value = Answer> {
    let held = (any::<u64>(), any::<u64>(), any::<u8>()).prop_map(|(lease, offset, tier)| Held {
        lease,
        offset,
        tier,
    });
    let granted = prop_oneof![
        (any::<u64>(), any::<u64>()).prop_map(|(reservation, offset)| Granted::Slot { reservation, offset }),
        Just(Granted::Present),
        failure().prop_map(Granted::Refused),
    ];
    prop_oneof![
        (any::<u16>(), any::<u64>(), vec(".{0,10}", 0..5)).prop_map(|(protocol, arena_bytes, tier_names)| {
            Answer::Welcome {
                protocol,
                arena_bytes,
                tier_names,
            }
        }),
        Just(Answer::Pong),
        Just(Answer::Done),
        any::<u32>().prop_map(|namespace| Answer::Opened { namespace }),
        vec(any::<bool>(), 0..70).prop_map(Answer::Present),
        any::<u64>().prop_map(Answer::Count),
        vec(prop_oneof![held.prop_map(Ok), failure().prop_map(Err)], 0..20).prop_map(Answer::Acquired),
        vec(granted, 0..20).prop_map(Answer::Reserved),
        vec(
            prop_oneof![durability().prop_map(Ok), failure().prop_map(Err)],
            0..20
        )
        .prop_map(Answer::Committed),
        vec(any::<u8>(), 0..100).prop_map(Answer::Json),
        vec(key(), 0..20).prop_map(Answer::Keys),
        (any::<[u64; 4]>(), proptest::option::of(key())).prop_map(|(counts, after)| Answer::Verified {
            report: VerifyReport {
                checked_blocks: counts[0],
                corrupt_blocks: counts[1],
                vanished_blocks: counts[2],
                unread_blocks: counts[3],
            },
            after,
        }),
        failure().prop_map(Answer::Error),
    ]
}

fn split(frame: &[u8]) -> (Header, &[u8]) {
    (
        Header::decode(frame.first_chunk().unwrap()).unwrap(),
        &frame[HEADER_BYTES..],
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn requests_round_trip(id in any::<u32>(), request in request()) {
        let frame = request_frame(id, &request).unwrap();
        let (header, body) = split(&frame);
        prop_assert_eq!((header.id, header.body_bytes), (id, body.len()));
        prop_assert_eq!(Request::decode(header.kind, body).unwrap(), request);
    }

    #[test]
    fn answers_round_trip(id in any::<u32>(), answer in answer()) {
        let frame = answer_frame(id, &answer).unwrap();
        let (header, body) = split(&frame);
        prop_assert_eq!(Answer::decode(header.kind, body).unwrap(), answer);
    }

    #[test]
    fn a_message_cut_short_or_too_long_is_an_error(request in request(), cut in any::<prop::sample::Index>()) {
        let frame = request_frame(1, &request).unwrap();
        let (header, body) = split(&frame);
        if !body.is_empty() {
            prop_assert!(Request::decode(header.kind, &body[..cut.index(body.len())]).is_err());
        }
        let mut longer = body.to_vec();
        longer.push(0);
        prop_assert!(Request::decode(header.kind, &longer).is_err());
    }

    #[test]
    fn rubbish_never_panics_and_what_decodes_survives(kind in any::<u8>(), body in vec(any::<u8>(), 0..300)) {
        if let Ok(request) = Request::decode(kind, &body) {
            let frame = request_frame(1, &request).unwrap();
            prop_assert_eq!(Request::decode(kind, &frame[HEADER_BYTES..]).unwrap(), request);
        }
        if let Ok(answer) = Answer::decode(kind, &body) {
            let frame = answer_frame(1, &answer).unwrap();
            prop_assert_eq!(Answer::decode(kind, &frame[HEADER_BYTES..]).unwrap(), answer);
        }
    }

    #[test]
    fn flipped_bytes_never_panic(request in request(), at in any::<prop::sample::Index>(), flip in 1u8..) {
        let frame = request_frame(1, &request).unwrap();
        let (header, body) = split(&frame);
        let mut body = body.to_vec();
        if !body.is_empty() {
            let at = at.index(body.len());
            body[at] ^= flip;
        }
        let _ = Request::decode(header.kind, &body);
    }

    #[test]
    fn frames_come_out_of_a_stream_whatever_the_pieces(
        requests in vec(request(), 1..6),
        pieces in vec(1usize..2000, 1..30),
    ) {
        let mut stream = Vec::new();
        for (id, request) in requests.iter().enumerate() {
            stream.extend(request_frame(id as u32, request).unwrap());
        }
        let mut buffer = FrameBuffer::default();
        let (mut decoded, mut rest, mut pieces) = (Vec::new(), &stream[..], pieces.iter().cycle());
        while !rest.is_empty() {
            let piece = (*pieces.next().unwrap()).min(rest.len());
            buffer.space()[..piece].copy_from_slice(&rest[..piece]);
            buffer.filled(piece);
            rest = &rest[piece..];
            while let Some((header, body)) = buffer.next_frame().unwrap() {
                prop_assert_eq!(header.id as usize, decoded.len());
                decoded.push(Request::decode(header.kind, body).unwrap());
            }
        }
        prop_assert!(!buffer.is_partial());
        prop_assert_eq!(decoded, requests);
    }
}

fn lookup_body(count: u32, length: u8, bytes: usize) -> Vec<u8> {
    let mut body = 0u32.to_le_bytes().to_vec();
    body.extend(count.to_le_bytes());
    body.push(length);
    body.resize(body.len() + bytes, 7);
    body
}

#[test]
fn a_wrong_hash_length_is_named() {
    for length in [1u8, 15, 33, 255] {
        let error = Request::decode(4, &lookup_body(2, length, 2 * usize::from(length))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(
            error.to_string().contains(&format!("has {length} bytes")),
            "{error}"
        );
    }
}

#[test]
fn counts_are_checked_before_anything_is_allocated() {
    for body in [
        lookup_body(u32::MAX, 16, 64),
        lookup_body(65_537, 16, 64),
        lookup_body(60_000, 0, 64),
    ] {
        assert_eq!(
            Request::decode(4, &body).unwrap_err().kind(),
            ErrorKind::InvalidInput
        );
    }
    let many = vec![BlockHash::new(&[1; 32]).unwrap(); MAX_BLOCKS + 1];
    let error = request_frame(
        1,
        &Request::Lookup {
            namespace: 0,
            hashes: many.into(),
        },
    )
    .unwrap_err();
    assert!(error.to_string().contains("65537"), "{error}");
}

#[test]
fn the_largest_accepted_messages_fit_a_frame() {
    let hashes = vec![BlockHash::new(&[1; 32]).unwrap(); MAX_BLOCKS];
    request_frame(
        1,
        &Request::Acquire {
            namespace: 0,
            hashes: hashes.into(),
        },
    )
    .unwrap();
    let failure = Failure {
        kind: ErrorKind::Busy,
        message: "é".repeat(4000),
    };
    answer_frame(1, &Answer::Acquired(vec![Err(failure.clone()); MAX_BLOCKS])).unwrap();
    answer_frame(1, &Answer::Reserved(vec![Granted::Refused(failure); MAX_BLOCKS])).unwrap();
    let layout = Layout::uniform(Layout::MAX_SHARDS, Layout::MAX_TENSORS_PER_SHARD, 1).unwrap();
    request_frame(
        1,
        &Request::OpenNamespace {
            identity: Box::default(),
            layout,
        },
    )
    .unwrap();
}

#[test]
fn wrong_headers_are_told_apart() {
    let mut header = Header {
        kind: 2,
        id: 1,
        body_bytes: 0,
    }
    .encode();
    header[2] = 9;
    let error = Header::decode(&header).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("version 9"), "{error}");
    header[0] = 0;
    assert_eq!(
        Header::decode(&header).unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
    let header = Header {
        kind: 2,
        id: 1,
        body_bytes: MAX_BODY_BYTES + 1,
    }
    .encode();
    assert_eq!(
        Header::decode(&header).unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
    assert_eq!(
        Request::decode(99, &[]).unwrap_err().kind(),
        ErrorKind::Unsupported
    );
}
