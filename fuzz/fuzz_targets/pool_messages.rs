//! What clients ask the pool's nodes, and what those answer: whatever decodes must encode the same.
#![no_main]

use kvstored_pool::wire::{Answers, Changes, Listing, MAX_ITEMS, MAX_KEYS, Request, Since, Verb};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((code, body)) = bytes.split_first() else {
        return;
    };
    if let Ok(verb) = Verb::of_code(*code) {
        assert_eq!(verb.code(), *code);
    }
    if let Ok(request) = Request::decode(body) {
        assert!(request.items.len() <= MAX_ITEMS);
        assert_eq!(request.encode().as_deref().ok(), Some(body));
    }
    // the client knows how many answers it expects
    if let Ok(answers) = Answers::decode(body, usize::from(*code)) {
        assert_eq!(answers.items.len(), usize::from(*code));
        let again = Answers::decode(&answers.encode(), answers.items.len());
        assert!(again.is_ok());
    }
    if let Ok(changes) = Changes::decode(body) {
        assert!(changes.changes.len() <= MAX_KEYS);
        assert_eq!(changes.encode(), body);
    }
    if let Ok(listing) = Listing::decode(body) {
        assert!(listing.keys.len() <= MAX_KEYS);
        assert_eq!(listing.encode(), body);
    }
    if let Ok(since) = Since::decode(body) {
        assert_eq!(since.encode(), body);
    }
});
