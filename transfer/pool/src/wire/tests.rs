use std::collections::VecDeque;

use kvstored_core::{Error, ErrorKind, Result};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn item() -> impl Strategy<Value = Item> {
    let numbers = (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>());
    (numbers, vec(any::<u8>(), 0..100), vec(any::<u8>(), 0..64)).prop_map(
        |((put, offset, length, checksum), key, token)| Item {
            put,
            offset,
            length,
            checksum,
            key: key.into(),
            token: token.into(),
        },
    )
}

fn answer() -> impl Strategy<Value = Result<Answer>> {
    let good = (
        vec(any::<u8>(), 0..192),
        vec(any::<u8>(), 0..96),
        any::<u64>(),
        any::<u64>(),
    )
        .prop_map(|(grant, worth, checksum, master_epoch)| {
            Ok(Answer {
                grant: grant.into(),
                worth: worth.into(),
                checksum,
                master_epoch,
            })
        });
    let bad = "[a-z ]{0,40}".prop_map(|text| Err(Error::new(ErrorKind::Fenced, text)));
    prop_oneof![good, bad]
}

proptest! {
    #[test]
    fn requests_survive_the_wire(items in vec(item(), 0..20)) {
        let request = Request { items };
        prop_assert_eq!(Request::decode(&request.encode().unwrap()).unwrap(), request);
    }

    #[test]
    fn answers_survive_the_wire(items in vec(answer(), 0..20)) {
        let answers = Answers { items };
        let decoded = Answers::decode(&answers.encode(), answers.items.len()).unwrap();
        let plain = |items: Vec<Result<Answer>>| -> Vec<_> {
            items.into_iter().map(|item| item.map_err(|error| (error.kind(), error.message().to_owned()))).collect()
        };
        prop_assert_eq!(plain(decoded.items), plain(answers.items));
    }

    #[test]
    fn changes_and_listings_survive_the_wire(
        next in any::<u64>(),
        lost in any::<bool>(),
        keys in vec((any::<bool>(), vec(any::<u8>(), 0..80)), 0..20),
    ) {
        let listing = Listing { keys: keys.iter().map(|(_, key)| key.clone().into()).collect(), next };
        prop_assert_eq!(Listing::decode(&listing.encode()).unwrap(), listing);
        let change = |(stored, key): (bool, Vec<u8>)| Change { stored, key: key.into() };
        let changes = Changes { lost, next, changes: keys.into_iter().map(change).collect() };
        prop_assert_eq!(Changes::decode(&changes.encode()).unwrap(), changes);
    }

    #[test]
    fn parts_hold_every_item_once_and_fit(items in vec(item(), 0..600)) {
        let mut left: VecDeque<Item> = items.clone().into();
        let mut seen = Vec::new();
        while !left.is_empty() {
            let part = Request::next_part(&mut left);
            prop_assert!(part.encode().unwrap().len() <= MAX_BODY_BYTES);
            prop_assert!(!part.items.is_empty() && part.items.len() <= MAX_ITEMS);
            seen.extend(part.items);
        }
        prop_assert_eq!(seen, items);
    }

    #[test]
    fn rubbish_never_panics(bytes in vec(any::<u8>(), 0..400)) {
        let _ = Request::decode(&bytes);
        let _ = Answers::decode(&bytes, 3);
        let _ = Changes::decode(&bytes);
        let _ = Listing::decode(&bytes);
        let _ = Since::decode(&bytes);
    }
}

#[test]
fn a_full_answer_fits() {
    let longest = || {
        Ok(Answer {
            grant: vec![7; 128].into(),
            worth: vec![7; 96].into(),
            checksum: 1,
            master_epoch: 2,
        })
    };
    let items = (0..MAX_ITEMS).map(|_| longest()).collect();
    assert!(Answers { items }.encode().len() <= MAX_BODY_BYTES);
    let refused = || Err(Error::new(ErrorKind::Fenced, "x".repeat(1000)));
    let items = (0..MAX_ITEMS).map(|_| refused()).collect();
    let answers = Answers { items };
    assert!(answers.encode().len() <= MAX_BODY_BYTES);
    Answers::decode(&answers.encode(), MAX_ITEMS).unwrap();
}

#[test]
fn a_key_that_is_too_long_is_refused_before_it_is_sent() {
    let long = Item {
        put: 1,
        offset: 0,
        length: 1,
        checksum: 0,
        key: vec![0; MAX_KEY_BYTES + 1].into(),
        token: Box::default(),
    };
    let request = Request { items: vec![long] };
    assert_eq!(request.encode().unwrap_err().kind(), ErrorKind::InvalidInput);
}
