//! A segment's header page, trailer page and footer tables. Whatever decodes must survive a round trip.
#![no_main]

use kvstored_backends::posix::format::WriterId;
use kvstored_backends::posix::format::segment::{Footer, SegmentHeader, Trailer};
use kvstored_core::PAGE_BYTES;
use kvstored_core::envelope::header_checksum;
use libfuzzer_sys::fuzz_target;

const NAMESPACE_BYTES: usize = 64;
const ENTRY_BYTES: usize = 48;

fuzz_target!(|bytes: &[u8]| {
    header_round_trip(bytes);
    trailer_round_trip(bytes);
    // no fuzzer guesses a checksum: put in right ones, so that the fields behind them are reached
    header_round_trip(&sealed(&header().encode(), 12, 60, bytes));
    trailer_round_trip(&sealed(&trailer(0, 0, 0, &[]).encode(), 12, 64, bytes));
    tables(bytes);
});

/// A page with the input's bytes from `start`, and a checksum at `checksum` over all before it.
fn sealed(page: &[u8], start: usize, checksum: usize, bytes: &[u8]) -> Vec<u8> {
    let mut page = page.to_vec();
    let length = bytes.len().min(checksum - start);
    page[start..start + length].copy_from_slice(&bytes[..length]);
    let value = header_checksum(&[&page[..checksum]]);
    page[checksum..checksum + 4].copy_from_slice(&value.to_le_bytes());
    page
}

fn header() -> SegmentHeader {
    SegmentHeader {
        writer: WriterId([1; 16]),
        segment: 1,
        epoch: 1,
        created_unix_us: 1,
        pages: 1,
    }
}

fn trailer(footer_page: u32, namespaces: usize, entries: usize, tables: &[u8]) -> Trailer {
    Trailer {
        writer: WriterId([1; 16]),
        segment: 1,
        epoch: 1,
        sealed_unix_us: 1,
        footer_page,
        namespaces: namespaces as u32,
        entries: entries as u32,
        tables_checksum: header_checksum(&[tables]),
    }
}

fn header_round_trip(bytes: &[u8]) {
    let Ok(header) = SegmentHeader::decode(bytes) else {
        return;
    };
    assert_eq!(
        SegmentHeader::decode(&header.encode()).expect("an encoded header decodes"),
        header
    );
}

fn trailer_round_trip(bytes: &[u8]) {
    let Ok(trailer) = Trailer::decode(bytes) else {
        return;
    };
    assert_eq!(
        Trailer::decode(&trailer.encode()).expect("an encoded trailer decodes"),
        trailer
    );
    // a trailer may claim any size; it must not be believed beyond the file it stands in
    if trailer.fits(64 * PAGE_BYTES as u64) {
        assert!(trailer.tables_bytes() < 64 * PAGE_BYTES as u64);
    }
    let _ = Footer::decode(&trailer, bytes);
}

fn tables(bytes: &[u8]) {
    let [footer_page, namespaces, rows @ ..] = bytes else {
        return;
    };
    let namespaces = usize::from(*namespaces).min(rows.len() / NAMESPACE_BYTES);
    let entries = (rows.len() - namespaces * NAMESPACE_BYTES) / ENTRY_BYTES;
    let tables = &rows[..namespaces * NAMESPACE_BYTES + entries * ENTRY_BYTES];
    let trailer = trailer(u32::from(*footer_page), namespaces, entries, tables);
    let footer = Footer::decode(&trailer, tables).expect("tables with the right length and checksum decode");
    assert_eq!(footer.namespaces.len(), namespaces);
    assert!(footer.entries.len() <= entries);
    assert!(
        footer
            .entries
            .iter()
            .all(|entry| entry.page > 0 && entry.page <= trailer.footer_page)
    );

    let encoded = footer.encode(&header(), 2, 3, trailer.footer_page);
    let again = Trailer::decode(&encoded[encoded.len() - PAGE_BYTES..]).expect("an encoded trailer decodes");
    let file_bytes = u64::from(again.footer_page) * PAGE_BYTES as u64 + encoded.len() as u64;
    assert_eq!(again.fits(file_bytes), again.footer_page > 0);
    let tables = &encoded[..again.tables_bytes() as usize];
    assert_eq!(
        Footer::decode(&again, tables).expect("an encoded footer decodes"),
        footer
    );
}
