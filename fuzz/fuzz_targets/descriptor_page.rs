//! The envelope: a page from a disk or from shared memory. Whatever decodes must survive a round trip.
#![no_main]

use kvstored_core::PAGE_BYTES;
use kvstored_core::envelope::{Envelope, FIXED_BYTES, MAGIC, VERSION, header_checksum};
use kvstored_core::layout::Layout;
use libfuzzer_sys::fuzz_target;

const SHARDS_OFFSET: usize = 10;
const CHECKSUM_OFFSET: usize = 188;

fuzz_target!(|bytes: &[u8]| {
    round_trip(bytes);
    let mut page = [0u8; PAGE_BYTES];
    let length = bytes.len().min(PAGE_BYTES);
    page[..length].copy_from_slice(&bytes[..length]);
    round_trip(&page);
    // no fuzzer guesses a checksum: make the page consistent, so that the fields behind it are reached
    seal(&mut page);
    round_trip(&page);
});

fn round_trip(page: &[u8]) {
    let Ok(envelope) = Envelope::decode(page) else {
        return;
    };
    let again = envelope
        .encode()
        .expect("a decoded envelope has no more shards than a page holds");
    assert_eq!(
        Envelope::decode(&again[..]).expect("an encoded envelope decodes"),
        envelope
    );
}

fn seal(page: &mut [u8; PAGE_BYTES]) {
    page[..MAGIC.len()].copy_from_slice(&MAGIC);
    page[8..10].copy_from_slice(&VERSION.to_le_bytes());
    let shards = usize::from(u16::from_le_bytes([page[SHARDS_OFFSET], page[SHARDS_OFFSET + 1]]))
        % (Layout::MAX_SHARDS + 1);
    page[SHARDS_OFFSET..SHARDS_OFFSET + 2].copy_from_slice(&(shards as u16).to_le_bytes());
    let header_bytes = FIXED_BYTES + 8 * shards;
    page[12..16].copy_from_slice(&(header_bytes as u32).to_le_bytes());
    let checksum = header_checksum(&[&page[..CHECKSUM_OFFSET], &page[FIXED_BYTES..header_bytes]]);
    page[CHECKSUM_OFFSET..FIXED_BYTES].copy_from_slice(&checksum.to_le_bytes());
}
