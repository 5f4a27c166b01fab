//! What the two ends of an RDMA link tell each other: whatever decodes must encode the same.
#![no_main]

use kvstored_verbs::LinkAddress;
use kvstored_verbs::wire::{MESSAGE_BYTES, MOST_GRANT_BYTES, Message, decode};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok((credits, message)) = decode(bytes) {
        if let Message::Request { grant, .. } = message {
            assert!(grant.len() <= MOST_GRANT_BYTES);
        }
        let mut again = [0; MESSAGE_BYTES];
        let length = message.encode(credits, &mut again).unwrap();
        // unknown kinds of errors become a known one
        if !matches!(message, Message::Answer { failure: Some(_), .. }) {
            assert_eq!(again[..length], *bytes);
        }
    }
    if let Ok(address) = LinkAddress::decode(bytes) {
        assert_eq!(address.encode(), *bytes);
    }
});
