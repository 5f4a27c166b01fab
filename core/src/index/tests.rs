use std::collections::{BTreeSet, HashMap};

use proptest::prelude::*;

use super::{BlockIndex, Place};
use crate::block::BlockHash;

type Location = [u32; 3];

const ODD: u64 = 0x9E37_79B9_7F4A_7C15;

fn location(number: u64) -> Location {
    [number as u32, (number >> 32) as u32, !(number as u32)]
}

/// Hashes that look like a cryptographic function's.
fn uniform(number: u64) -> BlockHash {
    let mut bytes = [0; 32];
    for (position, word) in bytes.chunks_exact_mut(8).enumerate() {
        let mixed = (number + 1)
            .wrapping_mul(ODD)
            .rotate_left(position as u32 * 17 + 5)
            .wrapping_mul(ODD);
        word.copy_from_slice(&(mixed ^ (mixed >> 29)).to_le_bytes());
    }
    BlockHash::new(&bytes).unwrap()
}

/// Different hashes with one fingerprint.
fn colliding(number: u64) -> BlockHash {
    let mut folded = 32u64;
    let words = [number, number ^ 0xFF, 7];
    for word in words {
        folded = (folded.rotate_left(23) ^ word).wrapping_mul(ODD);
    }
    let last = folded.rotate_left(23) ^ 0x1234_5678;
    let bytes: Vec<u8> = words
        .into_iter()
        .chain([last])
        .flat_map(u64::to_le_bytes)
        .collect();
    BlockHash::new(&bytes).unwrap()
}

/// Hashes with little entropy, by shape.
fn hash_of(shape: u8, number: u64) -> BlockHash {
    let mut bytes = [0; 32];
    match shape {
        0 => return uniform(number),
        1 => bytes[..8].copy_from_slice(&number.to_le_bytes()),
        2 => bytes[..8].copy_from_slice(&number.to_be_bytes()),
        3 => bytes[24..].copy_from_slice(&number.to_be_bytes()),
        4 => {
            bytes = [0xEE; 32];
            bytes[8..16].copy_from_slice(&number.to_le_bytes());
        }
        5 => return colliding(number),
        _ => {
            bytes[8..16].copy_from_slice(&number.to_be_bytes());
            return BlockHash::new(&bytes[..16]).unwrap();
        }
    }
    BlockHash::new(&bytes).unwrap()
}

#[derive(Clone, Debug)]
enum Step {
    Insert(BlockHash, u64),
    Remove(BlockHash),
    RemoveIf(BlockHash, u32),
    Update(BlockHash, u64),
    Retain(u32),
    Lookup(Vec<BlockHash>),
    List(Option<BlockHash>, usize),
    Clear,
}

fn any_hash() -> impl Strategy<Value = BlockHash> {
    (0u8..7, 0u64..60).prop_map(|(shape, number)| hash_of(shape, number))
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => (any_hash(), any::<u64>()).prop_map(|(hash, value)| Step::Insert(hash, value)),
        8 => any_hash().prop_map(Step::Remove),
        2 => (any_hash(), 0u32..4).prop_map(|(hash, residue)| Step::RemoveIf(hash, residue)),
        4 => (any_hash(), any::<u64>()).prop_map(|(hash, value)| Step::Update(hash, value)),
        1 => (2u32..5).prop_map(Step::Retain),
        4 => prop::collection::vec(any_hash(), 0..100).prop_map(Step::Lookup),
        2 => (prop::option::of(any_hash()), 0usize..50).prop_map(|(after, limit)| Step::List(after, limit)),
        1 => Just(Step::Clear),
    ]
}

fn expected_list(model: &HashMap<BlockHash, Location>, after: Option<&BlockHash>) -> Vec<BlockHash> {
    let order: BTreeSet<_> = model.keys().map(|hash| (Place::of(hash), *hash)).collect();
    let bound = after.map(|hash| (Place::of(hash), *hash));
    order
        .into_iter()
        .filter(|key| bound.is_none_or(|bound| *key > bound))
        .map(|(_, hash)| hash)
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn behaves_like_a_hash_map(steps in prop::collection::vec(any_step(), 0..300)) {
        let mut index = BlockIndex::new();
        let mut model: HashMap<BlockHash, Location> = HashMap::new();
        for step in steps {
            match step {
                Step::Insert(hash, value) => {
                    prop_assert_eq!(index.insert(hash, location(value)), model.insert(hash, location(value)));
                }
                Step::Remove(hash) => prop_assert_eq!(index.remove(&hash), model.remove(&hash)),
                Step::RemoveIf(hash, residue) => {
                    let condition = |value: &Location| value[0] % 4 == residue;
                    let expected = model.get(&hash).copied().filter(|value| condition(value));
                    if expected.is_some() {
                        model.remove(&hash);
                    }
                    prop_assert_eq!(index.remove_if(&hash, condition), expected);
                }
                Step::Update(hash, value) => {
                    let updated = index.update(&hash, |held| held[1] = value as u32);
                    let expected = model.get_mut(&hash).map(|held| held[1] = value as u32).is_some();
                    prop_assert_eq!(updated, expected);
                }
                Step::Retain(divisor) => {
                    index.retain(|_, value| value[0] % divisor != 0);
                    model.retain(|_, value| value[0] % divisor != 0);
                }
                Step::Lookup(hashes) => {
                    let mut present: Vec<bool> = (0..hashes.len()).map(|number| number % 5 == 0).collect();
                    index.lookup(&hashes, &mut present);
                    for (number, hash) in hashes.iter().enumerate() {
                        prop_assert_eq!(present[number], number % 5 == 0 || model.contains_key(hash));
                    }
                    let prefix = hashes.iter().take_while(|hash| model.contains_key(*hash)).count();
                    prop_assert_eq!(index.lookup_on_prefix(&hashes), prefix);
                }
                Step::List(after, limit) => {
                    let mut expected = expected_list(&model, after.as_ref());
                    expected.truncate(limit);
                    prop_assert_eq!(index.list_after(after.as_ref(), limit), expected);
                }
                Step::Clear => {
                    index.clear();
                    model.clear();
                }
            }
            prop_assert_eq!(index.len(), model.len());
        }
        index.check();
        let entries: HashMap<_, _> = index.iter().map(|(hash, value)| (*hash, *value)).collect();
        prop_assert_eq!(entries, model);
    }
}

