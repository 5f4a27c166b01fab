//! Grants as they come from peers: whatever decodes must encode the same, and its range must be one.
#![no_main]

use kvstored_transfer::{GRANT_BYTES, Grant};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(grant) = Grant::decode(bytes) {
        assert_eq!(bytes.len(), GRANT_BYTES);
        assert_eq!(grant.encode(), *bytes);
        assert!(grant.rights().may_read() || grant.rights().may_write());
    }
});
