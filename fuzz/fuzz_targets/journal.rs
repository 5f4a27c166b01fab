//! The journal: its header and its records. Whatever parses must survive a round trip.
#![no_main]

use kvstored_backends::posix::format::WriterId;
use kvstored_backends::posix::format::journal::{HEADER_BYTES, JournalHeader, Parsed, RECORD_BYTES, Record};
use kvstored_core::envelope::header_checksum;
use libfuzzer_sys::fuzz_target;

const HEADER_CHECKSUM_OFFSET: usize = 124;

fuzz_target!(|bytes: &[u8]| {
    header_round_trip(bytes);
    for record in bytes.chunks(RECORD_BYTES) {
        record_round_trip(record);
    }
    // no fuzzer guesses a checksum: put in right ones, so that the fields behind them are reached
    let mut header = JournalHeader::encode(&empty_header());
    let length = bytes.len().min(HEADER_CHECKSUM_OFFSET - 16);
    header[16..16 + length].copy_from_slice(&bytes[..length]);
    let checksum = header_checksum(&[&header[..HEADER_CHECKSUM_OFFSET]]);
    header[HEADER_CHECKSUM_OFFSET..].copy_from_slice(&checksum.to_le_bytes());
    assert!(
        header_round_trip(&header),
        "a header with the right checksum is read"
    );
    for content in bytes.chunks(RECORD_BYTES - 4) {
        let mut record = [0u8; RECORD_BYTES];
        record[4..4 + content.len()].copy_from_slice(content);
        let checksum = header_checksum(&[&record[4..]]);
        record[..4].copy_from_slice(&checksum.to_le_bytes());
        assert!(
            record_round_trip(&record),
            "a record with the right checksum doesn't end the journal"
        );
    }
});

fn empty_header() -> JournalHeader {
    JournalHeader {
        writer: WriterId([0; 16]),
        epoch: 0,
        sequence: 0,
        boot_id: [0; 16],
        created_unix_us: 0,
    }
}

fn header_round_trip(bytes: &[u8]) -> bool {
    let Ok(header) = JournalHeader::decode(bytes) else {
        return false;
    };
    assert_eq!(header.encode().len(), HEADER_BYTES);
    assert_eq!(
        JournalHeader::decode(&header.encode()).expect("an encoded header decodes"),
        header
    );
    true
}

fn record_round_trip(bytes: &[u8]) -> bool {
    let parsed = Record::parse(bytes);
    if let Parsed::Record(record) = parsed {
        assert_eq!(Record::parse(&record.encode()), parsed);
    }
    parsed != Parsed::End
}