#[test]
fn low_entropy_hashes_spread_over_the_tables_and_are_found() {
    for shape in [0, 1, 2, 3, 4, 6] {
        let mut index = BlockIndex::new();
        for number in 0..20_000 {
            index.insert(hash_of(shape, number), location(number));
        }
        index.check();
        let hashes: Vec<_> = (0..40_000).map(|number| hash_of(shape, number)).collect();
        assert_eq!(index.lookup_on_prefix(&hashes), 20_000);
        let mut present = vec![false; hashes.len()];
        index.lookup(&hashes[20_000..], &mut present[20_000..]);
        assert!(!present.contains(&true), "shape {shape}");
        let mut counts = [0usize; super::TABLES];
        for (hash, _) in index.iter() {
            counts[Place::of(hash).table()] += 1;
        }
        let largest = counts.iter().max().unwrap();
        assert!(*largest < 2 * 20_000 / super::TABLES, "shape {shape}: {counts:?}");
    }
}

#[test]
fn equal_fingerprints_are_told_apart() {
    let hashes: Vec<_> = (0..600).map(colliding).collect();
    assert!(
        hashes
            .iter()
            .all(|hash| hash.fingerprint() == hashes[0].fingerprint())
    );
    let mut index = BlockIndex::new();
    for (number, hash) in hashes.iter().enumerate().step_by(2) {
        index.insert(*hash, location(number as u64));
    }
    index.check();
    let mut present = vec![false; hashes.len()];
    index.lookup(&hashes, &mut present);
    assert!(
        present
            .iter()
            .enumerate()
            .all(|(number, present)| *present == (number % 2 == 0))
    );
    for (number, hash) in hashes.iter().enumerate().step_by(2) {
        assert_eq!(index.remove(hash), Some(location(number as u64)));
    }
    assert!(index.is_empty());
}

#[test]
fn a_block_takes_at_most_64_bytes_at_every_size() {
    let mut index = BlockIndex::new();
    for number in 0..2_000_000 {
        index.insert(uniform(number), location(number));
        let size = index.len();
        // every size while small, when a chunk or a table weighs most, then often enough to meet each growth step
        if size > 10_000 && (size < 30_000 || size % 97 == 0) {
            let bytes = index.memory_bytes();
            assert!(bytes <= 64 * size, "{bytes} bytes for {size} blocks");
        }
    }
    assert_eq!(index.len(), 2_000_000);
}

#[test]
fn memory_of_removed_blocks_is_used_again() {
    let mut index = BlockIndex::new();
    (0..20_000).for_each(|number| assert!(index.insert(uniform(number), location(number)).is_none()));
    let bytes = index.memory_bytes();
    for number in 20_000..100_000 {
        assert_eq!(
            index.remove(&uniform(number - 20_000)),
            Some(location(number - 20_000))
        );
        index.insert(uniform(number), location(number));
    }
    assert!(
        index.memory_bytes() <= bytes * 11 / 10,
        "{} bytes grew to {}",
        bytes,
        index.memory_bytes()
    );
    index.check();
    index.clear();
    assert!(index.is_empty() && index.memory_bytes() < 4096);
}

#[test]
fn a_walk_lists_what_stays_whatever_goes_meanwhile() {
    let mut index = BlockIndex::new();
    (0..5_000).for_each(|number| assert!(index.insert(uniform(number), location(number)).is_none()));
    let mut walked = Vec::new();
    let mut after = None;
    for round in 0u64.. {
        let page = index.list_after(after.as_ref(), 100);
        let Some(last) = page.last() else { break };
        after = Some(*last);
        // the cursor itself goes, and new blocks make the tables grow
        index.remove(last);
        (0..50).for_each(|number| {
            index.insert(uniform(10_000 + round * 50 + number), [0; 3]);
        });
        walked.extend(page);
    }
    let distinct: BTreeSet<_> = walked.iter().copied().collect();
    assert_eq!(distinct.len(), walked.len());
    assert!((0..5_000).all(|number| distinct.contains(&uniform(number))));
}

#[test]
fn a_prefix_ends_at_its_first_gap() {
    let hashes: Vec<_> = (0..1_000).map(uniform).collect();
    let mut index = BlockIndex::new();
    for hash in &hashes {
        index.insert(*hash, location(1));
    }
    assert_eq!(index.lookup_on_prefix(&hashes), 1_000);
    for gap in [999, 500, 33, 32, 31, 1, 0] {
        index.remove(&hashes[gap]);
        assert_eq!(index.lookup_on_prefix(&hashes), gap);
    }
    assert_eq!(index.lookup_on_prefix(&[]), 0);
}
