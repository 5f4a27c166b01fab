//! Messages of every kind, with fields of every kind.

use std::borrow::Cow;

use kvstored_core::block::{BlockHash, BlockKey, Namespace};
use kvstored_core::engine::VerifyReport;
use kvstored_core::error::ErrorKind;
use kvstored_core::events::{Event, EventKind, Events};
use kvstored_core::identity::{Identity, ParallelShape};
use kvstored_core::layout::{Layout, Shard};
use kvstored_core::tier::Durability;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::wire::*;

pub fn hash() -> impl Strategy<Value = BlockHash> {
    vec(any::<u8>(), 16..=32).prop_map(|bytes| BlockHash::new(&bytes).unwrap())
}

pub fn hashes() -> impl Strategy<Value = Cow<'static, [BlockHash]>> {
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

pub fn request() -> impl Strategy<Value = Request<'static>> {
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
        (any::<u32>(), hashes()).prop_map(|(namespace, hashes)| Request::LocatePrefix { namespace, hashes }),
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
        (any::<u64>(), 0u32..=65_536).prop_map(|(after, limit)| Request::TakeEvents { after, limit }),
        any::<u32>().prop_map(|timeout_ms| Request::Drain { timeout_ms }),
    ]
}

fn failure() -> impl Strategy<Value = Failure> {
    (0..ErrorKind::ALL.len(), ".{0,30}").prop_map(|(kind, message)| Failure {
        kind: ErrorKind::ALL[kind],
        message,
    })
}

fn event() -> impl Strategy<Value = Event> {
    (any::<bool>(), any::<u8>(), key()).prop_map(|(stored, tier, key)| {
        let kind = if stored {
            EventKind::Stored
        } else {
            EventKind::Removed
        };
        Event { kind, tier, key }
    })
}

pub fn answer() -> impl Strategy<Value = Answer> {
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
        vec(any::<u8>(), 0..70).prop_map(Answer::Located),
        (any::<[u64; 2]>(), any::<bool>(), vec(event(), 0..20)).prop_map(|([first, next], lost, events)| {
            Answer::Events(Events {
                first,
                next,
                lost,
                events,
            })
        }),
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
